/* A home copied while it is in use, and made again from such a copy. The layout of a backup is in docs/formats.md: the
 * manifest is written last, so a folder without one is no backup. */
#include "core/base/fault.h"
#include "core/base/hash.h"
#include "datastore/store.h"
#include "job/home.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    FORMAT = 1,
    ATTEMPTS = 20, /* until nothing is published, revoked or chosen while the files are copied */
    CHUNK = 1 << 16,
    MANIFEST_MAX = 1 << 20
};
static const char MANIFEST[] = "manifest.json";

/* ---- files ---- */

/* What is in the folder, and in folders in it down to `depth`; `but` (nullable) stays. */
static void remove_contents(const char *folder, const char *but, int depth) {
    char path[HOME_PATH_MAX];
    DIR *dir = opendir(folder);
    if (!dir) return;
    for (struct dirent *entry; (entry = readdir(dir));) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || (but && strcmp(name, but) == 0)) continue;
        if (unlinkat(dirfd(dir), name, 0) == 0 || depth == 0 || home_file(folder, name, path, NULL) != ATTUNE_OK)
            continue;
        remove_contents(path, NULL, depth - 1);
        rmdir(path);
    }
    closedir(dir);
}

static void remove_folder(const char *folder) {
    remove_contents(folder, NULL, 1);
    rmdir(folder);
}

static int open_regular(const char *path, int *fd, attune_error *err) {
    struct stat st;
    *fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (*fd < 0 || fstat(*fd, &st) != 0) return error_set_errno(err, path, "cannot open the file");
    return S_ISREG(st.st_mode) ? ATTUNE_OK : error_set(err, ATTUNE_ERROR_FORMAT, path, "this is not a regular file");
}

static int pump(int from, const char *name, struct file_writer *to, struct hash *hash, attune_error *err) {
    char *buffer = malloc(CHUNK);
    if (!buffer) return error_set_memory(err, "copying a file", CHUNK);
    int code = ATTUNE_OK;
    while (code == ATTUNE_OK) {
        ssize_t n = read(from, buffer, CHUNK);
        if (n == 0) break;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            code = error_set_errno(err, name, "cannot read the file");
            break;
        }
        hash_add(hash, buffer, (size_t)n);
        code = file_writer_add(to, buffer, (size_t)n, err);
    }
    free(buffer);
    return code;
}

/* A new file, durable; sha256 of what was copied. */
static int copy_file(const char *from, const char *to, char sha256[HASH_HEX_SIZE], attune_error *err) {
    struct file_writer writer = {0};
    struct hash hash;
    int fd = -1;
    int code = open_regular(from, &fd, err);
    if (code == ATTUNE_OK) code = file_writer_open(to, "backup", &writer, err);
    hash_start(&hash);
    if (code == ATTUNE_OK) code = pump(fd, from, &writer, &hash, err);
    if (code == ATTUNE_OK) code = file_writer_publish_new(&writer, err);
    hash_finish(&hash, sha256);
    file_writer_abandon(&writer);
    if (fd >= 0) close(fd);
    return code;
}

static int hash_path(const char *path, char sha256[HASH_HEX_SIZE], attune_error *err) {
    int fd = -1;
    int code = open_regular(path, &fd, err);
    if (code == ATTUNE_OK) code = hash_file(fd, path, sha256, err);
    if (fd >= 0) close(fd);
    return code;
}

/* The folder that `path` is in; path is absolute or relative, without a slash at its end. */
static void parent_of(const char *path, char out[HOME_PATH_MAX]) {
    const char *slash = strrchr(path, '/');
    if (!slash)
        strcpy(out, ".");
    else
        snprintf(out, HOME_PATH_MAX, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

/* Without slashes at its end, and with room for what will be below it. */
static int tidy_path(const char *path, char out[HOME_PATH_MAX], attune_error *err) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    if (n == 0 || n >= HOME_PATH_MAX - 64)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path of a folder has 1 to %d bytes",
                         HOME_PATH_MAX - 65);
    snprintf(out, HOME_PATH_MAX, "%.*s", (int)n, path);
    return ATTUNE_OK;
}

/* As tidy_path, of a folder that is to be made. */
static int new_path(const char *path, char out[HOME_PATH_MAX], attune_error *err) {
    int code = tidy_path(path, out, err);
    if (code != ATTUNE_OK) return code;
    const char *name = strrchr(out, '/') ? strrchr(out, '/') + 1 : out;
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, path, "this does not name a folder that could be made");
    return ATTUNE_OK;
}

/* ---- what is to be copied ---- */

