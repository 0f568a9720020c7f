// Matrices of weights times rows of activations, by panels.
//
// A panel is BLOCK outputs' weights in the order in which they are multiplied: by word, a word of each output. A word
// is a float, or two bfloat16 or four eight-bit integers as they follow each other. Panels are kept where there is
// memory for them (Matrix::panels), else made as they are needed. Every output is one chain of sums over its inputs in
// their order, cut at the same places whatever else is computed, so a row gets the same bits among any others.

#pragma once

#include "gemv.h"
#include "simd.h"
#include "gemm_amx.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr int ROWS = 12;  // of a tile, at most: with two sums each they fill the registers
#else
constexpr int ROWS = 6;
#endif
constexpr int64_t DEEP = 512;  // words of a panel at a time: what rows and panel need of it stays in the nearest caches
constexpr int64_t FEW = 3 * ROWS;  // rows, for which panels of pairs need not be widened first

typedef Lines<int32_t> Words;

inline int64_t tiles_of(int64_t rows) { return (rows + ROWS - 1) / ROWS; }
template <class W> constexpr int64_t in_word() { return 4 / int64_t(sizeof(W)); }

// Ways to multiply: with one word of a panel, STEP words of each row.
struct Singles {  // floats
    static constexpr int STEP = 1;
    template <int R> static void add(const int32_t* x, int64_t, vi here, vi there, vf* one, vf* other) {
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            const vi same = x[r] - vi{};
            one[r] = fma((vf)same, (vf)here, one[r]);
            other[r] = fma((vf)same, (vf)there, other[r]);
        }
    }
};
struct Widened {  // floats with pairs of bfloat16, one after the other
    static constexpr int STEP = 2;
    template <int R> static void add(const int32_t* x, int64_t wide, vi here, vi there, vf* one, vf* other) {
        Singles::add<R>(x, wide, here << 16, there << 16, one, other);
        Singles::add<R>(x + wide, wide, here & (int32_t)0xffff0000, there & (int32_t)0xffff0000, one, other);
    }
};
#if defined(__AVX512BF16__)
struct Pairs {  // pairs of bfloat16 with pairs
    static constexpr int STEP = 1;
    template <int R> static void add(const int32_t* x, int64_t, vi here, vi there, vf* one, vf* other) {
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            const vi same = x[r] - vi{};
            one[r] = (vf)_mm512_dpbf16_ps((__m512)one[r], (__m512bh)same, (__m512bh)here);
            other[r] = (vf)_mm512_dpbf16_ps((__m512)other[r], (__m512bh)same, (__m512bh)there);
        }
    }
};
#endif

