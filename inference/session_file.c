/* A saved session is a GGUF file (docs/formats.md):
 *   general.type                   "session"
 *   attune.session.version         u32, 1
 *   attune.session.base.sha256, .adapter.sha256 ("": none), .merge, .kind ("F16": of the cache)
 *   attune.session.layers, .heads, .size    u32: L, KV, D
 *   attune.session.appended        u32: since the last answer, 0 nothing, 1 messages, 2 text
 *   attune.session.used            u64: tokens in the cache
 *   attune.session.clean           u64: of them, those that have seen no dropped ones
 *   attune.session.tokens          i32 array: the line
 *   attune.session.digest          sha256 over all of these and the bytes of the tensors, see take_digest
 *   tensors k.<layer>.<head>, v.<layer>.<head> of the cache's kind, (used, D); none where used is 0
 *   tensor logits: F32 (V), where nothing is pending and they were computed
 * Read whole and verified before anything is changed. What was saved goes on as it would have, bit for bit. */
#include "inference/session.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { VERSION = 1, LAYERS_MAX = 4096, HEADS_MAX = 4096 };

/* All that is in a file, borrowed from a session or from the file. */
struct saved {
    char base[HASH_HEX_SIZE], adapter[HASH_HEX_SIZE], merge[16], kind[16];
    uint64_t L, KV, D, used, clean, appended;
    const unsigned char *tokens; /* (n) int32 */
    size_t n, row_bytes;
    const unsigned char **pieces; /* (L, KV, 2): (used, row_bytes) of k and of v; owned */
    const unsigned char *logits;  /* (V) floats, or NULL */
    size_t V;
};

static const unsigned char **piece_of(const struct saved *f, size_t layer, size_t head, int v) {
    return &f->pieces[(layer * f->KV + head) * 2 + (size_t)v];
}
static size_t count_pieces(const struct saved *f) { return f->used ? f->L * f->KV * 2 : 0; }

static void name_piece(size_t layer, size_t head, int v, char out[64]) {
    snprintf(out, 64, "%c.%zu.%zu", v ? 'v' : 'k', layer, head);
}

static int take_pieces(struct saved *f, attune_error *err) {
    f->pieces = calloc(count_pieces(f) + 1, sizeof *f->pieces);
    return f->pieces ? ATTUNE_OK : error_set_memory(err, "a saved session", count_pieces(f) * sizeof *f->pieces);
}

static void take_digest(const struct saved *f, char hex[HASH_HEX_SIZE]) {
    struct hash hash;
    hash_start(&hash);
    hash_add_string(&hash, f->base);
    hash_add_string(&hash, f->adapter);
    hash_add_string(&hash, f->merge);
    hash_add_string(&hash, f->kind);
    const uint64_t numbers[] = {VERSION, f->L, f->KV, f->D, f->used, f->clean, f->appended, f->n, f->logits ? f->V : 0};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) hash_add_u64(&hash, numbers[i]);
    hash_add(&hash, f->tokens, f->n * sizeof(int32_t));
    for (size_t i = 0; i < count_pieces(f); i++) hash_add(&hash, f->pieces[i], f->used * f->row_bytes);
    if (f->logits) hash_add(&hash, f->logits, f->V * sizeof(float));
    hash_finish(&hash, hex);
}

/* ---- of a session ---- */

/* The base's hash, which an engine without an adapter has not needed. */
static const char *base_of(attune_session *s) {
    const struct model *model = s->engine->model;
    if (*model->sha256) return model->sha256;
    if (!*s->base_sha256) hash_bytes(model->gguf->file.data, model->gguf->file.size, s->base_sha256);
    return s->base_sha256;
}

static void describe(attune_session *s, struct saved *f) {
    const struct model *model = s->engine->model;
    *f = (struct saved){.L = model->L, .KV = model->KV, .D = model->D, .V = model->V, .row_bytes = s->cache.row_bytes};
    snprintf(f->base, sizeof f->base, "%s", base_of(s));
    snprintf(f->adapter, sizeof f->adapter, "%s", s->variant->adapter_sha256);
    snprintf(f->merge, sizeof f->merge, "%s", merge_mode_name(s->variant->merge));
    snprintf(f->kind, sizeof f->kind, "%s", block_type_name(s->cache.kind));
}

static unsigned char *cached(const attune_session *s, size_t layer, size_t head, int v) {
    size_t at = (layer * s->engine->model->KV + head) * s->cache.context * s->cache.row_bytes;
    return (v ? s->cache.v : s->cache.k) + at;
}

/* ---- save ---- */