/* What says which adapters there are and which one is active. */
struct state {
    int current;
    char current_sha256[65], text[128];
    attune_adapter_info *adapters;
    size_t n, capacity;
    int full; /* memory */
};

static int note_adapter(const attune_adapter_info *info, void *user) {
    struct state *state = user;
    if (state->n == state->capacity) {
        size_t capacity = state->capacity ? 2 * state->capacity : 32;
        attune_adapter_info *grown = realloc(state->adapters, capacity * sizeof *grown);
        if (!grown) return state->full = 1;
        state->adapters = grown;
        state->capacity = capacity;
    }
    state->adapters[state->n++] = *info;
    return 0;
}

static int read_state(const char *home, attune_store *store, struct state *out, attune_error *err) {
    *out = (struct state){0};
    int code = store_current_read(home, &out->current, out->current_sha256, out->text, err);
    if (code == ATTUNE_OK) code = store_adapters(store, note_adapter, out, err);
    if (code == ATTUNE_OK && out->full)
        code = error_set_memory(err, "a list of adapters", out->capacity * sizeof *out->adapters);
    return code;
}

static int same_state(const struct state *a, const struct state *b) {
    if (strcmp(a->text, b->text) != 0 || a->n != b->n) return 0;
    for (size_t i = 0; i < a->n; i++) {
        const attune_adapter_info *x = &a->adapters[i], *y = &b->adapters[i];
        if (x->number != y->number || strcmp(x->state, y->state) != 0 || strcmp(x->sha256, y->sha256) != 0) return 0;
    }
    return 1;
}

/* ---- backing up ---- */

struct backup {
    const char *home, *to;
    attune_store *store;
    json_t *files, *left_out;
};

static int list_file(struct backup *b, const char *name, const char *sha256, attune_error *err) {
    if (json_object_set_new(b->files, name, json_pack("{s:s}", "sha256", sha256)) == 0) return ATTUNE_OK;
    return error_set_memory(err, "a manifest", 256);
}

static int copy_from_home(struct backup *b, const char *name, attune_error *err) {
    char from[HOME_PATH_MAX], to[HOME_PATH_MAX], sha256[HASH_HEX_SIZE];
    int code = home_file(b->home, name, from, err);
    if (code == ATTUNE_OK) code = home_file(b->to, name, to, err);
    if (code == ATTUNE_OK) code = copy_file(from, to, sha256, err);
    return code == ATTUNE_OK ? list_file(b, name, sha256, err) : code;
}

/* One that is not as it was published is left out and named as such: the rest is worth keeping all the same. */
static int copy_adapter(struct backup *b, const attune_adapter_info *info, int active, attune_error *err) {
    char from[HOME_PATH_MAX + 32], to[HOME_PATH_MAX + 32], name[40], sha256[HASH_HEX_SIZE];
    attune_error why = {0};
    snprintf(name, sizeof name, "adapters/%d.gguf", info->number);
    store_adapter_path(b->home, info->number, from, sizeof from);
    store_adapter_path(b->to, info->number, to, sizeof to);
    int code = copy_file(from, to, sha256, &why);
    if (code == ATTUNE_OK && strcmp(sha256, info->sha256) == 0) return list_file(b, name, sha256, err);
    unlink(to);
    if (code == ATTUNE_OK)
        code = error_set(&why, ATTUNE_ERROR_FORMAT, from, "the file is not the one that was published");
    if (active || (code != ATTUNE_ERROR_FORMAT && access(from, F_OK) == 0)) {
        if (err) *err = why;
        return code;
    }
    return json_array_append_new(b->left_out, json_integer(info->number)) == 0
               ? ATTUNE_OK
               : error_set_memory(err, "a manifest", 256);
}

/* Adapters that may be used. *whole 0: CURRENT names none of them. */
static int copy_adapters(struct backup *b, const struct state *state, int *whole, attune_error *err) {
    int code = ATTUNE_OK;
    *whole = state->current == 0;
    for (size_t i = 0; i < state->n && code == ATTUNE_OK; i++) {
        const attune_adapter_info *info = &state->adapters[i];
        int active = info->number == state->current;
        if (strcmp(info->state, "revoked") == 0) continue;
        if (active && strcmp(info->sha256, state->current_sha256) == 0) *whole = 1;
        code = copy_adapter(b, info, active, err);
    }
    return code;
}

static int write_current(struct backup *b, const struct state *state, attune_error *err) {
    char sha256[HASH_HEX_SIZE];
    int code = store_current_write(b->to, state->current, state->current_sha256, err);
    hash_bytes(state->text, strlen(state->text), sha256);
    return code == ATTUNE_OK ? list_file(b, "CURRENT", sha256, err) : code;
}

