#define QR_LEVEL_AVX2
#include "kernels.inc"

KERNELS(qr_avx2, "avx2")
