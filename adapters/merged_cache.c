/* merged-<key>.gguf holds the merged matrices of all layers as tensors under the base's names, and these pairs:
 *   general.type          "merged weights"
 *   attune.merged.version u32, FORMAT_VERSION
 *   attune.merged.base    sha256 of the base's file
 *   attune.merged.adapter sha256 of the adapter's file
 *   attune.merged.mode    "f16", "q8", "same" or "calibrated"
 *   attune.merged.targets u32, bits of enum target
 *   attune.merged.key     as in the file's name
 *   attune.merged.digest  sha256 over the key and, for each tensor in the order of layer and target: its type, rows
 *                         and columns (u64 each) and BLAKE2b of its data
 * <key> is 16 digits of the adapter's sha256, "-", and 32 of a sha256 over format, base, adapter and mode; for all
 * but calibrated also the kernel table and the version of attune, which round in their own ways.
 *
 * merged-<key>.verified remembers the digest of the file that was verified (core/base/remembered.h). Its time of
 * modification is that of the last use: the big file's own times have to stay what they were. */
#include "adapters/merged_cache.h"

#include "core/base/fault.h"
#include "core/base/remembered.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum {
    FORMAT_VERSION = 1,
    PAIRS = 8,
    KEY_SIZE = 16 + 1 + 32 + 1,
    ADAPTER_DIGITS = 16, /* of a key */
    CACHE_PATH_MAX = 1280,
    KEPT_MIN = 2,        /* entries that stay whatever they take */
    LEFTOVER_SECONDS = 3600
};
static const uint64_t LIMIT_BYTES = (uint64_t)1 << 30;
static const char PREFIX[] = "merged-", WEIGHTS[] = ".gguf", VERIFIED[] = ".verified";

/* ---- names ---- */

static int is_hash(const char *text) { return strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64; }

static int key_text(const struct merged_key *key, const struct model *model, char out[KEY_SIZE], attune_error *err) {
    struct hash hash;
    char hex[HASH_HEX_SIZE];
    if (!is_hash(model->sha256) || !is_hash(key->adapter_sha256) || key->mode <= MERGE_NONE || key->mode >= MERGE_AUTO)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "merged weights are kept by the hashes of base and adapter and a mode that merges");
    hash_start(&hash);
    hash_add_string(&hash, "attune merged weights");
    hash_add_u64(&hash, FORMAT_VERSION);
    hash_add_string(&hash, model->sha256);
    hash_add_string(&hash, key->adapter_sha256);
    hash_add_string(&hash, merge_mode_name(key->mode));
    if (key->mode != MERGE_CALIBRATED) {
        hash_add_string(&hash, kernels_get()->name);
        hash_add_string(&hash, ATTUNE_VERSION);
    }
    hash_finish(&hash, hex);
    snprintf(out, KEY_SIZE, "%.16s-%.32s", key->adapter_sha256, hex);
    return ATTUNE_OK;
}

/* Where an entry lies. */
struct place {
    char key[KEY_SIZE], weights[CACHE_PATH_MAX], verified[CACHE_PATH_MAX];
};

static int place_of(const char *folder, const struct merged_key *key, const struct model *model, struct place *out,
                    attune_error *err) {
    int code = key_text(key, model, out->key, err);
    if (code != ATTUNE_OK) return code;
    int n = snprintf(out->verified, sizeof out->verified, "%s/%s%s%s", folder, PREFIX, out->key, VERIFIED);
    snprintf(out->weights, sizeof out->weights, "%s/%s%s%s", folder, PREFIX, out->key, WEIGHTS);
    if (n < 0 || (size_t)n >= sizeof out->verified)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path of the cache is too long");
    return ATTUNE_OK;
}

/* ---- the digest ---- */

struct digest_task {
    const struct matrix **matrices;
    unsigned char (*out)[HASH_FAST_BYTES];
};

