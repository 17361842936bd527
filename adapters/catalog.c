/* The index, `index.signed`: four lines of a minisign signature, and behind them what they sign, JSON:
 *
 *   {"format": "attune catalog", "version": 1, "serial": N, "base_sha256": "...",
 *    "entries": [{"name", "id", "sha256", "bytes", "rows", "judged", "loss_before", "loss_after", "loss_interval",
 *                 "licence", "origin"}, ...]}
 *
 * Both in one file, so that a change is one rename. Adapters lie beside it as <id>.gguf and never change. */
#include "adapters/catalog.h"

#include "core/base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { FORMAT_VERSION = 1, INDEX_MAX = 4 << 20, SIGNATURE_LINES = 4 };
static const char INDEX[] = "index.signed", FORMAT[] = "attune catalog";

/* ---- what an entry may say ---- */

static int is_hash(const char *text) { return strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64; }

static int is_name(const char *name) {
    static const char first[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    size_t n = strlen(name);
    return n > 0 && n < CATALOG_NAME_SIZE && strspn(name, first) > 0 &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == n;
}

static int is_line(const char *text) {
    if (!*text) return 0;
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) return 0;
    return 1;
}

/* Losses are all there or none. */
static int are_figures(const struct catalog_entry *e) {
    int known = !isnan(e->loss_before);
    if (known != !isnan(e->loss_after) || known != !isnan(e->loss_interval) || known != (e->judged > 0)) return 0;
    if (e->rows < 0 || e->judged < 0 || e->bytes < 1) return 0;
    return !known || (isfinite(e->loss_before) && e->loss_before >= 0 && isfinite(e->loss_after) &&
                      e->loss_after >= 0 && isfinite(e->loss_interval) && e->loss_interval >= 0);
}

int catalog_entry_check(const struct catalog_entry *e, attune_error *err) {
    if (!is_name(e->name))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "\"%.64s\" is no name for an entry: 1 to 64 of a-z, 0-9, - _ . and first a letter or a digit",
                         e->name);
    if (!is_line(e->licence) || !is_line(e->origin))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, e->name,
                         "an entry tells its licence (up to 127 bytes) and its origin (up to 255), a line each");
    return ATTUNE_OK;
}

/* ---- reading ---- */

struct reader {
    const char *path; /* of the index, for messages */
    json_t *root;
    struct catalog *catalog;
    attune_error *err;
};

static int damaged(const struct reader *r, const char *what) {
    return error_set(r->err, ATTUNE_ERROR_FORMAT, r->path, "%s: the catalog is damaged, or was not made by attune",
                     what);
}

static int take_text(const json_t *object, const char *key, char *out, size_t size) {
    const json_t *value = json_object_get(object, key);
    size_t n = json_string_length(value);
    if (!json_is_string(value) || n >= size || strlen(json_string_value(value)) != n) return 0;
    memcpy(out, json_string_value(value), n + 1);
    return 1;
}

static int take_count(const json_t *object, const char *key, int64_t *out) {
    const json_t *value = json_object_get(object, key);
    *out = json_integer_value(value);
    return json_is_integer(value);
}

static int take_loss(const json_t *object, const char *key, double *out) {
    const json_t *value = json_object_get(object, key);
    *out = json_is_null(value) ? NAN : json_number_value(value);
    return json_is_null(value) || json_is_number(value);
}

static int take_entry(const struct reader *r, const json_t *object, size_t i) {
    struct catalog_entry entry, *e = &entry;
    char what[160];
    memset(e, 0, sizeof *e);
    int whole = take_text(object, "name", e->name, sizeof e->name) && take_text(object, "id", e->id, sizeof e->id) &&
                take_text(object, "sha256", e->sha256, sizeof e->sha256) && take_count(object, "bytes", &e->bytes) &&
                take_count(object, "rows", &e->rows) && take_count(object, "judged", &e->judged) &&
                take_loss(object, "loss_before", &e->loss_before) && take_loss(object, "loss_after", &e->loss_after) &&
                take_loss(object, "loss_interval", &e->loss_interval) &&
                take_text(object, "licence", e->licence, sizeof e->licence) &&
                take_text(object, "origin", e->origin, sizeof e->origin);
    snprintf(what, sizeof what, "entry %zu%s%.64s", i + 1, e->name[0] ? ", " : "", e->name);
    if (!whole) return damaged(r, what);
    attune_error why;
    if (catalog_entry_check(e, &why) != ATTUNE_OK)
        return error_set(r->err, ATTUNE_ERROR_FORMAT, r->path, "entry %zu: %s", i + 1, why.message);
    if (!is_hash(e->id) || !is_hash(e->sha256))
        return error_set(r->err, ATTUNE_ERROR_FORMAT, r->path,
                         "entry %zu, %s: its file is not named by 64 hexadecimal digits", i + 1, e->name);
    if (!are_figures(e)) return damaged(r, what);
    if (catalog_find(r->catalog, e->name))
        return error_set(r->err, ATTUNE_ERROR_FORMAT, r->path, "two entries are named %s", e->name);
    r->catalog->entries[r->catalog->n++] = entry;
    return ATTUNE_OK;
}

