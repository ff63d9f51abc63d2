/* The products' vectors at 512 bits, under the names of simd.h until narrow.h: each channel's sum is
 * a chain of its own, so that its bits do not depend on how many lie side by side. What adds up
 * lanes, attention and norms, stays at simd.h's. */
typedef __m512 wf;

INLINE wf wf_zero(void) { return _mm512_setzero_ps(); }
INLINE wf wf_all(float x) { return _mm512_set1_ps(x); }
INLINE wf wf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void wf_store(float *p, wf x) { _mm512_storeu_ps(p, x); }
INLINE wf wf_fma(wf a, wf b, wf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE wf wf_add(wf a, wf b) { return _mm512_add_ps(a, b); }
INLINE wf wf_mul(wf a, wf b) { return _mm512_mul_ps(a, b); }
INLINE wf wf_from_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE wf wf_from_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE void wf_from_bf16_pairs(const uint16_t *p, wf *first, wf *second) {
    __m512i pairs = _mm512_loadu_si512(p), odd = _mm512_set1_epi32((int)0xffff0000);
    *first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *second = _mm512_castsi512_ps(_mm512_and_si512(pairs, odd));
}

typedef __m512i wi;

INLINE wi wi_zero(void) { return _mm512_setzero_si512(); }
INLINE wi wi_all(int32_t x) { return _mm512_set1_epi32(x); }
INLINE wi wi_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE wf wf_from_wi(wi x) { return _mm512_cvtepi32_ps(x); }
INLINE wi wi_add_pairs(wi sum, wi a, wi b) { return _mm512_dpwssd_epi32(sum, a, b); }
INLINE wi wi_even(wi x) { return _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8); }
INLINE wi wi_odd(wi x) { return _mm512_srai_epi16(x, 8); }

#undef LANES
#define LANES 16
#define vf wf
#define vf_zero wf_zero
#define vf_all wf_all
#define vf_load wf_load
#define vf_store wf_store
#define vf_fma wf_fma
#define vf_add wf_add
#define vf_mul wf_mul
#define vf_from_f16 wf_from_f16
#define vf_from_bf16 wf_from_bf16
#define vf_from_bf16_pairs wf_from_bf16_pairs
#define vi wi
#define vi_zero wi_zero
#define vi_all wi_all
#define vi_load wi_load
#define vf_from_vi wf_from_wi
#define vi_add_pairs wi_add_pairs
#define vi_even wi_even
#define vi_odd wi_odd
