// What the AMX instructions of gemm_amx.h do, in plain code, for CPUs with all that the kernels want beside them.

#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace emulated {

struct Tile {
    uint32_t words[16][16];
};
inline thread_local Tile tiles[8];

inline void load(int t, const void* from, long stride) {
    for (int r = 0; r < 16; r++) std::memcpy(tiles[t].words[r], static_cast<const char*>(from) + r * stride, 64);
}
inline void store(int t, void* to, long stride) {
    for (int r = 0; r < 16; r++) std::memcpy(static_cast<char*>(to) + r * stride, tiles[t].words[r], 64);
}
inline float wide(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline void multiply(int to, int a, int b) {  // pairs of bfloat16, added to floats
    for (int r = 0; r < 16; r++)
        for (int n = 0; n < 16; n++) {
            float sum = wide(tiles[to].words[r][n]);
            for (int k = 0; k < 16; k++) {
                const uint32_t x = tiles[a].words[r][k], y = tiles[b].words[k][n];
                sum += wide(x << 16) * wide(y << 16);
                sum += wide(x & 0xffff0000u) * wide(y & 0xffff0000u);
            }
            std::memcpy(&tiles[to].words[r][n], &sum, 4);
        }
}

}  // namespace emulated

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_loadconfig
#undef _tile_storeconfig
#define _tile_zero(t) std::memset(&emulated::tiles[t], 0, sizeof(emulated::Tile))
#define _tile_loadd(t, from, stride) emulated::load(t, from, stride)
#define _tile_stored(t, to, stride) emulated::store(t, to, stride)
#define _tile_dpbf16ps(to, a, b) emulated::multiply(to, a, b)
#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_storeconfig(config) static_cast<void>(config)
#define syscall(...) 0L  // the system gives leave
#define __AMX_BF16__ 1
