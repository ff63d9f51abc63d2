/* Foundation, BW, DQ and VL. Has not run on such a processor yet: see native/tested_levels.toml. */
#define QR_LEVEL_AVX2
#define QR_WIDE_PRODUCTS
#include "kernels.inc"

KERNELS(qr_avx512, "avx512")