static void put_tensors(struct gguf_writer *w, const attune_session *s, const struct saved *f) {
    uint64_t dims[2] = {f->D, f->used};
    char name[64];
    for (size_t l = 0; f->used && l < f->L; l++)
        for (size_t h = 0; h < f->KV; h++)
            for (int v = 0; v < 2; v++) {
                name_piece(l, h, v, name);
                gguf_put_tensor(w, name, s->cache.kind, 2, dims, *piece_of(f, l, h, v));
            }
    if (f->logits) gguf_put_tensor(w, "logits", BLOCK_F32, 1, (uint64_t[]){f->V}, f->logits);
}

static void put_keys(struct gguf_writer *w, const attune_session *s, const struct saved *f) {
    char digest[HASH_HEX_SIZE];
    take_digest(f, digest);
    gguf_put_string(w, "general.type", "session");
    gguf_put_string(w, "general.architecture", s->engine->model->architecture->name);
    gguf_put_u32(w, "attune.session.version", VERSION);
    gguf_put_string(w, "attune.session.base.sha256", f->base);
    gguf_put_string(w, "attune.session.adapter.sha256", f->adapter);
    gguf_put_string(w, "attune.session.merge", f->merge);
    gguf_put_string(w, "attune.session.kind", f->kind);
    gguf_put_u32(w, "attune.session.layers", (uint32_t)f->L);
    gguf_put_u32(w, "attune.session.heads", (uint32_t)f->KV);
    gguf_put_u32(w, "attune.session.size", (uint32_t)f->D);
    gguf_put_u32(w, "attune.session.appended", (uint32_t)f->appended);
    gguf_put_u64(w, "attune.session.used", f->used);
    gguf_put_u64(w, "attune.session.clean", f->clean);
    gguf_put_array(w, "attune.session.tokens", GGUF_I32, f->tokens, f->n);
    gguf_put_string(w, "attune.session.digest", digest);
}

int attune_session_save(attune_session *s, const char *path, attune_error *err) {
    struct saved f = {0};
    struct gguf_writer *w = NULL;
    int code = session_check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    if (!path) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "saving a session wants a path");
    describe(s, &f);
    assert(f.row_bytes == block_row_bytes(s->cache.kind, f.D));
    f.used = s->cache.used;
    f.clean = s->clean < f.used ? s->clean : f.used;
    f.appended = (uint64_t)s->appended;
    f.tokens = (const unsigned char *)s->line.ids;
    f.n = s->line.n;
    if (s->scored && f.used == f.n && f.n > 0) f.logits = (const unsigned char *)s->logits;
    if ((code = take_pieces(&f, err)) != ATTUNE_OK) goto out;
    for (size_t i = 0; i < count_pieces(&f); i++) f.pieces[i] = cached(s, i / 2 / f.KV, i / 2 % f.KV, (int)(i % 2));
    if ((code = gguf_writer_create(&w, err)) != ATTUNE_OK) goto out;
    put_keys(w, s, &f);
    put_tensors(w, s, &f);
    code = gguf_writer_publish(w, path, "session", 0, NULL, err);
out:
    gguf_writer_destroy(w);
    free(f.pieces);
    return code;
}

/* ---- restore ---- */

static int damaged(const struct gguf *g, const char *what, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_FORMAT, g->file.path, "the saved session is damaged: %s", what);
}

static int check_keys(const struct gguf *g, attune_error *err) {
    static const char *const keys[] = {"general.type",
                                       "attune.session.version",
                                       "attune.session.base.sha256",
                                       "attune.session.adapter.sha256",
                                       "attune.session.merge",
                                       "attune.session.kind",
                                       "attune.session.layers",
                                       "attune.session.heads",
                                       "attune.session.size",
                                       "attune.session.appended",
                                       "attune.session.used",
                                       "attune.session.clean",
                                       "attune.session.tokens",
                                       "attune.session.digest"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!gguf_find(g, keys[i]))
            return error_set(err, ATTUNE_ERROR_FORMAT, g->file.path,
                             "not a saved session, or a damaged one: it has no key %s", keys[i]);
    return ATTUNE_OK;
}

static int read_type(const struct gguf *g, attune_error *err) {
    char type[32];
    uint64_t version = 0;
    int code = check_keys(g, err);
    if (code == ATTUNE_OK) code = gguf_get_text(g, "general.type", type, sizeof type, err);
    if (code == ATTUNE_OK && strcmp(type, "session") != 0)
        code =
            error_set(err, ATTUNE_ERROR_FORMAT, g->file.path, "not a saved session: its general.type is \"%s\"", type);
    if (code == ATTUNE_OK) code = gguf_get_u64(g, "attune.session.version", &version, err);
    if (code == ATTUNE_OK && version != VERSION)
        code = error_set(err, ATTUNE_ERROR_UNSUPPORTED, g->file.path,
                         "the session was saved in version %llu of the format; this attune knows version %d",
                         (unsigned long long)version, VERSION);
    return code;
}

