// A thread pool whose threads sleep between steps and spin within one.
//
// Per-layer barriers stall on a busy machine: all threads wait until the system runs the last one. After two stalled
// steps one thread runs the next steps alone. Results do not depend on the number of threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#else
#define PAUSE() std::this_thread::yield()
#endif

namespace {

class ThreadPool {
  public:
    explicit ThreadPool(int threads) : threads(threads), pid(getpid()) {
        for (int i = 1; i < threads; i++) std::thread([this, i] { work(i); }).detach();
    }

    template <class F> void run(F&& job) {
        if (alone > 0 || threads == 1) {
            if (alone > 0) alone--;
            size = 1;
            job(0);
            return;
        }
        size = threads;
        call = [](void* f, int i) { (*static_cast<std::remove_reference_t<F>*>(f))(i); };
        argument = &job;
        left.store(threads - 1, std::memory_order_relaxed);
        waited = 0;
        const auto began = Clock::now();
        {
            std::lock_guard<std::mutex> guard(mutex);
            generation++;
        }
        wake.notify_all();
        job(0);
        wait_until([this] { return left.load(std::memory_order_acquire) == 0; });
        const bool again = crowded;
        crowded = waited > (Clock::now() - began).count() / 2;
        alone = patience = crowded && again ? std::min(2 * patience + 1, MOST) : 0;
    }

    void barrier() {
        if (size == 1) return;
        uint32_t now = phase.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived.store(0, std::memory_order_relaxed);
            phase.store(now + 1, std::memory_order_release);
            return;
        }
        wait_until([this, now] { return phase.load(std::memory_order_acquire) != now; });
    }

    const int threads;
    int size = 1;     // threads of the current step
    const pid_t pid;  // threads don't survive a fork

  private:
    typedef std::chrono::steady_clock Clock;
    static constexpr int MOST = 128;

    template <class F> void wait_until(F&& done) {
        for (int spins = 0; spins < 4000; spins++) {
            if (done()) return;
            PAUSE();
        }
        const auto began = Clock::now();
        while (!done()) std::this_thread::yield();  // another program needs the core
        waited.fetch_add((Clock::now() - began).count(), std::memory_order_relaxed);
    }

    void work(int index) {
        for (uint64_t seen = 0;;) {
            {
                std::unique_lock<std::mutex> guard(mutex);
                wake.wait(guard, [&] { return generation != seen; });
                seen = generation;
            }
            call(argument, index);
            left.fetch_sub(1, std::memory_order_release);
        }
    }

    std::mutex mutex;
    std::condition_variable wake;
    uint64_t generation = 0;
    void (*call)(void*, int) = nullptr;
    void* argument = nullptr;
    std::atomic<int> left{0}, arrived{0};
    std::atomic<uint32_t> phase{0};
    std::atomic<int64_t> waited{0};  // nanoseconds that all threads yielded in this step
    bool crowded = false;            // whether threads yielded for most of the last step that all took; once is chance
    int alone = 0, patience = 0;     // steps that one thread still runs alone; how many it runs in a row
};

}  // namespace
