/* Vectors of floats of the level that a file is compiled for. Included once by each level's file:
 * everything is static, so no level can be linked to another's code. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(QR_LEVEL_AVX2)
#include <immintrin.h>
#define LANES 8
typedef __m256 vf;

INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
INLINE vf vf_all(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_from_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
/* Pairs of bfloat16 side by side: the first ones, and the second ones, of LANES pairs. */
INLINE void vf_from_bf16_pairs(const uint16_t *p, vf *first, vf *second) {
    __m256i pairs = _mm256_loadu_si256((const __m256i *)p);
    *first = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    *second = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)));
}
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
/* As a > b ? a : b, so b where either is no number. */
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_round(vf x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* 2^n of whole numbers -126 <= n <= 127 */
INLINE vf vf_exp2_whole(vf n) {
    __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_castsi256_ps(bits);
}
/* Where a < b, x, else y. */
INLINE vf vf_where_less(vf a, vf b, vf x, vf y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE int vf_any_equal(vf a, vf b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)) != 0;
}
/* The four sums ((x0 + x1) + (x2 + x3)) + ((x4 + x5) + (x6 + x7)), of each of four vectors. */
INLINE void vf_sums_of_four(vf a, vf b, vf c, vf d, float to[4]) {
    vf halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

typedef __m256i vi; /* of int32 */

INLINE vi vi_zero(void) { return _mm256_setzero_si256(); }
INLINE vi vi_all(int32_t x) { return _mm256_set1_epi32(x); }
INLINE vi vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
/* Kept: gcc would add up products first, of more vectors than there are registers. */
INLINE vi vi_add(vi a, vi b) {
    vi sum = _mm256_add_epi32(a, b);
    __asm__("" : "+x"(sum));
    return sum;
}
INLINE vf vf_from_vi(vi x) { return _mm256_cvtepi32_ps(x); }
/* Products of two pairs of int16, each pair added up. */
INLINE vi vi_pairs(vi a, vi b) { return _mm256_madd_epi16(a, b); }
/* Of int8, widened to int16: the even ones, and the odd ones. */
INLINE vi vi_even(vi x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }
INLINE vi vi_odd(vi x) { return _mm256_srai_epi16(x, 8); }
INLINE vf vf_from_i8(const int8_t *p) {
    return vf_from_vi(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE vf vf_from_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

#elif defined(QR_LEVEL_NEON)
#include <arm_neon.h>
#define LANES 8 /* two registers: the lanes of a sum are the same as on other levels */
typedef struct {
    float32x4_t low, high;
} vf;

INLINE vf vf_all(float x) { return (vf){vdupq_n_f32(x), vdupq_n_f32(x)}; }
INLINE vf vf_zero(void) { return vf_all(0); }
INLINE vf vf_load(const float *p) { return (vf){vld1q_f32(p), vld1q_f32(p + 4)}; }
INLINE void vf_store(float *p, vf x) {
    vst1q_f32(p, x.low);
    vst1q_f32(p + 4, x.high);
}
INLINE vf vf_fma(vf a, vf b, vf c) {
    return (vf){vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
INLINE vf vf_add(vf a, vf b) { return (vf){vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
INLINE vf vf_sub(vf a, vf b) { return (vf){vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
INLINE vf vf_mul(vf a, vf b) { return (vf){vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
INLINE vf vf_div(vf a, vf b) { return (vf){vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
INLINE vf vf_where_less(vf a, vf b, vf x, vf y) {
    return (vf){vbslq_f32(vcltq_f32(a.low, b.low), x.low, y.low),
                vbslq_f32(vcltq_f32(a.high, b.high), x.high, y.high)};
}
INLINE int vf_any_equal(vf a, vf b) {
    uint32x4_t equal = vorrq_u32(vceqq_f32(a.low, b.low), vceqq_f32(a.high, b.high));
    return vmaxvq_u32(equal) != 0;
}
/* Not vmaxq_f32, which has another answer where one is no number. */
INLINE vf vf_max(vf a, vf b) { return vf_where_less(b, a, a, b); }
INLINE vf vf_min(vf a, vf b) { return vf_where_less(a, b, a, b); }
INLINE vf vf_round(vf x) { return (vf){vrndnq_f32(x.low), vrndnq_f32(x.high)}; }
INLINE float32x4_t exp2_whole(float32x4_t n) {
    int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vreinterpretq_f32_s32(bits);
}
INLINE vf vf_exp2_whole(vf n) { return (vf){exp2_whole(n.low), exp2_whole(n.high)}; }
INLINE void vf_sums_of_four(vf a, vf b, vf c, vf d, float to[4]) {
    float32x4_t low = vpaddq_f32(vpaddq_f32(a.low, b.low), vpaddq_f32(c.low, d.low));
    float32x4_t high = vpaddq_f32(vpaddq_f32(a.high, b.high), vpaddq_f32(c.high, d.high));
    vst1q_f32(to, vaddq_f32(low, high));
}
INLINE vf vf_from_f16(const uint16_t *p) {
    float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(p));
    return (vf){vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)};
}
INLINE vf vf_from_bf16(const uint16_t *p) {
    uint16x8_t x = vld1q_u16(p);
    return (vf){vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(x), 16)),
                vreinterpretq_f32_u32(vshll_high_n_u16(x, 16))};
}
INLINE void vf_from_bf16_pairs(const uint16_t *p, vf *first, vf *second) {
    uint32x4_t low = vreinterpretq_u32_u16(vld1q_u16(p));
    uint32x4_t high = vreinterpretq_u32_u16(vld1q_u16(p + 8)), odd = vdupq_n_u32(0xffff0000);
    *first = (vf){vreinterpretq_f32_u32(vshlq_n_u32(low, 16)),
                  vreinterpretq_f32_u32(vshlq_n_u32(high, 16))};
    *second = (vf){vreinterpretq_f32_u32(vandq_u32(low, odd)),
                   vreinterpretq_f32_u32(vandq_u32(high, odd))};
}

typedef struct {
    int32x4_t low, high;
} vi;

INLINE vi vi_all(int32_t x) { return (vi){vdupq_n_s32(x), vdupq_n_s32(x)}; }
INLINE vi vi_zero(void) { return vi_all(0); }
INLINE vi vi_load(const void *p) {
    const int8_t *bytes = p;
    return (vi){vreinterpretq_s32_s8(vld1q_s8(bytes)), vreinterpretq_s32_s8(vld1q_s8(bytes + 16))};
}
INLINE vi vi_add(vi a, vi b) { return (vi){vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
INLINE vf vf_from_vi(vi x) { return (vf){vcvtq_f32_s32(x.low), vcvtq_f32_s32(x.high)}; }
INLINE vf vf_from_i8(const int8_t *p) {
    int16x8_t x = vmovl_s8(vld1_s8(p));
    return vf_from_vi((vi){vmovl_s16(vget_low_s16(x)), vmovl_high_s16(x)});
}
INLINE int32x4_t pairs_of_s16(int16x8_t a, int16x8_t b) {
    return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}
INLINE vi vi_pairs(vi a, vi b) {
    return (vi){pairs_of_s16(vreinterpretq_s16_s32(a.low), vreinterpretq_s16_s32(b.low)),
                pairs_of_s16(vreinterpretq_s16_s32(a.high), vreinterpretq_s16_s32(b.high))};
}
INLINE int32x4_t odd_bytes(int32x4_t x) {
    return vreinterpretq_s32_s16(vshrq_n_s16(vreinterpretq_s16_s32(x), 8));
}
INLINE int32x4_t even_bytes(int32x4_t x) {
    return odd_bytes(vreinterpretq_s32_s16(vshlq_n_s16(vreinterpretq_s16_s32(x), 8)));
}
INLINE vi vi_even(vi x) { return (vi){even_bytes(x.low), even_bytes(x.high)}; }
INLINE vi vi_odd(vi x) { return (vi){odd_bytes(x.low), odd_bytes(x.high)}; }

#else /* portable: vectors that the compiler makes of what there is */
#define LANES 8
typedef float vf __attribute__((vector_size(32)));
typedef uint32_t vu __attribute__((vector_size(32)));
typedef int32_t vm __attribute__((vector_size(32))); /* all bits, or none */

INLINE vf vf_all(float x) { return (vf){x, x, x, x, x, x, x, x}; }
INLINE vf vf_zero(void) { return vf_all(0); }
INLINE vf vf_load(const float *p) { vf x; memcpy(&x, p, sizeof x); return x; }
INLINE void vf_store(float *p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf vf_add(vf a, vf b) { return a + b; }
INLINE vf vf_mul(vf a, vf b) { return a * b; }
INLINE vf vf_sub(vf a, vf b) { return a - b; }
INLINE vf vf_div(vf a, vf b) { return a / b; }
INLINE vf vf_where(vm mask, vf x, vf y) { return (vf)((mask & (vm)x) | (~mask & (vm)y)); }
INLINE vf vf_max(vf a, vf b) { return vf_where(a > b, a, b); }
INLINE vf vf_min(vf a, vf b) { return vf_where(a < b, a, b); }
INLINE vf vf_round(vf x) {
    vf y;
    for (int i = 0; i < LANES; i++) y[i] = rintf(x[i]);
    return y;
}
INLINE vf vf_exp2_whole(vf n) {
    typedef int32_t whole __attribute__((vector_size(32)));
    return (vf)((__builtin_convertvector(n, whole) + 127) << 23);
}
INLINE vf vf_where_less(vf a, vf b, vf x, vf y) { return vf_where(a < b, x, y); }
INLINE int vf_any_equal(vf a, vf b) {
    vm equal = a == b;
    int any = 0;
    for (int i = 0; i < LANES; i++) any |= equal[i];
    return any;
}
INLINE void vf_sums_of_four(vf a, vf b, vf c, vf d, float to[4]) {
    const vf all[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        vf x = all[i];
        to[i] = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
    }
}
INLINE float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    if (rest >= 0x7c00) {
        bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else {
        float scaled;
        bits = rest << 13;
        memcpy(&scaled, &bits, sizeof scaled);
        scaled *= 0x1p112f; /* exact, for those below the least normal number too */
        memcpy(&bits, &scaled, sizeof bits);
        bits |= sign;
    }
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
INLINE vf vf_from_f16(const uint16_t *p) {
    vf x;
    for (int i = 0; i < LANES; i++) x[i] = f16_to_f32(p[i]);
    return x;
}
INLINE void vf_from_bf16_pairs(const uint16_t *p, vf *first, vf *second) {
    vu pairs;
    memcpy(&pairs, p, sizeof pairs);
    vu low = pairs << 16, high = pairs & 0xffff0000u;
    memcpy(first, &low, sizeof low);
    memcpy(second, &high, sizeof high);
}

typedef int32_t vi __attribute__((vector_size(32)));
typedef int16_t vs __attribute__((vector_size(32)));

INLINE vi vi_all(int32_t x) { return (vi){x, x, x, x, x, x, x, x}; }
INLINE vi vi_zero(void) { return vi_all(0); }
INLINE vi vi_load(const void *p) { vi x; memcpy(&x, p, sizeof x); return x; }
INLINE vi vi_add(vi a, vi b) { return a + b; }
INLINE vf vf_from_vi(vi x) { return __builtin_convertvector(x, vf); }
INLINE vi vi_pairs(vi a, vi b) {
    /* The low half of a product of int16 as int32 is the product of the sign-extended halves. */
    vi low = ((a << 16) >> 16) * ((b << 16) >> 16), high = (a >> 16) * (b >> 16);
    return low + high;
}
INLINE vi vi_even(vi x) { return (vi)(((vs)x << 8) >> 8); }
INLINE vi vi_odd(vi x) { return (vi)((vs)x >> 8); }
INLINE vf vf_from_i8(const int8_t *p) {
    vf x;
    for (int i = 0; i < LANES; i++) x[i] = p[i];
    return x;
}
INLINE vf vf_from_bf16(const uint16_t *p) {
    vu x = {0};
    for (int i = 0; i < LANES; i++) x[i] = (uint32_t)p[i] << 16;
    return (vf)x;
}
#endif

/* sum, and the products of pairs that vi_pairs adds up. */
INLINE vi vi_add_pairs(vi sum, vi a, vi b) { return vi_add(sum, vi_pairs(a, b)); }

#define VECTORS (QR_TILE / LANES) /* of a tile's channels */