static int copy_store(struct backup *b, attune_error *err) {
    char path[HOME_PATH_MAX], sha256[HASH_HEX_SIZE];
    int code = home_file(b->to, "store.db", path, err);
    if (code == ATTUNE_OK) code = store_copy(b->store, path, err);
    if (code == ATTUNE_OK) code = hash_path(path, sha256, err);
    return code == ATTUNE_OK ? list_file(b, "store.db", sha256, err) : code;
}

/* From nothing. *moved: what was copied does not belong together, because something was published, chosen or revoked
 * meanwhile. */
static int copy_all(struct backup *b, int *moved, attune_error *err) {
    struct state before = {0}, after = {0};
    char folder[HOME_PATH_MAX];
    int whole = 0;
    remove_contents(b->to, NULL, 1);
    json_object_clear(b->files);
    json_array_clear(b->left_out);
    int code = home_file(b->to, "adapters", folder, err);
    if (code == ATTUNE_OK && mkdir(folder, 0700) != 0) code = error_set_errno(err, folder, "cannot make the folder");
    if (code == ATTUNE_OK) code = read_state(b->home, b->store, &before, err);
    if (code == ATTUNE_OK) code = copy_from_home(b, "attune.conf", err);
    if (code == ATTUNE_OK) code = copy_store(b, err);
    if (code == ATTUNE_OK) code = copy_adapters(b, &before, &whole, err);
    if (code == ATTUNE_OK) code = write_current(b, &before, err);
    int read = read_state(b->home, b->store, &after, NULL);
    *moved = read == ATTUNE_OK && !same_state(&before, &after);
    if (code == ATTUNE_OK && !*moved && !whole)
        code = error_set(err, ATTUNE_ERROR_FORMAT, b->home,
                         "CURRENT names an adapter that the store does not have, or has revoked; choose another with: "
                         "attune adapters use N (or base)");
    free(before.adapters);
    free(after.adapters);
    return code;
}

static int write_manifest(struct backup *b, attune_error *err) {
    char path[HOME_PATH_MAX];
    json_t *manifest = json_pack("{s:s, s:i, s:s, s:I, s:O, s:O}", "kind", "attune backup", "format", FORMAT, "attune",
                                 ATTUNE_VERSION, "made_ms", (json_int_t)home_now_ms(), "files", b->files, "left_out",
                                 b->left_out);
    char *text = manifest ? json_dumps(manifest, JSON_INDENT(1) | JSON_PRESERVE_ORDER) : NULL;
    int code = text ? home_file(b->to, MANIFEST, path, err) : error_set_memory(err, "a manifest", 4096);
    if (code == ATTUNE_OK) code = file_write_atomic(path, "manifest", text, strlen(text), err);
    free(text);
    json_decref(manifest);
    return code;
}

static int back_up(struct backup *b, attune_error *err) {
    struct settings settings;
    char parent[HOME_PATH_MAX];
    int moved = 1;
    int code = settings_read(b->home, &settings, err);
    for (int i = 0; i < ATTEMPTS && moved && code == ATTUNE_OK; i++) {
        code = copy_all(b, &moved, err);
        if (moved) code = ATTUNE_OK; /* a file that has gone meanwhile: again */
    }
    if (code == ATTUNE_OK && moved)
        code = error_set(err, ATTUNE_ERROR_BUSY, b->home,
                         "adapters changed each time while they were copied; try again when nothing is published");
    if (code == ATTUNE_OK) code = write_manifest(b, err);
    parent_of(b->to, parent);
    return code == ATTUNE_OK ? file_sync_folder(parent, err) : code;
}

int attune_home_backup(const char *home, const char *path, attune_error *err) {
    char from[HOME_PATH_MAX], to[HOME_PATH_MAX];
    struct backup b = {.home = from, .to = to};
    if (!path) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a backup wants the name of a new folder");
    int code = home_resolve(home, from, err);
    if (code == ATTUNE_OK) code = new_path(path, to, err);
    if (code == ATTUNE_OK) code = store_open_path(from, 0, &b.store, err);
    if (code != ATTUNE_OK) return code;
    b.files = json_object();
    b.left_out = json_array();
    if (!b.files || !b.left_out)
        code = error_set_memory(err, "a manifest", 256);
    else if (mkdir(to, 0700) != 0)
        code = errno == EEXIST ? error_set(err, ATTUNE_ERROR_STATE, to,
                                           "something is there already; a backup wants the name of a new folder")
                               : error_set_errno(err, to, "cannot make the backup's folder");
    else if ((code = back_up(&b, err)) != ATTUNE_OK)
        remove_folder(to);
    json_decref(b.files);
    json_decref(b.left_out);
    attune_store_close(b.store);
    return code;
}

