/* A token cache is a GGUF file (docs/formats.md):
 *   general.type       "token cache"
 *   attune.version     of the attune that tokenized
 *   attune.base.sha256 of the base's file, which holds vocabulary and chat template
 *   attune.max_tokens  u64, where longer conversations were cut
 *   attune.rows        strings, content hashes in ascending order
 *   attune.lengths     u32 each, tokens of each row; 0: there is nothing in it to learn from
 *   attune.ids         i32, tokens of all rows, one after the other
 *   attune.supervised  u8 each, 1: the token is learned
 *   attune.digest      sha256 over the five before it
 * Nothing in it is believed that could not be so: it may be anybody's file. */
#include "job/token_cache.h"

#include "core/base/hash.h"
#include "core/model/gguf.h"
#include "job/home.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct token_cache {
    const struct model *model;
    size_t max_tokens;
    char path[HOME_PATH_MAX]; /* "": nowhere */
    /* what is remembered */
    struct gguf *gguf;                 /* NULL: nothing */
    size_t n, *starts;                 /* starts(n + 1): where each row's tokens begin */
    const struct gguf_string *hashes;  /* (n), ascending */
    int32_t *ids;                      /* (starts[n]) */
    const unsigned char *supervised;   /* (starts[n]) */
    /* what will be */
    struct file_writer file;
    int watching;                      /* the file is open */
    size_t found, made;                /* rows from memory, and tokenized */
    char (*dropped)[HASH_HEX_SIZE];    /* rows that gave no example */
    size_t n_dropped, capacity;
};

/* ---- reading ---- */

static const struct gguf_pair *find_array(const struct gguf *gguf, const char *key, enum gguf_kind element) {
    const struct gguf_pair *pair = gguf_find(gguf, key);
    return pair && pair->kind == GGUF_ARRAY && pair->element == element ? pair : NULL;
}

static void digest(const char *const *hashes, const uint32_t *lengths, size_t n, const int32_t *ids,
                   const unsigned char *supervised, size_t tokens, size_t max_tokens, char hex[HASH_HEX_SIZE]) {
    struct hash hash;
    hash_start(&hash);
    hash_add_u64(&hash, max_tokens);
    hash_add_u64(&hash, n);
    for (size_t i = 0; i < n; i++) hash_add(&hash, hashes[i], HASH_HEX_SIZE - 1);
    hash_add(&hash, lengths, n * sizeof *lengths);
    hash_add(&hash, ids, tokens * sizeof *ids);
    hash_add(&hash, supervised, tokens);
    hash_finish(&hash, hex);
}

static int same_text(const struct gguf *gguf, const char *key, const char *wanted) {
    char text[HASH_HEX_SIZE];
    return gguf_get_text(gguf, key, text, sizeof text, NULL) == ATTUNE_OK && strcmp(text, wanted) == 0;
}

/* Made for this model and length, by this attune. */
static int belongs(const struct token_cache *cache, const struct gguf *gguf) {
    uint64_t max_tokens;
    return same_text(gguf, "general.type", "token cache") && same_text(gguf, "attune.version", ATTUNE_VERSION) &&
           same_text(gguf, "attune.base.sha256", cache->model->sha256) &&
           gguf_get_u64(gguf, "attune.max_tokens", &max_tokens, NULL) == ATTUNE_OK && max_tokens == cache->max_tokens;
}

/* Fills starts from the lengths; 0: they do not fit the tokens. */
static int lay_out(struct token_cache *cache, const uint32_t *lengths, size_t tokens) {
    size_t at = 0;
    for (size_t i = 0; i < cache->n; i++) {
        cache->starts[i] = at;
        if (lengths[i] == 1 || lengths[i] > cache->max_tokens) return 0;
        at += lengths[i];
    }
    cache->starts[cache->n] = at;
    return at == tokens;
}

static int is_sound(const struct token_cache *cache) {
    for (size_t i = 0; i < cache->n; i++) {
        const struct gguf_string *hash = &cache->hashes[i];
        size_t from = cache->starts[i], to = cache->starts[i + 1];
        if (hash->size != HASH_HEX_SIZE - 1 || memchr(hash->data, 0, hash->size)) return 0;
        if (i > 0 && memcmp(hash[-1].data, hash->data, hash->size) >= 0) return 0;
        for (size_t t = from; t < to; t++)
            if (cache->ids[t] < 0 || (size_t)cache->ids[t] >= cache->model->V || cache->supervised[t] > 1) return 0;
        if (to > from && !cache->supervised[to - 1]) return 0;
    }
    return 1;
}

static int check_digest(const struct token_cache *cache, const uint32_t *lengths, size_t tokens) {
    char found[HASH_HEX_SIZE];
    const char **hashes = malloc((cache->n + 1) * sizeof *hashes);
    if (!hashes) return 0;
    for (size_t i = 0; i < cache->n; i++) hashes[i] = cache->hashes[i].data;
    digest(hashes, lengths, cache->n, cache->ids, cache->supervised, tokens, cache->max_tokens, found);
    free(hashes);
    return same_text(cache->gguf, "attune.digest", found);
}

