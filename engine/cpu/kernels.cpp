// One step of a decoder-only transformer on a CPU: a new token, or a few, for each of several caches, in one call.
//
// At a batch of one a step is weight traffic, so weights are read once a step, as they lie in memory (bfloat16 or
// float32), for all rows together. Activations are float32; where the CPU multiplies bfloat16 itself they are rounded
// to it as they meet weights. A row's sums are added in an order that does not depend on the other rows, so it gets the
// same bits alone and in any batch. K and V are read where they lie, segment by segment.
//
// Compiled on the machine that runs it (see build.py); plain C++17 with the vector extensions of GCC and Clang.

#include "crew.h"
#include "multiply.h"
#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>
#include <unistd.h>

// ---- What Python describes (the same structures stand in decoder.py)

extern "C" {
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
    int64_t behind;  // how many earlier tokens of the same cache stand right in front of it in this step
};
}

namespace {

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
    const float* x;            // (count, hidden): embeddings, each element at its place
    const std::vector<int64_t>& firsts;  // where each cache's rows begin, and the end
    const int64_t* asked;      // rows whose logits are wanted, ascending
    const int64_t asked_count;
    float* logits;             // (asked, vocab)
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
            for (int64_t task = index; task < int64_t(firsts.size() - 1) * m.kv_heads; task += crew.size) {
                const int64_t cache = task / m.kv_heads;  // one thread takes its tokens in turn: each sees those before
                for (int64_t r = firsts[cache]; r < firsts[cache + 1]; r++) attend(l, r, task % m.kv_heads, scores);
            }
            crew.barrier();
            spread<true>(layer.o, attended, q_width(), projected, m.hidden, index);
            crew.barrier();
            add(stream.data(), layer.norm_attention);
            norm(stream.data(), layer.norm_mlp, normed.data());
            activate(layer, normed.data(), gate.data(), index);
            crew.barrier();
            spread<true>(layer.down, activated, m.inner, projected, m.hidden, index);
            crew.barrier();
            add(stream.data(), layer.norm_out);
        }
        if (!asked_count) return;
        for (int64_t i = 0; i < asked_count; i++)
            std::memmove(&stream[i * m.hidden], &stream[asked[i] * m.hidden], m.hidden * sizeof(float));
        norm(stream.data(), m.norm, normed.data());
        spread(m.head, normed.data(), m.hidden, logits, m.head.outputs, index, asked_count);
    }

    template <bool PLACED = false>
    void spread(const Matrix& matrix, const float* in, int64_t inputs, float* out, int64_t stride, int index,
                int64_t first = 0) const {  // so many of the rows; 0: all
        const int64_t many = first ? first : count;
        Part part = part_of(matrix.outputs, index, crew.size);
        multiply<W, PLACED>(matrix, in, many, inputs, out, stride, part.begin, part.end);
        if (matrix.bias)
            for (int64_t r = 0; r < many; r++)
                for (int64_t i = part.begin; i < part.end; i++)
                    out[r * stride + (PLACED ? place<W>(i) : i)] += matrix.bias[i];
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

    void norm(const float* from, const float* gain, float* to) const {
        for (int64_t r = 0; r < count; r++, from += m.hidden, to += m.hidden) {
            const float by = factor(from, m.hidden);
            for (int64_t i = 0; i < m.hidden; i += VL) store(to + i, load(from + i) * by * load(gain + i));
        }
    }

    void add(float* stream, const float* gain) const {
        const float* from = projected;
        for (int64_t r = 0; r < count; r++, from += m.hidden, stream += m.hidden) {
            const float by = gain ? factor(from, m.hidden) : 1.0f;
            for (int64_t i = 0; i < m.hidden; i += VL) {
                const vf more = gain ? load(from + i) * by * load(gain + i) : load(from + i);
                store(stream + i, load(stream + i) + more);
            }
        }
    }

    void activate(const Layer& layer, const float* in, float* gate, int index) const {
        Part part = part_of(m.inner, index, crew.size);
        float* up = projected_up();
        multiply<W, true>(layer.gate, in, count, m.hidden, gate, m.inner, part.begin, part.end);
        multiply<W, true>(layer.up, in, count, m.hidden, up, m.inner, part.begin, part.end);
        for (int64_t r = 0; r < count; r++)
            for (int64_t i = r * m.inner + part.begin; i < r * m.inner + part.end; i += VL) {
                const vf g = load(gate + i);
                store(activated + i, (m.gelu ? gelu_tanh(g) : silu(g)) * load(up + i));
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
        int64_t entries = 1 + row.behind;
        for (int64_t s = 0; s < row.count; s++) entries += row.lengths[s];

        write_new(layer, segments[row.count - 1], row.lengths[row.count - 1] + row.behind, own, h, table);
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

    void write_new(const Layer& layer, const Segment& tail, int64_t at, float* own, int64_t h,
                   const float* table) const {
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
            const int64_t length = row.lengths[s] + (s == row.count - 1 ? 1 + row.behind : 0);
            for (int64_t p = 0; p < length;) {
                const int64_t keys = length - p >= 4 ? 4 : 1;
                for (int64_t g = 0; g < group; g++) {
                    float* to = scores + g * padded + entry;
                    if (keys == 4) std::memcpy(to, dots<4>(key, queries + g * dim, dim).of, 4 * sizeof(float));
                    else to[0] = dots<1>(key, queries + g * dim, dim).of[0];
                    if (window && row.positions)
                        for (int64_t k = 0; k < keys; k++)
                            if (row.position - row.positions[entry + k] >= window) to[k] = -INFINITY;
                }
                p += keys, entry += keys, key += keys * dim;
            }
        }
    }

    // One query with N keys that lie behind each other.
    template <int N> static Four dots(const W* key, const float* query, int64_t dim) {
        vf totals[4] = {};
        for (int64_t i = 0; i < dim; i += BLOCK) {
            const vf first = load(query + i), last = load(query + i + VL);
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) {
                vf a, b;
                load(key + n * dim + i, a, b);
                totals[n] = fma(b, last, fma(a, first, totals[n]));
            }
        }
        return sums(totals[0], totals[1], totals[2], totals[3]);
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
            else if (blocks == 2) mix_blocks<2>(row, segments, h, weights, total, out, from);
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
            const int64_t length = row.lengths[s] + (s == row.count - 1 ? 1 + row.behind : 0);
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
void step(const Model& m, const Row* rows, int64_t count, const float* const* rope, const float* x,
          const int64_t* asked, int64_t asked_count, float* logits, Crew& crew) {
    std::vector<int64_t> firsts;
    for (int64_t r = 0; r < count; r++)
        if (!rows[r].behind) firsts.push_back(r);
    firsts.push_back(count);
    const int64_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
    const int64_t sizes[] = {count * (q + 2 * kv), count * q, count * m.hidden, 2 * count * m.inner};
    scratch.resize(sizes[0] + sizes[1] + sizes[2] + sizes[3]);
    float* at = scratch.data();
    Step<W> step{m, rows, count, rope, x, firsts, asked, asked_count, logits, crew, at, at + sizes[0], at + sizes[0] + sizes[1],
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

// logits: (asked, vocab). K and V of the new tokens are written behind each cache's tail.
void cachegraph_step(const Model* m, const Row* rows, int64_t count, const float* const* rope, const float* x,
                     const int64_t* asked, int64_t asked_count, float* logits, int64_t threads) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    Crew& crew = crew_of(int(threads));
    if (m->is_bf16) step<bf16>(*m, rows, count, rope, x, asked, asked_count, logits, crew);
    else step<float>(*m, rows, count, rope, x, asked, asked_count, logits, crew);
}

// x: (rows, inputs), y: (rows, outputs), weight: (outputs, inputs); all bfloat16.
void cachegraph_linear(const void* weight, int64_t outputs, int64_t inputs, const void* x, int64_t rows, void* y,
                       int64_t threads) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    Matrix matrix{weight, nullptr, outputs};
    linear(matrix, inputs, static_cast<const bf16*>(x), rows, static_cast<bf16*>(y), crew_of(int(threads)));
}
}