static int read_keys(const struct gguf *g, struct saved *f, attune_error *err) {
    int code = gguf_get_text(g, "attune.session.base.sha256", f->base, sizeof f->base, err);
    if (code == ATTUNE_OK) code = gguf_get_text(g, "attune.session.adapter.sha256", f->adapter, sizeof f->adapter, err);
    if (code == ATTUNE_OK) code = gguf_get_text(g, "attune.session.merge", f->merge, sizeof f->merge, err);
    if (code == ATTUNE_OK) code = gguf_get_text(g, "attune.session.kind", f->kind, sizeof f->kind, err);
    if (code == ATTUNE_OK) code = gguf_get_u64(g, "attune.session.layers", &f->L, err);
    if (code == ATTUNE_OK) code = gguf_get_u64(g, "attune.session.heads", &f->KV, err);
    if (code == ATTUNE_OK) code = gguf_get_u64(g, "attune.session.size", &f->D, err);
    if (code == ATTUNE_OK) code = gguf_get_u64(g, "attune.session.appended", &f->appended, err);
    if (code == ATTUNE_OK) code = gguf_get_u64(g, "attune.session.used", &f->used, err);
    if (code == ATTUNE_OK) code = gguf_get_u64(g, "attune.session.clean", &f->clean, err);
    if (code != ATTUNE_OK) return code;
    const struct gguf_pair *tokens = gguf_find(g, "attune.session.tokens");
    if (!tokens || tokens->kind != GGUF_ARRAY || tokens->element != GGUF_I32)
        return damaged(g, "it has no tokens", err);
    f->tokens = tokens->value;
    f->n = (size_t)tokens->count;
    if (f->L == 0 || f->L > LAYERS_MAX || f->KV == 0 || f->KV > HEADS_MAX || f->D == 0 || f->appended > APPENDED_TEXT ||
        f->used > f->n || f->clean > f->used || (f->n == 0 && f->appended != APPENDED_NOTHING))
        return damaged(g, "its numbers do not go together", err);
    return ATTUNE_OK;
}

/* A tensor of the cache as its name and the keys have it. */
static int read_piece(const struct gguf *g, struct saved *f, size_t layer, size_t head, int v, attune_error *err) {
    char name[64];
    name_piece(layer, head, v, name);
    const struct gguf_tensor *t = gguf_tensor_find(g, name);
    if (!t || t->n_dims != 2 || t->dims[0] != f->D || t->dims[1] != f->used ||
        strcmp(block_type_name(t->type), f->kind) != 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, g->file.path,
                         "the saved session is damaged: it has no tensor %s of %llu tokens", name,
                         (unsigned long long)f->used);
    f->row_bytes = block_row_bytes((enum block_type)t->type, (size_t)f->D);
    *piece_of(f, layer, head, v) = t->data;
    return ATTUNE_OK;
}

static int read_tensors(const struct gguf *g, struct saved *f, attune_error *err) {
    if (count_pieces(f) > g->n_tensors) return damaged(g, "tensors of its cache are missing", err);
    int code = take_pieces(f, err);
    for (size_t l = 0; f->used && l < f->L; l++)
        for (size_t h = 0; h < f->KV; h++)
            for (int v = 0; v < 2 && code == ATTUNE_OK; v++) code = read_piece(g, f, l, h, v, err);
    const struct gguf_tensor *logits = gguf_tensor_find(g, "logits");
    if (code != ATTUNE_OK || !logits) return code;
    if (logits->type != BLOCK_F32 || logits->n_dims != 1 || f->used != f->n || f->n == 0)
        return damaged(g, "its logits are not what follows its tokens", err);
    f->logits = logits->data;
    f->V = (size_t)logits->dims[0];
    return ATTUNE_OK;
}

static int check_digest(const struct gguf *g, const struct saved *f, attune_error *err) {
    char wanted[HASH_HEX_SIZE], found[HASH_HEX_SIZE];
    int code = gguf_get_text(g, "attune.session.digest", wanted, sizeof wanted, err);
    if (code != ATTUNE_OK) return code;
    take_digest(f, found);
    return strcmp(found, wanted) == 0 ? ATTUNE_OK : damaged(g, "it is not what its digest was taken of", err);
}