/* Arrays in a GGUF file are not aligned. */
static void *aligned_copy(const struct gguf_pair *pair, size_t each) {
    size_t bytes = (size_t)pair->count * each;
    void *copy = malloc(bytes + 1);
    if (copy && bytes) memcpy(copy, pair->value, bytes);
    return copy;
}

/* 0: of no use. The reader has bounded all counts by the size of the file. */
static int take_rows(struct token_cache *cache) {
    const struct gguf_pair *rows = find_array(cache->gguf, "attune.rows", GGUF_STRING);
    const struct gguf_pair *lengths = find_array(cache->gguf, "attune.lengths", GGUF_U32);
    const struct gguf_pair *ids = find_array(cache->gguf, "attune.ids", GGUF_I32);
    const struct gguf_pair *supervised = find_array(cache->gguf, "attune.supervised", GGUF_U8);
    if (!rows || !lengths || !ids || !supervised || lengths->count != rows->count || supervised->count != ids->count)
        return 0;
    cache->n = (size_t)rows->count;
    cache->hashes = rows->strings;
    cache->supervised = supervised->value;
    cache->starts = malloc((cache->n + 1) * sizeof *cache->starts);
    cache->ids = aligned_copy(ids, sizeof *cache->ids);
    uint32_t *aligned = aligned_copy(lengths, sizeof *aligned);
    int sound = cache->starts && cache->ids && aligned && lay_out(cache, aligned, (size_t)ids->count) &&
                is_sound(cache) && check_digest(cache, aligned, (size_t)ids->count);
    free(aligned);
    return sound;
}

static void forget_rows(struct token_cache *cache) {
    gguf_close(cache->gguf);
    free(cache->starts);
    free(cache->ids);
    cache->gguf = NULL;
    cache->starts = NULL;
    cache->ids = NULL;
    cache->n = 0;
}

int token_cache_open(const char *home, const struct model *model, size_t max_tokens, struct token_cache **out,
                     attune_error *err) {
    struct token_cache *cache = calloc(1, sizeof *cache);
    if (!cache) return error_set_memory(err, "a token cache", sizeof *cache);
    cache->model = model;
    cache->max_tokens = max_tokens;
    *out = cache;
    if (!home || !*model->sha256 || home_file(home, "cache/tokens.gguf", cache->path, NULL) != ATTUNE_OK)
        *cache->path = 0;
    if (!*cache->path || access(cache->path, F_OK) != 0) return ATTUNE_OK;
    if (gguf_open(cache->path, FILE_READ, &cache->gguf, NULL) != ATTUNE_OK) return ATTUNE_OK;
    if (!belongs(cache, cache->gguf) || !take_rows(cache)) forget_rows(cache);
    return ATTUNE_OK;
}

void token_cache_close(struct token_cache *cache) {
    if (!cache) return;
    forget_rows(cache);
    file_writer_abandon(&cache->file);
    free(cache->dropped);
    free(cache);
}

/* The file that will replace the old one, empty as yet. Forgetting empties the folder, so it is there in the end only
 * if nothing was forgotten in between. */
void token_cache_watch(struct token_cache *cache) {
    if (*cache->path) cache->watching = file_writer_open(cache->path, "tokens", &cache->file, NULL) == ATTUNE_OK;
}

/* ---- rows ---- */

/* Index of the row; cache->n: it is not remembered. */
static size_t find_row(const struct token_cache *cache, const char *hash) {
    size_t low = 0, high = cache->n;
    if (strlen(hash) != HASH_HEX_SIZE - 1) return cache->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = memcmp(cache->hashes[middle].data, hash, HASH_HEX_SIZE - 1);
        if (order == 0) return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return cache->n;
}

static int note_dropped(struct token_cache *cache, const char *hash, attune_error *err) {
    if (cache->n_dropped == cache->capacity) {
        size_t capacity = cache->capacity ? 2 * cache->capacity : 64;
        char(*grown)[HASH_HEX_SIZE] = realloc(cache->dropped, capacity * sizeof *grown);
        if (!grown) return error_set_memory(err, "a token cache", capacity * sizeof *grown);
        cache->dropped = grown;
        cache->capacity = capacity;
    }
    strncpy(cache->dropped[cache->n_dropped], hash, HASH_HEX_SIZE - 1);
    cache->dropped[cache->n_dropped++][HASH_HEX_SIZE - 1] = 0;
    return ATTUNE_OK;
}

