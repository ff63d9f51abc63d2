/* The kernels of one instruction level. Each level is a file compiled for it alone. */
#ifndef QUIRE_LEVELS_H
#define QUIRE_LEVELS_H

#include "quire_cpu.h"

enum {
    QR_OP_LINEAR,
    QR_OP_ATTENTION,
    QR_OP_EMBEDDING,
    QR_OP_NORM,
    QR_OP_ACTIVATION,
    QR_OP_SUM,
    QR_OP_ROTARY_STORE,
    QR_OP_PACK,
    QR_OP_QUERY_SCALE,
    QR_OP_GATHER_STEP,
    QR_OP_COMMIT_TOKENS,
    QR_OP_SAMPLE,
    QR_OP_LOGITS,
    QR_OPERATIONS
};

struct qr_kernels {
    const char *name;
    qr_operation *operations[QR_OPERATIONS];
};

extern QR_EXPORT const struct qr_kernels qr_portable;
#if defined(__x86_64__)
extern QR_EXPORT const struct qr_kernels qr_avx2, qr_avx512;
#elif defined(__aarch64__)
extern QR_EXPORT const struct qr_kernels qr_neon;
#endif

#endif
