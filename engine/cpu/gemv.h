// Matrices of weights, as they lie in a model, times a few rows of activations.

#pragma once

#include "simd.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

extern "C" {
struct Matrix {  // (outputs, inputs), row by row
    const void* weight;
    const float* bias;  // or null; in whole blocks, each at its place
    int64_t outputs;
    const int32_t* panels;  // the same as gemm_packed.h has it, or null
    const float* scales;    // of eight-bit weights, which always have panels: each output's, at its place; or null
};
}

namespace {

// Weights met by activations as they are: BLOCK products, summed into one vector.
template <class W> struct Wide {
    typedef float Activation;
    vf a, b;
    explicit Wide(const W* w) { load(w, a, b); }
    vf times(const float* x, vf total) const { return fma(b, load(x + VL), fma(a, load(x), total)); }
};

#if defined(__AVX512BF16__)
// Where the CPU multiplies bfloat16 itself, twice as fast, activations are rounded to it as they meet weights.
struct Narrow {
    typedef bf16 Activation;
    __m512bh w;
    explicit Narrow(const bf16* from) : w((__m512bh)_mm512_loadu_ps((const float*)from)) {}
    vf times(const bf16* x, vf total) const {
        return (vf)_mm512_dpbf16_ps((__m512)total, w, (__m512bh)_mm512_loadu_ps((const float*)x));
    }
};
inline vi narrowed(const float* x) {  // a block, back from its places into one row
    __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load(x)));
    __m512i odd = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load(x + VL)));
    return (vi)_mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}
inline const bf16* narrowed(const float* x, int64_t count) {
    thread_local Lines<bf16> kept;
    kept.resize(count);
    for (int64_t i = 0; i < count; i += BLOCK) *reinterpret_cast<vi*>(kept.data() + i) = narrowed(x + i);
    return kept.data();
}
template <class W> struct Choose { typedef Wide<W> Weights; };
template <> struct Choose<bf16> { typedef Narrow Weights; };
inline const bf16* ready(const float* x, int64_t count, bf16) { return narrowed(x, count); }
#else
template <class W> struct Choose { typedef Wide<W> Weights; };
#endif
inline const float* ready(const float* x, int64_t, float) { return x; }

#if defined(__AVX512F__)
constexpr int MOST_ROWS = 8;  // at once: each has a sum in a register
#else
constexpr int MOST_ROWS = 4;
#endif

// N outputs of R rows. The CPU's own prefetching falls behind, most where weights are not read in the order in which
// they lie: several rows take two outputs at a time, so that an activation is read once for both.
template <class W, bool PLACED, int N, int R, class X>
inline void block(const W* w, const X* x, int64_t inputs, float* out, int64_t stride, int64_t first) {
    typedef typename Choose<W>::Weights Weights;
    constexpr bool PAIRS = R > 1 && N > 1;
    constexpr int64_t AHEAD = 4096 / sizeof(W);
    vf totals[R][4] = {};
#pragma GCC unroll 4
    for (int n = 0; n < N; n += 1 + PAIRS, w += (1 + PAIRS) * inputs) {
        vf one[R] = {}, other[R] = {};
        for (int64_t i = 0; i < inputs; i += BLOCK) {
            const W* soon = PAIRS ? w + 2 * (inputs + i) : w + i + AHEAD;
            __builtin_prefetch(soon), __builtin_prefetch(soon + BLOCK - 1);
            if (PAIRS) __builtin_prefetch(soon + BLOCK), __builtin_prefetch(soon + 2 * BLOCK - 1);
            const Weights here(w + i), there(w + (PAIRS ? inputs : 0) + i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                one[r] = here.times(x + r * inputs + i, one[r]);
                if (PAIRS) other[r] = there.times(x + r * inputs + i, other[r]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            totals[r][n] = one[r];
            if (PAIRS) totals[r][n + 1] = other[r];
        }
    }
    for (int r = 0; r < R; r++, out += stride) {
        const Four done = sums(totals[r][0], totals[r][1], totals[r][2], totals[r][3]);
        for (int n = 0; n < N; n++) out[PLACED ? place<W>(first + n) : first + n] = done.of[n];
    }
}

// The outputs [begin, end) of R rows.
template <class W, bool PLACED, int R, class X>
void some_rows(const W* w, const X* x, int64_t inputs, float* out, int64_t stride, int64_t begin, int64_t end) {
    int64_t n = begin;
    for (; n + 4 <= end; n += 4) block<W, PLACED, 4, R>(w + n * inputs, x, inputs, out, stride, n);
    for (; n < end; n++) block<W, PLACED, 1, R>(w + n * inputs, x, inputs, out, stride, n);
}

// out[r][n], or at the place of n, for the outputs [begin, end). x: (rows, inputs), each element at its place.
template <class W, bool PLACED = false>
void multiply(const Matrix& m, const float* x, int64_t rows, int64_t inputs, float* out, int64_t stride, int64_t begin,
              int64_t end) {
    const W* w = static_cast<const W*>(m.weight);
    const auto* all = ready(x, rows * inputs, typename Choose<W>::Weights::Activation());
    const int64_t most = std::max<int64_t>(4, 131072 / inputs);  // outputs whose weights stay near for all rows
    for (int64_t from = begin; from < end; from += most) {
        const int64_t until = std::min(from + most, end);
        for (int64_t r = 0; r < rows;) {
            const int64_t left = rows - r;
            auto take = [&](auto some) {
                some_rows<W, PLACED, some>(w, all + r * inputs, inputs, out + r * stride, stride, from, until);
                r += some;
            };
            if (left >= MOST_ROWS) take(std::integral_constant<int, MOST_ROWS>());
            else if (left >= 6) take(std::integral_constant<int, 6>());
            else if (left >= 4) take(std::integral_constant<int, 4>());
            else if (left >= 3) take(std::integral_constant<int, 3>());
            else if (left >= 2) take(std::integral_constant<int, 2>());
            else take(std::integral_constant<int, 1>());
        }
    }
}

}  // namespace
