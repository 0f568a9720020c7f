// Threads that sleep between steps and spin within one.

#pragma once

#include <atomic>
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

class Crew {
  public:
    explicit Crew(int size) : size(size), pid(getpid()) {
        for (int i = 1; i < size; i++) std::thread([this, i] { work(i); }).detach();
    }

    template <class F> void run(F&& job) {
        call = [](void* f, int i) { (*static_cast<std::remove_reference_t<F>*>(f))(i); };
        argument = &job;
        left.store(size - 1, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> guard(mutex);
            turn++;
        }
        wake.notify_all();
        job(0);
        wait_until([this] { return left.load(std::memory_order_acquire) == 0; });
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

    const int size;
    const pid_t pid;  // threads don't survive a fork

  private:
    template <class F> static void wait_until(F&& done) {
        for (int spins = 0; !done(); spins++) {
            if (spins < 4000) PAUSE();
            else std::this_thread::yield();  // somebody else needs the core
        }
    }

    void work(int index) {
        for (uint64_t seen = 0;;) {
            {
                std::unique_lock<std::mutex> guard(mutex);
                wake.wait(guard, [&] { return turn != seen; });
                seen = turn;
            }
            call(argument, index);
            left.fetch_sub(1, std::memory_order_release);
        }
    }

    std::mutex mutex;
    std::condition_variable wake;
    uint64_t turn = 0;
    void (*call)(void*, int) = nullptr;
    void* argument = nullptr;
    std::atomic<int> left{0}, arrived{0};
    std::atomic<uint32_t> phase{0};
};

}  // namespace
