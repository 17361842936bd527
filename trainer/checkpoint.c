/* A checkpoint is a GGUF file (docs/formats.md):
 *   general.type             "checkpoint"
 *   attune.base.sha256       of the base's file
 *   attune.configuration     all that the parameters' course depends on, as text
 *   attune.optimizer.step    u64, updates done
 *   attune.dropped           u64, steps that were dropped
 *   attune.state             the caller's own state, JSON text
 *   attune.digest            sha256 over state, step, dropped and BLAKE2b-256 of each of the tensors
 *   tensors parameters, moment.first, moment.second: F32 (n); kept: F32 (n), where parameters were kept
 * Read whole and verified; published atomically, so that there is always an old or a new one. */
#include "trainer/trainer.h"

#include "core/base/hash.h"
#include "core/base/numerals.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void configuration_text(const struct train_config *c, char *out, size_t size) {
    locale_t before = numerals_enter();
    snprintf(out, size,
             "rank=%zu alpha=%a targets=%u dropout=%a rate=%a schedule=%d warmup=%a betas=%a,%a epsilon=%a decay=%a "
             "clip=%a batch=%zu max_tokens=%zu micro_tokens=%zu seed=%llu precision=%s preference=%a,%d,%a,%a,%a,%a",
             c->lora.rank, (double)c->lora.alpha, c->lora.targets, (double)c->dropout, (double)c->learning_rate,
             (int)c->schedule, (double)c->warmup, (double)c->beta1, (double)c->beta2, (double)c->epsilon,
             (double)c->weight_decay, (double)c->clip, c->batch, c->max_tokens, c->micro_tokens,
             (unsigned long long)c->seed, c->precision == PRECISION_F32 ? "f32" : "auto",
             (double)c->preference.beta, c->preference.mean, (double)c->preference.dpo, (double)c->preference.sft,
             (double)c->preference.up, (double)c->preference.down);
    numerals_leave(before);
}

/* A job that must be gone at once writes one: BLAKE2b over what is tens of MB takes a third of SHA-256's time.
 * vectors: parameters, first and second moment, and what was kept or NULL, of n floats each. */
static void digest(const char *state, size_t state_size, uint64_t step, uint64_t dropped, const void *const vectors[4],
                   size_t n, char hex[HASH_HEX_SIZE]) {
    struct hash hash;
    hash_start(&hash);
    hash_add_u64(&hash, state_size);
    hash_add(&hash, state, state_size);
    hash_add_u64(&hash, step);
    hash_add_u64(&hash, dropped);
    for (int i = 0; i < 4 && vectors[i]; i++) {
        unsigned char sum[HASH_FAST_BYTES];
        hash_fast(vectors[i], n * sizeof(float), sum);
        hash_add(&hash, sum, sizeof sum);
    }
    hash_finish(&hash, hex);
}

int checkpoint_prepare(const struct trainer *t, const char *state, const char *path, struct file_writer *out,
                       attune_error *err) {
    struct gguf_writer *w = NULL;
    struct file_writer file = {0};
    int code = gguf_writer_create(&w, err);
    if (code != ATTUNE_OK) return code;
    char configuration[1024], hex[HASH_HEX_SIZE];
    configuration_text(&t->config, configuration, sizeof configuration);
    digest(state, strlen(state), t->adamw.step, t->dropped,
           (const void *const[4]){t->lora->parameters, t->adamw.m, t->adamw.v, t->has_kept ? t->kept : NULL}, t->lora->n,
           hex);
    uint64_t dims[1] = {t->lora->n};
    gguf_put_string(w, "general.type", "checkpoint");
    gguf_put_string(w, "general.architecture", t->model->architecture->name);
    gguf_put_string(w, "attune.base.sha256", t->model->sha256);
    gguf_put_string(w, "attune.configuration", configuration);
    gguf_put_string(w, "attune.kernels", kernels_get()->name);
    gguf_put_u64(w, "attune.optimizer.step", t->adamw.step);
    gguf_put_u64(w, "attune.dropped", t->dropped);
    gguf_put_string(w, "attune.state", state);
    gguf_put_string(w, "attune.digest", hex);
    gguf_put_tensor(w, "parameters", BLOCK_F32, 1, dims, t->lora->parameters);
    gguf_put_tensor(w, "moment.first", BLOCK_F32, 1, dims, t->adamw.m);
    gguf_put_tensor(w, "moment.second", BLOCK_F32, 1, dims, t->adamw.v);
    if (t->has_kept) gguf_put_tensor(w, "kept", BLOCK_F32, 1, dims, t->kept);
    code = file_writer_open(path, "checkpoint", &file, err);
    if (code == ATTUNE_OK) code = gguf_writer_write(w, &file, NULL, err);
    if (code == ATTUNE_OK)
        *out = file;
    else
        file_writer_abandon(&file);
    gguf_writer_destroy(w);
    return code;
}

int checkpoint_write(const struct trainer *trainer, const char *state, const char *path, attune_error *err) {
    struct file_writer file = {0};
    int code = checkpoint_prepare(trainer, state, path, &file, err);
    return code == ATTUNE_OK ? file_writer_publish(&file, err) : code;
}

