/* The AVX-512 instructions that kernels/cpu/csrc/wide.h uses, each as its manual page says, over
 * pairs of 256-bit registers. Included before all else, so that the level runs on AVX2. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define HAND static inline __attribute__((always_inline))

typedef struct {
    __m256 low, high;
} hand_ps;
typedef struct {
    __m256i low, high;
} hand_i;

#define __m512 hand_ps
#define __m512i hand_i

HAND hand_ps hand_set1_ps(float x) { return (hand_ps){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
HAND hand_ps hand_loadu_ps(const float *p) {
    return (hand_ps){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
HAND void hand_storeu_ps(float *p, hand_ps x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
HAND hand_ps hand_fmadd_ps(hand_ps a, hand_ps b, hand_ps c) {
    return (hand_ps){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
HAND hand_ps hand_add_ps(hand_ps a, hand_ps b) {
    return (hand_ps){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
HAND hand_ps hand_mul_ps(hand_ps a, hand_ps b) {
    return (hand_ps){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
HAND hand_ps hand_cvtph_ps(__m256i x) {
    return (hand_ps){_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
                     _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
}
HAND hand_i hand_cvtepu16_epi32(__m256i x) {
    return (hand_i){_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
                    _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))};
}
HAND hand_ps hand_castsi512_ps(hand_i x) {
    return (hand_ps){_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)};
}
HAND hand_i hand_set1_epi32(int32_t x) {
    return (hand_i){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
HAND hand_i hand_loadu_si512(const void *p) {
    const __m256i *at = p;
    return (hand_i){_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
HAND hand_i hand_slli_epi32(hand_i x, int n) {
    return (hand_i){_mm256_slli_epi32(x.low, n), _mm256_slli_epi32(x.high, n)};
}
HAND hand_i hand_and_si512(hand_i a, hand_i b) {
    return (hand_i){_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
HAND hand_ps hand_cvtepi32_ps(hand_i x) {
    return (hand_ps){_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}
HAND hand_i hand_dpwssd_epi32(hand_i sum, hand_i a, hand_i b) {
    return (hand_i){_mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low)),
                    _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high))};
}
HAND hand_i hand_slli_epi16(hand_i x, int n) {
    return (hand_i){_mm256_slli_epi16(x.low, n), _mm256_slli_epi16(x.high, n)};
}
HAND hand_i hand_srai_epi16(hand_i x, int n) {
    return (hand_i){_mm256_srai_epi16(x.low, n), _mm256_srai_epi16(x.high, n)};
}

#define _mm512_setzero_ps() hand_set1_ps(0)
#define _mm512_set1_ps hand_set1_ps
#define _mm512_loadu_ps hand_loadu_ps
#define _mm512_storeu_ps hand_storeu_ps
#define _mm512_fmadd_ps hand_fmadd_ps
#define _mm512_add_ps hand_add_ps
#define _mm512_mul_ps hand_mul_ps
#define _mm512_cvtph_ps hand_cvtph_ps
#define _mm512_cvtepu16_epi32 hand_cvtepu16_epi32
#define _mm512_castsi512_ps hand_castsi512_ps
#define _mm512_setzero_si512() hand_set1_epi32(0)
#define _mm512_set1_epi32 hand_set1_epi32
#define _mm512_loadu_si512 hand_loadu_si512
#define _mm512_slli_epi32 hand_slli_epi32
#define _mm512_and_si512 hand_and_si512
#define _mm512_cvtepi32_ps hand_cvtepi32_ps
#define _mm512_dpwssd_epi32 hand_dpwssd_epi32
#define _mm512_slli_epi16 hand_slli_epi16
#define _mm512_srai_epi16 hand_srai_epi16