// Byte K of each word, times 2^24, which the scales undo. It is exact in bfloat16, too. Bytes of panels are kept 128
// too large, for products that want them without a sign.
constexpr int32_t SIGNS = int32_t(0x80808080);
template <int K> inline vf byte_of(vi words) {
    return __builtin_convertvector((vi)(words << 8 * (3 - K)) & (int32_t)0xff000000, vf);
}
struct Bytes {  // floats with eight-bit integers, one after the other
    static constexpr int STEP = 4;
    template <int R> static void add(const int32_t* x, int64_t wide, vi here, vi there, vf* one, vf* other) {
        here ^= SIGNS, there ^= SIGNS;
        Singles::add<R>(x, wide, (vi)byte_of<0>(here), (vi)byte_of<0>(there), one, other);
        Singles::add<R>(x + wide, wide, (vi)byte_of<1>(here), (vi)byte_of<1>(there), one, other);
        Singles::add<R>(x + 2 * wide, wide, (vi)byte_of<2>(here), (vi)byte_of<2>(there), one, other);
        Singles::add<R>(x + 3 * wide, wide, (vi)byte_of<3>(here), (vi)byte_of<3>(there), one, other);
    }
};
template <int K> inline vi pair_of(vi words) {  // bytes K and K + 1 as bfloat16
    return (vi)((vu)byte_of<K>(words) >> 16) | ((vi)byte_of<K + 1>(words) & (int32_t)0xffff0000);
}
#if defined(__AVX512BF16__)
struct BytePairs {  // pairs of bfloat16 with eight-bit integers
    static constexpr int STEP = 2;
    template <int R> static void add(const int32_t* x, int64_t wide, vi here, vi there, vf* one, vf* other) {
        here ^= SIGNS, there ^= SIGNS;
        Pairs::add<R>(x, wide, pair_of<0>(here), pair_of<0>(there), one, other);
        Pairs::add<R>(x + wide, wide, pair_of<2>(here), pair_of<2>(there), one, other);
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


// Rows of activations as tiles take them: by word, a word of each of `wide` rows, zeros for those that are not there.
// x: each element at its place among W.
struct Floats {  // a word is one
    template <class W> static void words(const float* x, int32_t* to) {
        const int32_t* bits = reinterpret_cast<const int32_t*>(x);
        for (int i = 0; i < BLOCK; i++) to[i] = bits[place<W>(i)];
    }
};
#if defined(__AVX512BF16__)
struct Rounded {  // a word is two, rounded to bfloat16
    template <class W> static void words(const float* x, int32_t* to) { *reinterpret_cast<vi*>(to) = narrowed(x); }
};
struct InOrder {  // the same of elements that are not at a place
    template <class W> static void words(const float* x, int32_t* to) {
        *reinterpret_cast<vi*>(to) = (vi)_mm512_cvtne2ps_pbh((__m512)load(x + VL), (__m512)load(x));
    }
};
#endif

template <class As, class W>
void pack(const float* x, int64_t stride, int64_t rows, int64_t inputs, int32_t* to, int64_t wide = ROWS) {
    constexpr int WORDS = std::is_same<As, Floats>::value ? BLOCK : VL;
    for (int64_t i = 0; i < inputs; i += BLOCK)
        if (wide < ROWS)
            for (int64_t r = 0; r < wide; r++) {
                int32_t words[BLOCK] = {};
                if (r < rows) As::template words<W>(x + r * stride + i, words);
                for (int n = 0; n < WORDS; n++) to[(i / BLOCK * WORDS + n) * wide + r] = words[n];
            }
        else {
            int32_t words[VL][BLOCK] = {};
            for (int64_t r = 0; r < rows; r++) As::template words<W>(x + r * stride + i, words[r]);
            for (int begin = 0; begin < WORDS; begin += VL) {
                vi turned[VL];
                for (int r = 0; r < VL; r++) turned[r] = *reinterpret_cast<const vi*>(&words[r][begin]);
                transpose(turned);
                for (int n = 0; n < VL; n++, to += ROWS) std::memcpy(to, &turned[n], ROWS * sizeof *to);
            }
        }
}

// BLOCK rows of weights, or of keys, from their element `begin` on, as a panel.
template <class W> void make_panel(const W* const* rows, int64_t begin, int64_t end, int32_t* panel) {
    for (int half = 0; half < BLOCK; half += VL)
        for (int64_t i = begin; i < end; i += VL * in_word<W>()) {
            const int64_t left = sizeof(W) == 1 ? std::min<int64_t>(VL, (end - i) / in_word<W>()) : VL;
            vi words[VL] = {};
#pragma GCC unroll 16
            for (int n = 0; n < VL; n++)
                if (left == VL) words[n] = *reinterpret_cast<const vi*>(rows[half + n] + i);
                else std::memcpy(&words[n], rows[half + n] + i, left * sizeof(int32_t));
            transpose(words);
            int32_t* to = panel + (i - begin) / in_word<W>() * BLOCK + half;
#pragma GCC unroll 16
            for (int n = 0; n < VL; n++)
                if (n < left) *reinterpret_cast<vi*>(to + n * BLOCK) = sizeof(W) == 1 ? words[n] ^ SIGNS : words[n];
        }
}

// The same of a matrix's outputs from n on; PLACED: each at its place among A.
template <class W, class A, bool PLACED>
void make_panel_of(const Matrix& m, int64_t inputs, int64_t n, int64_t begin, int64_t end, int32_t* panel) {
    const W* rows[BLOCK];
    for (int64_t i = 0; i < BLOCK; i++)
        rows[PLACED ? place<A>(i) : i] = static_cast<const W*>(m.weight) + std::min(n + i, m.outputs - 1) * inputs;
    make_panel(rows, begin, end, panel);
}

// BLOCK elements of each of some entries as a panel, each at its place, whose words are of two entries.
inline void make_panel_across(const bf16* const* entries, int64_t from, int64_t count, int32_t* panel) {
    for (int64_t e = 0; e < count; e += 2, panel += BLOCK) {
        const vu one = *reinterpret_cast<const vu*>(entries[e] + from);
        const vu other = *reinterpret_cast<const vu*>(entries[e + 1] + from);
        *reinterpret_cast<vi*>(panel) = (vi)((one & 0xffffu) | (other << 16));
        *reinterpret_cast<vi*>(panel + VL) = (vi)((one >> 16) | (other & 0xffff0000u));
    }
}

// A panel's pairs as floats.
inline void widen(const int32_t* pairs, int64_t words, int32_t* panel) {
    for (int64_t i = 0; i < words * BLOCK; i += BLOCK)
        for (int half = 0; half < BLOCK; half += VL) {
            const vi both = *reinterpret_cast<const vi*>(pairs + i + half);
            *reinterpret_cast<vi*>(panel + 2 * i + half) = both << 16;
            *reinterpret_cast<vi*>(panel + 2 * i + BLOCK + half) = both & (int32_t)0xffff0000;
        }
}

// A panel's eight-bit integers as floats, or as pairs of bfloat16.
template <bool PAIRS> void widen_bytes(const int32_t* bytes, int64_t words, int32_t* panel) {
    for (int64_t i = 0; i < words * BLOCK; i += BLOCK, panel += (PAIRS ? 2 : 4) * BLOCK)
        for (int half = 0; half < BLOCK; half += VL) {
            const vi all = *reinterpret_cast<const vi*>(bytes + i + half) ^ SIGNS;
            vi* to = reinterpret_cast<vi*>(panel + half);
            constexpr int NEXT = BLOCK / VL;
            if (PAIRS)
                to[0] = pair_of<0>(all), to[NEXT] = pair_of<2>(all);
            else
                to[0] = (vi)byte_of<0>(all), to[NEXT] = (vi)byte_of<1>(all), to[2 * NEXT] = (vi)byte_of<2>(all),
                to[3 * NEXT] = (vi)byte_of<3>(all);
        }
}

// R rows times a panel, added to what `out` holds unless these are the first words. x: rows packed `wide`. A function
// of its own, and every loop over rows unrolled, lest the sums leave their registers.
template <class T, int R>
__attribute__((noinline)) void tile(const int32_t* x, int64_t wide, const int32_t* panel, int64_t words, float* out,
                                    int64_t stride, bool first) {
    vf one[R] = {}, other[R] = {};
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
        if (!first) one[r] = load(out + r * stride), other[r] = load(out + r * stride + VL);
    for (int64_t i = 0; i < words; i++, x += T::STEP * wide, panel += BLOCK) {
        __builtin_prefetch(panel + AHEAD * BLOCK), __builtin_prefetch(panel + AHEAD * BLOCK + VL);
        T::template add<R>(x, wide, *reinterpret_cast<const vi*>(panel), *reinterpret_cast<const vi*>(panel + VL), one,
                           other);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) store(out + r * stride, one[r]), store(out + r * stride + VL, other[r]);
}

// Up to ROWS rows by code for some of them at a time: take(first, how many).
template <class F> void for_rows(int64_t rows, F&& take) {
    int64_t r = 0;
    const auto next = [&](auto some) { take(r, some), r += some; };
    if (rows == ROWS) next(std::integral_constant<int, ROWS>());
    if (ROWS > 8 && rows - r >= 8) next(std::integral_constant<int, std::min(ROWS, 8)>());
    if (ROWS > 6 && rows - r >= 6) next(std::integral_constant<int, 6>());
    if (rows - r >= 4) next(std::integral_constant<int, 4>());
    if (rows - r >= 3) next(std::integral_constant<int, 3>());
    if (rows - r >= 2) next(std::integral_constant<int, 2>());
    if (rows - r >= 1) next(std::integral_constant<int, 1>());
}

// Up to ROWS rows, packed `wide`.
template <class T>
void few_rows(const int32_t* x, int64_t wide, const int32_t* panel, int64_t words, float* out, int64_t stride,
              int64_t rows, bool first) {
    for_rows(rows, [&](int64_t r, auto some) {
        tile<T, some>(x + r, wide, panel, words, out + r * stride, stride, first);
    });
}

// All tiles of rows that are packed ROWS wide, times a panel. x: from the panel's first word on; `deep`: words of a
// row.
template <class T>
void tiles(const int32_t* x, int64_t deep, const int32_t* panel, int64_t words, float* out, int64_t stride,
           int64_t rows, bool first) {
    for (int64_t r = 0; r < rows; r += ROWS)
        few_rows<T>(x + r * deep, ROWS, panel, words, out + r * stride, stride, std::min<int64_t>(ROWS, rows - r),
                    first);
}

// How rows meet weights of W: rounded to pairs of bfloat16 themselves (PAIRS), or as floats.
template <class W, bool PAIRS> struct Way {
    typedef Floats As, Across;  // Across: what meets entries, one after the other
    typedef typename std::conditional<sizeof(W) == 2, Widened, Singles>::type Once;  // with a panel that is read once
    typedef Bytes OnceBytes;
    typedef Singles Often;  // with a panel of such words
    static constexpr int64_t IN_WORD = 1;
};
#if defined(__AVX512BF16__)
template <> struct Way<bf16, true> {
    typedef Rounded As;
    typedef InOrder Across;
    typedef Pairs Once;
    typedef BytePairs OnceBytes;
    typedef Pairs Often;
    static constexpr int64_t IN_WORD = 2;
};
#endif

// What is left to do with sums.
inline void finish(const Matrix& m, int64_t rows, float* out, int64_t stride, int64_t begin, int64_t end) {
    if (m.scales)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t n = begin; n < end; n += VL)
                store(out + r * stride + n, load(out + r * stride + n) * load(m.scales + n));
    if (m.bias)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t n = begin; n < end; n += VL)
                store(out + r * stride + n, load(out + r * stride + n) + load(m.bias + n));
}