static int expect_text(const struct gguf *g, const char *key, const char *wanted, const char *path, attune_error *err) {
    char found[600];
    int code = gguf_get_text(g, key, found, sizeof found, err);
    if (code != ATTUNE_OK) return code;
    if (strcmp(found, wanted) != 0)
        return error_set(
            err, ATTUNE_ERROR_MISMATCH, path,
            "the checkpoint was made with another %s (%.80s, now %.80s); go on where it began, or delete the "
            "checkpoint and the run begins again",
            key, found, wanted);
    return ATTUNE_OK;
}

static int find_vector(const struct gguf *g, const char *name, size_t n, const unsigned char **out, const char *path,
                       attune_error *err) {
    const struct gguf_tensor *tensor = gguf_tensor_find(g, name);
    if (!tensor || tensor->type != BLOCK_F32 || tensor->n_dims != 1 || tensor->dims[0] != n)
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "the checkpoint has no tensor %s of %zu floats", name, n);
    for (size_t i = 0; i < n; i++) {
        float value;
        memcpy(&value, tensor->data + i * sizeof value, sizeof value);
        if (!isfinite(value))
            return error_set(err, ATTUNE_ERROR_FORMAT, path, "tensor %s holds a value that is not finite at %zu", name,
                             i);
    }
    *out = tensor->data;
    return ATTUNE_OK;
}

static int check_digest(const struct gguf *g, uint64_t step, uint64_t dropped, const void *const vectors[4], size_t n,
                        const char *path, attune_error *err) {
    struct gguf_string state = {0};
    char wanted[HASH_HEX_SIZE], found[HASH_HEX_SIZE];
    int code = gguf_get_string(g, "attune.state", &state, err);
    if (code == ATTUNE_OK) code = gguf_get_text(g, "attune.digest", wanted, sizeof wanted, err);
    if (code != ATTUNE_OK) return code;
    digest(state.data, state.size, step, dropped, vectors, n, found);
    if (strcmp(found, wanted) == 0) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, path,
                     "the checkpoint is damaged: it is not what its digest was taken of");
}

/* All is checked before anything is changed. */
static int read_trainer(const struct gguf *g, struct trainer *t, const char *path, attune_error *err) {
    char configuration[1024];
    const unsigned char *parameters, *m, *v, *kept = NULL;
    uint64_t step, dropped;
    configuration_text(&t->config, configuration, sizeof configuration);
    int code = expect_text(g, "attune.base.sha256", t->model->sha256, path, err);
    if (code == ATTUNE_OK) code = expect_text(g, "attune.configuration", configuration, path, err);
    if (code == ATTUNE_OK) code = expect_text(g, "attune.kernels", kernels_get()->name, path, err);
    if (code == ATTUNE_OK) code = gguf_get_u64(g, "attune.optimizer.step", &step, err);
    if (code == ATTUNE_OK) code = gguf_get_u64(g, "attune.dropped", &dropped, err);
    if (code == ATTUNE_OK) code = find_vector(g, "parameters", t->lora->n, &parameters, path, err);
    if (code == ATTUNE_OK) code = find_vector(g, "moment.first", t->lora->n, &m, path, err);
    if (code == ATTUNE_OK) code = find_vector(g, "moment.second", t->lora->n, &v, path, err);
    if (code == ATTUNE_OK && gguf_tensor_find(g, "kept")) code = find_vector(g, "kept", t->lora->n, &kept, path, err);
    if (code == ATTUNE_OK)
        code = check_digest(g, step, dropped, (const void *const[4]){parameters, m, v, kept}, t->lora->n, path, err);
    if (code == ATTUNE_OK && kept) code = trainer_keep(t, err); /* the place for them; nothing else has changed */
    if (code != ATTUNE_OK) return code;
    memcpy(t->lora->parameters, parameters, t->lora->n * sizeof(float));
    memcpy(t->adamw.m, m, t->lora->n * sizeof(float));
    memcpy(t->adamw.v, v, t->lora->n * sizeof(float));
    if (kept) memcpy(t->kept, kept, t->lora->n * sizeof(float));
    t->has_kept = kept != NULL;
    t->adamw.step = step;
    t->dropped = dropped;
    return ATTUNE_OK;
}

int checkpoint_read(const char *path, struct trainer *trainer, char **state, attune_error *err) {
    struct gguf *g = NULL;
    struct gguf_string text;
    char type[32], *copy = NULL;
    int code = gguf_open(path, FILE_READ, &g, err);
    if (code != ATTUNE_OK) return code;
    code = gguf_get_text(g, "general.type", type, sizeof type, err);
    if (code != ATTUNE_OK) goto out;
    if (strcmp(type, "checkpoint") != 0) {
        code = error_set(err, ATTUNE_ERROR_FORMAT, path, "not a checkpoint: its general.type is \"%s\"", type);
        goto out;
    }
    code = gguf_get_string(g, "attune.state", &text, err);
    if (code != ATTUNE_OK) goto out;
    copy = malloc(text.size + 1);
    if (!copy) {
        code = error_set_memory(err, "a checkpoint's state", text.size + 1);
        goto out;
    }
    memcpy(copy, text.data, text.size);
    copy[text.size] = 0;
    if (trainer) code = read_trainer(g, trainer, path, err);
    if (code == ATTUNE_OK) {
        *state = copy;
        copy = NULL;
    }
out:
    free(copy);
    gguf_close(g);
    return code;
}
