// One decoding step of a decoder-only transformer on a CPU: one new token for each of several rows, in one call.
//
// At a batch of one a step is weight traffic, so weights are read once a step, as they lie in memory (bfloat16 or
// float32), for all rows together. Activations are float32. A row's sums are added in an order that does not depend on
// the other rows, so it gets the same bits alone and in any batch. K and V are read where they lie, segment by segment.
//
// Compiled on the machine that runs it (see build.py); plain C++17 with the vector extensions of GCC and Clang.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#else
#define PAUSE() std::this_thread::yield()
#endif

#if defined(__AVX512F__)
constexpr int VL = 16;
#else
constexpr int VL = 8;
#endif
constexpr int BLOCK = 2 * VL;  // elements read at a time; every inner dimension is a multiple of it

typedef float vf __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4), aligned(2), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t bf16;

// ---- What Python describes (the same structures stand in decoder.py)

extern "C" {
struct Matrix {  // (outputs, inputs), row by row
    const void* weight;
    const float* bias;  // or null
    int64_t outputs;
};

struct Layer {
    const float *norm_in, *norm_attention, *norm_mlp, *norm_out;  // gains; null where the model has no such norm
    const float *q_norm, *k_norm;
    Matrix q, k, v, o, gate, up, down;
    int64_t rope;    // which table of cosines and sines
    int64_t window;  // positions that it looks back; 0 is all
};

struct Model {
    const Layer* layers;
    int64_t depth, hidden, inner, heads, kv_heads, head_dim;
    float eps, scale;
    int64_t gelu;   // 0: silu
    int64_t is_bf16;  // weights, and K and V
    const float* norm;
    Matrix head;
};

struct Segment {  // one layer's K and V of one stretch: (kv_heads, entries, head_dim)
    void *keys, *values;
    int64_t key_stride, value_stride;  // elements from one head to the next
};

struct Row {
    const Segment* segments;   // (depth, count); the last of each layer is the tail, which is written
    const int64_t* lengths;    // (count,) entries of each segment, the tail's before this step
    const int64_t* positions;  // (all entries and the new one,), or null where no window can matter
    int64_t count, position;
};
}

