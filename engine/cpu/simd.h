// Vectors of floats, bfloat16, and functions of them.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int VL = 16;
#else
constexpr int VL = 8;
#endif
constexpr int BLOCK = 2 * VL;  // elements read at a time; every inner dimension is a multiple of it

typedef float vf __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4), aligned(2), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t bf16;

namespace {

// Memory that begins with a cache line: a vector's load that crosses two takes twice as long.
template <class T> struct OnLine {
    typedef T value_type;
    OnLine() = default;
    template <class U> OnLine(const OnLine<U>&) {}
    T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* at, std::size_t) { ::operator delete(at, std::align_val_t(64)); }
    template <class U> bool operator==(const OnLine<U>&) const { return true; }
    template <class U> bool operator!=(const OnLine<U>&) const { return false; }
};
template <class T> using Lines = std::vector<T, OnLine<T>>;

inline vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
inline void store(float* p, vf x) { *reinterpret_cast<vf*>(p) = x; }

// a * b + c, rounded once: said outright, since a compiler left to itself fuses in one place and not in another.
inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
    for (int i = 0; i < VL; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

// A block of weights as two vectors. bfloat16: the even elements, then the odd ones; float32: the first, the last.
inline void load(const bf16* w, vf& a, vf& b) {
    vu u = *reinterpret_cast<const vu*>(w);
    a = (vf)(u << 16);
    b = (vf)(u & 0xffff0000u);
}
inline void load(const float* w, vf& a, vf& b) {
    a = load(w);
    b = load(w + VL);
}

// A vector of numbers as weights of W keep them.
template <class W> inline vf rounded_to(vf x);
template <> inline vf rounded_to<float>(vf x) { return x; }
template <> inline vf rounded_to<bf16>(vf x) {  // as to_bf16, of what is a number
    const vu bits = (vu)x;
    return (vf)((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

// Where element i of an activation lies so that it meets its weight.
template <class W> inline int64_t place(int64_t i);
template <> inline int64_t place<float>(int64_t i) { return i; }
template <> inline int64_t place<bf16>(int64_t i) {
    int64_t in = i % BLOCK;
    return i - in + (in & 1 ? VL : 0) + in / 2;
}

// The sums of four vectors, each added up in the same order whatever the other vectors are.
struct Four {
    float of[4];
};
inline Four sums(vf a, vf b, vf c, vf d) {
    Four out;
#if defined(__AVX512F__)
    auto half = [](vf x, vf y) {
        return _mm512_castps_pd(_mm512_unpacklo_ps((__m512)x, (__m512)y) + _mm512_unpackhi_ps((__m512)x, (__m512)y));
    };
    __m512d ab = half(a, b), cd = half(c, d);
    __m512 all = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)) + _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    __m256 eight = _mm512_castps512_ps256(all) +
                   _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1));
    _mm_storeu_ps(out.of, _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1));
#elif defined(__AVX__)
    auto half = [](vf x, vf y) { return _mm256_hadd_ps((__m256)x, (__m256)y); };
    __m256 all = _mm256_hadd_ps(half(a, b), half(c, d));
    _mm_storeu_ps(out.of, _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1));
#else
    const vf of[4] = {a, b, c, d};
    for (int n = 0; n < 4; n++) {
        float lanes[VL];
        std::memcpy(lanes, &of[n], sizeof lanes);
        for (int width = VL / 2; width; width /= 2)
            for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
        out.of[n] = lanes[0];
    }
#endif
    return out;
}
inline float sum(vf x) { return sums(x, vf{}, vf{}, vf{}).of[0]; }

inline bf16 to_bf16(float x) {  // to nearest, ties to even
    uint32_t u;
    std::memcpy(&u, &x, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return bf16((u >> 16) | 64);
    return bf16((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline void put(bf16* to, float x) { *to = to_bf16(x); }
inline void put(float* to, float x) { *to = x; }

inline vf splat(float x) { return x - vf{}; }

// e^x to about one unit in the last place: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes).
inline vf exp(vf x) {
    const vf low = splat(-87.0f), high = splat(88.0f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    vf n = x * 1.44269504088896341f + 12582912.0f;  // rounds to an integer by losing the rest
    vi exponent = ((vi)n - 0x4B400000 + 127) << 23;
    n -= 12582912.0f;
    x = x - n * 0.693359375f;
    x = x - n * -2.12194440e-4f;
    vf y = splat(1.9875691500e-4f);
    y = fma(y, x, splat(1.3981999507e-3f));
    y = fma(y, x, splat(8.3334519073e-3f));
    y = fma(y, x, splat(4.1665795894e-2f));
    y = fma(y, x, splat(1.6666665459e-1f));
    y = fma(y, x, splat(5.0000001201e-1f));
    y = y * x * x + x + 1.0f;
    return y * (vf)exponent;
}

inline vf silu(vf x) { return x / (exp(-x) + 1.0f); }
inline vf gelu_tanh(vf x) {  // x * sigmoid(2 u) = x / 2 * (1 + tanh(u))
    vf u = (x + x * x * x * 0.044715f) * 0.7978845608028654f;
    return x / (exp(u * -2.0f) + 1.0f);
}

}  // namespace
