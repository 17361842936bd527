#include "adapters/merge.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    TILE_ROWS = 32,  /* of one task: under a millisecond, so that cancelling is prompt */
    SLICE_TILES = 16 /* of a worker, between two reports */
};

static const char *const names[] = {"none", "f16", "q8", "same", "calibrated", "auto"};

const char *merge_mode_name(enum merge_mode mode) { return (unsigned)mode < MERGE_MODES ? names[mode] : "unknown"; }

int merge_mode_parse(const char *text, enum merge_mode *mode, attune_error *err) {
    for (int i = MERGE_NONE; i < MERGE_MODES; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *mode = (enum merge_mode)i;
        return ATTUNE_OK;
    }
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                     "unknown merge mode \"%.64s\": none, same, calibrated, q8, f16 or auto", text);
}

static enum block_type type_for(const struct matrix *w, enum merge_mode mode) {
    return mode == MERGE_F16 ? BLOCK_F16 : mode == MERGE_Q8 ? BLOCK_Q8_0 : w->type;
}

/* The layer `from` with memory for its targeted matrices; made NULL: counting. Rows that are no whole blocks are worth
 * 0 bytes here and refused by mode_check. */
static void layer_layout(struct arena *arena, const struct model_layer *from, uint32_t targets, enum merge_mode mode,
                         struct model_layer *made) {
    if (made) *made = *from;
    for (size_t t = 0; t < TARGET_COUNT; t++) {
        if (!(targets & (1u << t))) continue;
        const struct matrix *w = &from->linear[t];
        enum block_type type = type_for(w, mode);
        size_t row_bytes = block_row_bytes(type, w->cols);
        void *data = arena_take(arena, w->rows, row_bytes);
        if (made) made->linear[t] = (struct matrix){data, type, w->rows, w->cols, row_bytes};
    }
}

static void merged_layout(struct arena *arena, const struct model *model, uint32_t targets, enum merge_mode mode,
                          struct model_layer **layers) {
    struct model_layer *made = ARENA_TAKE(arena, struct model_layer, model->L);
    for (size_t l = 0; l < model->L; l++)
        layer_layout(arena, &model->layers[l], targets, mode, made ? &made[l] : NULL);
    *layers = made;
}

size_t merge_bytes(const struct model *model, uint32_t targets, enum merge_mode mode) {
    if (mode == MERGE_NONE) return 0;
    struct arena arena = {0};
    struct model_layer *layers;
    merged_layout(&arena, model, targets, mode, &layers);
    return arena.overflow ? SIZE_MAX : arena.used;
}

/* Every targeted matrix can be had in the mode's type. */
static int mode_check(const struct model *model, const struct lora *lora, enum merge_mode mode, attune_error *err) {
    if (mode != MERGE_F16 && mode != MERGE_Q8 && mode != MERGE_SAME && mode != MERGE_CALIBRATED)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "nothing to merge in mode %s", merge_mode_name(mode));
    for (size_t l = 0; l < model->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            if (lora->pairs[l].target[t].rank == 0) continue;
            const struct matrix *w = &model->layers[l].linear[t];
            enum block_type type = type_for(w, mode);
            char name[LORA_TENSOR_NAME_SIZE];
            lora_tensor_name(name, l, t);
            if (block_row_bytes(type, w->cols) == 0)
                return error_set(err, ATTUNE_ERROR_UNSUPPORTED, name,
                                 "rows of %s have %zu elements, not whole blocks of %s: merge with f16, or not at all",
                                 name, w->cols, block_type_name(type));
        }
    }
    return ATTUNE_OK;
}

int merged_create(const struct model *model, const struct lora *lora, enum merge_mode mode, struct merged **out,
                  attune_error *err) {
    int code = mode_check(model, lora, mode, err);
    if (code != ATTUNE_OK) return code;
    struct merged *merged = calloc(1, sizeof *merged);
    if (!merged) return error_set_memory(err, "merged weights", sizeof *merged);
    merged_layout(&merged->arena, model, lora->config.targets, mode, &merged->layers);
    if ((code = arena_commit(&merged->arena, "merged weights", err)) != ATTUNE_OK) {
        merge_destroy(merged);
        return code;
    }
    merged_layout(&merged->arena, model, lora->config.targets, mode, &merged->layers);
    *out = merged;
    return ATTUNE_OK;
}