static int take_entries(const struct reader *r) {
    const json_t *entries = json_object_get(r->root, "entries");
    size_t n = json_array_size(entries);
    if (!json_is_array(entries)) return damaged(r, "no list of entries");
    if (n > CATALOG_ENTRIES_MAX)
        return error_set(r->err, ATTUNE_ERROR_UNSUPPORTED, r->path,
                         "the catalog has %zu entries, at most %d are accepted: split it", n, CATALOG_ENTRIES_MAX);
    r->catalog->entries = calloc(n + 1, sizeof *r->catalog->entries);
    if (!r->catalog->entries) return error_set_memory(r->err, "a catalog", n * sizeof *r->catalog->entries);
    int code = ATTUNE_OK;
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) code = take_entry(r, json_array_get(entries, i), i);
    return code;
}

static int take_index(const struct reader *r) {
    char format[32];
    int64_t version;
    struct catalog *c = r->catalog;
    if (!take_text(r->root, "format", format, sizeof format) || strcmp(format, FORMAT) != 0 ||
        !take_count(r->root, "version", &version))
        return damaged(r, "this is not the index of a catalog");
    if (version != FORMAT_VERSION)
        return error_set(r->err, ATTUNE_ERROR_UNSUPPORTED, r->path,
                         "version %lld of the format, this attune reads %d: use the version of attune that wrote it",
                         (long long)version, FORMAT_VERSION);
    if (!take_text(r->root, "base_sha256", c->base_sha256, sizeof c->base_sha256) || !is_hash(c->base_sha256) ||
        !take_count(r->root, "serial", &c->serial) || c->serial < 1)
        return damaged(r, "no base or no serial number");
    return take_entries(r);
}

static int in_folder(const char *folder, const char *name, char out[CATALOG_PATH_MAX], attune_error *err) {
    if (snprintf(out, CATALOG_PATH_MAX, "%s/%s", folder, name) < CATALOG_PATH_MAX) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the catalog's path is too long");
}

void catalog_entry_file(const char *id, char out[CATALOG_FILE_SIZE]) {
    snprintf(out, CATALOG_FILE_SIZE, "%.64s.gguf", id);
}

int catalog_entry_path(const char *catalog, const char *id, char out[CATALOG_PATH_MAX], attune_error *err) {
    char name[CATALOG_FILE_SIZE];
    catalog_entry_file(id, name);
    return in_folder(catalog, name, out, err);
}

/* A file of the folder itself: a symbolic link could lead anywhere. */
static int read_plain(const char *path, size_t max, struct file_bytes *out, attune_error *err) {
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW);
    if (fd < 0 && errno == ELOOP)
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "a catalog's files are no symbolic links");
    if (fd < 0) return error_set_errno(err, path, "cannot open a file of the catalog");
    int code = file_bytes_from(fd, path, FILE_READ, max, out, err);
    close(fd);
    return code;
}

/* Bytes of the signature's lines; 0: they are not all there. */
static size_t signature_size(const struct file_bytes *file) {
    size_t lines = 0;
    for (size_t i = 0; i < file->size && i < SIGNATURE_TEXT_SIZE; i++)
        if (file->data[i] == '\n' && ++lines == SIGNATURE_LINES) return i + 1;
    return 0;
}

