/* Which levels this library has, and which of them this processor and its system run. Compiled
 * without flags of any level: nothing here may need one. */
#include "levels.h"

#include <string.h>

static int runs_always(void) { return 1; }

#if defined(__x86_64__)
#include <cpuid.h>

/* Not __builtin_cpu_supports: what that asks is not in every compiler's run-time library. */
struct cpuid {
    unsigned eax, ebx, ecx, edx;
};

static struct cpuid leaf(unsigned number) {
    struct cpuid found = {0, 0, 0, 0};
    __get_cpuid_count(number, 0, &found.eax, &found.ebx, &found.ecx, &found.edx);
    return found; /* zeros for a leaf that there is not */
}

static int has(unsigned word, unsigned bits) { return (word & bits) == bits; }

/* Whether the system keeps these registers, of XCR0's bits, when it changes threads. */
static int keeps(unsigned registers) {
    unsigned low, high;
    if (!has(leaf(1).ecx, bit_OSXSAVE)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return has(low, registers);
}

enum { XCR0_YMM = 0x06, XCR0_ZMM = 0xe0 };

static int runs_avx2(void) {
    return keeps(XCR0_YMM) && has(leaf(1).ecx, bit_AVX | bit_FMA | bit_F16C) &&
           has(leaf(7).ebx, bit_AVX2);
}

static int runs_avx512(void) {
    return runs_avx2() && keeps(XCR0_ZMM) &&
           has(leaf(7).ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL) &&
           has(leaf(7).ecx, bit_AVX512VNNI);
}
#endif

static const struct {
    const struct qr_kernels *kernels;
    int (*runs)(void);
} levels[] = {
#if defined(__x86_64__)
    {&qr_avx512, runs_avx512},
    {&qr_avx2, runs_avx2},
#elif defined(__aarch64__)
    {&qr_neon, runs_always}, /* all of it is in the first version of the architecture */
#endif
    {&qr_portable, runs_always},
};

enum { LEVELS = sizeof levels / sizeof *levels };

/* The name of a level, the best one first; NULL behind the last. */
QR_EXPORT const char *qr_level_name(int64_t index) {
    return index >= 0 && index < LEVELS ? levels[index].kernels->name : NULL;
}

/* The kernels of a level; NULL where there is none of that name or it does not run here. */
QR_EXPORT const struct qr_kernels *qr_level(const char *name) {
    for (int i = 0; i < LEVELS; i++)
        if (strcmp(levels[i].kernels->name, name) == 0)
            return levels[i].runs() ? levels[i].kernels : NULL;
    return NULL;
}

/* Bytes of an operation's arguments, of a call (-1) and of what a step brings (-2). */
QR_EXPORT int64_t qr_struct_bytes(int64_t operation) {
    switch (operation) {
    case -2: return sizeof(struct qr_step);
    case -1: return sizeof(struct qr_call);
    case QR_OP_LINEAR: return sizeof(struct qr_linear);
    case QR_OP_ATTENTION: return sizeof(struct qr_attention);
    case QR_OP_EMBEDDING: return sizeof(struct qr_embedding);
    case QR_OP_NORM: return sizeof(struct qr_norm);
    case QR_OP_ACTIVATION: return sizeof(struct qr_activation);
    case QR_OP_SUM: return sizeof(struct qr_sum);
    case QR_OP_PACK: return sizeof(struct qr_pack);
    case QR_OP_QUERY_SCALE: return sizeof(struct qr_query_scale);
    case QR_OP_ROTARY_STORE: return sizeof(struct qr_rotary_store);
    case QR_OP_GATHER_STEP: return sizeof(struct qr_gather_step);
    case QR_OP_COMMIT_TOKENS: return sizeof(struct qr_commit_tokens);
    case QR_OP_SAMPLE: return sizeof(struct qr_sample);
    case QR_OP_LOGITS: return sizeof(struct qr_logits);
    default: return 0;
    }
}