void merge_destroy(struct merged *merged) {
    if (!merged) return;
    arena_free(&merged->arena);
    gguf_close(merged->gguf);
    free(merged);
}

/* ---- rows ---- */

/* Largest sum; f16 is also the type of the scales and minima of quantized blocks. */
static float limit_of(enum block_type type) { return type == BLOCK_F32 || type == BLOCK_BF16 ? FLT_MAX : 65504.0f; }

static int row_fits(const float *row, size_t n, float limit) {
    int bad = 0;
    for (size_t i = 0; i < n; i++) bad |= !(fabsf(row[i]) <= limit); /* NaN too */
    return !bad;
}

int merge_row(float *sum, float *delta, const struct matrix *from, const struct low_rank *pair, size_t row,
              enum block_type to) {
    const struct kernels *kernels = kernels_get();
    size_t cols = from->cols;
    memset(delta, 0, cols * sizeof *delta);
    for (size_t r = 0; r < pair->rank; r++)
        kernels->axpy(delta, pair->scale * pair->b[row * pair->rank + r], pair->a + r * cols, cols);
    kernels->dequantize[from->type](sum, (const unsigned char *)from->data + row * from->row_bytes, cols);
    /* not sum + 0: that would turn -0 into 0 */
    for (size_t i = 0; i < cols; i++) sum[i] = delta[i] != 0 ? sum[i] + delta[i] : sum[i];
    return row_fits(sum, cols, limit_of(to));
}

int merge_too_large(size_t layer, enum target target, enum block_type to, attune_error *err) {
    char name[LORA_TENSOR_NAME_SIZE];
    lora_tensor_name(name, layer, target);
    return error_set(err, ATTUNE_ERROR_UNSUPPORTED, name,
                     "merged weights of %s are too large for %s: use the adapter unmerged (none)", name,
                     block_type_name(to));
}

static int all_zero(const float *x, size_t n) {
    int other = 0;
    for (size_t i = 0; i < n; i++) other |= x[i] != 0;
    return !other;
}

/* ---- a layer ---- */

/* The targeted matrices of a layer as one row of tiles, so that few of them do not leave threads idle. */
struct merge_task {
    const struct model_layer *from;
    const struct model_layer *to; /* the memory behind it is written */
    const struct layer_pairs *pairs;
    size_t first[TARGET_COUNT + 1]; /* tile of each target */
    size_t done;                    /* tiles before those of the pool's run */
    float *scratch;                 /* (workers, 2, scratch_cols) */
    size_t scratch_cols;
    atomic_int too_large;           /* bits of enum target */
};

/* Runs of blocks whose delta is zero keep the base's very bytes: quantizing again could move them. */
static void write_blocks(const struct matrix *from, const struct matrix *to, size_t row, const float *sum,
                         const float *delta) {
    const struct block_format *format = block_format_get(to->type);
    void (*quantize)(void *, const float *, size_t) = kernels_get()->quantize[to->type];
    const unsigned char *base = (const unsigned char *)from->data + row * from->row_bytes;
    /* the arena's memory behind a const view: only while it is made */
    unsigned char *out = (unsigned char *)(uintptr_t)to->data + row * to->row_bytes;
    size_t elements = format->elements, bytes = format->bytes, end;
    if (from->type != to->type || elements == 1) {
        quantize(out, sum, to->cols);
        return;
    }
    for (size_t i = 0; i < to->cols; i = end) {
        int zero = all_zero(delta + i, elements);
        for (end = i + elements; end < to->cols && all_zero(delta + end, elements) == zero;) end += elements;
        if (zero) memcpy(out + i / elements * bytes, base + i / elements * bytes, (end - i) / elements * bytes);
        else quantize(out + i / elements * bytes, sum + i, end - i);
    }
}

