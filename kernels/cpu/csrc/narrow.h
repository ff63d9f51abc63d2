/* Undoes wide.h: the names are simd.h's own again. */
#undef LANES
#define LANES 8
#undef vf
#undef vf_zero
#undef vf_all
#undef vf_load
#undef vf_store
#undef vf_fma
#undef vf_add
#undef vf_mul
#undef vf_from_f16
#undef vf_from_bf16
#undef vf_from_bf16_pairs
#undef vi
#undef vi_zero
#undef vi_all
#undef vi_load
#undef vf_from_vi
#undef vi_add_pairs
#undef vi_even
#undef vi_odd
