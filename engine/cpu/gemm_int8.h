// Eight-bit weights times rows of activations that are rounded to eight bits, too, where a CPU multiplies four pairs of
// bytes at once (AVX512-VNNI), four times as many as floats.
//
// Activations have a scale to each row and SPAN inputs. Sums over a span are of integers, thus exact; over spans they
// are one chain of floats, so a row gets the same bits among any others.

#pragma once

#include "gemv.h"
#include "simd.h"
#include "gemm_packed.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512VNNI__)
constexpr bool IN_BYTES = true;
constexpr int64_t SPAN = 64;  // inputs

// A tile of up to ROWS rows: by word, four bytes of each row; then by span, a scale of each row, and what its sums
// begin with.
struct ByteTile {
    int64_t inputs, wide;  // wide: rows
    int64_t words() const { return inputs / 4 * wide; }
    int64_t spans() const { return (inputs + SPAN - 1) / SPAN; }
    int64_t size() const { return words() + 2 * spans() * wide; }  // in words
};

// A block of inputs of one row, each element at its place among bfloat16, as integers in their order: eight words.
inline __m256i rounded(__m512 even, __m512 odd, __m512 by, __m512i& sum) {
    const __m512i e = _mm512_cvtps_epi32(_mm512_mul_ps(even, by)), o = _mm512_cvtps_epi32(_mm512_mul_ps(odd, by));
    sum = _mm512_add_epi32(sum, _mm512_add_epi32(e, o));
    const __m512i low = _mm512_set1_epi32(0xff);
    return _mm512_cvtepi32_epi16(
        _mm512_or_si512(_mm512_and_si512(e, low), _mm512_slli_epi32(_mm512_and_si512(o, low), 8)));
}

// Rows of activations as a tile, zeros for those that are not there.
inline void pack_bytes(const float* x, int64_t stride, int64_t rows, const ByteTile& tile, int32_t* to) {
    float* scales = reinterpret_cast<float*>(to + tile.words());
    int32_t* starts = to + tile.words() + tile.spans() * tile.wide;
    if (rows < tile.wide) std::memset(to, 0, tile.size() * sizeof *to);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t s = 0; s < tile.spans(); s++) {
            const int64_t begin = s * SPAN, blocks = std::min(SPAN, tile.inputs - begin) / BLOCK;
            const float* from = x + r * stride + begin;
            __m512i most = _mm512_setzero_si512();  // of the floats' bits, in whose order NaN is above all
            for (int64_t i = 0; i < blocks * BLOCK; i += VL)
                most = _mm512_max_epi32(most, (__m512i)_mm512_abs_ps((__m512)load(from + i)));
            const float largest = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(most))));
            const __m512 by = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
            __m512i sum = _mm512_setzero_si512();
            for (int64_t b = 0; b < blocks; b++) {
                int32_t words[BLOCK / 4];
                const float* here = from + b * BLOCK;
                _mm256_storeu_si256((__m256i*)words, rounded((__m512)load(here), (__m512)load(here + VL), by, sum));
                for (int n = 0; n < BLOCK / 4; n++) to[((begin + b * BLOCK) / 4 + n) * tile.wide + r] = words[n];
            }
            scales[s * tile.wide + r] = largest / 127 * 0x1p24f;  // as those of the weights have it
            starts[s * tile.wide + r] = -128 * _mm512_reduce_add_epi32(sum);  // bytes of panels are 128 too large
        }
}

// _mm512_dpbusd_epi32, said so that compilers leave the sum where it is: GCC 12 moves it to the stack and back.
inline void add_products(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}

// R rows times a panel, in a span, added to what `out` holds unless it is the first. A function of its own, and every
// loop over rows unrolled, lest the sums leave their registers.
template <int R>
__attribute__((noinline)) void span_of_tile(const int32_t* x, int64_t wide, const int32_t* starts, const float* scales,
                                            const int32_t* panel, int64_t words, float* out, int64_t stride,
                                            bool first) {
    __m512i one[R], other[R];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) one[r] = other[r] = _mm512_set1_epi32(starts[r]);
    for (int64_t i = 0; i < words; i++, x += wide, panel += BLOCK) {
        __builtin_prefetch(panel + AHEAD * BLOCK), __builtin_prefetch(panel + AHEAD * BLOCK + VL);
        const __m512i here = _mm512_loadu_si512(panel), there = _mm512_loadu_si512(panel + VL);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            const __m512i same = _mm512_set1_epi32(x[r]);
            add_products(one[r], here, same);
            add_products(other[r], there, same);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++, out += stride) {
        const vf scale = splat(scales[r]), a = (vf)_mm512_cvtepi32_ps(one[r]), b = (vf)_mm512_cvtepi32_ps(other[r]);
        store(out, fma(a, scale, first ? vf{} : load(out)));
        store(out + VL, fma(b, scale, first ? vf{} : load(out + VL)));
    }
}

// Rows of a tile, as many as there are, times a panel.
inline void byte_tile(const int32_t* x, const ByteTile& tile, int64_t rows, const int32_t* panel, float* out,
                      int64_t stride) {
    const float* scales = reinterpret_cast<const float*>(x + tile.words());
    const int32_t* starts = x + tile.words() + tile.spans() * tile.wide;
    for_rows(rows, [&](int64_t r, auto some) {
        for (int64_t s = 0; s < tile.spans(); s++)
            span_of_tile<some>(x + s * SPAN / 4 * tile.wide + r, tile.wide, starts + s * tile.wide + r,
                               scales + s * tile.wide + r, panel + s * SPAN / 4 * BLOCK,
                               std::min(SPAN, tile.inputs - s * SPAN) / 4, out + r * stride, stride, s == 0);
    });
}

// out[r][n], or at the place of n, for the outputs from `begin` to the end of the block of `end`. x: tiles.
template <class W, bool PLACED>
void multiply_bytes(const Matrix& m, const int32_t* x, const ByteTile& tile, int64_t rows, float* out, int64_t stride,
                    int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n += BLOCK)
        for (int64_t r = 0; r < rows; r += tile.wide)
            byte_tile(x + r / tile.wide * tile.size(), tile, std::min(tile.wide, rows - r),
                      m.panels + n * (tile.inputs / 4), out + r * stride + n, stride);
    finish(m, rows, out, stride, begin, end);
}
#else
constexpr bool IN_BYTES = false;
#endif

}  // namespace