/* ---- restoring ---- */

struct restore {
    const char *backup, *home;
    char staging[HOME_PATH_MAX]; /* beside the home, under its final name only when it is whole */
    int lock;
    json_t *manifest;
};

static int is_adapter_name(const char *name) {
    char again[40];
    int number;
    if (sscanf(name, "adapters/%9d.gguf", &number) != 1 || number < 1) return 0;
    snprintf(again, sizeof again, "adapters/%d.gguf", number);
    return strcmp(name, again) == 0;
}

/* The files that a backup must have, and no name that could lead elsewhere. */
static int check_names(const json_t *files, const char *where, attune_error *err) {
    static const char *const needed[] = {"attune.conf", "store.db", "CURRENT"};
    const char *name;
    json_t *file;
    size_t found = 0;
    json_object_foreach((json_t *)files, name, file) {
        const char *sha256 = json_string_value(json_object_get(file, "sha256"));
        int known = is_adapter_name(name);
        for (size_t i = 0; i < 3 && !known; i++)
            if (strcmp(name, needed[i]) == 0) known = 1, found++;
        if (!known || !sha256 || strlen(sha256) != 64)
            return error_set(err, ATTUNE_ERROR_FORMAT, where, "the manifest is damaged; use another backup");
    }
    if (found == 3) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, where,
                     "the manifest does not name attune.conf, store.db and CURRENT; use another backup");
}

static int read_manifest(struct restore *r, attune_error *err) {
    char path[HOME_PATH_MAX];
    struct file_bytes file;
    int code = home_file(r->backup, MANIFEST, path, err);
    if (code == ATTUNE_OK && access(path, F_OK) != 0 && (errno == ENOENT || errno == ENOTDIR))
        return error_set(err, ATTUNE_ERROR_FORMAT, path,
                         "there is no manifest: this is no backup, or making it was cut short; use another one");
    if (code == ATTUNE_OK) code = file_bytes_open(path, FILE_READ, MANIFEST_MAX, &file, err);
    if (code != ATTUNE_OK) return code;
    r->manifest = json_loadb((const char *)file.data, file.size, JSON_REJECT_DUPLICATES, NULL);
    file_bytes_close(&file);
    const char *kind = json_string_value(json_object_get(r->manifest, "kind"));
    json_int_t format = json_integer_value(json_object_get(r->manifest, "format"));
    if (!kind || strcmp(kind, "attune backup") != 0 || format < 1)
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "the manifest is damaged; use another backup");
    if (format > FORMAT)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, path,
                         "a backup of format %lld, and this attune knows only %d: a newer attune made it; use that "
                         "version",
                         (long long)format, FORMAT);
    return check_names(json_object_get(r->manifest, "files"), path, err);
}

static int copy_listed(const struct restore *r, attune_error *err) {
    const char *name;
    json_t *file;
    char from[HOME_PATH_MAX], to[HOME_PATH_MAX], sha256[HASH_HEX_SIZE];
    int code = ATTUNE_OK;
    json_object_foreach(json_object_get(r->manifest, "files"), name, file) {
        code = home_file(r->backup, name, from, err);
        if (code == ATTUNE_OK) code = home_file(r->staging, name, to, err);
        if (code == ATTUNE_OK) code = copy_file(from, to, sha256, err);
        if (code == ATTUNE_OK && strcmp(sha256, json_string_value(json_object_get(file, "sha256"))) != 0)
            code = error_set(err, ATTUNE_ERROR_FORMAT, from,
                             "the file is not as it was backed up (another sha256); use another backup");
        if (code != ATTUNE_OK) break;
    }
    return code;
}

static int make_folder_in(const char *folder, const char *name, attune_error *err) {
    char path[HOME_PATH_MAX];
    int code = home_file(folder, name, path, err);
    if (code == ATTUNE_OK && mkdir(path, 0700) != 0) code = error_set_errno(err, path, "cannot make the folder");
    return code;
}

static int choose_base(const struct restore *r, const char *base, attune_error *err) {
    struct settings settings;
    char *path = NULL, sha256[65];
    int code = settings_read(r->staging, &settings, err);
    if (code != ATTUNE_OK || !base) return code;
    code = home_base_path(base, &path, err);
    if (code == ATTUNE_OK) code = base_hash(r->staging, path, NULL, sha256, err);
    if (code == ATTUNE_OK && strcmp(sha256, settings.base_sha256) != 0)
        code = error_set(err, ATTUNE_ERROR_MISMATCH, base,
                         "another base model than the backup's (sha256 %.12s, wanted %.12s)", sha256,
                         settings.base_sha256);
    if (code == ATTUNE_OK && strcmp(path, settings.base) != 0) code = settings_base_change(r->staging, path, err);
    free(path);
    return code;
}