static void digest_one(void *argument, size_t i, int worker) {
    const struct digest_task *task = argument;
    (void)worker;
    hash_fast(task->matrices[i]->data, task->matrices[i]->rows * task->matrices[i]->row_bytes, task->out[i]);
}

/* The targeted matrices in their order; the number of them. out may be NULL. */
static size_t list_matrices(const struct model_layer *layers, size_t L, uint32_t targets, const struct matrix **out) {
    size_t n = 0;
    for (size_t l = 0; l < L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            if (!(targets & (1u << t))) continue;
            if (out) out[n] = &layers[l].linear[t];
            n++;
        }
    }
    return n;
}

static int digest(const char *key, const struct model_layer *layers, size_t L, uint32_t targets, struct pool *pool,
                  char hex[HASH_HEX_SIZE], attune_error *err) {
    size_t n = list_matrices(layers, L, targets, NULL);
    struct digest_task task = {malloc(n * sizeof *task.matrices), malloc(n * sizeof *task.out)};
    struct hash hash;
    int code = ATTUNE_OK;
    if (!task.matrices || !task.out) {
        code = error_set_memory(err, "verifying merged weights", n * (sizeof *task.matrices + sizeof *task.out));
        goto out;
    }
    list_matrices(layers, L, targets, task.matrices);
    if (pool) pool_run(pool, n, digest_one, &task);
    for (size_t i = 0; !pool && i < n; i++) digest_one(&task, i, 0);
    hash_start(&hash);
    hash_add_string(&hash, key);
    for (size_t i = 0; i < n; i++) {
        hash_add_u64(&hash, (uint64_t)task.matrices[i]->type);
        hash_add_u64(&hash, task.matrices[i]->rows);
        hash_add_u64(&hash, task.matrices[i]->cols);
        hash_add(&hash, task.out[i], sizeof task.out[i]);
    }
    hash_finish(&hash, hex);
    if (pool && pool_cancelled(pool)) code = error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "cancelled");
out:
    free(task.matrices);
    free(task.out);
    return code;
}

/* ---- opening ---- */

static int is_not(const struct gguf *gguf, const char *what, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_FORMAT, gguf->file.path, "not the merged weights that are wanted: %s", what);
}

static int demand_text(const struct gguf *gguf, const char *key, const char *wanted, attune_error *err) {
    char text[HASH_HEX_SIZE];
    int code = gguf_get_text(gguf, key, text, sizeof text, err);
    return code == ATTUNE_OK && strcmp(text, wanted) != 0 ? is_not(gguf, key, err) : code;
}

/* The pairs, all of them and no others. */
static int check_pairs(const struct gguf *gguf, const struct merged_key *key, const char *key_digits,
                       const struct model *model, uint32_t *targets, char content[HASH_HEX_SIZE], attune_error *err) {
    uint64_t version = 0, bits = 0;
    int code = demand_text(gguf, "general.type", "merged weights", err);
    if (code == ATTUNE_OK) code = gguf_get_u64(gguf, "attune.merged.version", &version, err);
    if (code == ATTUNE_OK) code = demand_text(gguf, "attune.merged.base", model->sha256, err);
    if (code == ATTUNE_OK) code = demand_text(gguf, "attune.merged.adapter", key->adapter_sha256, err);
    if (code == ATTUNE_OK) code = demand_text(gguf, "attune.merged.mode", merge_mode_name(key->mode), err);
    if (code == ATTUNE_OK) code = gguf_get_u64(gguf, "attune.merged.targets", &bits, err);
    if (code == ATTUNE_OK) code = demand_text(gguf, "attune.merged.key", key_digits, err);
    if (code == ATTUNE_OK) code = gguf_get_text(gguf, "attune.merged.digest", content, HASH_HEX_SIZE, err);
    if (code != ATTUNE_OK) return code;
    if (version != FORMAT_VERSION || gguf->n_pairs != PAIRS) return is_not(gguf, "another version", err);
    if (bits == 0 || bits > LORA_ALL_TARGETS || !is_hash(content)) return is_not(gguf, "its targets or digest", err);
    *targets = (uint32_t)bits;
    return ATTUNE_OK;
}

