#define QR_LEVEL_NEON
#include "kernels.inc"

KERNELS(qr_neon, "neon")