namespace {

// ---- Numbers

inline vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
inline void store(float* p, vf x) { *reinterpret_cast<vf*>(p) = x; }

// a * b + c, rounded once: said outright, since a compiler left to itself fuses in one place and not in another.
inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
    for (int i = 0; i < VL; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

// A block of weights as two vectors. bfloat16: the even elements, then the odd ones; float32: the first, the last.
inline void load(const bf16* w, vf& a, vf& b) {
    vu u = *reinterpret_cast<const vu*>(w);
    a = (vf)(u << 16);
    b = (vf)(u & 0xffff0000u);
}
inline void load(const float* w, vf& a, vf& b) {
    a = load(w);
    b = load(w + VL);
}

// Where element i of an activation lies so that it meets its weight.
template <class W> inline int64_t place(int64_t i);
template <> inline int64_t place<float>(int64_t i) { return i; }
template <> inline int64_t place<bf16>(int64_t i) {
    int64_t in = i % BLOCK;
    return i - in + (in & 1 ? VL : 0) + in / 2;
}

inline float sum(vf x) {
    float lanes[VL];
    std::memcpy(lanes, &x, sizeof lanes);
    for (int width = VL / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

inline bf16 to_bf16(float x) {  // to nearest, ties to even
    uint32_t u;
    std::memcpy(&u, &x, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return bf16((u >> 16) | 64);
    return bf16((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline void put(bf16* to, float x) { *to = to_bf16(x); }
inline void put(float* to, float x) { *to = x; }

inline vf splat(float x) { return x - vf{}; }

// e^x to about one unit in the last place: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes).
inline vf exp(vf x) {
    const vf low = splat(-87.0f), high = splat(88.0f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    vf n = x * 1.44269504088896341f + 12582912.0f;  // rounds to an integer by losing the rest
    vi exponent = ((vi)n - 0x4B400000 + 127) << 23;
    n -= 12582912.0f;
    x = x - n * 0.693359375f;
    x = x - n * -2.12194440e-4f;
    vf y = splat(1.9875691500e-4f);
    y = fma(y, x, splat(1.3981999507e-3f));
    y = fma(y, x, splat(8.3334519073e-3f));
    y = fma(y, x, splat(4.1665795894e-2f));
    y = fma(y, x, splat(1.6666665459e-1f));
    y = fma(y, x, splat(5.0000001201e-1f));
    y = y * x * x + x + 1.0f;
    return y * (vf)exponent;
}

inline vf silu(vf x) { return x / (exp(-x) + 1.0f); }
inline vf gelu_tanh(vf x) {  // x * sigmoid(2 u) = x / 2 * (1 + tanh(u))
    vf u = (x + x * x * x * 0.044715f) * 0.7978845608028654f;
    return x / (exp(u * -2.0f) + 1.0f);
}

// ---- Threads: they sleep between steps and spin within one

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

// ---- Matrix times rows

template <class W, class Out, int N, int R>
inline void block(const W* w, const float* x, int64_t inputs, Out* out, int64_t stride) {
    vf sums[N][R] = {};
    for (int64_t i = 0; i < inputs; i += BLOCK) {
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            vf a, b;
            load(w + n * inputs + i, a, b);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) sums[n][r] = fma(a, load(x + r * inputs + i), sums[n][r]);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) sums[n][r] = fma(b, load(x + r * inputs + i + VL), sums[n][r]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int r = 0; r < R; r++) put(out + r * stride + n, sum(sums[n][r]));
}

template <class W, class Out, int R>
inline void rows_at_once(const W* w, const float* x, int64_t inputs, Out* out, int64_t stride, int64_t outputs) {
    constexpr int N = R == 1 ? 4 : 2;
    int64_t n = 0;
    for (; n + N <= outputs; n += N) block<W, Out, N, R>(w + n * inputs, x, inputs, out + n, stride);
    for (; n < outputs; n++) block<W, Out, 1, R>(w + n * inputs, x, inputs, out + n, stride);
}

// out[r][n] for the outputs [begin, end). x: (rows, inputs), each element at its place.
template <class W, class Out>
void multiply(const Matrix& m, const float* x, int64_t rows, int64_t inputs, Out* out, int64_t stride, int64_t begin,
              int64_t end) {
    const W* weight = static_cast<const W*>(m.weight);
    const int64_t most = std::max<int64_t>(4, 131072 / inputs);  // weights that stay near while all rows meet them
    for (int64_t from = begin; from < end; from += most) {
        const int64_t outputs = std::min(most, end - from);
        const W* w = weight + from * inputs;
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4)
            rows_at_once<W, Out, 4>(w, x + r * inputs, inputs, out + r * stride + from, stride, outputs);
        if (r + 2 <= rows) {
            rows_at_once<W, Out, 2>(w, x + r * inputs, inputs, out + r * stride + from, stride, outputs);
            r += 2;
        }
        if (r < rows) rows_at_once<W, Out, 1>(w, x + r * inputs, inputs, out + r * stride + from, stride, outputs);
    }
}

struct Part {
    int64_t begin, end;
};
inline Part part_of(int64_t all, int index, int size) {  // in whole blocks
    int64_t blocks = (all + BLOCK - 1) / BLOCK;
    return {std::min(all, blocks * index / size * BLOCK), std::min(all, blocks * (index + 1) / size * BLOCK)};
}

// ---- The step

template <class W> struct Step {
    const Model& m;
    const Row* rows;
    const int64_t count;
    const float* const* rope;  // by table: (positions, 2, head_dim): cosines, sines
    const float* x;            // (count, hidden): embeddings
    float* logits;             // (count, vocab)
    Crew& crew;
    float *qkv, *attended, *projected, *activated;  // shared between threads

    int64_t q_width() const { return m.heads * m.head_dim; }
    int64_t kv_width() const { return m.kv_heads * m.head_dim; }
    int64_t qkv_width() const { return q_width() + 2 * kv_width(); }

    void work(int index) const {
        // Every thread keeps the residual stream for itself: it is small, and a barrier costs more than adding twice.
        std::vector<float> stream(x, x + count * m.hidden), normed(count * m.hidden), gate(count * m.inner);
        std::vector<float> scores;
        for (int64_t l = 0; l < m.depth; l++) {
            const Layer& layer = m.layers[l];
            norm(stream.data(), layer.norm_in, normed.data());
            project(layer, normed.data(), index);
            crew.barrier();
            for (int64_t task = index; task < count * m.kv_heads; task += crew.size)
                attend(l, task / m.kv_heads, task % m.kv_heads, scores);
            crew.barrier();
            spread(layer.o, attended, q_width(), projected, m.hidden, index);
            crew.barrier();
            add(stream.data(), layer.norm_attention);
            norm(stream.data(), layer.norm_mlp, normed.data());
            activate(layer, normed.data(), gate.data(), index);
            crew.barrier();
            spread(layer.down, activated, m.inner, projected, m.hidden, index);
            crew.barrier();
            add(stream.data(), layer.norm_out);
        }
        norm(stream.data(), m.norm, normed.data());
        spread(m.head, normed.data(), m.hidden, logits, m.head.outputs, index);
    }

    void spread(const Matrix& matrix, const float* in, int64_t inputs, float* out, int64_t stride, int index) const {
        Part part = part_of(matrix.outputs, index, crew.size);
        multiply<W>(matrix, in, count, inputs, out, stride, part.begin, part.end);
        if (matrix.bias)
            for (int64_t r = 0; r < count; r++)
                for (int64_t i = part.begin; i < part.end; i++) out[r * stride + i] += matrix.bias[i];
    }

    void project(const Layer& layer, const float* in, int index) const {
        spread(layer.q, in, m.hidden, qkv, qkv_width(), index);
        spread(layer.k, in, m.hidden, qkv + q_width(), qkv_width(), index);
        spread(layer.v, in, m.hidden, qkv + q_width() + kv_width(), qkv_width(), index);
    }

    float factor(const float* from, int64_t width) const {  // of RMS norm
        vf squares = {};
        for (int64_t i = 0; i < width; i += VL) squares = fma(load(from + i), load(from + i), squares);
        return 1.0f / std::sqrt(sum(squares) / float(width) + m.eps);
    }

    void norm(const float* from, const float* gain, float* to) const {  // to the places where weights meet it
        for (int64_t r = 0; r < count; r++, from += m.hidden, to += m.hidden) {
            float by = factor(from, m.hidden);
            for (int64_t i = 0; i < m.hidden; i++) to[place<W>(i)] = from[i] * by * gain[i];
        }
    }

    void add(float* stream, const float* gain) const {
        const float* from = projected;
        for (int64_t r = 0; r < count; r++, from += m.hidden, stream += m.hidden) {
            float by = gain ? factor(from, m.hidden) : 1.0f;
            for (int64_t i = 0; i < m.hidden; i++) stream[i] += gain ? from[i] * by * gain[i] : from[i];
        }
    }

    void activate(const Layer& layer, const float* in, float* gate, int index) const {
        Part part = part_of(m.inner, index, crew.size);
        float* up = projected_up();
        multiply<W>(layer.gate, in, count, m.hidden, gate, m.inner, part.begin, part.end);
        multiply<W>(layer.up, in, count, m.hidden, up, m.inner, part.begin, part.end);
        for (int64_t r = 0; r < count; r++)
            for (int64_t i = part.begin; i < part.end; i += VL) {
                vf g = load(gate + r * m.inner + i);
                vf h = (m.gelu ? gelu_tanh(g) : silu(g)) * load(up + r * m.inner + i);
                for (int lane = 0; lane < VL; lane++) activated[r * m.inner + place<W>(i + lane)] = h[lane];
            }
    }

    float* projected_up() const { return activated + count * m.inner; }

    // One row's queries of one KV head against all that the row holds, and its own new K and V.
    void attend(int64_t l, int64_t r, int64_t h, std::vector<float>& scores) const {
        const Layer& layer = m.layers[l];
        const Row& row = rows[r];
        const int64_t dim = m.head_dim, group = m.heads / m.kv_heads;
        const Segment* segments = row.segments + l * row.count;
        const float* table = rope[layer.rope] + row.position * 2 * dim;
        float* own = qkv + r * qkv_width();
        int64_t entries = 1;
        for (int64_t s = 0; s < row.count; s++) entries += row.lengths[s];

        write_new(layer, segments[row.count - 1], row.lengths[row.count - 1], own, h, table);
        std::vector<float> queries(group * dim);
        for (int64_t g = 0; g < group; g++) {
            float* q = own + (h * group + g) * dim;
            turn(q, layer.q_norm, table);
            for (int64_t i = 0; i < dim; i++) queries[g * dim + place<W>(i)] = q[i] * m.scale;
        }
        int64_t padded = (entries + VL - 1) / VL * VL;
        scores.resize(group * padded);
        score(row, segments, h, layer.window, queries.data(), group, scores.data(), padded);
        for (int64_t g = 0; g < group; g++) {
            float total = soften(scores.data() + g * padded, entries, padded);
            mix(row, segments, h, scores.data() + g * padded, total, attended + r * q_width() + (h * group + g) * dim);
        }
    }

    void turn(float* head, const float* gain, const float* table) const {  // norm, then RoPE by halves
        const int64_t dim = m.head_dim, half = dim / 2;
        const float *cos = table, *sin = table + dim;
        if (gain) {
            float by = factor(head, dim);
            for (int64_t i = 0; i < dim; i++) head[i] *= by * gain[i];
        }
        for (int64_t i = 0; i < half; i++) {
            float a = head[i], b = head[i + half];
            head[i] = a * cos[i] - b * sin[i];
            head[i + half] = b * cos[i + half] + a * sin[i + half];
        }
    }

    void write_new(const Layer& layer, const Segment& tail, int64_t at, float* own, int64_t h, const float* table) const {
        const int64_t dim = m.head_dim;
        float* k = own + q_width() + h * dim;
        const float* v = own + q_width() + kv_width() + h * dim;
        turn(k, layer.k_norm, table);
        W* keys = static_cast<W*>(tail.keys) + h * tail.key_stride + at * dim;
        W* values = static_cast<W*>(tail.values) + h * tail.value_stride + at * dim;
        for (int64_t i = 0; i < dim; i++) put(keys + i, k[i]), put(values + i, v[i]);
    }

    void score(const Row& row, const Segment* segments, int64_t h, int64_t window, const float* queries, int64_t group,
               float* scores, int64_t padded) const {
        const int64_t dim = m.head_dim;
        int64_t entry = 0;
        for (int64_t s = 0; s < row.count; s++) {
            const W* key = static_cast<const W*>(segments[s].keys) + h * segments[s].key_stride;
            const int64_t length = row.lengths[s] + (s == row.count - 1);
            for (int64_t p = 0; p < length; p++, entry++, key += dim) {
                bool far = window && row.positions && row.position - row.positions[entry] >= window;
                for (int64_t g = 0; g < group; g++)
                    scores[g * padded + entry] = far ? -INFINITY : dot(key, queries + g * dim, dim);
            }
        }
    }

    static float dot(const W* key, const float* query, int64_t dim) {
        vf even = {}, odd = {};
        for (int64_t i = 0; i < dim; i += BLOCK) {
            vf a, b;
            load(key + i, a, b);
            even = fma(a, load(query + i), even);
            odd = fma(b, load(query + i + VL), odd);
        }
        return sum(even + odd);
    }

    // Scores to weights, not yet divided by their sum, which is returned.
    static float soften(float* scores, int64_t entries, int64_t padded) {
        float top = *std::max_element(scores, scores + entries);
        std::fill(scores + entries, scores + padded, -INFINITY);
        vf total = {};
        for (int64_t i = 0; i < padded; i += VL) {
            vf s = load(scores + i) - top;
            vf weight = exp(s);
            weight = s < splat(-87.0f) ? vf{} : weight;
            store(scores + i, weight);
            total += weight;
        }
        return sum(total);
    }

    void mix(const Row& row, const Segment* segments, int64_t h, const float* weights, float total, float* out) const {
        constexpr int WIDE = 4;  // blocks at a time: eight sums in registers
        const int64_t dim = m.head_dim;
        for (int64_t from = 0; from < dim; from += WIDE * BLOCK) {
            const int blocks = int(std::min<int64_t>(WIDE, (dim - from) / BLOCK));
            if (blocks == WIDE) mix_blocks<WIDE>(row, segments, h, weights, total, out, from);
            else
                for (int b = 0; b < blocks; b++)
                    mix_blocks<1>(row, segments, h, weights, total, out, from + b * BLOCK);
        }
    }

    template <int N>
    void mix_blocks(const Row& row, const Segment* segments, int64_t h, const float* weights, float total, float* out,
                    int64_t from) const {
        const int64_t dim = m.head_dim;
        vf sums[2 * N] = {};
        int64_t entry = 0;
        for (int64_t s = 0; s < row.count; s++) {
            const W* value = static_cast<const W*>(segments[s].values) + h * segments[s].value_stride + from;
            const int64_t length = row.lengths[s] + (s == row.count - 1);
            for (int64_t p = 0; p < length; p++, entry++, value += dim) {
                const vf weight = splat(weights[entry]);
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) {
                    vf a, b;
                    load(value + n * BLOCK, a, b);
                    sums[2 * n] = fma(weight, a, sums[2 * n]);
                    sums[2 * n + 1] = fma(weight, b, sums[2 * n + 1]);
                }
            }
        }
        for (int n = 0; n < N; n++) {  // in the order in which the next weights meet it
            store(out + from + n * BLOCK, sums[2 * n] / total);
            store(out + from + n * BLOCK + VL, sums[2 * n + 1] / total);
        }
    }
};

std::mutex one_at_a_time;  // protects the crew and the scratch memory
Crew* crew = nullptr;
std::vector<float> scratch;

Crew& crew_of(int threads) {
    if (!crew || crew->size != threads || crew->pid != getpid()) crew = new Crew(threads);  // an old one sleeps on
    return *crew;
}

template <class W>
void step(const Model& m, const Row* rows, int64_t count, const float* const* rope, const float* x, float* logits,
          Crew& crew) {
    const int64_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
    const int64_t sizes[] = {count * (q + 2 * kv), count * q, count * m.hidden, 2 * count * m.inner};
    scratch.resize(sizes[0] + sizes[1] + sizes[2] + sizes[3]);
    float* at = scratch.data();
    Step<W> step{m, rows, count, rope, x, logits, crew, at, at + sizes[0], at + sizes[0] + sizes[1],
                 at + sizes[0] + sizes[1] + sizes[2]};
    crew.run([&](int index) { step.work(index); });
}

// y = x W': the linear layer of a prefill, for CPUs that have no instructions for bfloat16.
void linear(const Matrix& m, int64_t inputs, const bf16* x, int64_t rows, bf16* y, Crew& crew) {
    scratch.resize(rows * inputs);
    crew.run([&](int index) {
        for (int64_t r = rows * index / crew.size; r < rows * (index + 1) / crew.size; r++)
            for (int64_t i = 0; i < inputs; i += BLOCK) {
                vf even, odd;  // what bfloat16 weights are read as
                load(x + r * inputs + i, even, odd);
                store(scratch.data() + r * inputs + i, even);
                store(scratch.data() + r * inputs + i + VL, odd);
            }
        crew.barrier();
        Part part = part_of(m.outputs, index, crew.size);
        multiply<bf16>(m, scratch.data(), rows, inputs, y, m.outputs, part.begin, part.end);
    });
}

}  // namespace

extern "C" {

int64_t cachegraph_block() { return BLOCK; }

// logits: (count, vocab). K and V of the new tokens are written behind each row's tail.
void cachegraph_step(const Model* m, const Row* rows, int64_t count, const float* const* rope, const float* x,
                     float* logits, int64_t threads) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    Crew& crew = crew_of(int(threads));
    if (m->is_bf16) step<bf16>(*m, rows, count, rope, x, logits, crew);
    else step<float>(*m, rows, count, rope, x, logits, crew);
}

// x: (rows, inputs), y: (rows, outputs), weight: (outputs, inputs); all bfloat16.
void cachegraph_linear(const void* weight, int64_t outputs, int64_t inputs, const void* x, int64_t rows, void* y,
                       int64_t threads) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    Matrix matrix{weight, nullptr, outputs};
    linear(matrix, inputs, static_cast<const bf16*>(x), rows, static_cast<bf16*>(y), crew_of(int(threads)));
}
}
