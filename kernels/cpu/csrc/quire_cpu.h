/* Kernels of a CPU, in C11 with a C interface, called through ctypes (kernels/cpu/native).
 *
 * A step is a program: an array of calls that all threads of a pool run one after the other, each
 * doing its share of every call. What changes from step to step is in one place, struct qr_step;
 * a call's arguments are written once, when the program is made. A program that ends by writing
 * down the tokens it chose, and begins by reading them, runs several times over as one.
 */
#ifndef QUIRE_CPU_H
#define QUIRE_CPU_H

#include <stddef.h>
#include <stdint.h>

#define QR_EXPORT __attribute__((visibility("default")))

/* Weights lie in tiles of so many output channels, whatever the level. */
#define QR_TILE 16
/* Sums of floating-point products are chains of so many inputs each, added up in order. */
#define QR_CHAIN 512
/* Inputs of a channel whose weights share a scale in int8. */
#define QR_GROUP 64

enum qr_format { QR_F32, QR_BF16, QR_F16, QR_INT8 };

/* A place in the arena of a program is a pointer that is there for good; what a step brings is
 * here. */
struct qr_kv_group {
    const int32_t *block_tables; /* [rows, table_stride] */
    int64_t table_stride;
    const int64_t *slot_mapping; /* [tokens] */
};

enum { QR_MOST_GROUPS = 128 };

struct qr_step {
    int32_t tokens;
    int32_t rows;
    const int64_t *token_ids;       /* [tokens] */
    const int64_t *positions;       /* [tokens] */
    const int32_t *query_start_loc; /* [rows + 1] */
    const int32_t *seq_lens;        /* [rows] */
    struct qr_kv_group groups[QR_MOST_GROUPS];
};

struct qr_worker; /* a thread's place in the pool: which one of how many */

/* One operation: every thread of the pool calls it with the same arguments. */
typedef void qr_operation(const void *arguments, const struct qr_step *step,
                          struct qr_worker *worker);

struct qr_call {
    int32_t operation; /* its place in the table of the level in use */
    const void *arguments;
};

/* out[tokens, channels] = rows[tokens, inputs] x weight (+ bias) (+ residual) */
struct qr_linear {
    const void *weight; /* as qr_pack_linear laid it down */
    const float *bias;  /* [channels], or NULL */
    const float *rows;
    const float *residual; /* [tokens, channels], or NULL; may be out */
    float *out;
    void *scratch; /* qr_linear_scratch bytes */
    int64_t inputs;
    int64_t channels;
    int64_t out_stride;
    int32_t format; /* enum qr_format */
    int32_t rows_at_most;
};

/* A matrix [channels, inputs] in a plain format, laid down for qr_linear, to_format int8 or its
 * own; to may be from where they take the same bytes. */
struct qr_pack {
    const void *from;
    void *to;
    void *scratch; /* a tile for each thread */
    int64_t channels;
    int64_t inputs;
    int32_t format;
    int32_t to_format;
};

/* Rows of a table: of token_ids, or of positions; times scale, and added to what is there. */
struct qr_embedding {
    const void *table; /* [rows, width], or as qr_pack_linear laid it down */
    const float *added; /* [tokens, width], or NULL; may be out */
    float *out;         /* [tokens, width] */
    int64_t rows;
    int64_t width;
    float scale;
    int32_t format; /* enum qr_format; int8 packed alone */
    int32_t packed;
    int32_t of_positions;
};

/* out = norm(x + residual), and total = x + residual; both [tokens, width]. */
struct qr_norm {
    const float *x;
    const float *residual; /* or NULL: then there is no total */
    const int32_t *rows;   /* [tokens] of x and residual, or NULL: one after the other */
    float *total;          /* may be x or residual without rows; or out */
    float *out;
    const float *weight; /* [width / heads], or [width] where each head has its own; or NULL */
    const float *bias;   /* likewise */
    int64_t x_stride;
    int64_t width;
    float epsilon;
    int32_t heads;   /* that are normalised each by itself */
    int32_t centred; /* LayerNorm; else RMSNorm */
    int32_t own_weights;
};

enum qr_activation_kind { QR_SILU, QR_GELU_TANH, QR_GELU_ERF, QR_RELU, QR_RELU2, QR_XIELU };

/* out[tokens, width] = activation(x) (* other) */
struct qr_activation {
    const float *x;
    const float *other; /* or NULL */
    float *out;
    int64_t x_stride;
    int64_t other_stride;
    int64_t width;
    float numbers[4]; /* xIELU's alpha_p, alpha_n, beta, epsilon */
    int32_t kind;     /* enum qr_activation_kind */
};

/* out = (x + other) * factor, between -limit and limit where limit is above 0; all [tokens, width] */
struct qr_sum {
    const float *x;
    const float *other; /* or NULL */
    float *out;
    int64_t width;
    float factor;
    float limit;
};

/* x[tokens, width] = cap * tanh(x * factor / cap), in place; without a cap x * factor. */
struct qr_logits {
    float *x;
    int64_t width;
    float factor;
    float cap; /* 0: none */
};

/* x[token, first width] *= log(1 + floor(position / length)) * beta + 1, in place */
struct qr_query_scale {
    float *x;
    int64_t x_stride;
    int64_t width;
    int64_t length;
    float beta;
};

