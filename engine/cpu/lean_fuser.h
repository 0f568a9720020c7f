// A receiver's keys and values corrected by a sharer's: all layers of a `lean` fuser (channels/fusers/networks/lean.py) in one
// call. Threads share the work by layers and positions; a position gets the same bits whatever others are corrected.

#pragma once

#include "thread_pool.h"
#include "gemv.h"
#include "simd.h"
#include "gemm_packed.h"
#include "gemm_amx.h"
#include "rope.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

// The same structures are in lean_fuser.py and structs.py.
extern "C" {
struct Cached {  // one layer's keys or values, (heads, positions, head_dim)
    const bf16* from;
    int64_t stride;  // elements from one head to the next
};

struct Projector {  // of one layer
    Cached sharer_keys, sharer_values, keys, values;  // the sharer's keys without RoPE
    bf16 *new_keys, *new_values;                      // (kv_heads, positions, head_dim), all positions
    const float *gain, *bias;                         // of the norm, each at its place; (features,)
    Matrix down, mix, key_up, value_up;
    const float *key_alpha, *value_alpha;  // (kv_heads,)
    const float* rope;  // (pairs, 2, head_dim): cosines and sines, each at its place; null where keys are not rotated
};

struct Lean {
    const Projector* projectors;
    int64_t layers, heads, kv_heads, sharer_dim, head_dim, width;  // heads: KV heads of the sharer; width: of half of z
    const int64_t *here, *there;  // the receiver's position and the sharer's of each pair
    int64_t pairs, positions;     // positions: all of the receiver's
    float eps;
    float* squares;  // (layers, pairs, 4): the squares of what is added to keys, of the keys; the same of values
};
}