static void merge_tile(void *argument, size_t tile, int worker) {
    struct merge_task *task = argument;
    int t = 0;
    tile += task->done;
    while (tile >= task->first[t + 1]) t++;
    const struct matrix *from = &task->from->linear[t], *to = &task->to->linear[t];
    size_t row = (tile - task->first[t]) * TILE_ROWS, end = row + TILE_ROWS < from->rows ? row + TILE_ROWS : from->rows;
    float *sum = task->scratch + (size_t)worker * 2 * task->scratch_cols, *delta = sum + task->scratch_cols;
    for (; row < end; row++) {
        if (merge_row(sum, delta, from, &task->pairs->target[t], row, to->type))
            write_blocks(from, to, row, sum, delta);
        else
            atomic_fetch_or(&task->too_large, 1 << t);
    }
}

/* Whoever asked for the merge, and how far it is. */
struct watch {
    const struct merge_progress *progress; /* NULL: nobody */
    double share, each;                    /* done before this layer, of a layer */
};

static int merge_cancelled(attune_error *err) {
    return error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "merging was cancelled");
}

/* The pairs of a layer into `to`, whose targeted matrices have memory. */
static int merge_layer(struct merge_task *task, const struct model_layer *from, const struct layer_pairs *pairs,
                       const struct model_layer *to, size_t l, struct pool *pool, const struct watch *watch,
                       attune_error *err) {
    size_t tiles = 0, slice = (size_t)pool_threads(pool) * SLICE_TILES;
    task->from = from;
    task->to = to;
    task->pairs = pairs;
    atomic_store(&task->too_large, 0);
    for (int t = 0; t < TARGET_COUNT; t++) {
        task->first[t] = tiles;
        if (pairs->target[t].rank > 0) tiles += (from->linear[t].rows + TILE_ROWS - 1) / TILE_ROWS;
    }
    task->first[TARGET_COUNT] = tiles;
    const struct merge_progress *progress = watch ? watch->progress : NULL;
    if (!progress) slice = tiles;
    for (task->done = 0; task->done < tiles; task->done += slice) {
        pool_run(pool, tiles - task->done < slice ? tiles - task->done : slice, merge_tile, task);
        if (pool_cancelled(pool)) return merge_cancelled(err);
        double share = (double)(task->done + slice < tiles ? task->done + slice : tiles) / (double)tiles;
        if (progress && progress->report(watch->share + share * watch->each, progress->user))
            return merge_cancelled(err);
    }
    int too_large = atomic_load(&task->too_large);
    for (int t = 0; t < TARGET_COUNT; t++)
        if (too_large & 1 << t) return merge_too_large(l, (enum target)t, to->linear[t].type, err);
    return ATTUNE_OK;
}

/* Of a row and its delta, for each worker. */
static size_t scratch_cols(const struct model *model) {
    size_t most = 0;
    for (size_t l = 0; l < model->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            size_t cols = model->layers[l].linear[t].cols;
            if (most < cols) most = cols;
        }
    }
    return (most + 15) & ~(size_t)15;
}

int merge_create(const struct model *model, const struct lora *lora, enum merge_mode mode, struct pool *pool,
                 const struct merge_progress *progress, struct merged **out, attune_error *err) {
    struct merge_task task = {0};
    struct merged *merged = NULL;
    if (mode == MERGE_CALIBRATED)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "a calibrated merge is made of a person's rows: the job makes it");
    int code = merged_create(model, lora, mode, &merged, err);
    if (code != ATTUNE_OK) return code;
    task.scratch_cols = scratch_cols(model);
    size_t scratch = (size_t)pool_threads(pool) * 2 * task.scratch_cols;
    if (!(task.scratch = calloc(scratch, sizeof(float)))) {
        code = error_set_memory(err, "merging", scratch * sizeof(float));
        goto out;
    }
    for (size_t l = 0; l < model->L && code == ATTUNE_OK; l++) {
        struct watch watch = {progress, (double)l / (double)model->L, 1 / (double)model->L};
        code = merge_layer(&task, &model->layers[l], &lora->pairs[l], &merged->layers[l], l, pool, &watch, err);
    }
