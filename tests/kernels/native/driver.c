/* Runs every operation with vectors on fixed inputs, on every level that runs here, with one thread
 * and with three, and prints "LEVEL CASE HASH" for each: what another machine must print too. Left
 * out is what has a logarithm of libm's in its numbers, which is another one there: xIELU and scales
 * of queries. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "levels.h"
#include "pool.h"
#include "quire_cpu.h"

const char *qr_level_name(int64_t index);
const struct qr_kernels *qr_level(const char *name);
struct qr_pool *qr_pool_new(int threads, const int *cpus);
void qr_pool_free(struct qr_pool *pool);
void qr_run(struct qr_pool *pool, const struct qr_kernels *kernels, const struct qr_call *calls,
            int64_t count, int32_t passes, const struct qr_step *step);

enum { SCRATCH = 1 << 23, PARTIALS = 64 };

static uint32_t state;

static uint32_t bits(void) { /* Marsaglia's xorshift */
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

static float uniform(void) { return (float)(int32_t)bits() * 0x1p-31f; } /* in [-1, 1] */

static void *room(size_t bytes) {
    void *made = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (made == NULL) abort();
    return memset(made, 0, bytes);
}

/* count numbers in a format, of int8 without scales. */
static void *numbers(size_t count, int format) {
    float *wide = room(count * sizeof *wide);
    uint16_t *narrow = (uint16_t *)wide;
    for (size_t i = 0; i < count; i++) {
        float x = uniform();
        uint32_t word;
        memcpy(&word, &x, sizeof word);
        if (format == QR_F32) wide[i] = x;
        if (format == QR_BF16) narrow[i] = (uint16_t)(word >> 16);
        if (format == QR_INT8) ((int8_t *)wide)[i] = (int8_t)(x * 127);
        if (format == QR_F16) narrow[i] = (uint16_t)((bits() & 0x8fff) + 0x2c00); /* 2^-4 to 1 */
    }
    return wide;
}

static uint64_t hash(const void *from, size_t bytes) { /* FNV-1a */
    uint64_t made = 0xcbf29ce484222325;
    for (size_t i = 0; i < bytes; i++) made = (made ^ ((const uint8_t *)from)[i]) * 0x100000001b3;
    return made;
}

struct machine {
    const struct qr_kernels *kernels;
    struct qr_pool *pool;
};

static void run(const struct machine *on, int operation, const void *arguments,
                const struct qr_step *step) {
    const struct qr_call call = {operation, arguments};
    qr_run(on->pool, on->kernels, &call, 1, 1, step);
}

static void say(const struct machine *on, const char *what, const void *made, size_t bytes) {
    printf("%s %s %016llx\n", on->kernels->name, what, (unsigned long long)hash(made, bytes));
}

static void products(const struct machine *on) {
    static const char *const names[] = {"f32", "bf16", "f16", "int8"};
    static const int shapes[][3] = {/* rows, channels, inputs */
        {1, 50, 65}, {1, 130, 1030}, {2, 33, 258}, {4, 15, 63}, {7, 50, 1030}, {33, 40, 520},
        {4, 1041, 66}};
    for (int format = QR_F32; format <= QR_INT8; format++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            const int rows = shapes[i][0], channels = shapes[i][1], inputs = shapes[i][2];
            const int plain = format == QR_INT8 ? QR_F32 : format;
            const size_t wide = ((size_t)channels + 15) / 16 * 16, outputs = (size_t)rows * channels;
            state = (uint32_t)(1 + i);
            struct qr_step step = {.tokens = rows};
            void *weight = room(wide * ((size_t)inputs + 64) * 4), *scratch = room(SCRATCH);
            struct qr_pack pack = {
                .from = numbers((size_t)channels * inputs, plain), .to = weight,
                .scratch = scratch, .channels = channels, .inputs = inputs, .format = plain,
                .to_format = format};
            run(on, QR_OP_PACK, &pack, &step);
            struct qr_linear linear = {
                .weight = weight, .bias = numbers((size_t)channels, QR_F32),
                .rows = numbers((size_t)rows * inputs, QR_F32),
                .residual = numbers(outputs, QR_F32), .out = room(outputs * 4),
                .scratch = scratch, .inputs = inputs, .channels = channels,
                .out_stride = channels, .format = format, .rows_at_most = rows};
            run(on, QR_OP_LINEAR, &linear, &step);
            char what[64];
            snprintf(what, sizeof what, "linear-%s-%dx%dx%d", names[format], rows, channels, inputs);
            say(on, what, linear.out, outputs * 4);
            int64_t ids[] = {channels - 1, 0, channels / 2};
            step = (struct qr_step){.tokens = 3, .token_ids = ids};
            struct qr_embedding table = {
                .table = weight, .out = room((size_t)inputs * 12), .rows = channels,
                .width = inputs, .scale = 1.5f, .format = format, .packed = 1};
            run(on, QR_OP_EMBEDDING, &table, &step);
            snprintf(what, sizeof what, "embedding-%s-%dx%d", names[format], channels, inputs);
            say(on, what, table.out, (size_t)inputs * 12);
        }
}

