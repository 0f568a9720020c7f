// Decoder-only transformers on a CPU: new tokens for each of several caches, in one call.
//
// Weights lie as they are (bfloat16, float32 or eight-bit integers); activations are float32, and rounded to bfloat16
// as they meet weights where the CPU is faster at multiplying that (gemm_amx.h, gemm_packed.h), or to bytes (gemm_int8.h). A row's
// sums are added in an order that does not depend on the other rows, so it gets the same bits alone and in any batch.
//
// Compiled on the machine that runs it (see build.py); plain C++17 with the vector extensions of GCC and Clang.

#include "thread_pool.h"
#include "lean_fuser.h"
#include "model.h"
#include "gemm_packed.h"
#include "prefill.h"
#include "decode.h"
#include "rope.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <type_traits>
#include <vector>

namespace {

std::mutex one_at_a_time;  // protects the pool and the scratch memory
ThreadPool* pool = nullptr;
Lines<float> scratch;
Words packed;

ThreadPool& pool_of(int threads) {
    if (!pool || pool->threads != threads || pool->pid != getpid()) pool = new ThreadPool(threads);  // an old one sleeps on
    return *pool;
}

// Whether two bfloat16 at a time are faster than floats: not on every CPU that has instructions for it.
#if defined(__AVX512BF16__)
template <class T> double seconds() {
    constexpr int64_t WORDS = 256;
    Words x(ROWS * WORDS), panel(BLOCK * (WORDS + AHEAD));
    Lines<float> out(ROWS * BLOCK);
    double best = 1;
    for (int i = 0; i < 20; i++) {
        const auto began = std::chrono::steady_clock::now();
        for (int j = 0; j < 10; j++) tile<T, ROWS>(x.data(), ROWS, panel.data(), WORDS, out.data(), BLOCK, true);
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    }
    return best;
}
bool in_pairs() {  // a word is two
    static const bool faster = seconds<Pairs>() < 2 * seconds<Singles>();
    return faster;
}
#else
bool in_pairs() { return false; }
#endif

struct Work {  // what Python asks for
    const Model& m;
    const Row* rows;
    int64_t count;
    const float* const* rope;
    const int64_t* asked;
    int64_t asked_count;
    float* logits;
};

struct NoTiles {
    ~NoTiles() {}
};
template <bool TILES> using MaybeTiles = std::conditional_t<TILES, Tiles, NoTiles>;

std::vector<int64_t> firsts_of(const Work& w) {
    std::vector<int64_t> firsts;
    for (int64_t r = 0; r < w.count; r++)
        if (!w.rows[r].behind) firsts.push_back(r);
    firsts.push_back(w.count);
    return firsts;
}

template <class W, bool PAIRS, bool TILES> void step(const Work& w, ThreadPool& pool) {
    const std::vector<int64_t> firsts = firsts_of(w);
    const int64_t q = w.m.heads * w.m.head_dim, kv = w.m.kv_heads * w.m.head_dim;
    const int64_t sizes[] = {w.count * (q + 2 * kv), w.count * q, w.count * w.m.hidden, 2 * w.count * w.m.inner};
    scratch.resize(sizes[0] + sizes[1] + sizes[2] + sizes[3]);
    float* at = scratch.data();
    Step<W, PAIRS, TILES> step{{w.m}, w.rows, w.count, w.rope, firsts, w.asked, w.asked_count, w.logits, pool,
                 at, at + sizes[0], at + sizes[0] + sizes[1], at + sizes[0] + sizes[1] + sizes[2]};
    pool.run([&](int index) {
        const MaybeTiles<TILES> tiles{};
        step.work(index);
    });
}

bool all_in_bytes(const Model& m) {
    return std::all_of(m.layers, m.layers + m.depth, [](const Layer& layer) {
        const Matrix* all[] = {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down};
        return std::all_of(std::begin(all), std::end(all), [](const Matrix* matrix) { return matrix->scales; });
    });
}

template <class W, bool PAIRS, bool TILES> void prefill(const Work& w, bool in_bytes, ThreadPool& pool) {
    typedef Prefill<W, PAIRS, TILES> Chosen;
    const std::vector<int64_t> firsts = firsts_of(w);
    const int64_t whole = (w.count + Chosen::HIGH - 1) / Chosen::HIGH * Chosen::HIGH;  // rows, in tiles
    const int64_t q = w.m.heads * w.m.head_dim, kv = w.m.kv_heads * w.m.head_dim;
    const int64_t widths[] = {w.m.hidden, q + 2 * kv, q, w.m.hidden, w.m.inner, w.m.inner};
    int64_t all = 0;
    for (int64_t width : widths) all += width;
    scratch.resize(all * w.count);
    packed.resize(whole * std::max({w.m.hidden, q, w.m.inner}));
    float* at[6] = {scratch.data()};
    for (int i = 1; i < 6; i++) at[i] = at[i - 1] + widths[i - 1] * w.count;
    std::atomic<int64_t> next{0};
    Chosen prefill{{w.m}, w.rows, w.count, w.rope, firsts, w.asked, w.asked_count, w.logits, pool, at[0], at[1], at[2],
                   at[3], at[4], at[5], packed.data(), in_bytes, next};
    pool.run([&](int index) {
        const MaybeTiles<TILES> tiles{};
        prefill.work(index);
    });
}

template <class W, bool PAIRS, bool TILES> void read_so(const Work& w, bool many, bool in_bytes, ThreadPool& pool) {
    if (many) prefill<W, PAIRS, TILES>(w, in_bytes, pool);
    else step<W, PAIRS, TILES>(w, pool);
}
template <class W> void read(const Work& w, bool many, ThreadPool& pool) {
    constexpr bool NARROW = sizeof(W) == 2;
    const bool in_bytes = IN_BYTES && NARROW && all_in_bytes(w.m);
    if (NARROW && !in_bytes && may_use_tiles()) read_so<W, NARROW, NARROW && IN_TILES>(w, many, false, pool);
    else if (NARROW && in_pairs()) read_so<W, true, false>(w, many, in_bytes, pool);
    else read_so<W, false, false>(w, many, in_bytes, pool);
}

template <bool PAIRS, bool TILES> void correct(const Lean& m, ThreadPool& pool) {
    std::atomic<int64_t> next{0};
    const Correction<PAIRS, TILES> correction{m, next};
    pool.run([&](int) {
        const MaybeTiles<TILES> tiles{};
        correction.work();
    });
}

template <class W, class A> void make_panels(const Matrix& m, int64_t inputs, bool placed, int32_t* to, ThreadPool& pool) {
    pool.run([&](int index) {
        const Part part = part_of(m.outputs, index, pool.size);
        for (int64_t n = part.begin; n < part.end; n += BLOCK) {
            int32_t* panel = to + n * (inputs / in_word<W>());
            if (placed) make_panel_of<W, A, true>(m, inputs, n, 0, inputs, panel);
            else make_panel_of<W, A, false>(m, inputs, n, 0, inputs, panel);
        }
    });
}

// y = x W': a linear layer in float32, for CPUs that are slow at bfloat16.
void linear(const Matrix& m, int64_t inputs, const bf16* x, int64_t rows, bf16* y, ThreadPool& pool) {
    constexpr int64_t SOME = 4 * BLOCK;  // outputs at a time
    packed.resize(tiles_of(rows) * ROWS * inputs);
    pool.run([&](int index) {
        Lines<float> wide(ROWS * inputs), out(rows * SOME);
        for (int64_t t = tiles_of(rows) * index / pool.size; t < tiles_of(rows) * (index + 1) / pool.size; t++) {
            const int64_t some = std::min<int64_t>(ROWS, rows - t * ROWS);
            for (int64_t i = 0; i < some * inputs; i += BLOCK) {
                vf even, odd;
                load(x + t * ROWS * inputs + i, even, odd);
                store(&wide[i], even), store(&wide[i + VL], odd);
            }
            pack<Floats, bf16>(wide.data(), inputs, some, inputs, &packed[t * ROWS * inputs]);
        }
        pool.barrier();
        const Part part = part_of(m.outputs, index, pool.size);
        for (int64_t n = part.begin; n < part.end; n += SOME) {
            const int64_t end = std::min(n + SOME, part.end);
            multiply_many<bf16, false>(m, packed.data(), rows, inputs, out.data() - n, SOME, n, end);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = n; i < end; i++) y[r * m.outputs + i] = to_bf16(out[r * SOME + i - n]);
        }
    });
}

}  // namespace

