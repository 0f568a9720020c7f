// A step of a few new tokens: at a batch of one it is weight traffic, so weights are read once, as they lie in memory,
// for all rows together. K and V are read where they lie, segment by segment.

#pragma once

#include "thread_pool.h"
#include "model.h"
#include "gemv.h"
#include "simd.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

template <class W, bool PAIRS, bool TILES> struct Step : Parts<W> {
    using Parts<W>::m, Parts<W>::q_width, Parts<W>::kv_width, Parts<W>::qkv_width;
    const Row* rows;
    const int64_t count;
    const float* const* rope;  // by table: (positions, 2, head_dim): cosines, sines
    const std::vector<int64_t>& firsts;  // where each cache's rows begin, and the end
    const int64_t* asked;      // rows whose logits are wanted, ascending
    const int64_t asked_count;
    float* logits;             // (asked, vocab)
    ThreadPool& pool;
    float *qkv, *attended, *projected, *activated;  // shared between threads

    void work(int index) const {
        // Every thread keeps the residual stream for itself: it is small, and a barrier costs more than adding twice.
        Lines<float> stream(count * m.hidden), normed(count * m.hidden), gate(count * m.inner), scores;
        for (int64_t r = 0; r < count; r++) this->embed(rows[r].token, &stream[r * m.hidden]);
        for (int64_t l = 0; l < m.depth; l++) {
            const Layer& layer = m.layers[l];
            norm_all(stream.data(), layer.norm_in, normed.data(), count);
            project(layer, normed.data(), index);
            pool.barrier();
            for (int64_t task = index; task < int64_t(firsts.size() - 1) * m.kv_heads; task += pool.size) {
                const int64_t cache = task / m.kv_heads;  // one thread takes its tokens in turn: each sees those before
                for (int64_t r = firsts[cache]; r < firsts[cache + 1]; r++) attend(l, r, task % m.kv_heads, scores);
            }
            pool.barrier();
            spread<true>(layer.o, attended, q_width(), projected, m.hidden, index);
            pool.barrier();
            add_all(stream.data(), layer.norm_attention);
            norm_all(stream.data(), layer.norm_mlp, normed.data(), count);
            expand(layer, normed.data(), gate.data(), index);
            pool.barrier();
            spread<true>(layer.down, activated, m.inner, projected, m.hidden, index);
            pool.barrier();
            add_all(stream.data(), layer.norm_out);
        }
        if (!asked_count) return;
        for (int64_t i = 0; i < asked_count; i++)
            std::memmove(&stream[i * m.hidden], &stream[asked[i] * m.hidden], m.hidden * sizeof(float));
        norm_all(stream.data(), m.norm, normed.data(), asked_count);
        const Part part = part_of(m.head.outputs, index, pool.size);
        this->template multiply_rows<PAIRS, false, TILES>(m.head, normed.data(), asked_count, m.hidden, logits,
                                                          this->logits_width(), part);
    }

    template <bool PLACED = false>
    void spread(const Matrix& matrix, const float* in, int64_t inputs, float* out, int64_t stride, int index) const {
        const Part part = part_of(matrix.outputs, index, pool.size);
        this->template multiply_rows<PAIRS, PLACED, TILES>(matrix, in, count, inputs, out, stride, part);
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
        const Part part = part_of(m.inner, index, pool.size);
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
            this->norm_and_rotate(q, layer.q_norm, table);
            for (int64_t i = 0; i < dim; i++) queries[g * dim + place<W>(i)] = q[i] * m.scale;
        }
        const int64_t window = row.positions ? layer.window : 0;
        const int64_t unseen = window ? this->out_of_sight(row, row.position, entries, window, VL) : 0;
        const int64_t seen = entries - unseen, padded = (seen + VL - 1) / VL * VL;
        scores.resize(group * padded);
        score(row, segments, h, window, unseen, queries.data(), group, scores.data(), padded);
        std::vector<float> totals(group);
        for (int64_t g = 0; g < group; g++) totals[g] = this->soften(scores.data() + g * padded, seen, padded);
        mix(row, segments, h, unseen, scores.data(), padded, totals.data(), group,
            attended + r * q_width() + h * group * dim);
    }

    // scores: of the entries from `unseen` on.
    void score(const Row& row, const Segment* segments, int64_t h, int64_t window, int64_t unseen,
               const float* queries, int64_t group, float* scores, int64_t padded) const {
        const int64_t dim = m.head_dim, *positions = row.positions + unseen;
        int64_t before = 0, entry = 0;
        for (int64_t s = 0; s < row.count; s++) {
            const int64_t length = row.lengths[s] + (s == row.count - 1 ? 1 + row.behind : 0);
            int64_t p = std::clamp<int64_t>(unseen - before, 0, length);
            const W* key = static_cast<const W*>(segments[s].keys) + h * segments[s].key_stride + p * dim;
            before += length;
            while (p < length) {
                const int64_t keys = length - p >= 4 ? 4 : 1;
                by_queries(group, [&](int64_t g, auto some) {
                    float* to = scores + g * padded + entry;
                    if (keys == 4) dots<4, some>(key, queries + g * dim, dim, to, padded);
                    else dots<1, some>(key, queries + g * dim, dim, to, padded);
                });
                if (window)
                    for (int64_t k = 0; k < keys; k++)
                        if (row.position - positions[entry + k] >= window)
                            for (int64_t g = 0; g < group; g++) scores[g * padded + entry + k] = -INFINITY;
                p += keys, entry += keys, key += keys * dim;
            }
        }
    }

    // Queries that share a KV head, as many at a time as there are registers for: what is read serves them all.
    template <class F> static void by_queries(int64_t group, F&& take) {
        int64_t g = 0;
        const auto next = [&](auto some) { take(g, some), g += some; };
#if defined(__AVX512F__)
        while (group - g > 3 && (group - g) % 3) next(std::integral_constant<int, 4>());
        while (group - g >= 3) next(std::integral_constant<int, 3>());
        if (group - g == 2) next(std::integral_constant<int, 2>());
#endif
        while (g < group) next(std::integral_constant<int, 1>());
    }

    // G queries with N keys that lie behind each other.
    template <int N, int G>
    static void dots(const W* key, const float* query, int64_t dim, float* out, int64_t stride) {
        vf totals[G][4] = {};
        for (int64_t i = 0; i < dim; i += BLOCK) {
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) {
                vf a, b;
                load(key + n * dim + i, a, b);
#pragma GCC unroll 4
                for (int g = 0; g < G; g++) {
                    const float* q = query + g * dim + i;
                    totals[g][n] = fma(b, load(q + VL), fma(a, load(q), totals[g][n]));
                }
            }
        }
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
            const Four done = sums(totals[g][0], totals[g][1], totals[g][2], totals[g][3]);
            std::memcpy(out + g * stride, done.of, N * sizeof(float));
        }
    }

    // out: of queries that share a KV head, in the order in which the next weights meet it.
    void mix(const Row& row, const Segment* segments, int64_t h, int64_t unseen, const float* weights, int64_t padded,
             const float* totals, int64_t group, float* out) const {
        const int64_t dim = m.head_dim;
        by_queries(group, [&](int64_t g, auto some) {
            constexpr int WIDE = some > 3 ? 2 : 4;  // blocks at a time
            const float* from = weights + g * padded;
            float* to = out + g * dim;
            int64_t d = 0;
            const auto take = [&](auto blocks) {
                for (; d + blocks * BLOCK <= dim; d += blocks * BLOCK)
                    mix_blocks<blocks, some>(row, segments, h, unseen, from, padded, totals + g, to, d);
            };
            take(std::integral_constant<int, WIDE>());
            take(std::integral_constant<int, 2>());
            take(std::integral_constant<int, 1>());
        });
    }

    template <int N, int G>
    void mix_blocks(const Row& row, const Segment* segments, int64_t h, int64_t unseen, const float* weights,
                    int64_t padded, const float* totals, float* out, int64_t from) const {
        const int64_t dim = m.head_dim;
        vf sums[G][2 * N] = {};
        int64_t before = 0, entry = 0;
        for (int64_t s = 0; s < row.count; s++) {
            const int64_t length = row.lengths[s] + (s == row.count - 1 ? 1 + row.behind : 0);
            int64_t p = std::clamp<int64_t>(unseen - before, 0, length);
            const W* value = static_cast<const W*>(segments[s].values) + h * segments[s].value_stride + p * dim + from;
            before += length;
            for (; p < length; p++, entry++, value += dim) {
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) {
                    vf a, b;
                    load(value + n * BLOCK, a, b);
#pragma GCC unroll 4
                    for (int g = 0; g < G; g++) {
                        const vf weight = splat(weights[g * padded + entry]);
                        sums[g][2 * n] = fma(weight, a, sums[g][2 * n]);
                        sums[g][2 * n + 1] = fma(weight, b, sums[g][2 * n + 1]);
                    }
                }
            }
        }
        for (int g = 0; g < G; g++)
            for (int n = 0; n < N; n++) {
                store(out + g * dim + from + n * BLOCK, sums[g][2 * n] / totals[g]);
                store(out + g * dim + from + n * BLOCK + VL, sums[g][2 * n + 1] / totals[g]);
            }
    }
};

}  // namespace