static int check_store(const struct restore *r, attune_error *err) {
    attune_store *store = NULL;
    char problem[256];
    int code = store_open_path(r->staging, 0, &store, err);
    if (code == ATTUNE_OK) code = store_check(store, problem, sizeof problem, err);
    if (code == ATTUNE_OK) code = home_reconcile(r->staging, store, err);
    attune_store_close(store);
    return code;
}

/* A home under another name, whole and checked. */
static int fill_staging(const struct restore *r, const char *base, attune_error *err) {
    char adapters[HOME_PATH_MAX];
    int code = make_folder_in(r->staging, "adapters", err);
    if (code == ATTUNE_OK) code = make_folder_in(r->staging, "cache", err);
    if (code == ATTUNE_OK) code = copy_listed(r, err);
    if (code == ATTUNE_OK) code = choose_base(r, base, err);
    if (code == ATTUNE_OK) code = check_store(r, err);
    if (code == ATTUNE_OK) code = home_file(r->staging, "adapters", adapters, err);
    if (code == ATTUNE_OK) code = file_sync_folder(adapters, err);
    return code == ATTUNE_OK ? file_sync_folder(r->staging, err) : code;
}

static int is_taken(const char *home, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_STATE, home,
                     "something is there already; restore to a folder that does not exist, or is empty");
}

/* Refuses early what the rename would refuse in the end. */
static int check_target(const char *home, attune_error *err) {
    int n = 0;
    DIR *dir = opendir(home);
    if (!dir && errno == ENOENT) return ATTUNE_OK;
    if (!dir && errno != ENOTDIR) return error_set_errno(err, home, "cannot look at the place of the home");
    if (!dir) return is_taken(home, err);
    for (struct dirent *entry; (entry = readdir(dir));)
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(dir);
    return n ? is_taken(home, err) : ATTUNE_OK;
}

/* Leftovers of a restore that was killed go first: whoever holds the lock is the only one. */
static int open_staging(struct restore *r, attune_error *err) {
    char parent[HOME_PATH_MAX];
    const char *slash = strrchr(r->home, '/'), *name = slash ? slash + 1 : r->home;
    parent_of(r->home, parent);
    int code = home_make_folders(parent, err);
    if (code != ATTUNE_OK) return code;
    int n = snprintf(r->staging, sizeof r->staging, "%.*s.%s.restore", (int)(name - r->home), r->home, name);
    if (n < 0 || (size_t)n >= sizeof r->staging - 64)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the home's path is too long");
    if (mkdir(r->staging, 0700) != 0 && errno != EEXIST)
        return error_set_errno(err, r->staging, "cannot make the folder");
    code = home_lock(r->staging, &r->lock, err);
    if (code == ATTUNE_OK)
        remove_contents(r->staging, "lock", 1);
    else
        rmdir(r->staging); /* which fails where somebody else is at work in it */
    return code;
}

static int put_in_place(const struct restore *r, attune_error *err) {
    char parent[HOME_PATH_MAX];
    parent_of(r->home, parent);
    if (fault_fails("restore.rename.before") || rename(r->staging, r->home) != 0) {
        if (errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR) return is_taken(r->home, err);
        return error_set_errno(err, r->home, "cannot put the restored home in place");
    }
    fault_point("restore.rename.after");
    return file_sync_folder(parent, err);
}

int attune_home_restore(const char *backup, const char *home, const char *base, attune_error *err) {
    char from[HOME_PATH_MAX], named[HOME_PATH_MAX], to[HOME_PATH_MAX];
    struct restore r = {.backup = from, .home = to, .lock = -1};
    if (!backup) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "restoring wants a backup's folder");
    size_t n = attune_home_path(home, named, sizeof named);
    if (n == 0 || n >= sizeof named)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no home: give --home, or set ATTUNE_HOME or HOME");
    int code = tidy_path(backup, from, err);
    if (code == ATTUNE_OK) code = new_path(named, to, err);
    if (code == ATTUNE_OK) code = read_manifest(&r, err);
    if (code == ATTUNE_OK) code = check_target(to, err);
    if (code == ATTUNE_OK) code = open_staging(&r, err);
    if (code == ATTUNE_OK) {
        code = fill_staging(&r, base, err);
        if (code == ATTUNE_OK) code = put_in_place(&r, err);
        if (code != ATTUNE_OK) remove_folder(r.staging);
    }
    home_unlock(r.lock);
    json_decref(r.manifest);
    return code;
}