// out[r][n], or at the place of n, for the outputs from `begin` to the end of the block of `end`. x: rows packed ROWS
// wide, or TALL.
template <class W, bool PAIRS, bool PLACED = false, bool TILES = false>
void multiply_many(const Matrix& m, const int32_t* x, int64_t rows, int64_t inputs, float* out, int64_t stride,
                   int64_t begin, int64_t end) {
    typedef Way<W, PAIRS> Chosen;
    const int64_t kept = m.scales ? 4 : in_word<W>();  // weights in a word of a panel
    const int64_t wider = kept / Chosen::IN_WORD;      // words that it is widened to, once for all tiles
    const int64_t words = inputs / kept, deep = inputs / Chosen::IN_WORD, some = DEEP / wider;
    thread_local Words made(DEEP * BLOCK), widened(DEEP * BLOCK);
    for (int64_t from = 0; from < words; from += some) {
        const int64_t until = std::min(from + some, words);
        for (int64_t n = begin; n < end; n += BLOCK) {
            const int32_t* panel = m.panels + (n / BLOCK * words + from) * BLOCK;
            if (!m.panels) {
                make_panel_of<W, W, PLACED>(m, inputs, n, from * kept, until * kept, made.data());
                panel = made.data();
            }
            if (wider > 1) {
                if (m.scales) widen_bytes<PAIRS>(panel, until - from, widened.data());
                else widen(panel, until - from, widened.data());
                panel = widened.data();
            }
            const int64_t here = wider * (until - from);
            if (TILES) tall_tiles(x + from * wider * TALL, deep, panel, here, out + n, stride, rows, from == 0);
            else tiles<typename Chosen::Often>(x + from * wider * ROWS, deep, panel, here, out + n, stride, rows,
                                               from == 0);
        }
    }
    finish(m, rows, out, stride, begin, end);
}

// The same for so few rows that panels are read as they are kept, once from the memory. x: rows packed `wide`.
template <class W, bool PAIRS, bool PLACED = false>
void multiply_few(const Matrix& m, const int32_t* x, int64_t wide, int64_t rows, int64_t inputs, float* out,
                  int64_t stride, int64_t begin, int64_t end) {
    typedef Way<W, PAIRS> Chosen;
    const int64_t words = inputs / (m.scales ? 4 : in_word<W>()), deep = inputs / Chosen::IN_WORD;
    for (int64_t n = begin; n < end; n += BLOCK)
        for (int64_t r = 0; r < rows; r += wide) {
            const auto take = [&](auto way) {
                few_rows<decltype(way)>(x + r * deep, wide, m.panels + n * words, words, out + r * stride + n, stride,
                                        std::min(wide, rows - r), true);
            };
            if (m.scales) take(typename Chosen::OnceBytes());
            else take(typename Chosen::Once());
        }
    finish(m, rows, out, stride, begin, end);
}

}  // namespace