/* Three rows: a prompt's beginning, a chunk behind others, a long context that decodes. */
enum { ROWS = 3, TOKENS = 21 + 40 + 1, BLOCK = 16, BLOCKS = 128, MOST_BLOCKS = 80 };

static void attention(const struct machine *on, int head_dim, int format, int features) {
    const int query_heads = 6, kv_heads = 2, lengths[ROWS] = {21, 300, 1200};
    const size_t width = (size_t)query_heads * head_dim, kv_width = (size_t)kv_heads * head_dim;
    int32_t tables[ROWS * MOST_BLOCKS], starts[ROWS + 1] = {0, 21, 61, TOKENS}, seq_lens[ROWS];
    int64_t positions[TOKENS], slots[TOKENS];
    for (int row = 0, next = 1; row < ROWS; row++) {
        seq_lens[row] = lengths[row];
        for (int i = 0; i < MOST_BLOCKS; i++)
            tables[row * MOST_BLOCKS + i] = i * BLOCK < lengths[row] ? next++ : 0;
        for (int token = starts[row]; token < starts[row + 1]; token++) {
            int64_t position = lengths[row] - starts[row + 1] + token;
            positions[token] = position;
            slots[token] = (int64_t)tables[row * MOST_BLOCKS + position / BLOCK] * BLOCK +
                           position % BLOCK;
        }
    }
    struct qr_step step = {.tokens = TOKENS, .rows = ROWS, .positions = positions,
                           .query_start_loc = starts, .seq_lens = seq_lens};
    step.groups[0] = (struct qr_kv_group){tables, MOST_BLOCKS, slots};
    state = (uint32_t)(head_dim * 8 + features);
    const size_t block_stride = 2 * kv_width * BLOCK, cached = block_stride * BLOCKS;
    const int64_t scale_stride = 2 * kv_heads * BLOCK;
    void *cache = numbers(cached, format);
    float *scales = format == QR_INT8 ? numbers((size_t)scale_stride * BLOCKS, QR_F32) : NULL;
    float *q = numbers(TOKENS * width, QR_F32);
    struct qr_rotary_store store = {
        .q = q, .k = numbers(TOKENS * kv_width, QR_F32), .v = numbers(TOKENS * kv_width, QR_F32),
        .q_norm = numbers((size_t)head_dim, QR_F32), .k_norm = numbers((size_t)head_dim, QR_F32),
        .cos_sin = numbers(1200 * (size_t)head_dim, QR_F32), .cache = cache, .scales = scales,
        .scale_stride = scale_stride, .q_stride = (int64_t)width, .k_stride = (int64_t)kv_width, .v_stride = (int64_t)kv_width,
        .block_stride = (int64_t)block_stride, .epsilon = 1e-5f, .query_heads = query_heads,
        .kv_heads = kv_heads, .head_dim = head_dim, .turned = head_dim,
        .interleaved = features & 1, .block_size = BLOCK, .cache_format = format};
    run(on, QR_OP_ROTARY_STORE, &store, &step);
    float slopes[] = {0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.015625f};
    const size_t partial = (2 + 512) * 16 * sizeof(float);
    struct qr_attention layer = {
        .q = q, .out = room(TOKENS * width * 4), .cache = cache, .scales = scales,
        .scale_stride = scale_stride,
        .alibi_slopes = features & 1 ? slopes : NULL, .sinks = features & 2 ? slopes : NULL,
        .scratch = room(PARTIALS * partial), .q_stride = (int64_t)width,
        .out_stride = (int64_t)width, .block_stride = (int64_t)block_stride,
        .partials = PARTIALS, .scale = 0.5f, .soft_cap = features & 2 ? 8 : 0,
        .window = features & 4 ? 70 : 0, .query_heads = query_heads, .kv_heads = kv_heads,
        .head_dim = head_dim, .block_size = BLOCK, .cache_format = format};
    run(on, QR_OP_ATTENTION, &layer, &step);
    char what[64];
    snprintf(what, sizeof what, "attention-%d-%d-%d", head_dim, format, features);
    say(on, what, layer.out, TOKENS * width * 4);
    snprintf(what, sizeof what, "cache-%d-%d-%d", head_dim, format, features);
    say(on, what, cache, cached * (format == QR_F32 ? 4 : format == QR_INT8 ? 1 : 2));
    if (scales != NULL) {
        snprintf(what, sizeof what, "scales-%d-%d", head_dim, features);
        say(on, what, scales, (size_t)scale_stride * BLOCKS * sizeof *scales);
    }
    /* The last row alone, whose spans the threads share. */
    struct qr_step alone = {.tokens = 1, .rows = 1, .positions = positions + 61,
                            .query_start_loc = (int32_t[]){0, 1}, .seq_lens = seq_lens + 2};
    alone.groups[0] = (struct qr_kv_group){tables + 2 * MOST_BLOCKS, MOST_BLOCKS, slots + 61};
    layer.q = q + 61 * width;
    run(on, QR_OP_ATTENTION, &layer, &alone);
    snprintf(what, sizeof what, "decode-%d-%d-%d", head_dim, format, features);
    say(on, what, layer.out, width * 4);
}

