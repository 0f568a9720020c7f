// Products of bfloat16 by tiles (AMX): 16 rows of activations and 16 outputs at once, both in memory as words of two.
//
// An element of a product is one chain of sums over its inputs in their order, so a row gets the same bits among any
// others.

#pragma once

#include "gemv.h"
#include "simd.h"

#include <cstdint>
#include <cstring>

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int TALL = 16;  // rows of a tile
constexpr int64_t AHEAD = 32;  // words of a panel that is read once, asked for before they are needed
static_assert(TALL >= VL);

#if defined(HAS_TILES)
constexpr bool IN_TILES = true;

// Whether the system lets this process use them: it has to be asked.
inline bool may_use_tiles() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
    static const bool may = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return may;
}

struct alignas(64) TileShapes {
    uint8_t palette = 0, from_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};
};

// All tiles of a thread at their full size; then as they were, since others here (oneDNN) count on theirs.
class Tiles {
  public:
    Tiles() {
        TileShapes full;
        full.palette = 1;
        for (int t = 0; t < 8; t++) full.bytes[t] = 4 * VL, full.rows[t] = TALL;
        written();
        _tile_storeconfig(&before);
        _tile_loadconfig(&full);
        written();
    }
    ~Tiles() {
        written();
        _tile_loadconfig(&before);
    }
    Tiles(const Tiles&) = delete;

  private:
    void written() { asm volatile("" : : "r"(this) : "memory"); }  // compilers think it is eight bytes that count

    TileShapes before;
};

// One or two tiles of rows times a panel, added to what `out` holds unless these are the first words.
template <bool TWO>
__attribute__((noinline)) void tall_tile(const int32_t* x, int64_t deep, const int32_t* panel, int64_t words,
                                         float* out, int64_t stride, bool first) {
    float* below = out + TALL * stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (!first) {
        _tile_loadd(0, out, 4 * stride);
        _tile_loadd(1, out + VL, 4 * stride);
    }
    if (TWO && !first) {
        _tile_loadd(2, below, 4 * stride);
        _tile_loadd(3, below + VL, 4 * stride);
    }
    for (int64_t i = 0; i < words; i += VL, x += TALL * VL, panel += VL * BLOCK) {
        _tile_loadd(4, panel, 4 * BLOCK);
        _tile_loadd(5, panel + VL, 4 * BLOCK);
        _tile_loadd(6, x, 4 * VL);
        _tile_dpbf16ps(0, 6, 4);
        _tile_dpbf16ps(1, 6, 5);
        if (!TWO)  // few rows: a panel is read once, from the memory
            for (int line = 0; line < VL; line++) {
                __builtin_prefetch(panel + (AHEAD + line) * BLOCK);
                __builtin_prefetch(panel + (AHEAD + line) * BLOCK + VL);
            }
        if (TWO) {
            _tile_loadd(7, x + TALL * deep, 4 * VL);
            _tile_dpbf16ps(2, 7, 4);
            _tile_dpbf16ps(3, 7, 5);
        }
    }
    _tile_stored(0, out, 4 * stride);
    _tile_stored(1, out + VL, 4 * stride);
    if (TWO) {
        _tile_stored(2, below, 4 * stride);
        _tile_stored(3, below + VL, 4 * stride);
    }
}

// Rows times a panel. x: as `pack_tall` has them, from the panel's first word on; `deep`: words of a row.
inline void tall_tiles(const int32_t* x, int64_t deep, const int32_t* panel, int64_t words, float* out, int64_t stride,
                       int64_t rows, bool first) {
    for (; rows >= 2 * TALL; rows -= 2 * TALL, x += 2 * TALL * deep, out += 2 * TALL * stride)
        tall_tile<true>(x, deep, panel, words, out, stride, first);
    if (!rows) return;
    alignas(64) float whole[2 * TALL * BLOCK];  // the last tiles have rows that are not there
    if (!first)
        for (int64_t r = 0; r < rows; r++) std::memcpy(whole + r * BLOCK, out + r * stride, BLOCK * sizeof *out);
    if (rows > TALL) tall_tile<true>(x, deep, panel, words, whole, BLOCK, first);
    else tall_tile<false>(x, deep, panel, words, whole, BLOCK, first);
    for (int64_t r = 0; r < rows; r++) std::memcpy(out + r * stride, whole + r * BLOCK, BLOCK * sizeof *out);
}

// Rows as tall tiles take them: by block, its words row after row. x: each element at its place, or in its order.
template <bool PLACED>
void pack_tall(const float* x, int64_t stride, int64_t rows, int64_t inputs, int32_t* to) {
    for (int64_t i = 0; i < inputs; i += BLOCK, to += TALL * VL)
        for (int64_t r = 0; r < rows; r++) {
            const float* from = x + r * stride + i;
            *reinterpret_cast<vi*>(to + r * VL) =
                PLACED ? narrowed(from) : (vi)_mm512_cvtne2ps_pbh((__m512)load(from + VL), (__m512)load(from));
        }
}
#else
constexpr bool IN_TILES = false;
inline bool may_use_tiles() { return false; }
struct Tiles {};
inline void tall_tiles(const int32_t*, int64_t, const int32_t*, int64_t, float*, int64_t, int64_t, bool) {}
template <bool PLACED> void pack_tall(const float*, int64_t, int64_t, int64_t, int32_t*) {}
#endif

}  // namespace