static enum block_type type_of(const struct matrix *w, enum merge_mode mode) {
    return mode == MERGE_F16 ? BLOCK_F16 : mode == MERGE_Q8 ? BLOCK_Q8_0 : w->type;
}

/* One matrix of the base, from here on the file's. */
static int bind(const struct gguf *gguf, size_t layer, enum target target, enum merge_mode mode, struct matrix *w,
                attune_error *err) {
    char name[LORA_TENSOR_NAME_SIZE];
    lora_tensor_name(name, layer, target);
    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, name);
    enum block_type type = type_of(w, mode);
    size_t row_bytes = block_row_bytes(type, w->cols), bytes;
    if (!tensor || tensor->type != (uint32_t)type || tensor->n_dims != 2 || tensor->dims[0] != w->cols ||
        tensor->dims[1] != w->rows || !checked_mul(row_bytes, w->rows, &bytes) || tensor->bytes != bytes)
        return is_not(gguf, name, err);
    *w = (struct matrix){tensor->data, type, w->rows, w->cols, row_bytes};
    return ATTUNE_OK;
}

/* Nothing but the tensors that are wanted, one behind the other, and nothing behind them. */
static int bind_all(struct merged *merged, const struct model *model, uint32_t targets, enum merge_mode mode,
                    attune_error *err) {
    const struct gguf *gguf = merged->gguf;
    size_t end = gguf->data_offset;
    merged->layers = ARENA_TAKE(&merged->arena, struct model_layer, model->L);
    int code = arena_commit(&merged->arena, "merged layers", err);
    if (code != ATTUNE_OK) return code;
    merged->layers = ARENA_TAKE(&merged->arena, struct model_layer, model->L);
    memcpy(merged->layers, model->layers, model->L * sizeof *merged->layers);
    for (size_t l = 0; l < model->L; l++)
        for (size_t t = 0; t < TARGET_COUNT; t++)
            if (targets & (1u << t) &&
                (code = bind(gguf, l, (enum target)t, mode, &merged->layers[l].linear[t], err)) != ATTUNE_OK)
                return code;
    for (size_t i = 0; i < gguf->n_tensors; i++)
        end += (gguf->tensors[i].bytes + gguf->alignment - 1) & ~(gguf->alignment - 1);
    if (gguf->n_tensors != list_matrices(merged->layers, model->L, targets, NULL) || end != gguf->file.size)
        return is_not(gguf, "its size", err);
    return ATTUNE_OK;
}

/* What lies behind a new end of the file would be lost pages. */
static int check_same(int fd, const struct file_bytes *file, attune_error *err) {
    if (file_bytes_unchanged(fd, file)) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, file->path, "the file was changed while it was being verified");
}

/* Of what is mapped; remembered from the last time, or computed. */
static int check_content(const struct merged *merged, const struct place *place, const struct model *model,
                         uint32_t targets, const char *content, int fd, struct pool *pool, attune_error *err) {
    char found[HASH_HEX_SIZE];
    const struct file_bytes *file = &merged->gguf->file;
    if (remembered_hash(place->verified, file, found) && strcmp(found, content) == 0) return check_same(fd, file, err);
    int code = digest(place->key, merged->layers, model->L, targets, pool, found, err);
    if (code == ATTUNE_OK && strcmp(found, content) != 0) code = is_not(merged->gguf, "its content is damaged", err);
    if (code == ATTUNE_OK) code = check_same(fd, file, err);
    if (code == ATTUNE_OK) remember_hash(place->verified, file, content);
    return code;
}