namespace {

inline vf erf(vf x) {  // Abramowitz and Stegun 7.1.26, to 1.5e-7
    const vf size = x < vf{} ? -x : x, t = 1.0f / (size * 0.3275911f + 1.0f);
    vf y = splat(1.061405429f);
    y = fma(y, t, splat(-1.453152027f));
    y = fma(y, t, splat(1.421413741f));
    y = fma(y, t, splat(-0.284496736f));
    y = fma(y, t, splat(0.254829592f));
    y = 1.0f - y * t * exp(-size * size);
    return x < vf{} ? -y : y;
}
inline vf gelu(vf x) { return x * 0.5f * (erf(x * 0.70710678f) + 1.0f); }

template <bool PAIRS, bool TILES> struct Correction {
    typedef Way<bf16, PAIRS || TILES> Chosen;
    static constexpr int64_t HIGH = TILES ? TALL : ROWS, SOME = 2 * HIGH;  // pairs of a task
    const Lean& m;
    std::atomic<int64_t>& next;  // task

    struct Kept {  // what one thread needs, kept from task to task
        Lines<float> x, z, mixed, residual;
        Words packed;
    };

    int64_t features() const { return 2 * (m.heads * m.sharer_dim + width()); }
    int64_t width() const { return m.kv_heads * m.head_dim; }  // of the receiver's keys

    void work() const {
        Kept kept;
        const int64_t blocks = (m.pairs + SOME - 1) / SOME, z = 2 * m.width;
        kept.x.resize(SOME * features()), kept.z.resize(SOME * z), kept.mixed.resize(SOME * z);
        kept.residual.resize(SOME * width());
        kept.packed.resize(SOME * std::max(features(), z));
        for (int64_t task = next++; task < m.layers * blocks; task = next++) {
            const int64_t first = task % blocks * SOME;
            correct(task / blocks, first, std::min(SOME, m.pairs - first), kept);
        }
    }

    void correct(int64_t l, int64_t first, int64_t rows, Kept& kept) const {
        const Projector& p = m.projectors[l];
        const int64_t z = 2 * m.width;
        for (int64_t r = 0; r < rows; r++) gather(p, first + r, &kept.x[r * features()]);
        multiply(p.down, kept.x.data(), features(), features(), rows, kept.z.data(), z, kept);
        for (int64_t i = 0; i < rows * z; i += VL) store(&kept.z[i], gelu(load(&kept.z[i])));
        multiply(p.mix, kept.z.data(), z, z, rows, kept.mixed.data(), z, kept);
        for (int64_t i = 0; i < rows * z; i += VL) store(&kept.z[i], load(&kept.z[i]) + load(&kept.mixed[i]));
        float* squares = m.squares + (l * m.pairs + first) * 4;
        multiply(p.key_up, kept.z.data(), z, m.width, rows, kept.residual.data(), width(), kept);
        add(first, rows, kept.residual.data(), p.keys, p.key_alpha, p.rope, p.new_keys, squares);
        multiply(p.value_up, kept.z.data() + m.width, z, m.width, rows, kept.residual.data(), width(), kept);
        add(first, rows, kept.residual.data(), p.values, p.value_alpha, nullptr, p.new_values, squares + 2);
    }

    void multiply(const Matrix& matrix, const float* x, int64_t stride, int64_t inputs, int64_t rows, float* out,
                  int64_t outputs, Kept& kept) const {
        for (int64_t r = 0; r < rows; r += HIGH) {
            int32_t* to = &kept.packed[r * (inputs / Chosen::IN_WORD)];
            const int64_t some = std::min(HIGH, rows - r);
            if (TILES) pack_tall<true>(x + r * stride, stride, some, inputs, to);
            else pack<typename Chosen::As, bf16>(x + r * stride, stride, some, inputs, to);
        }
        multiply_many<bf16, PAIRS || TILES, true, TILES>(matrix, kept.packed.data(), rows, inputs, out, outputs, 0,
                                                         outputs);
    }

    // One pair's features, normed: keys and values of the sharer, then of the receiver, without RoPE.
    void gather(const Projector& p, int64_t pair, float* x) const {
        float* to = x;
        const auto take = [&](const Cached& cached, int64_t heads, int64_t position, int64_t dim) {
            for (int64_t h = 0; h < heads; h++)
                for (int64_t i = 0; i < dim; i += BLOCK, to += BLOCK) {
                    vf even, odd;
                    load(cached.from + h * cached.stride + position * dim + i, even, odd);
                    store(to, even), store(to + VL, odd);
                }
        };
        take(p.sharer_keys, m.heads, m.there[pair], m.sharer_dim);
        take(p.sharer_values, m.heads, m.there[pair], m.sharer_dim);
        float* own = to;
        take(p.keys, m.kv_heads, m.here[pair], m.head_dim);
        if (p.rope)
            for (int64_t h = 0; h < m.kv_heads; h++)
                rotate_halves(own + h * m.head_dim, p.rope + pair * 2 * m.head_dim, m.head_dim, -1);
        take(p.values, m.kv_heads, m.here[pair], m.head_dim);

        const int64_t all = features();
        vf total = {}, squares = {};
        for (int64_t i = 0; i < all; i += VL) total += load(x + i);
        const float mean = sum(total) / float(all);
        for (int64_t i = 0; i < all; i += VL) {
            const vf apart = load(x + i) - mean;
            squares = fma(apart, apart, squares);
        }
        const float by = 1.0f / std::sqrt(sum(squares) / float(all) + m.eps);
        for (int64_t i = 0; i < all; i += VL)
            store(x + i, fma((load(x + i) - mean) * by, load(p.gain + i), load(p.bias + i)));
    }

    // What was there and the residual, rounded once.
    void add(int64_t first, int64_t rows, float* residual, const Cached& old, const float* alpha,
             const float* rope, bf16* to, float* squares) const {
        const int64_t dim = m.head_dim;
        for (int64_t r = 0; r < rows; r++, squares += 4) {
            const int64_t position = m.here[first + r];
            vf added = {}, there = {};
            for (int64_t h = 0; h < m.kv_heads; h++) {
                float* x = residual + r * width() + h * dim;
                for (int64_t i = 0; i < dim; i += VL) store(x + i, load(x + i) * alpha[h]);
                if (rope) rotate_halves(x, rope + (first + r) * 2 * dim, dim, 1);
                for (int64_t i = 0; i < dim; i += BLOCK) {
                    vf even, odd;
                    load(old.from + h * old.stride + position * dim + i, even, odd);
                    const vf a = load(x + i), b = load(x + i + VL);
                    added = fma(a, a, fma(b, b, added)), there = fma(even, even, fma(odd, odd, there));
                    store(x + i, even + a), store(x + i + VL, odd + b);
                    put_block(to + (h * m.positions + position) * dim + i, x + i);
                }
            }
            squares[0] = sum(added), squares[1] = sum(there);
        }
    }
};

}  // namespace