static void between_products(const struct machine *on) {
    enum { FEW = 5, WIDTH = 331 };
    const size_t bytes = FEW * WIDTH * sizeof(float);
    const struct qr_step step = {.tokens = FEW};
    char what[64];
    state = 77;
    float *x = numbers(FEW * WIDTH, QR_F32), *other = numbers(FEW * WIDTH, QR_F32);
    float *out = room(bytes), *total = room(bytes);
    for (size_t i = 0; i < FEW * WIDTH; i++) x[i] *= 12;
    for (int centred = 0; centred <= 1; centred++) {
        struct qr_norm norm = {.x = x, .residual = other, .total = total, .out = out,
                               .weight = other, .bias = centred ? x : NULL, .x_stride = WIDTH,
                               .width = WIDTH, .epsilon = 1e-6f, .heads = 1, .centred = centred};
        run(on, QR_OP_NORM, &norm, &step);
        snprintf(what, sizeof what, "norm-%d", centred);
        say(on, what, out, bytes);
    }
    for (int kind = QR_SILU; kind < QR_XIELU; kind++) {
        struct qr_activation gated = {.x = x, .other = other, .out = out, .x_stride = WIDTH,
                                      .other_stride = WIDTH, .width = WIDTH, .kind = kind};
        run(on, QR_OP_ACTIVATION, &gated, &step);
        snprintf(what, sizeof what, "activation-%d", kind);
        say(on, what, out, bytes);
    }
    struct qr_sum sum = {.x = x, .other = other, .out = out, .width = WIDTH, .factor = 0.3f,
                         .limit = 2};
    run(on, QR_OP_SUM, &sum, &step);
    say(on, "sum", out, bytes);
}

static void choices(const struct machine *on) {
    enum { FEW = 4, VOCAB = 1003 };
    const struct qr_step step = {.tokens = FEW};
    const float temperature[FEW] = {0, 0.5f, 1, 3};
    const int64_t keys[FEW] = {1, 2, 3, INT64_MAX}, positions[FEW] = {0, 9, 1 << 20, 5};
    struct made {
        int64_t tokens[FEW];
        uint8_t non_finite[FEW];
    } *made = room(sizeof *made);
    state = 99;
    struct qr_sample sample = {.logits = numbers(FEW * VOCAB, QR_F32), .vocab = VOCAB,
                               .temperature = temperature, .keys = keys, .positions = positions,
                               .token_ids = made->tokens, .non_finite = made->non_finite};
    run(on, QR_OP_SAMPLE, &sample, &step);
    say(on, "tokens", made, sizeof *made);
    const int64_t top_k[FEW] = {9, 0, 40, 300};
    const float top_p[FEW] = {0.5f, 0.9f, 0.95f, 1}, min_p[FEW] = {0, 0.01f, 0, 0};
    sample.top_k = top_k, sample.top_p = top_p, sample.min_p = min_p;
    sample.scratch = room((size_t)3 * VOCAB * QR_SCORED_TOKEN_BYTES);
    run(on, QR_OP_SAMPLE, &sample, &step);
    say(on, "truncated-tokens", made, sizeof *made);
    float *const logits = numbers(FEW * VOCAB, QR_F32);
    struct qr_logits capped = {.x = logits, .width = VOCAB, .factor = 3, .cap = 2};
    run(on, QR_OP_LOGITS, &capped, &step);
    say(on, "logits", logits, FEW * VOCAB * sizeof *logits);
}

static void run_level(const struct qr_kernels *kernels) {
    for (int threads = 1; threads <= 3; threads += 2) {
        struct machine on = {kernels, qr_pool_new(threads, NULL)};
        if (on.pool == NULL) abort();
        products(&on);
        for (int format = QR_F32; format <= QR_INT8; format++)
            for (int features = 0; features < 8; features++)
                attention(&on, features % 2 ? 80 : 64, format, features);
        between_products(&on);
        choices(&on);
        qr_pool_free(on.pool);
    }
}

int main(void) {
#if defined(ONLY) /* a level whose instructions are emulated: the library would refuse it */
    run_level(&ONLY);
#else
    const char *name;
    for (int64_t i = 0; (name = qr_level_name(i)) != NULL; i++)
        if (qr_level(name) != NULL) run_level(qr_level(name));
#endif
    return 0;
}
