/* Foundation, BW, DQ, VL and VNNI, as processors since 2019 have them. Has not run on such a processor yet: see native/tested_levels.toml. */
#define QR_LEVEL_AVX2
#define QR_WIDE_PRODUCTS
#include "kernels.inc"

KERNELS(qr_avx512, "avx512")