/* What a file must have in common with the session. */
static int check_origin(const struct gguf *g, const struct saved *f, const struct saved *now, attune_error *err) {
    const struct {
        const char *what, *saved, *now;
    } parts[] = {{"base", f->base, now->base},
                 {"adapter", f->adapter, now->adapter},
                 {"merge", f->merge, now->merge},
                 {"kind of cache", f->kind, now->kind}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strcmp(parts[i].saved, parts[i].now) != 0)
            return error_set(err, ATTUNE_ERROR_MISMATCH, g->file.path,
                             "the session was saved with another %s (%.16s, now %.16s); restore it where that is "
                             "served, or begin anew from its messages",
                             parts[i].what, *parts[i].saved ? parts[i].saved : "none",
                             *parts[i].now ? parts[i].now : "none");
    if (f->L != now->L || f->KV != now->KV || f->D != now->D || (f->logits && f->V != now->V))
        return damaged(g, "its shapes are not the model's", err);
    return ATTUNE_OK;
}

static int check_tokens(const struct gguf *g, const struct saved *f, size_t context, size_t V, attune_error *err) {
    if (f->used > context || f->n > context + LINE_SPARE)
        return error_set(err, ATTUNE_ERROR_CONTEXT_FULL, g->file.path,
                         "the saved session has %zu tokens and the context %zu; open a session with a larger one", f->n,
                         context);
    for (size_t i = 0; i < f->n; i++) {
        int32_t id;
        memcpy(&id, f->tokens + i * sizeof id, sizeof id);
        if (id < 0 || (size_t)id >= V)
            return error_set(err, ATTUNE_ERROR_FORMAT, g->file.path,
                             "the saved session is damaged: token %zu is %d, and the vocabulary ends at %zu", i,
                             (int)id, V);
    }
    return ATTUNE_OK;
}

static int check_finite(const struct gguf *g, const struct saved *f, enum block_type kind, attune_error *err) {
    float *row = malloc((size_t)f->D * sizeof *row);
    const struct block_format *format = block_format_get(kind);
    int code = row ? ATTUNE_OK : error_set_memory(err, "a saved session", (size_t)f->D * sizeof *row);
    for (size_t i = 0; i < count_pieces(f) && code == ATTUNE_OK; i++)
        for (size_t t = 0; t < f->used && code == ATTUNE_OK; t++) {
            format->dequantize(row, f->pieces[i] + t * f->row_bytes, (size_t)f->D);
            for (size_t d = 0; d < f->D && code == ATTUNE_OK; d++)
                if (!isfinite(row[d])) code = damaged(g, "its cache holds a value that is not finite", err);
        }
    free(row);
    return code;
}

static void take_over(attune_session *s, const struct saved *f) {
    memcpy(s->line.ids, f->tokens, f->n * sizeof *s->line.ids);
    s->line.n = f->n;
    for (size_t i = 0; i < count_pieces(f); i++)
        memcpy(cached(s, i / 2 / f->KV, i / 2 % f->KV, (int)(i % 2)), f->pieces[i], f->used * f->row_bytes);
    s->appended = (enum appended)f->appended;
    session_changed(s, f->used);
    s->clean = f->clean < f->used ? f->clean : SIZE_MAX;
    if (!f->logits) return;
    memcpy(s->logits, f->logits, f->V * sizeof *s->logits);
    s->scored = 1;
}

int attune_session_restore(attune_session *s, const char *path, attune_error *err) {
    struct saved f = {0}, now;
    struct gguf *g = NULL;
    int code = session_check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    if (!path) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "restoring a session wants a path");
    if ((code = gguf_open(path, FILE_READ, &g, err)) != ATTUNE_OK) return code;
    describe(s, &now);
    if ((code = read_type(g, err)) != ATTUNE_OK) goto out;
    if ((code = read_keys(g, &f, err)) != ATTUNE_OK) goto out;
    if ((code = read_tensors(g, &f, err)) != ATTUNE_OK) goto out;
    if ((code = check_digest(g, &f, err)) != ATTUNE_OK) goto out;
    if ((code = check_origin(g, &f, &now, err)) != ATTUNE_OK) goto out;
    if ((code = check_tokens(g, &f, s->cache.context, s->engine->model->V, err)) != ATTUNE_OK) goto out;
    if ((code = check_finite(g, &f, s->cache.kind, err)) != ATTUNE_OK) goto out;
    take_over(s, &f);
out:
    free(f.pieces);
    gguf_close(g);
    return code;
}
