// Many new tokens at once, as of a prompt: matrix products of many rows, attention in blocks, nothing written that is
// not read again. The threads share the rows where work goes by rows, and the outputs where it goes by weights.

#pragma once

#include "gemm_int8.h"
#include "thread_pool.h"
#include "model.h"
#include "gemv.h"
#include "simd.h"
#include "gemm_packed.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

template <class W> struct Attention {  // what one thread needs to attend, kept from task to task
    std::vector<const W*> keys, values;  // by entry
    Lines<float> queries, scores, mixed;
    Words packed, panel, pairs;
};

template <class W, bool PAIRS, bool TILES> struct Prefill : Parts<W> {
    typedef Way<W, PAIRS || TILES> Chosen;
    static constexpr int64_t HIGH = TILES ? TALL : ROWS;  // rows that are packed together
    using Parts<W>::m, Parts<W>::q_width, Parts<W>::kv_width, Parts<W>::qkv_width;
    const Row* rows;
    const int64_t count;
    const float* const* rope;  // by table: (positions, 2, head_dim): cosines, sines
    const std::vector<int64_t>& firsts;  // where each cache's rows begin, and the end
    const int64_t* asked;      // rows whose logits are wanted, ascending
    const int64_t asked_count;
    float* logits;             // (asked, vocab)
    ThreadPool& pool;
    float* stream;  // (count, hidden), each element at its place
    float *qkv, *attended, *projected, *gate, *up;  // (count, the width of each)
    int32_t* packed;                                // (tiles, words of the widest input, HIGH)
    const bool in_bytes;                            // activations, too
    std::atomic<int64_t>& next;                     // task of attention

    void work(int index) const {
        Attention<W> kept;
        Lines<float> normed(HIGH * m.hidden);
        each_row(index, [&](int64_t r) { this->embed(rows[r].token, stream + r * m.hidden); });
        for (int64_t l = 0; l < m.depth; l++) {
            const Layer& layer = m.layers[l];
            if (index == 0) next = 0;
            pack_normed(layer.norm_in, normed.data(), index);
            pool.barrier();
            spread(layer.q, m.hidden, qkv, qkv_width(), index);
            spread(layer.k, m.hidden, qkv + q_width(), qkv_width(), index);
            spread(layer.v, m.hidden, qkv + q_width() + kv_width(), qkv_width(), index);
            pool.barrier();
            each_row(index, [&](int64_t r) { place_row(l, r); });
            if (l == m.depth - 1 && !asked_count) return;  // the caches are written, and no logits are asked for
            pool.barrier();
            attend_all(l, kept);
            pool.barrier();
            pack_rows(attended, q_width(), index);
            pool.barrier();
            spread<true>(layer.o, q_width(), projected, m.hidden, index);
            pool.barrier();
            each_row(index, [&](int64_t r) { add_row(layer.norm_attention, r); });
            pack_normed(layer.norm_mlp, normed.data(), index);
            pool.barrier();
            expand(layer, index);
            pool.barrier();
            pack_rows(gate, m.inner, index);
            pool.barrier();
            spread<true>(layer.down, m.inner, projected, m.hidden, index);
            pool.barrier();
            each_row(index, [&](int64_t r) { add_row(layer.norm_out, r); });
        }
        pool.barrier();
        if (asked_count) answer(index);
    }

    // The tiles whose rows a thread takes.
    template <class F> void each_tile(int index, F&& take) const {
        const int64_t all = (count + HIGH - 1) / HIGH;
        for (int64_t t = all * index / pool.size; t < all * (index + 1) / pool.size; t++)
            take(t, std::min(HIGH, count - t * HIGH));
    }
    template <class F> void each_row(int index, F&& take) const {
        each_tile(index, [&](int64_t t, int64_t some) {
            for (int64_t r = t * HIGH; r < t * HIGH + some; r++) take(r);
        });
    }

    void pack_normed(const float* gain, float* normed, int index) const {
        each_tile(index, [&](int64_t t, int64_t some) {
            for (int64_t r = 0; r < some; r++)
                this->norm(stream + (t * HIGH + r) * m.hidden, gain, normed + r * m.hidden);
            put(normed, m.hidden, t, some);
        });
    }
    void pack_rows(const float* x, int64_t width, int index) const {
        each_tile(index, [&](int64_t t, int64_t some) {
            put(x + t * HIGH * width, width, t, some);
        });
    }
    void put(const float* x, int64_t width, int64_t t, int64_t some) const {
#if defined(__AVX512VNNI__)
        const ByteTile tile{width, ROWS};
        if (in_bytes) return pack_bytes(x, width, some, tile, packed + t * tile.size());
#endif
        int32_t* to = packed + t * HIGH * (width / Chosen::IN_WORD);
        if (TILES) return pack_tall<true>(x, width, some, width, to);
        pack<typename Chosen::As, W>(x, width, some, width, to);
    }

    template <bool PLACED = false>
    void spread(const Matrix& matrix, int64_t inputs, float* out, int64_t stride, int index) const {
        const Part part = part_of(matrix.outputs, index, pool.size);
#if defined(__AVX512VNNI__)
        if (in_bytes)
            return multiply_bytes<W, PLACED>(matrix, packed, {inputs, ROWS}, count, out, stride, part.begin, part.end);
#endif
        multiply_many<W, PAIRS || TILES, PLACED, TILES>(matrix, packed, count, inputs, out, stride, part.begin,
                                                        part.end);
    }

    void expand(const Layer& layer, int index) const {
        const Part part = part_of(m.inner, index, pool.size);
        spread<true>(layer.gate, m.hidden, gate, m.inner, index);
        spread<true>(layer.up, m.hidden, up, m.inner, index);
        for (int64_t r = 0; r < count * m.inner; r += m.inner) this->activate(gate + r, up + r, gate + r, part);
    }

    void add_row(const float* gain, int64_t r) const {
        this->add(projected + r * m.hidden, gain, stream + r * m.hidden);
    }

    // A row's queries and keys rotated, its K and V written behind its cache.
    void place_row(int64_t l, int64_t r) const {
        const Layer& layer = m.layers[l];
        const Row& row = rows[r];
        const Segment& tail = row.segments[l * row.count + row.count - 1];
        const float* table = rope[layer.rope] + row.position * 2 * m.head_dim;
        float* own = qkv + r * qkv_width();
        for (int64_t h = 0; h < m.heads; h++) this->norm_and_rotate(own + h * m.head_dim, layer.q_norm, table);
        for (int64_t h = 0; h < m.kv_heads; h++)
            this->write_new(layer, tail, row.lengths[row.count - 1] + row.behind, own, h, table);
    }

    // Attention, by tasks: some tokens of one cache, and the queries that share a KV head.
    void attend_all(int64_t l, Attention<W>& kept) const {
        const int64_t caches = firsts.size() - 1, fair = (count * m.kv_heads / (2 * pool.size) + 3) / 4 * 4;
        const int64_t some = std::clamp<int64_t>(fair, 16, TILES ? 64 : 48);
        int64_t first = 0;  // of the tasks of a cache
        int64_t task = next++;
        for (int64_t c = 0; c < caches; c++) {
            const int64_t begin = firsts[c], tokens = firsts[c + 1] - begin;
            const int64_t tasks = (tokens + some - 1) / some * m.kv_heads;
            for (; task < first + tasks; task = next++) {
                const int64_t from = (task - first) / m.kv_heads * some;
                attend(l, begin + from, std::min(some, tokens - from), (task - first) % m.kv_heads, kept);
            }
            first += tasks;
        }
    }

    void attend(int64_t l, int64_t r, int64_t tokens, int64_t h, Attention<W>& kept) const {
        const int64_t dim = m.head_dim, group = m.heads / m.kv_heads, queries = tokens * group;
        const Row& row = rows[r];
        const int64_t before = point_at(l, row, tokens, h, kept);  // entries that all tokens see
        const int64_t entries = before + tokens, padded = (entries + BLOCK - 1) / BLOCK * BLOCK;
        const int64_t window = row.positions ? m.layers[l].window : 0;
        const int64_t unseen = window ? unseen_by_all(r, tokens, before, window) : 0;
        const auto seen = [&](int64_t q) { return before + q / group + 1; };  // entries that this query sees

        kept.queries.resize(queries * dim);
        for (int64_t q = 0; q < queries; q++) {
            const float* from = qkv + (r + q / group) * qkv_width() + (h * group + q % group) * dim;
            for (int64_t i = 0; i < dim; i++) kept.queries[q * dim + place<W>(i)] = from[i] * m.scale;
        }
        const int64_t whole = (queries + HIGH - 1) / HIGH * HIGH;  // queries, in tiles
        kept.packed.resize(whole * std::max(dim, DEEP));
        kept.panel.resize(BLOCK * std::max(dim, DEEP));
        kept.scores.resize(queries * padded);
        if constexpr (TILES) score_tall(kept, queries, unseen, entries, padded, seen);
        else score(kept, queries, unseen, entries, padded, seen);

        std::vector<float> totals(queries);
        for (int64_t q = 0; q < queries; q++) {
            float* scores = &kept.scores[q * padded];
            if (window)
                for (int64_t e = unseen; e < seen(q); e++)
                    if (rows[r + q / group].position - row.positions[e] >= window) scores[e] = -INFINITY;
            const int64_t until = (seen(q) + VL - 1) / VL * VL;
            totals[q] = this->soften(scores + unseen, seen(q) - unseen, until - unseen);
            std::fill(scores + until, scores + padded, 0.0f);
        }

        kept.mixed.resize(queries * dim);
        std::fill(kept.mixed.begin(), kept.mixed.end(), 0.0f);
        for (int64_t from = unseen / DEEP * DEEP; from < entries; from += DEEP) {
            const int64_t begin = std::max(from, unseen), until = std::min(from + DEEP, padded);
            if constexpr (TILES) mix_tall(kept, queries, begin, until, padded, seen);
            else mix(kept, queries, begin, until, padded, seen);
        }
        for (int64_t q = 0; q < queries; q++) {  // in the order in which the next weights meet it
            float* to = attended + (r + q / group) * q_width() + (h * group + q % group) * dim;
            for (int64_t i = 0; i < dim; i += VL) store(to + i, load(&kept.mixed[q * dim + i]) / totals[q]);
        }
    }

    // Scores of the entries from `unseen` on, for the queries that see them.
    template <class F>
    void score(Attention<W>& kept, int64_t queries, int64_t unseen, int64_t entries, int64_t padded, F&& seen) const {
        const int64_t dim = m.head_dim, words = dim / Chosen::IN_WORD;
        for (int64_t q = 0; q < queries; q += ROWS)
            pack<typename Chosen::As, W>(&kept.queries[q * dim], dim, std::min<int64_t>(ROWS, queries - q), dim,
                                         &kept.packed[q * words]);
        for (int64_t e = unseen; e < entries; e += BLOCK) {
            make_key_panel(&kept.keys[e], kept);
            for (int64_t q = 0; q < queries; q += ROWS)
                if (const int64_t some = std::min<int64_t>(ROWS, queries - q); e < seen(q + some - 1))
                    few_rows<typename Chosen::Often>(&kept.packed[q * words], ROWS, kept.panel.data(), words,
                                                     &kept.scores[q * padded + e], padded, some, true);
        }
    }
    template <class F>
    void score_tall(Attention<W>& kept, int64_t queries, int64_t unseen, int64_t entries, int64_t padded,
                    F&& seen) const {
        const int64_t dim = m.head_dim;
        for (int64_t q = 0; q < queries; q += TALL)
            pack_tall<true>(&kept.queries[q * dim], dim, std::min<int64_t>(TALL, queries - q), dim,
                            &kept.packed[q * dim / 2]);
        int64_t q = 0;  // the first tile that sees some of the entries: so do those behind it
        for (int64_t e = unseen; e < entries; e += BLOCK) {
            while (e >= seen(std::min(q + TALL, queries) - 1)) q += TALL;
            make_panel(&kept.keys[e], 0, dim, kept.panel.data());
            tall_tiles(&kept.packed[q * dim / 2], dim / 2, kept.panel.data(), dim / 2, &kept.scores[q * padded + e],
                       padded, queries - q, true);
        }
    }

    // The values of some entries, by the weights that the scores have become, added to `mixed`.
    template <class F>
    void mix(Attention<W>& kept, int64_t queries, int64_t begin, int64_t until, int64_t padded, F&& seen) const {
        constexpr int64_t IN_WORD = Chosen::IN_WORD;  // entries
        const int64_t dim = m.head_dim, words = (until - begin) / IN_WORD;
        for (int64_t q = 0; q < queries; q += ROWS)
            pack<typename Chosen::Across, float>(&kept.scores[q * padded + begin], padded,
                                                 std::min<int64_t>(ROWS, queries - q), until - begin,
                                                 &kept.packed[q * words]);
        for (int64_t d = 0; d < dim; d += BLOCK) {
            make_value_panel(&kept.values[begin], d, until - begin, kept.panel.data());
            for (int64_t q = 0; q < queries; q += ROWS) {
                const int64_t rows = std::min<int64_t>(ROWS, queries - q);
                if (const int64_t some = std::min(until, seen(q + rows - 1)) - begin; some > 0)
                    few_rows<typename Chosen::Often>(&kept.packed[q * words], ROWS, kept.panel.data(),
                                                     (some + IN_WORD - 1) / IN_WORD, &kept.mixed[q * dim + d], dim,
                                                     rows, false);
            }
        }
    }
    template <class F>
    void mix_tall(Attention<W>& kept, int64_t queries, int64_t begin, int64_t until, int64_t padded, F&& seen) const {
        const int64_t dim = m.head_dim, words = (until - begin) / 2;
        for (int64_t q = 0; q < queries; q += TALL)
            pack_tall<false>(&kept.scores[q * padded + begin], padded, std::min<int64_t>(TALL, queries - q),
                             until - begin, &kept.packed[q * words]);
        for (int64_t d = 0; d < dim; d += BLOCK) {
            make_panel_across(&kept.values[begin], d, until - begin, kept.panel.data());
            for (int64_t q = 0; q < queries; q += 2 * TALL) {
                const int64_t rows = std::min<int64_t>(2 * TALL, queries - q);
                if (const int64_t some = std::min(until, seen(q + rows - 1)) - begin; some > 0)
                    tall_tiles(&kept.packed[q * words], words, kept.panel.data(), (some + BLOCK - 1) / BLOCK * VL,
                               &kept.mixed[q * dim + d], dim, rows, false);
            }
        }
    }

    // A panel of BLOCK keys; of BLOCK elements of some values, each at its place.
    void make_key_panel(const W* const* keys, Attention<W>& kept) const {
        if constexpr (sizeof(W) == 2 && !PAIRS) {
            kept.pairs.resize(BLOCK * m.head_dim / 2);
            make_panel(keys, 0, m.head_dim, kept.pairs.data());
            widen(kept.pairs.data(), m.head_dim / 2, kept.panel.data());
        } else
            make_panel(keys, 0, m.head_dim, kept.panel.data());
    }
    static void make_value_panel(const W* const* values, int64_t d, int64_t count, int32_t* panel) {
        if constexpr (sizeof(W) == 2 && PAIRS) return make_panel_across(values, d, count, panel);
        for (int64_t e = 0; e < count; e++, panel += BLOCK) {
            vf a, b;
            load(values[e] + d, a, b);
            float* to = reinterpret_cast<float*>(panel);
            store(to, a), store(to + VL, b);
        }
    }

    // Where the entries lie that the last of some tokens sees; those up to a whole panel are its own again, for nobody.
    int64_t point_at(int64_t l, const Row& row, int64_t tokens, int64_t h, Attention<W>& kept) const {
        kept.keys.clear(), kept.values.clear();
        int64_t before = 0;
        for (int64_t s = 0; s < row.count; s++) {
            const Segment& segment = row.segments[l * row.count + s];
            const W* key = static_cast<const W*>(segment.keys) + h * segment.key_stride;
            const W* value = static_cast<const W*>(segment.values) + h * segment.value_stride;
            int64_t length = row.lengths[s] + (s == row.count - 1 ? row.behind : 0);
            before += length;
            if (s == row.count - 1) length += tokens;
            for (int64_t p = 0; p < length; p++, key += m.head_dim, value += m.head_dim)
                kept.keys.push_back(key), kept.values.push_back(value);
        }
        while (kept.keys.size() % BLOCK)
            kept.keys.push_back(kept.keys.back()), kept.values.push_back(kept.values.back());
        return before;
    }

    // How many of the first entries, in whole panels, lie before the windows of all these tokens.
    int64_t unseen_by_all(int64_t r, int64_t tokens, int64_t before, int64_t window) const {
        int64_t first = rows[r].position;
        for (int64_t i = 1; i < tokens; i++) first = std::min(first, rows[r + i].position);
        return Parts<W>::out_of_sight(rows[r], first, before, window, BLOCK);
    }

    // The logits that are wanted.
    void answer(int index) const {
        Lines<float> normed(asked_count * m.hidden);
        for (int64_t i = 0; i < asked_count; i++)
            this->norm(stream + asked[i] * m.hidden, m.norm, &normed[i * m.hidden]);
        const Part part = part_of(m.head.outputs, index, pool.size);
        this->template multiply_rows<PAIRS, false, TILES>(m.head, normed.data(), asked_count, m.hidden, logits,
                                                          this->logits_width(), part);
    }
};

}  // namespace
