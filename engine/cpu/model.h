// What a decoder-only transformer is made of, and the parts of a layer that take one row at a time.

#pragma once

#include "gemm_int8.h"
#include "gemv.h"
#include "simd.h"
#include "gemm_packed.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

// The same structures are in structs.py.
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
    const void* embeddings;  // (vocab, hidden), each taken `embedding_scale` times
    float embedding_scale;
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
    int64_t token;
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

template <class W> struct Parts {
    const Model& m;

    int64_t q_width() const { return m.heads * m.head_dim; }
    int64_t kv_width() const { return m.kv_heads * m.head_dim; }
    int64_t qkv_width() const { return q_width() + 2 * kv_width(); }

    int64_t logits_width() const { return (m.head.outputs + BLOCK - 1) / BLOCK * BLOCK; }

    // A few rows times a matrix: its outputs of `part`, in whole blocks where panels are kept. in: each element at its
    // place.
    template <bool PAIRS, bool PLACED, bool TILES>
    void multiply_rows(const Matrix& matrix, const float* in, int64_t rows, int64_t inputs, float* out, int64_t stride,
                       Part part) const {
        typedef Way<W, PAIRS> Chosen;
        if (!matrix.panels) {
            multiply<W, PLACED>(matrix, in, rows, inputs, out, stride, part.begin, part.end);
            finish(matrix, rows, out, stride, part.begin, part.end);
            return;
        }
        const int64_t wide = std::min<int64_t>(rows, ROWS), words = inputs / Chosen::IN_WORD;
        thread_local Words packed;
#if defined(__AVX512VNNI__)
        if (matrix.scales && sizeof(W) == 2) {
            const ByteTile tile{inputs, wide};
            packed.resize(tiles_of(rows) * tile.size());
            for (int64_t r = 0; r < rows; r += wide)
                pack_bytes(in + r * inputs, inputs, std::min(wide, rows - r), tile, &packed[r / wide * tile.size()]);
            return multiply_bytes<W, PLACED>(matrix, packed.data(), tile, rows, out, stride, part.begin, part.end);
        }
#endif
        if (TILES && !matrix.scales) {
            packed.resize((rows + TALL - 1) / TALL * TALL * inputs / 2);
            for (int64_t r = 0; r < rows; r += TALL)
                pack_tall<true>(in + r * inputs, inputs, std::min<int64_t>(TALL, rows - r), inputs,
                                &packed[r * inputs / 2]);
            return multiply_many<W, true, PLACED, true>(matrix, packed.data(), rows, inputs, out, stride, part.begin,
                                                        part.end);
        }
        packed.resize(tiles_of(rows) * wide * words);
        for (int64_t r = 0; r < rows; r += ROWS)
            pack<typename Chosen::As, W>(in + r * inputs, inputs, std::min<int64_t>(ROWS, rows - r), inputs,
                                         &packed[r * words], wide);
        if (rows <= FEW)
            multiply_few<W, PAIRS, PLACED>(matrix, packed.data(), wide, rows, inputs, out, stride, part.begin,
                                           part.end);
        else
            multiply_many<W, PAIRS, PLACED>(matrix, packed.data(), rows, inputs, out, stride, part.begin, part.end);
    }

    // What the first layer reads of a token, each element at its place.
    void embed(int64_t token, float* to) const {
        const W* from = static_cast<const W*>(m.embeddings) + token * m.hidden;
        for (int64_t i = 0; i < m.hidden; i += BLOCK) {
            vf one, other;
            load(from + i, one, other);
            store(to + i, rounded_to<W>(one * m.embedding_scale));
            store(to + i + VL, rounded_to<W>(other * m.embedding_scale));
        }
    }

    float factor(const float* from, int64_t width) const {  // of RMS norm
        vf squares = {};
        for (int64_t i = 0; i < width; i += VL) squares = fma(load(from + i), load(from + i), squares);
        return 1.0f / std::sqrt(sum(squares) / float(width) + m.eps);
    }

    void norm(const float* from, const float* gain, float* to) const {
        const float by = factor(from, m.hidden);
        for (int64_t i = 0; i < m.hidden; i += VL) store(to + i, load(from + i) * by * load(gain + i));
    }

    void add(const float* from, const float* gain, float* stream) const {  // gain: of a norm before, or null
        const float by = gain ? factor(from, m.hidden) : 1.0f;
        for (int64_t i = 0; i < m.hidden; i += VL) {
            const vf more = gain ? load(from + i) * by * load(gain + i) : load(from + i);
            store(stream + i, load(stream + i) + more);
        }
    }

    // activated = act(gate) * up, for one row's [begin, end).
    void activate(const float* gate, const float* up, float* activated, Part part) const {
        for (int64_t i = part.begin; i < part.end; i += VL) {
            const vf g = load(gate + i);
            store(activated + i, (m.gelu ? gelu_tanh(g) : silu(g)) * load(up + i));
        }
    }

    void norm_and_rotate(float* head, const float* gain, const float* table) const {  // norm, then RoPE by halves
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

    // How many of a row's first entries lie before the window of a token at `position`, in whole `step`s.
    static int64_t out_of_sight(const Row& row, int64_t position, int64_t entries, int64_t window, int64_t step) {
        int64_t unseen = 0;
        while (unseen < entries && position - row.positions[unseen] >= window) unseen++;
        return unseen / step * step;
    }

    void write_new(const Layer& layer, const Segment& tail, int64_t at, float* own, int64_t h,
                   const float* table) const {
        const int64_t dim = m.head_dim;
        float* k = own + q_width() + h * dim;
        const float* v = own + q_width() + kv_width() + h * dim;
        norm_and_rotate(k, layer.k_norm, table);
        W* keys = static_cast<W*>(tail.keys) + h * tail.key_stride + at * dim;
        W* values = static_cast<W*>(tail.values) + h * tail.value_stride + at * dim;
        for (int64_t i = 0; i < dim; i++) put(keys + i, k[i]), put(values + i, v[i]);
    }

    // Scores to weights, not yet divided by their sum, which is returned.
    static float soften(float* scores, int64_t entries, int64_t padded) {
        const float top = largest(scores, entries);
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

    static float largest(const float* x, int64_t count) {
        vf most = splat(-INFINITY);
        int64_t i = 0;
        for (; i + VL <= count; i += VL) most = load(x + i) > most ? load(x + i) : most;
        float top = -INFINITY;
        for (int lane = 0; lane < VL; lane++) top = std::max(top, most[lane]);
        for (; i < count; i++) top = std::max(top, x[i]);
        return top;
    }
};

}  // namespace