static int check_signature(const struct file_bytes *file, const struct public_key *key, const char *path,
                           size_t *signature, attune_error *err) {
    *signature = signature_size(file);
    if (*signature == 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "the catalog's index is not signed, or truncated");
    return signature_check(key, (const char *)file->data, *signature, file->data + *signature,
                           file->size - *signature, path, err);
}

int catalog_open(const char *path, const struct public_key *key, struct catalog *out, attune_error *err) {
    char index[CATALOG_PATH_MAX];
    struct catalog catalog;
    struct file_bytes file = {0};
    struct reader r = {.path = index, .catalog = &catalog, .err = err};
    size_t signature = 0;
    memset(&catalog, 0, sizeof catalog);
    int code = in_folder(path, INDEX, index, err);
    if (code == ATTUNE_OK) code = read_plain(index, INDEX_MAX, &file, err);
    if (code != ATTUNE_OK) return code;
    memcpy(catalog.path, path, strlen(path) + 1);
    /* nothing is parsed before it is known who wrote it */
    code = check_signature(&file, key, index, &signature, err);
    if (code != ATTUNE_OK) goto out;
    r.root = json_loadb((const char *)file.data + signature, file.size - signature, JSON_REJECT_DUPLICATES, NULL);
    code = json_is_object(r.root) ? take_index(&r) : damaged(&r, "what is signed is no JSON object");
    if (code == ATTUNE_OK) *out = catalog;
    else catalog_free(&catalog);
out:
    json_decref(r.root);
    file_bytes_close(&file);
    return code;
}

void catalog_free(struct catalog *catalog) {
    free(catalog->entries);
    memset(catalog, 0, sizeof *catalog);
}

int catalog_new(const char *path, const char *base_sha256, struct catalog *out, attune_error *err) {
    char index[CATALOG_PATH_MAX];
    int code = in_folder(path, INDEX, index, err);
    if (code != ATTUNE_OK) return code;
    memset(out, 0, sizeof *out);
    memcpy(out->path, path, strlen(path) + 1);
    memcpy(out->base_sha256, base_sha256, sizeof out->base_sha256);
    return ATTUNE_OK;
}

int catalog_check_base(const struct catalog *catalog, const struct model *model, attune_error *err) {
    if (strcmp(catalog->base_sha256, model->sha256) == 0) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_MISMATCH, catalog->path,
                     "this catalog was made for the base model with sha256 %.12s..., the one in use has %.12s...: take a "
                     "catalog of this base",
                     catalog->base_sha256, model->sha256);
}

struct catalog_entry *catalog_find(const struct catalog *catalog, const char *name) {
    for (size_t i = 0; i < catalog->n; i++)
        if (strcmp(catalog->entries[i].name, name) == 0) return &catalog->entries[i];
    return NULL;
}

int catalog_adapter(const struct catalog *catalog, const struct catalog_entry *entry, const struct model *model,
                    struct lora **out, attune_error *err) {
    char path[CATALOG_PATH_MAX], sha256[65];
    struct file_bytes file = {0};
    struct lora *lora = NULL;
    int code = catalog_check_base(catalog, model, err);
    if (code == ATTUNE_OK) code = catalog_entry_path(catalog->path, entry->id, path, err);
    if (code == ATTUNE_OK) code = read_plain(path, lora_file_max(model), &file, err);
    if (code != ATTUNE_OK) return code;
    hash_bytes(file.data, file.size, sha256);
    if ((int64_t)file.size != entry->bytes || strcmp(sha256, entry->sha256) != 0)
        code = error_set(err, ATTUNE_ERROR_FORMAT, path,
                         "the adapter of %s is not the one that was signed: it is damaged, truncated or was replaced",
                         entry->name);
    snprintf(file.path, sizeof file.path, "%s in the catalog", entry->name);
    if (code == ATTUNE_OK) code = adapter_parse(&file, model, &lora, NULL, NULL, err);
    file_bytes_close(&file);
    if (code == ATTUNE_OK) *out = lora;
    return code;
}

/* ---- making ---- */

int catalog_lock(const char *path, int *fd, attune_error *err) {
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return error_set_errno(err, path, "cannot open the catalog's folder");
    if (flock(folder, LOCK_EX | LOCK_NB) == 0) {
        *fd = folder;
        return ATTUNE_OK;
    }
    int code = errno == EWOULDBLOCK ? error_set(err, ATTUNE_ERROR_BUSY, path, "another process is changing this catalog")
                                    : error_set_errno(err, path, "cannot lock the catalog");
    close(folder);
    return code;
}