static int open_weights(int fd, const struct place *place, const struct merged_key *key, const struct model *model,
                        struct pool *pool, struct merged **out, attune_error *err) {
    char content[HASH_HEX_SIZE];
    uint32_t targets = 0;
    struct merged *merged = calloc(1, sizeof *merged);
    if (!merged) return error_set_memory(err, "merged weights", sizeof *merged);
    int code = gguf_open_from(fd, place->weights, FILE_MAP, &merged->gguf, err);
    fault_point("merged.mapped");
    if (code == ATTUNE_OK) code = check_pairs(merged->gguf, key, place->key, model, &targets, content, err);
    if (code == ATTUNE_OK) code = bind_all(merged, model, targets, key->mode, err);
    if (code == ATTUNE_OK) code = check_content(merged, place, model, targets, content, fd, pool, err);
    if (code == ATTUNE_OK)
        *out = merged;
    else
        merge_destroy(merged);
    return code;
}

/* Of the file that is open, if it is still the one of that name. */
static void remove_entry(int fd, const struct place *place) {
    struct stat st, named;
    if (fstat(fd, &st) || lstat(place->weights, &named) || st.st_dev != named.st_dev || st.st_ino != named.st_ino)
        return;
    unlink(place->weights);
    unlink(place->verified);
}

/* When an entry was last used. */
static void touch(const char *verified) {
    int fd = open(verified, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return;
    (void)!futimens(fd, NULL);
    close(fd);
}

int merged_cache_open(const char *folder, const struct merged_key *key, const struct model *model, struct pool *pool,
                      struct merged **out, attune_error *err) {
    struct place place;
    attune_error why = {0};
    int code = place_of(folder, key, model, &place, err);
    if (code != ATTUNE_OK) return code;
    /* O_NONBLOCK: a FIFO must not be waited for */
    int fd = open(place.weights, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, place.weights, "no merged weights are kept there");
    if (fd < 0 && errno == ELOOP) {
        unlink(place.weights);
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, place.weights, "a symbolic link was there, and is removed");
    }
    if (fd < 0) return error_set_errno(err, place.weights, "cannot open merged weights");
    code = open_weights(fd, &place, key, model, pool, out, &why);
    if (code == ATTUNE_OK) {
        touch(place.verified);
    } else if (code == ATTUNE_ERROR_FORMAT || code == ATTUNE_ERROR_UNSUPPORTED || code == ATTUNE_ERROR_NOT_FOUND) {
        remove_entry(fd, &place);
        code = error_set(err, ATTUNE_ERROR_NOT_FOUND, place.weights, "of no use, and removed: %.300s", why.message);
    } else if (err) {
        *err = why;
    }
    close(fd);
    return code;
}

/* ---- the folder ---- */

static int ends_with(const char *name, const char *suffix) {
    size_t n = strlen(name), tail = strlen(suffix);
    return n >= tail && strcmp(name + n - tail, suffix) == 0;
}

/* The name's beginning, up to its ".gguf", with another ending. */
static int with_suffix(const char *name, const char *suffix, char *out, size_t size) {
    int n = snprintf(out, size, "%.*s%s", (int)(strlen(name) - strlen(WEIGHTS)), name, suffix);
    return n > 0 && (size_t)n < size;
}

struct inventory {
    uint64_t bytes;
    size_t n;
    char oldest[256]; /* not the one that must stay */
    struct timespec oldest_used;
};

static int is_before(struct timespec a, struct timespec b) {
    return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

static void count_entry(int folder, const char *name, const char *stays, struct inventory *found) {
    struct stat st, use;
    char verified[256];
    if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode)) return;
    struct timespec used = st.st_mtim;
    if (with_suffix(name, VERIFIED, verified, sizeof verified) &&
        fstatat(folder, verified, &use, AT_SYMLINK_NOFOLLOW) == 0 && is_before(used, use.st_mtim))
        used = use.st_mtim;
    found->bytes += (uint64_t)st.st_size;
    found->n++;
    if (strcmp(name, stays) == 0 || strlen(name) >= sizeof found->oldest) return;
    if (*found->oldest && !is_before(used, found->oldest_used)) return;
    strcpy(found->oldest, name);
    found->oldest_used = used;
}