extern "C" {

int64_t cachegraph_block() { return BLOCK; }
int64_t cachegraph_in_pairs() { return in_pairs(); }
int64_t cachegraph_in_bytes() { return IN_BYTES; }
int64_t cachegraph_in_tiles() { return may_use_tiles(); }

// panels: as many bytes as `weight` has, its outputs rounded up to whole blocks. bytes: of one weight. is_bf16: whether
// the model is.
void cachegraph_panels(const void* weight, int64_t outputs, int64_t inputs, int64_t bytes, int64_t is_bf16,
                       int64_t placed, void* panels, int64_t threads) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    const Matrix matrix{weight, nullptr, outputs, nullptr, nullptr};
    ThreadPool& pool = pool_of(int(threads));
    const auto make = [&](auto made) { made(matrix, inputs, placed, static_cast<int32_t*>(panels), pool); };
    if (bytes == 4) make(make_panels<float, float>);
    else if (bytes == 2) make(make_panels<bf16, bf16>);
    else if (is_bf16) make(make_panels<int8_t, bf16>);
    else make(make_panels<int8_t, float>);
}

// logits: (asked, vocab rounded up to whole blocks). K and V of the new tokens are written behind each cache's tail.
void cachegraph_read(const Model* m, const Row* rows, int64_t count, const float* const* rope,
                     const int64_t* asked, int64_t asked_count, float* logits, int64_t many, int64_t threads) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    ThreadPool& pool = pool_of(int(threads));
    const Work work{*m, rows, count, rope, asked, asked_count, logits};
    if (m->is_bf16) read<bf16>(work, many, pool);
    else read<float>(work, many, pool);
}

// x: (rows, inputs), y: (rows, outputs), weight: (outputs, inputs); all bfloat16.
void cachegraph_linear(const void* weight, int64_t outputs, int64_t inputs, const void* x, int64_t rows, void* y,
                       int64_t threads) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    Matrix matrix{weight, nullptr, outputs, nullptr, nullptr};
    linear(matrix, inputs, static_cast<const bf16*>(x), rows, static_cast<bf16*>(y), pool_of(int(threads)));
}

// Keys and values of the receiver, all positions of which `new_keys` and `new_values` hold already, at `here`.
void cachegraph_correct(const Lean* m, int64_t threads) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    ThreadPool& pool = pool_of(int(threads));
    if (may_use_tiles()) correct<IN_TILES, IN_TILES>(*m, pool);
    else if (in_pairs()) correct<true, false>(*m, pool);
    else correct<false, false>(*m, pool);
}

void cachegraph_rotate(const RotatedLayer* layers, int64_t count, int64_t heads, int64_t positions, int64_t dim,
                     int64_t threads) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    rotate(layers, count, heads, positions, dim, pool_of(int(threads)));
}
}
