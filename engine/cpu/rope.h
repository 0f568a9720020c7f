// Rotates keys to other positions (RoPE by halves), all layers in one call.

#pragma once

#include "thread_pool.h"
#include "gemv.h"
#include "simd.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

// The same structures are in rope.py.
extern "C" {
struct RotatedLayer {  // one layer's keys
    const bf16* from;
    int64_t stride;      // elements from one head to the next
    bf16* to;            // (heads, positions, head_dim)
    const float* table;  // (positions, 2, head_dim): cosines and sines, in the kernels' element order
};
}

namespace {

// Applies RoPE (sign 1) or undoes it (-1). head: in the kernels' element order; half of `dim` is whole blocks.
inline void rotate_halves(float* head, const float* table, int64_t dim, float sign) {
    const int64_t half = dim / 2;
    const float *cos = table, *sin = table + dim;
    for (int64_t i = 0; i < half; i += VL) {
        const vf a = load(head + i), b = load(head + i + half);
        store(head + i, a * load(cos + i) - b * (load(sin + i) * sign));
        store(head + i + half, b * load(cos + i + half) + a * (load(sin + i + half) * sign));
    }
}

inline void put_block(bf16* to, const float* block) {
#if defined(__AVX512BF16__)
    *reinterpret_cast<vi*>(to) = narrowed(block);
#else
    for (int n = 0; n < VL; n++) put(to + 2 * n, block[n]), put(to + 2 * n + 1, block[VL + n]);
#endif
}

inline void rotate(const RotatedLayer* layers, int64_t count, int64_t heads, int64_t positions, int64_t dim, ThreadPool& pool) {
    std::atomic<int64_t> next{0};  // task: a head of a layer
    pool.run([&](int) {
        Lines<float> head(dim);
        for (int64_t task = next++; task < count * heads; task = next++) {
            const RotatedLayer& layer = layers[task / heads];
            const bf16* from = layer.from + task % heads * layer.stride;
            bf16* to = layer.to + task % heads * positions * dim;
            for (int64_t p = 0; p < positions; p++, from += dim, to += dim) {
                for (int64_t i = 0; i < dim; i += BLOCK) {
                    vf even, odd;
                    load(from + i, even, odd);
                    store(&head[i], even), store(&head[i + VL], odd);
                }
                rotate_halves(head.data(), layer.table + p * 2 * dim, dim, 1);
                for (int64_t i = 0; i < dim; i += BLOCK) put_block(to + i, &head[i]);
            }
        }
    });
}

}  // namespace