int catalog_put(struct catalog *catalog, const struct catalog_entry *entry, attune_error *err) {
    int code = catalog_entry_check(entry, err);
    if (code != ATTUNE_OK) return code;
    struct catalog_entry *old = catalog_find(catalog, entry->name);
    if (old) {
        *old = *entry;
        return ATTUNE_OK;
    }
    if (catalog->n == CATALOG_ENTRIES_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, catalog->path, "a catalog has at most %d entries",
                         CATALOG_ENTRIES_MAX);
    struct catalog_entry *grown = realloc(catalog->entries, (catalog->n + 1) * sizeof *grown);
    if (!grown) return error_set_memory(err, "a catalog", (catalog->n + 1) * sizeof *grown);
    catalog->entries = grown;
    catalog->entries[catalog->n++] = *entry;
    return ATTUNE_OK;
}

int catalog_drop(struct catalog *catalog, const char *name, attune_error *err) {
    struct catalog_entry *entry = catalog_find(catalog, name);
    if (!entry)
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, catalog->path, "the catalog has no entry %.64s", name);
    size_t behind = catalog->n - 1 - (size_t)(entry - catalog->entries);
    memmove(entry, entry + 1, behind * sizeof *entry);
    catalog->n--;
    return ATTUNE_OK;
}

static json_t *loss_json(double loss) { return isnan(loss) ? json_null() : json_real(loss); }

static json_t *entry_json(const struct catalog_entry *e) {
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:s, s:s}", "name", e->name, "id", e->id, "sha256",
                     e->sha256, "bytes", (json_int_t)e->bytes, "rows", (json_int_t)e->rows, "judged",
                     (json_int_t)e->judged, "loss_before", loss_json(e->loss_before), "loss_after",
                     loss_json(e->loss_after), "loss_interval", loss_json(e->loss_interval), "licence", e->licence,
                     "origin", e->origin);
}

/* malloc'ed; NULL: no memory, or a text that is not UTF-8. */
static char *index_text(const struct catalog *catalog) {
    json_t *entries = json_array();
    for (size_t i = 0; entries && i < catalog->n; i++) {
        if (json_array_append_new(entries, entry_json(&catalog->entries[i])) == 0) continue;
        json_decref(entries);
        entries = NULL;
    }
    json_t *root = entries ? json_pack("{s:s, s:i, s:I, s:s, s:o}", "format", FORMAT, "version", FORMAT_VERSION,
                                       "serial", (json_int_t)catalog->serial + 1, "base_sha256", catalog->base_sha256,
                                       "entries", entries)
                           : NULL;
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    return text;
}

static int publish_index(const struct catalog *catalog, const char *signature, const char *text, attune_error *err) {
    char path[CATALOG_PATH_MAX];
    struct file_writer writer = {0};
    int code = in_folder(catalog->path, INDEX, path, err);
    if (code == ATTUNE_OK) code = file_writer_open(path, "catalog.index", &writer, err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, signature, strlen(signature), err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, text, strlen(text), err);
    if (code == ATTUNE_OK) code = file_writer_publish(&writer, err);
    file_writer_abandon(&writer);
    return code;
}

int catalog_write(struct catalog *catalog, const struct secret_key *key, attune_error *err) {
    char signature[SIGNATURE_TEXT_SIZE], comment[SIGNATURE_COMMENT_MAX];
    char *text = index_text(catalog);
    if (!text)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, catalog->path,
                         "the index cannot be written: a licence or an origin is not UTF-8, or memory is short");
    snprintf(comment, sizeof comment, "attune catalog, serial %lld", (long long)catalog->serial + 1);
    int code = strlen(text) + SIGNATURE_TEXT_SIZE > INDEX_MAX
                   ? error_set(err, ATTUNE_ERROR_ARGUMENT, catalog->path, "the index would be larger than 4 MiB")
                   : signature_make(key, text, strlen(text), comment, signature, err);
    if (code == ATTUNE_OK) code = publish_index(catalog, signature, text, err);
    if (code == ATTUNE_OK) catalog->serial++;
    free(text);
    return code;
}