int token_cache_add(struct token_cache *cache, const struct store_row *row, struct example_set *set, int *added,
                    attune_error *err) {
    int code;
    size_t i = find_row(cache, row->content_hash);
    if (i < cache->n) {
        size_t from = cache->starts[i], n = cache->starts[i + 1] - from;
        cache->found++;
        *added = n > 0;
        code = n > 0 ? example_add_tokens(set, cache->ids + from, cache->supervised + from, n, row->content_hash,
                                          row->prompt_hash, err)
                     : ATTUNE_OK;
    } else {
        cache->made++;
        code = example_add(set, cache->model, row->messages, row->n_messages, row->response, row->content_hash,
                           row->prompt_hash, cache->max_tokens, added, err);
        /* A row that this base cannot express (a byte that its vocabulary lacks) is left out, not the end of a night */
        if (code == ATTUNE_ERROR_UNSUPPORTED) code = ATTUNE_OK;
    }
    return code == ATTUNE_OK && !*added ? note_dropped(cache, row->content_hash, err) : code;
}

/* ---- writing ---- */

struct entry {
    const char *hash;
    const struct example *example; /* NULL: the row gives none */
};
static int compare_entry(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->hash, ((const struct entry *)b)->hash);
}

/* All entries side by side, in their order. */
struct columns {
    size_t n, tokens;
    const char **hashes;
    uint32_t *lengths;
    int32_t *ids;
    uint8_t *supervised;
};

static void free_columns(struct columns *columns) {
    free(columns->hashes);
    free(columns->lengths);
    free(columns->ids);
    free(columns->supervised);
}

static int fill_columns(const struct entry *entries, struct columns *c) {
    for (size_t i = 0; i < c->n; i++) c->tokens += entries[i].example ? entries[i].example->n : 0;
    c->hashes = malloc((c->n + 1) * sizeof *c->hashes);
    c->lengths = malloc((c->n + 1) * sizeof *c->lengths);
    c->ids = malloc((c->tokens + 1) * sizeof *c->ids);
    c->supervised = malloc(c->tokens + 1);
    if (!c->hashes || !c->lengths || !c->ids || !c->supervised) return 0;
    for (size_t i = 0, at = 0; i < c->n; i++) {
        const struct example *example = entries[i].example;
        c->hashes[i] = entries[i].hash;
        c->lengths[i] = example ? (uint32_t)example->n : 0;
        if (!example) continue;
        memcpy(c->ids + at, example->ids, example->n * sizeof *c->ids);
        memcpy(c->supervised + at, example->supervised, example->n);
        at += example->n;
    }
    return 1;
}

static int write_columns(struct token_cache *cache, const struct columns *c) {
    struct gguf_writer *w = NULL;
    char hex[HASH_HEX_SIZE];
    if (gguf_writer_create(&w, NULL) != ATTUNE_OK) return 0;
    digest(c->hashes, c->lengths, c->n, c->ids, c->supervised, c->tokens, cache->max_tokens, hex);
    gguf_put_string(w, "general.type", "token cache");
    gguf_put_string(w, "attune.version", ATTUNE_VERSION);
    gguf_put_string(w, "attune.base.sha256", cache->model->sha256);
    gguf_put_u64(w, "attune.max_tokens", cache->max_tokens);
    gguf_put_strings(w, "attune.rows", c->hashes, c->n);
    gguf_put_array(w, "attune.lengths", GGUF_U32, c->lengths, c->n);
    gguf_put_array(w, "attune.ids", GGUF_I32, c->ids, c->tokens);
    gguf_put_array(w, "attune.supervised", GGUF_U8, c->supervised, c->tokens);
    gguf_put_string(w, "attune.digest", hex);
    int code = gguf_writer_write(w, &cache->file, NULL, NULL);
    gguf_writer_destroy(w);
    return code == ATTUNE_OK;
}

static int is_there(const struct store_row *row, void *user, attune_error *err) {
    (void)row, (void)user, (void)err;
    return ATTUNE_OK;
}

static int all_there(attune_store *store, const struct entry *entries, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (store_example_get(store, entries[i].hash, is_there, NULL, NULL) != ATTUNE_OK) return 0;
    return 1;
}

static int put_in_place(void *user, attune_error *err) { return file_writer_publish(user, err); }

void token_cache_keep(struct token_cache *cache, const struct example_set *set, attune_store *store, int64_t run) {
    struct columns columns = {0};
    if (!cache->watching || (cache->made == 0 && cache->found == cache->n)) return;
    struct entry *entries = malloc((set->n + cache->n_dropped + 1) * sizeof *entries);
    if (!entries) return;
    for (size_t i = 0; i < set->n; i++)
        if (set->items[i].kind == EXAMPLE_SFT)
            entries[columns.n++] = (struct entry){set->items[i].hash, &set->items[i]};
    for (size_t i = 0; i < cache->n_dropped; i++) entries[columns.n++] = (struct entry){cache->dropped[i], NULL};
    qsort(entries, columns.n, sizeof *entries, compare_entry);
    if (fill_columns(entries, &columns) && write_columns(cache, &columns) &&
        store_while_unfinished(store, run, put_in_place, &cache->file, NULL) == ATTUNE_OK &&
        !all_there(store, entries, columns.n))
        unlink(cache->path); /* rows were forgotten by somebody who may have looked into the folder too early */
    free_columns(&columns);
    free(entries);
}