/* What a process that died while writing has left. */
static void remove_leftover(int folder, const char *name) {
    struct stat st;
    if (strncmp(name, ".merged-", 8) != 0 || !ends_with(name, ".tmp")) return;
    if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && time(NULL) - st.st_mtime > LEFTOVER_SECONDS)
        unlinkat(folder, name, 0);
}

static int take_inventory(const char *path, const char *stays, struct inventory *found) {
    DIR *folder = opendir(path);
    memset(found, 0, sizeof *found);
    if (!folder) return 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        const char *name = entry->d_name;
        remove_leftover(dirfd(folder), name);
        if (strncmp(name, PREFIX, strlen(PREFIX)) == 0 && ends_with(name, WEIGHTS))
            count_entry(dirfd(folder), name, stays, found);
    }
    closedir(folder);
    return 1;
}

/* An entry that another process has mapped stays alive there. */
static void evict(const char *folder, const char *stays, uint64_t limit) {
    struct inventory found;
    char path[CACHE_PATH_MAX], verified[256];
    while (take_inventory(folder, stays, &found) && found.bytes > limit && found.n > KEPT_MIN && *found.oldest) {
        if (snprintf(path, sizeof path, "%s/%s", folder, found.oldest) >= (int)sizeof path || unlink(path)) return;
        if (with_suffix(found.oldest, VERIFIED, verified, sizeof verified) &&
            snprintf(path, sizeof path, "%s/%s", folder, verified) < (int)sizeof path)
            unlink(path);
    }
}

int merged_cache_remove(const char *folder, const char *adapter_sha256, attune_error *err) {
    char start[sizeof PREFIX + ADAPTER_DIGITS + 1];
    int code = ATTUNE_OK;
    if (!is_hash(adapter_sha256))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "merged weights are removed by an adapter's hash");
    int n = snprintf(start, sizeof start, "%s%.16s-", PREFIX, adapter_sha256);
    DIR *dir = opendir(folder);
    if (!dir && errno == ENOENT) return ATTUNE_OK;
    if (!dir) return error_set_errno(err, folder, "cannot read the cache");
    for (struct dirent *entry; (entry = readdir(dir));) {
        const char *name = entry->d_name + (entry->d_name[0] == '.'); /* temporaries too */
        if (strncmp(name, start, (size_t)n) != 0) continue;
        if (unlinkat(dirfd(dir), entry->d_name, 0) == 0 || errno == ENOENT || code != ATTUNE_OK) continue;
        code = error_set_errno(err, folder, "cannot remove merged weights of an adapter");
    }
    closedir(dir);
    return code;
}

/* ---- keeping ---- */

/* The targets whose matrices are not the base's own. */
static uint32_t merged_targets(const struct merged *merged, const struct model *model) {
    uint32_t targets = 0;
    for (size_t l = 0; l < model->L; l++)
        for (size_t t = 0; t < TARGET_COUNT; t++)
            if (merged->layers[l].linear[t].data != model->layers[l].linear[t].data) targets |= 1u << t;
    return targets;
}

static void describe(struct gguf_writer *writer, const struct place *place, const struct merged_key *key,
                     const struct model *model, const struct merged *merged, uint32_t targets, const char *content) {
    gguf_put_string(writer, "general.type", "merged weights");
    gguf_put_u32(writer, "attune.merged.version", FORMAT_VERSION);
    gguf_put_string(writer, "attune.merged.base", model->sha256);
    gguf_put_string(writer, "attune.merged.adapter", key->adapter_sha256);
    gguf_put_string(writer, "attune.merged.mode", merge_mode_name(key->mode));
    gguf_put_u32(writer, "attune.merged.targets", targets);
    gguf_put_string(writer, "attune.merged.key", place->key);
    gguf_put_string(writer, "attune.merged.digest", content);
    for (size_t l = 0; l < model->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct matrix *w = &merged->layers[l].linear[t];
            char name[LORA_TENSOR_NAME_SIZE];
            if (!(targets & (1u << t))) continue;
            lora_tensor_name(name, l, (enum target)t);
            gguf_put_tensor(writer, name, w->type, 2, (uint64_t[]){w->cols, w->rows}, w->data);
        }
    }
}