out:
    free(task.scratch);
    if (code != ATTUNE_OK) merge_destroy(merged);
    else *out = merged;
    return code;
}

int merge_one(const struct model *model, const struct lora *lora, size_t layer, enum target target,
              const struct model_layer *to, float *scratch, struct pool *pool, attune_error *err) {
    struct merge_task task = {.scratch = scratch, .scratch_cols = scratch_cols(model)};
    struct layer_pairs pair = {0};
    pair.target[target] = lora->pairs[layer].target[target];
    return merge_layer(&task, &model->layers[layer], &pair, to, layer, pool, NULL, err);
}

size_t merge_one_floats(const struct model *model, int threads) { return (size_t)threads * 2 * scratch_cols(model); }

/* ---- one layer at a time ---- */

struct layer_merge {
    const struct model *model;
    const struct lora *lora;
    enum merge_mode mode;
    struct pool *pool;
    struct merge_task task;
    struct arena arena; /* rows of scratch, then the matrices of the layer merged last */
};

/* Scratch, and behind it the largest layer. */
static void layer_merge_take(struct arena *arena, struct merge_task *task, const struct model *model, uint32_t targets,
                             enum merge_mode mode, int threads) {
    task->scratch_cols = scratch_cols(model);
    task->scratch = ARENA_TAKE(arena, float, (size_t)threads * 2 * task->scratch_cols);
    size_t from = arena->used, to = from;
    for (size_t l = 0; l < model->L; l++) {
        arena->used = from;
        layer_layout(arena, &model->layers[l], targets, mode, NULL);
        if (to < arena->used) to = arena->used;
    }
    arena->used = to;
}

size_t layer_merge_bytes(const struct model *model, int threads, uint32_t targets, enum merge_mode mode) {
    struct arena arena = {0};
    struct merge_task task;
    if (mode == MERGE_NONE) return 0;
    layer_merge_take(&arena, &task, model, targets, mode, threads);
    return arena.overflow ? SIZE_MAX : arena.used + sizeof(struct layer_merge);
}

int layer_merge_create(const struct model *model, const struct lora *lora, enum merge_mode mode, struct pool *pool,
                       struct layer_merge **out, attune_error *err) {
    if (mode == MERGE_CALIBRATED) mode = MERGE_SAME;
    int code = mode_check(model, lora, mode, err);
    if (code != ATTUNE_OK) return code;
    struct layer_merge *merge = calloc(1, sizeof *merge);
    if (!merge) return error_set_memory(err, "merging", sizeof *merge);
    merge->model = model;
    merge->lora = lora;
    merge->mode = mode;
    merge->pool = pool;
    uint32_t targets = lora->config.targets;
    layer_merge_take(&merge->arena, &merge->task, model, targets, mode, pool_threads(pool));
    code = arena_commit(&merge->arena, "a merged layer", err);
    if (code != ATTUNE_OK) {
        layer_merge_destroy(merge);
        return code;
    }
    merge->task.scratch = ARENA_TAKE(&merge->arena, float, (size_t)pool_threads(pool) * 2 * merge->task.scratch_cols);
    *out = merge;
    return ATTUNE_OK;
}

void layer_merge_destroy(struct layer_merge *merge) {
    if (!merge) return;
    arena_free(&merge->arena);
    free(merge);
}

int layer_merge_make(void *user, size_t layer, struct model_layer *out, attune_error *err) {
    struct layer_merge *merge = user;
    struct arena place = merge->arena;
    layer_layout(&place, &merge->model->layers[layer], merge->lora->config.targets, merge->mode, out);
    return merge_layer(&merge->task, &merge->model->layers[layer], &merge->lora->pairs[layer], out, layer, merge->pool,
                       NULL, err);
}
