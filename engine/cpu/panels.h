// Matrices of weights times many rows of activations.
//
// Weights are unpacked a panel at a time, BLOCK outputs wide, into the order in which they are multiplied, and met by all
// rows while they are near; rows are packed ROWS at a time. Every output is one chain of sums over its inputs, cut at the
// same places whatever else is computed, so a row gets the same bits among any others.

#pragma once

#include "multiply.h"
#include "numbers.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr int ROWS = 12;  // of a tile: with two sums each they fill the registers
#else
constexpr int ROWS = 6;
#endif
constexpr int64_t DEEP = 512;  // words of a panel at a time: what rows and panel need of it stays in the nearest caches

typedef Lines<int32_t> Words;  // floats, or pairs of bfloat16, by their bits

inline int64_t tiles_of(int64_t rows) { return (rows + ROWS - 1) / ROWS; }

// What a multiplication takes: a float with a float, or two bfloat16 with two.
struct Singles {
    static constexpr int64_t IN_WORD = 1;
    static vf times(vi x, vi w, vf total) { return fma((vf)x, (vf)w, total); }
    static vi words(const float* x) { return *reinterpret_cast<const vi*>(x); }  // x: each element at its place
    // Elements of BLOCK / 2 rows each in a vector, from the panel's element `from` on: its nth word of them.
    static void unpack(const float*, vi words, int32_t* panel, int64_t from, int n) { put(words, panel, from + n); }
    static void unpack(const bf16*, vi words, int32_t* panel, int64_t from, int n) {  // even elements, then odd ones
        put(words << 16, panel, from + n);
        put(words & (int32_t)0xffff0000, panel, from + VL + n);
    }
    static void put(vi words, int32_t* panel, int64_t at) { *reinterpret_cast<vi*>(panel + at * BLOCK) = words; }
};

#if defined(__AVX512BF16__)
struct Pairs {
    static constexpr int64_t IN_WORD = 2;
    static vf times(vi x, vi w, vf total) { return (vf)_mm512_dpbf16_ps((__m512)total, (__m512bh)x, (__m512bh)w); }
    static vi words(const float* x) { return narrowed(x); }
    static void unpack(const bf16*, vi words, int32_t* panel, int64_t from, int n) {
        Singles::put(words, panel, from / 2 + n);
    }
};
#endif

// VL vectors of VL words, turned: the first of all, the second of all, ...
#if defined(__clang__) || __GNUC__ >= 12
template <int APART, int... LANE> inline void exchange(vi& a, vi& b, std::integer_sequence<int, LANE...>) {
    const vi low = __builtin_shufflevector(a, b, (LANE & APART ? VL + LANE - APART : LANE)...);
    b = __builtin_shufflevector(a, b, (LANE & APART ? VL + LANE : LANE + APART)...);
    a = low;
}
template <int APART> inline void turn_words(vi* x) {
    if constexpr (APART < VL) {
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++)
            if (!(i & APART)) exchange<APART>(x[i], x[i + APART], std::make_integer_sequence<int, VL>());
        turn_words<2 * APART>(x);
    }
}
inline void transpose(vi* x) { turn_words<1>(x); }
#else
inline void transpose(vi* x) {
    for (int i = 0; i < VL; i++)
        for (int j = 0; j < i; j++) {
            const int32_t word = x[i][j];
            x[i][j] = x[j][i], x[j][i] = word;
        }
}
#endif

// What one tile takes of its rows of activations: by word, a word of each.
template <class T> void pack(const float* x, int64_t stride, int64_t rows, int64_t inputs, int32_t* to) {
    for (int64_t i = 0; i < inputs; i += VL * T::IN_WORD) {
        vi words[VL] = {};
        for (int r = 0; r < ROWS; r++)
            if (r < rows) words[r] = T::words(x + r * stride + i);
        transpose(words);
        for (int n = 0; n < VL; n++, to += ROWS) std::memcpy(to, &words[n], ROWS * sizeof *to);
    }
}

// BLOCK rows of weights, or of keys, from their element `begin` on, as a panel: by word, a word of each.
template <class T, class W> void pack_panel(const W* const* rows, int64_t begin, int64_t end, int32_t* panel) {
    constexpr int64_t SOME = VL * 4 / sizeof(W);  // elements in VL words
    for (int half = 0; half < BLOCK; half += VL)
        for (int64_t i = begin; i < end; i += SOME) {
            vi words[VL];
#pragma GCC unroll 16
            for (int n = 0; n < VL; n++) words[n] = *reinterpret_cast<const vi*>(rows[half + n] + i);
            transpose(words);
#pragma GCC unroll 16
            for (int n = 0; n < VL; n++) T::unpack(rows[0], words[n], panel + half, i - begin, n);
        }
}

// ROWS rows times a panel, added to what `out` holds unless these are the first words. A function of its own, and every
// loop over rows unrolled, lest the sums leave their registers.
template <class T>
__attribute__((noinline)) void tile(const int32_t* x, const int32_t* panel, int64_t words, float* out, int64_t stride,
                                    int rows, bool first) {
    vf one[ROWS] = {}, other[ROWS] = {};
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
        if (!first && r < rows) one[r] = load(out + r * stride), other[r] = load(out + r * stride + VL);
    for (int64_t i = 0; i < words; i++, x += ROWS, panel += BLOCK) {
        const vi here = *reinterpret_cast<const vi*>(panel), there = *reinterpret_cast<const vi*>(panel + VL);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const vi same = x[r] - vi{};
            one[r] = T::times(same, here, one[r]);
            other[r] = T::times(same, there, other[r]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
        if (r < rows) store(out + r * stride, one[r]), store(out + r * stride + VL, other[r]);
}

// All tiles of `rows` rows times a panel. x: from the panel's first word on; `deep`: words of a whole row.
template <class T>
void tiles(const int32_t* x, int64_t deep, const int32_t* panel, int64_t words, float* out, int64_t stride,
           int64_t rows, bool first) {
    for (int64_t r = 0; r < rows; r += ROWS)
        tile<T>(x + r * deep, panel, words, out + r * stride, stride, int(std::min<int64_t>(ROWS, rows - r)), first);
}

// out[r][n], or at the place of n, for the outputs from `begin` to the end of the block of `end`. x: packed rows.
template <class T, class W, bool PLACED = false>
void multiply_many(const Matrix& m, const int32_t* x, int64_t rows, int64_t inputs, float* out, int64_t stride,
                   int64_t begin, int64_t end) {
    const W* w = static_cast<const W*>(m.weight);
    const int64_t words = inputs / T::IN_WORD;
    thread_local Words panel(DEEP * BLOCK);
    for (int64_t from = 0; from < words; from += DEEP) {
        const int64_t until = std::min(from + DEEP, words);
        for (int64_t n = begin; n < end; n += BLOCK) {
            const W* weights[BLOCK];
            for (int64_t i = 0; i < BLOCK; i++) weights[PLACED ? place<W>(i) : i] = w + std::min(n + i, m.outputs - 1) * inputs;
            pack_panel<T>(weights, from * T::IN_WORD, until * T::IN_WORD, panel.data());
            tiles<T>(x + from * ROWS, words, panel.data(), until - from, out + n, stride, rows, from == 0);
        }
    }
    if (m.bias)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t n = begin; n < end; n++) out[r * stride + (PLACED ? place<W>(n) : n)] += m.bias[n];
}

}  // namespace
