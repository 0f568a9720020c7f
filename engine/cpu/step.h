// A step of a few new tokens: at a batch of one it is weight traffic, so weights are read once, as they lie in memory, for
// all rows together. K and V are read where they lie, segment by segment.

#pragma once

#include "crew.h"
#include "model.h"
#include "multiply.h"
#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

template <class W, bool PAIRS> struct Step : Parts<W> {
    using Parts<W>::m, Parts<W>::q_width, Parts<W>::kv_width, Parts<W>::qkv_width;
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

    void work(int index) const {
        // Every thread keeps the residual stream for itself: it is small, and a barrier costs more than adding twice.
        Lines<float> stream(x, x + count * m.hidden), normed(count * m.hidden), gate(count * m.inner);
        Lines<float> scores;
        for (int64_t l = 0; l < m.depth; l++) {
            const Layer& layer = m.layers[l];
            norm_all(stream.data(), layer.norm_in, normed.data(), count);
            project(layer, normed.data(), index);
            crew.barrier();
            for (int64_t task = index; task < int64_t(firsts.size() - 1) * m.kv_heads; task += crew.size) {
                const int64_t cache = task / m.kv_heads;  // one thread takes its tokens in turn: each sees those before
                for (int64_t r = firsts[cache]; r < firsts[cache + 1]; r++) attend(l, r, task % m.kv_heads, scores);
            }
            crew.barrier();
            spread<true>(layer.o, attended, q_width(), projected, m.hidden, index);
            crew.barrier();
            add_all(stream.data(), layer.norm_attention);
            norm_all(stream.data(), layer.norm_mlp, normed.data(), count);
            expand(layer, normed.data(), gate.data(), index);
            crew.barrier();
            spread<true>(layer.down, activated, m.inner, projected, m.hidden, index);
            crew.barrier();
            add_all(stream.data(), layer.norm_out);
        }
        if (!asked_count) return;
        for (int64_t i = 0; i < asked_count; i++)
            std::memmove(&stream[i * m.hidden], &stream[asked[i] * m.hidden], m.hidden * sizeof(float));
        norm_all(stream.data(), m.norm, normed.data(), asked_count);
        this->template multiply_rows<PAIRS, false>(m.head, normed.data(), asked_count, m.hidden, logits,
                                                   this->logits_width(), part_of(m.head.outputs, index, crew.size));
    }

    template <bool PLACED = false>
    void spread(const Matrix& matrix, const float* in, int64_t inputs, float* out, int64_t stride, int index) const {
        this->template multiply_rows<PAIRS, PLACED>(matrix, in, count, inputs, out, stride,
                                                    part_of(matrix.outputs, index, crew.size));
    }

    void project(const Layer& layer, const float* in, int index) const {
        spread(layer.q, in, m.hidden, qkv, qkv_width(), index);
        spread(layer.k, in, m.hidden, qkv + q_width(), qkv_width(), index);
        spread(layer.v, in, m.hidden, qkv + q_width() + kv_width(), qkv_width(), index);
    }

    void norm_all(const float* from, const float* gain, float* to, int64_t many) const {
        for (int64_t r = 0; r < many; r++) this->norm(from + r * m.hidden, gain, to + r * m.hidden);
    }

    void add_all(float* stream, const float* gain) const {
        for (int64_t r = 0; r < count; r++) this->add(projected + r * m.hidden, gain, stream + r * m.hidden);
    }

    void expand(const Layer& layer, const float* in, float* gate, int index) const {
        const Part part = part_of(m.inner, index, crew.size);
        float* up = activated + count * m.inner;
        spread<true>(layer.gate, in, m.hidden, gate, m.inner, index);
        spread<true>(layer.up, in, m.hidden, up, m.inner, index);
        for (int64_t r = 0; r < count * m.inner; r += m.inner) this->activate(gate + r, up + r, activated + r, part);
    }

    // One row's queries of one KV head against all that the row holds, and its own new K and V.
    void attend(int64_t l, int64_t r, int64_t h, Lines<float>& scores) const {
        const Layer& layer = m.layers[l];
        const Row& row = rows[r];
        const int64_t dim = m.head_dim, group = m.heads / m.kv_heads;
        const Segment* segments = row.segments + l * row.count;
        const float* table = rope[layer.rope] + row.position * 2 * dim;
        float* own = qkv + r * qkv_width();
        int64_t entries = 1 + row.behind;
        for (int64_t s = 0; s < row.count; s++) entries += row.lengths[s];

        this->write_new(layer, segments[row.count - 1], row.lengths[row.count - 1] + row.behind, own, h, table);
        Lines<float> queries(group * dim);
        for (int64_t g = 0; g < group; g++) {
            float* q = own + (h * group + g) * dim;
            this->turn(q, layer.q_norm, table);
            for (int64_t i = 0; i < dim; i++) queries[g * dim + place<W>(i)] = q[i] * m.scale;
        }
        int64_t padded = (entries + VL - 1) / VL * VL;
        scores.resize(group * padded);
        score(row, segments, h, layer.window, queries.data(), group, scores.data(), padded);
        for (int64_t g = 0; g < group; g++) {
            float total = this->soften(scores.data() + g * padded, entries, padded);
            mix(row, segments, h, scores.data() + g * padded, total, attended + r * q_width() + (h * group + g) * dim);
        }
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

}  // namespace