static uint64_t matrix_bytes(const struct merged *merged, const struct model *model, uint32_t targets) {
    uint64_t n = 0;
    for (size_t l = 0; l < model->L; l++)
        for (size_t t = 0; t < TARGET_COUNT; t++)
            if (targets & (1u << t)) n += (uint64_t)merged->layers[l].linear[t].rows * merged->layers[l].linear[t].row_bytes;
    return n;
}

/* As much again must be left for others: recording goes on while this is written. */
static int check_room(const char *folder, uint64_t bytes, attune_error *err) {
    struct statvfs fs;
    if (statvfs(folder, &fs)) return error_set_errno(err, folder, "cannot look at the cache's disk");
    if ((uint64_t)fs.f_bavail * fs.f_frsize / 2 < bytes)
        return error_set(err, ATTUNE_ERROR_IO, folder, "too little room on the disk to keep merged weights");
    return ATTUNE_OK;
}

/* What was written by this process need not be read to be known; unless another one has put its own there since. */
static void remember_written(const struct place *place, const struct stat *written, const char *content) {
    struct file_bytes file;
    if (file_bytes_open(place->weights, FILE_MAP, SIZE_MAX, &file, NULL) != ATTUNE_OK) return;
    int64_t mtime = (int64_t)written->st_mtim.tv_sec * 1000000000 + written->st_mtim.tv_nsec;
    if (file.device == (int64_t)written->st_dev && file.inode == (int64_t)written->st_ino &&
        file.size == (size_t)written->st_size && file.mtime_ns == mtime)
        remember_hash(place->verified, &file, content);
    file_bytes_close(&file);
}

static int write_weights(struct gguf_writer *writer, const struct place *place, const char *content,
                         attune_error *err) {
    struct file_writer file = {0};
    struct stat st;
    int code = file_writer_open(place->weights, "merged", &file, err);
    if (code == ATTUNE_OK) code = gguf_writer_put(writer, &file, err);
    if (code == ATTUNE_OK) code = file_writer_sync(&file, err);
    if (code == ATTUNE_OK && fstat(file.fd, &st)) code = error_set_errno(err, place->weights, "cannot examine the file");
    if (code == ATTUNE_OK) code = file_writer_publish(&file, err);
    if (code == ATTUNE_OK) remember_written(place, &st, content);
    file_writer_abandon(&file);
    return code;
}

int merged_cache_keep(const char *folder, const struct merged_key *key, const struct model *model, struct pool *pool,
                      const struct merged *merged, uint64_t limit_bytes, attune_error *err) {
    struct place place;
    struct gguf_writer *writer = NULL;
    char content[HASH_HEX_SIZE];
    uint32_t targets = merged_targets(merged, model);
    int code = place_of(folder, key, model, &place, err);
    if (code != ATTUNE_OK) return code;
    (void)!mkdir(folder, 0700); /* it may be deleted at any time */
    if ((code = check_room(folder, matrix_bytes(merged, model, targets), err)) != ATTUNE_OK) return code;
    code = digest(place.key, merged->layers, model->L, targets, pool, content, err);
    if (code == ATTUNE_OK) code = gguf_writer_create(&writer, err);
    if (code != ATTUNE_OK) return code;
    describe(writer, &place, key, model, merged, targets, content);
    code = write_weights(writer, &place, content, err);
    gguf_writer_destroy(writer);
    if (code == ATTUNE_OK)
        evict(folder, strrchr(place.weights, '/') + 1, limit_bytes ? limit_bytes : LIMIT_BYTES);
    return code;
}