/* Turns queries and keys in place, by their positions, with RMS norms of their heads before or
 * after, and writes keys and values to their slots. */
struct qr_rotary_store {
    float *q;       /* [tokens, query_heads, head_dim] */
    float *k;       /* [tokens, kv_heads, head_dim], or NULL with v */
    const float *v;
    const float *q_norm;  /* [head_dim], or NULL */
    const float *k_norm;
    const float *cos_sin; /* [positions, turned], or NULL */
    void *cache;          /* [blocks][2][kv_heads][block_size][head_dim] */
    float *scales;        /* of an int8 cache: [blocks][2][kv_heads][block_size] */
    int64_t q_stride;     /* from token to token */
    int64_t k_stride;
    int64_t v_stride;
    int64_t block_stride; /* elements from block to block */
    int64_t scale_stride; /* scales from block to block */
    float epsilon;
    int32_t query_heads;
    int32_t kv_heads;
    int32_t head_dim;
    int32_t turned;
    int32_t interleaved;
    int32_t norm_after_turn;
    int32_t block_size;
    int32_t cache_format;
    int32_t group;
};

/* out[tokens, query_heads, head_dim]: attention of a layer over its part of the cache, which has
 * [blocks][2][kv_heads][block_size][head_dim]. */
struct qr_attention {
    const float *q;
    float *out;
    const void *cache;
    const float *scales;       /* of an int8 cache: [blocks][2][kv_heads][block_size] */
    const float *alibi_slopes; /* [query_heads], or NULL */
    const float *sinks;        /* [query_heads], or NULL */
    void *scratch; /* so many partials, of units and their spans; see qr_partial_bytes */
    int64_t q_stride;          /* from token to token */
    int64_t out_stride;
    int64_t block_stride; /* elements from block to block */
    int64_t scale_stride; /* scales from block to block */
    int64_t partials;
    float scale;
    float soft_cap; /* 0: none */
    int32_t window; /* 0: none */
    int32_t query_heads;
    int32_t kv_heads;
    int32_t head_dim; /* a multiple of 8, at most 512 */
    int32_t block_size;
    int32_t cache_format; /* enum qr_format */
    int32_t group;        /* whose block table */
};

/* Words of a row's record, as kernels/footprint/row_state.py has them. */
enum {
    QR_ROW_COUNTS = 0,
    QR_ROW_TOP_K = 1,
    QR_ROW_KEY = 2,
    QR_ROW_FLOATS_AT = 4,
    QR_ROW_FLOATS = 6,
    QR_ROW_COUNTS_OUTPUT = 1
};

/* A packet, and where its columns begin. */
struct qr_step_table {
    const int32_t *packet;
    int32_t rows_at;
    int32_t starts_at;
    int32_t computed_at;
    int32_t samples_at;
    int32_t outputs_at;
};

/* What a step's rows come to, filled up to num_rows. */
struct qr_gather_step {
    struct qr_step_table table;
    const int32_t *records; /* [rows, words] */
    int64_t words;
    int64_t *token_ids;
    int64_t *positions;
    int64_t *slot_mapping;
    int32_t *query_start_loc;
    int32_t *seq_lens;
    int32_t *block_tables; /* [num_rows, max_blocks] */
    float *floats;         /* [QR_ROW_FLOATS, floats_stride] */
    int64_t *top_k;
    int64_t *keys;
    int64_t *output_positions;
    int64_t max_blocks;
    int64_t floats_stride;
    int32_t table_at; /* words of a record */
    int32_t tokens_at;
    int32_t num_rows;
    int32_t block_size;
};

/* The step's tokens are those that were chosen. */
struct qr_commit_tokens {
    struct qr_step_table table;
    int32_t *records; /* [rows, words] */
    int64_t words;
    const int64_t *token_ids;  /* [tokens] */
    const uint8_t *non_finite; /* [tokens] */
    int32_t *results;          /* [passes, tokens] the token, or -1 */
    int32_t *output_counts;    /* [rows, vocab] */
    int64_t vocab;
    int64_t max_tokens;
    int32_t tokens_at;
    int32_t num_rows;
};

/* A token for each row of logits [tokens, vocab]; 0 where these are not all numbers. A forbidden
 * token has the least number. */
struct qr_sample {
    const float *logits;
    int64_t vocab;
    const float *temperature; /* [tokens], 0: the best one */
    const int64_t *keys;      /* [tokens], read where a token is drawn */
    const int64_t *positions;
    const int64_t *top_k; /* [tokens], 0: all; or NULL, as the next two */
    const float *top_p;   /* 1: all */
    const float *min_p;   /* 0: all */
    void *scratch;        /* QR_SCORED_TOKEN_BYTES for each thread and token of the vocabulary */
    int64_t *token_ids;
    uint8_t *non_finite;
};

/* Between the most and the least Gumbel noise, with room for rounding (kernels/cpu/sampling.py). */
#define QR_GUMBEL_SPAN 26.1f
/* The most noise, rounded up. */
#define QR_MOST_NOISE 22.9f
/* A token set apart with its value. */
#define QR_SCORED_TOKEN_BYTES 8

#endif
