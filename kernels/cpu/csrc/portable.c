#include "kernels.inc"

KERNELS(qr_portable, "portable")
