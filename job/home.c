#include "job/home.h"

#include "adapters/adapter_file.h"
#include "adapters/merged_cache.h"
#include "core/base/options.h"
#include "core/base/remembered.h"
#include "job/learned_cache.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- paths ---- */

int home_file(const char *home, const char *name, char out[HOME_PATH_MAX], attune_error *err) {
    int n = snprintf(out, HOME_PATH_MAX, "%s/%s", home, name);
    if (n < 0 || n >= HOME_PATH_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the home's path is longer than %d bytes", HOME_PATH_MAX);
    return ATTUNE_OK;
}

int home_resolve(const char *home, char out[HOME_PATH_MAX], attune_error *err) {
    char path[HOME_PATH_MAX], file[HOME_PATH_MAX];
    struct stat st;
    /* room for the longest name in a home */
    size_t n = attune_home_path(home, path, sizeof path - 64);
    if (n == 0)
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, NULL, "no home: give --home, or set ATTUNE_HOME or HOME");
    if (n >= sizeof path - 64) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the home's path is too long");
    int code = home_file(path, "attune.conf", file, err);
    if (code != ATTUNE_OK) return code;
    if (stat(file, &st) != 0) {
        if (errno != ENOENT && errno != ENOTDIR) return error_set_errno(err, file, "cannot look at the home");
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, path,
                         "no attune home there; make one with: attune init --base MODEL.gguf");
    }
    memcpy(out, path, sizeof path);
    return ATTUNE_OK;
}

/* ---- the lock ---- */

int home_lock(const char *home, int *fd, attune_error *err) {
    char path[HOME_PATH_MAX];
    int code = home_file(home, "lock", path, err);
    if (code != ATTUNE_OK) return code;
    int f = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (f < 0) return error_set_errno(err, path, "cannot open the home's lock");
    if (flock(f, LOCK_EX | LOCK_NB) != 0) {
        code = errno == EWOULDBLOCK
                   ? error_set(err, ATTUNE_ERROR_BUSY, home,
                               "another attune process is working on this home; try again when it is done")
                   : error_set_errno(err, path, "cannot lock the home");
        close(f);
        return code;
    }
    *fd = f;
    return ATTUNE_OK;
}

void home_unlock(int fd) {
    if (fd >= 0) close(fd);
}

/* ---- the base ---- */

static int hash_open_base(const char *home, const struct file_bytes *file, const char *wanted, char sha256[65],
                          attune_error *err) {
    char cache[HOME_PATH_MAX];
    int code = home_file(home, "cache/base.sha256", cache, err);
    if (code != ATTUNE_OK) return code;
    if (wanted && remembered_hash(cache, file, sha256) && strcmp(sha256, wanted) == 0) return ATTUNE_OK;
    hash_bytes(file->data, file->size, sha256);
    remember_hash(cache, file, sha256);
    return ATTUNE_OK;
}

int base_hash(const char *home, const char *path, const char *wanted, char sha256[65], attune_error *err) {
    struct file_bytes file;
    int code = file_bytes_open(path, FILE_MAP, SIZE_MAX, &file, err);
    if (code != ATTUNE_OK) return code;
    code = hash_open_base(home, &file, wanted, sha256, err);
    file_bytes_close(&file);
    return code;
}

int home_model(const char *home, const struct settings *settings, enum file_load load, struct model **out,
               attune_error *err) {
    struct model *model = NULL;
    char sha256[65];
    int code = model_open(settings->base, load, &model, err);
    if (code != ATTUNE_OK) return code;
    code = hash_open_base(home, &model->gguf->file, settings->base_sha256, sha256, err);
    if (code == ATTUNE_OK && strcmp(sha256, settings->base_sha256) != 0)
        code =
            error_set(err, ATTUNE_ERROR_MISMATCH, settings->base,
                      "another base model than this home was made for (sha256 %.12s, wanted %.12s); put the old file "
                      "back, or make a new home for this one",
                      sha256, settings->base_sha256);
    if (code != ATTUNE_OK) {
        model_close(model);
        return code;
    }
    model_set_hash(model, sha256);
    *out = model;
    return ATTUNE_OK;
}

/* ---- adapters on disk and in the store ---- */

/* Calls each with the number of every adapters/<n>.gguf; leftovers of writers that died are removed when
 * `clean` (the lock is held). */
static int highest_file(const char *home, int clean, int *highest, attune_error *err) {
    char folder[HOME_PATH_MAX];
    int code = home_file(home, "adapters", folder, err), number, end;
    if (code != ATTUNE_OK) return code;
    DIR *dir = opendir(folder);
    if (!dir) return error_set_errno(err, folder, "cannot read the home's adapters");
    for (struct dirent *entry; (entry = readdir(dir));) {
        size_t n = strlen(entry->d_name);
        if (clean && entry->d_name[0] == '.' && n > 4 && strcmp(entry->d_name + n - 4, ".tmp") == 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
        end = 0;
        if (sscanf(entry->d_name, "%9d.gguf%n", &number, &end) == 1 && end > 0 && !entry->d_name[end] &&
            number > *highest)
            *highest = number;
    }
    closedir(dir);
    return ATTUNE_OK;
}

static int highest_row(const attune_adapter_info *info, void *user) {
    int *highest = user;
    if (info->number > *highest) *highest = info->number;
    return 0;
}

int64_t home_now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int home_next_number(const char *home, attune_store *store, int *number, attune_error *err) {
    int highest = 0;
    int code = highest_file(home, 0, &highest, err);
    if (code == ATTUNE_OK) code = store_adapters(store, highest_row, &highest, err);
    if (code == ATTUNE_OK) *number = highest + 1;
    return code;
}

static void remove_leftovers(const char *home) {
    DIR *dir = opendir(home);
    if (!dir) return;
    for (struct dirent *entry; (entry = readdir(dir));) {
        size_t n = strlen(entry->d_name);
        if (entry->d_name[0] == '.' && n > 4 && strcmp(entry->d_name + n - 4, ".tmp") == 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    }
    closedir(dir);
}

int home_adapter_read(const char *home, const struct model *model, int number, const char *wanted, struct lora **out,
                      attune_error *err) {
    char path[HOME_PATH_MAX + 32], sha256[65];
    struct lora *lora = NULL;
    store_adapter_path(home, number, path, sizeof path);
    int code = adapter_read(path, model, &lora, NULL, sha256, err);
    if (code == ATTUNE_OK && strcmp(sha256, wanted) != 0)
        code = error_set(err, ATTUNE_ERROR_FORMAT, path,
                         "the file is not the one that was published; use another adapter");
    if (code != ATTUNE_OK) {
        lora_destroy(lora);
        return code;
    }
    *out = lora;
    return ATTUNE_OK;
}

/* ---- putting in order what a process that died, or forgetting, has left ---- */

int home_clean_ancestor(attune_store *store, int number, int *out, attune_error *err) {
    while (number > 0) {
        attune_adapter_info info;
        ATTUNE_INIT(info);
        int code = store_adapter_get(store, number, &info, err);
        if (code != ATTUNE_OK) return code;
        if (strcmp(info.state, "revoked") != 0) break;
        if (info.parent >= number)
            return error_set(err, ATTUNE_ERROR_FORMAT, NULL, "adapter %d has the parent %d, which is younger", number,
                             info.parent);
        number = info.parent;
    }
    *out = number;
    return ATTUNE_OK;
}

struct sweep {
    const char *home, *failed; /* id of the newest run when it has failed, else "" */
    int candidate;             /* of that run */
};

static int sweep_one(const attune_adapter_info *info, void *user) {
    struct sweep *sweep = user;
    char path[HOME_PATH_MAX + 32];
    store_adapter_path(sweep->home, info->number, path, sizeof path);
    if (strcmp(info->state, "revoked") == 0) {
        unlink(path);
        if (home_file(sweep->home, "cache", path, NULL) == ATTUNE_OK)
            (void)merged_cache_remove(path, info->sha256, NULL);
        learned_cache_remove(sweep->home, info->sha256);
    }
    if (strcmp(info->state, "candidate") == 0 && strcmp(info->origin, "trained") == 0 &&
        strcmp(info->run, sweep->failed) == 0)
        sweep->candidate = info->number;
    return 0;
}

/* The newest file, when no row knows it and this run has written it. */
static void drop_orphan(const char *home, attune_store *store, int number, const char *run) {
    attune_adapter_info info;
    struct gguf *gguf = NULL;
    char path[HOME_PATH_MAX + 32], found[65] = "";
    ATTUNE_INIT(info);
    if (number < 1 || store_adapter_get(store, number, &info, NULL) != ATTUNE_ERROR_NOT_FOUND) return;
    store_adapter_path(home, number, path, sizeof path);
    if (gguf_open(path, FILE_READ, &gguf, NULL) != ATTUNE_OK) return;
    if (gguf_get_text(gguf, "attune.run", found, sizeof found, NULL) == ATTUNE_OK && strcmp(found, run) == 0)
        unlink(path);
    gguf_close(gguf);
}

/* A run that failed while its adapter was being published (its rows were forgotten at that moment, and the process
 * died before it could clean up) leaves nothing that has learned from them. */
static int sweep_adapters(const char *home, attune_store *store, int highest, attune_error *err) {
    struct store_run run;
    char path[HOME_PATH_MAX + 32];
    int failed = store_run_last(store, NULL, &run, NULL) == ATTUNE_OK && strcmp(run.state, "failed") == 0;
    struct sweep sweep = {.home = home, .failed = failed ? run.id : ""};
    int code = store_adapters(store, sweep_one, &sweep, err);
    if (code != ATTUNE_OK || !failed) return code;
    if (sweep.candidate) {
        code = store_adapter_state_set(store, sweep.candidate, "revoked", err);
        if (code != ATTUNE_OK) return code;
        store_adapter_path(home, sweep.candidate, path, sizeof path);
        unlink(path);
    }
    drop_orphan(home, store, highest, run.id);
    return ATTUNE_OK;
}

struct choice {
    const char *home, *sha256;
    int number;
};

static int write_choice(void *user, attune_error *err) {
    const struct choice *choice = user;
    return store_current_write(choice->home, choice->number, choice->sha256, err);
}

int home_activate(const char *home, attune_store *store, const struct store_run *run, int number, const char *sha256,
                  attune_error *err) {
    struct choice choice = {home, sha256, number};
    return store_publish(store, run, number, write_choice, &choice, err);
}

/* CURRENT names a revoked adapter: somebody chose it while it was being revoked, or the revoking died half way. */
static int leave_revoked(const char *home, attune_store *store, int *number, attune_error *err) {
    attune_adapter_info info;
    ATTUNE_INIT(info);
    if (home_clean_ancestor(store, *number, number, NULL) != ATTUNE_OK) *number = 0;
    int code = *number ? store_adapter_get(store, *number, &info, err) : ATTUNE_OK;
    return code == ATTUNE_OK ? home_activate(home, store, NULL, *number, info.sha256, err) : code;
}

/* *follow: the store has to be told which adapter is active. */
static int check_current(const char *home, attune_store *store, int *number, int *follow, attune_error *err) {
    char sha256[65];
    attune_adapter_info info;
    int code = store_current_read(home, number, sha256, NULL, err);
    *follow = *number == 0;
    if (code != ATTUNE_OK || *number == 0) return code;
    ATTUNE_INIT(info);
    code = store_adapter_get(store, *number, &info, err);
    if (code == ATTUNE_ERROR_NOT_FOUND)
        return error_set(err, ATTUNE_ERROR_FORMAT, home,
                         "CURRENT names adapter %d, which the store does not know; choose another with: attune "
                         "adapters use N (or base)",
                         *number);
    if (code == ATTUNE_OK && strcmp(info.state, "revoked") == 0) return leave_revoked(home, store, number, err);
    if (code == ATTUNE_OK && strcmp(info.sha256, sha256) != 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, home,
                         "CURRENT names another file for adapter %d than the store; choose again with: attune "
                         "adapters use N (or base)",
                         *number);
    *follow = !info.active;
    return code;
}

int home_reconcile(const char *home, attune_store *store, attune_error *err) {
    int highest = 0, number = 0, follow = 0;
    char cache[HOME_PATH_MAX];
    remove_leftovers(home);
    if (home_file(home, "cache", cache, NULL) == ATTUNE_OK) remove_leftovers(cache);
    int code = highest_file(home, 1, &highest, err);
    if (code == ATTUNE_OK) code = check_current(home, store, &number, &follow, err);
    if (code == ATTUNE_OK && follow) code = store_adapter_activate(store, number, err);
    return code == ATTUNE_OK ? sweep_adapters(home, store, highest, err) : code;
}

/* ---- making one ---- */

static int make_folder(const char *path, attune_error *err) {
    if (mkdir(path, 0700) == 0 || errno == EEXIST) return ATTUNE_OK;
    return error_set_errno(err, path, "cannot make the folder");
}

int home_make_folders(const char *path, attune_error *err) {
    char part[HOME_PATH_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        int code = make_folder(part, err);
        if (code != ATTUNE_OK) return code;
        *slash = '/';
    }
    return make_folder(path, err);
}

int home_base_path(const char *base, char **out, attune_error *err) {
    struct settings *settings;
    char *absolute = realpath(base, NULL);
    if (!absolute) return error_set_errno(err, base, "cannot open the base model");
    size_t length = strlen(absolute);
    /* what attune.conf could not give back */
    if (length >= sizeof settings->base || strpbrk(absolute, "\n\r") ||
        isspace((unsigned char)absolute[length - 1])) {
        free(absolute);
        return error_set(err, ATTUNE_ERROR_ARGUMENT, base,
                         "the base model's path is too long, holds a line break or ends in a blank; give it another "
                         "name");
    }
    *out = absolute;
    return ATTUNE_OK;
}

/* The key of a new home, *path the file that is to be remembered ("": none). */
struct key {
    unsigned char bytes[ATTUNE_KEY_BYTES];
    const unsigned char *given; /* NULL: the store is not encrypted */
    char path[HOME_PATH_MAX];
};

static int take_key(const attune_home_options *o, struct key *key, attune_error *err) {
    if (!o->key_file) {
        key->given = o->key;
        return ATTUNE_OK;
    }
    int code = store_key_file(o->key_file, key->bytes, err);
    if (code != ATTUNE_OK) return code;
    key->given = key->bytes;
    char *absolute = realpath(o->key_file, NULL);
    if (!absolute) return error_set_errno(err, o->key_file, "cannot find the key file again");
    if (strlen(absolute) < sizeof key->path)
        strcpy(key->path, absolute);
    else
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path of the key file is too long");
    free(absolute);
    return code;
}

/* A home is there once attune.conf is: it is written last. */
static int fill_home(const char *home, const struct settings *settings, const attune_home_options *o,
                     attune_error *err) {
    char path[HOME_PATH_MAX];
    struct key key = {.given = NULL};
    static const char *const folders[] = {"adapters", "cache"};
    int code = take_key(o, &key, err);
    for (size_t i = 0; i < 2 && code == ATTUNE_OK; i++) {
        code = home_file(home, folders[i], path, err);
        if (code == ATTUNE_OK) code = make_folder(path, err);
    }
    if (code == ATTUNE_OK)
        code = store_create_encrypted(home, o->consent, key.given, *key.path ? key.path : NULL, err);
    if (code == ATTUNE_OK) code = store_current_write(home, 0, NULL, err);
    if (code == ATTUNE_OK) code = settings_write(home, settings, err);
    sodium_memzero(&key, sizeof key);
    return code;
}

static int read_base(const char *base, struct settings *settings, attune_error *err) {
    struct model *model = NULL;
    char *absolute = NULL;
    int code = home_base_path(base, &absolute, err);
    if (code != ATTUNE_OK) return code;
    strcpy(settings->base, absolute);
    free(absolute);
    code = model_open(settings->base, FILE_MAP, &model, err);
    if (code == ATTUNE_OK && !model->chat) {
        if (err) *err = model->chat_error;
        code = model->chat_error.code;
    }
    if (code == ATTUNE_OK) hash_bytes(model->gguf->file.data, model->gguf->file.size, settings->base_sha256);
    model_close(model);
    return code;
}

int attune_home_init(const char *home, const char *base, const attune_home_options *options, attune_error *err) {
    char path[HOME_PATH_MAX], file[HOME_PATH_MAX];
    struct settings settings;
    attune_home_options o;
    int fd = -1;
    int code = options_read(&o, sizeof o, options, "attune_home_options", err);
    if (code != ATTUNE_OK) return code;
    if (!base) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a home needs a base model (a GGUF file)");
    if (o.key && o.key_file)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "give the key or the file that holds it, not both");
    size_t n = attune_home_path(home, path, sizeof path - 64);
    if (n == 0 || n >= sizeof path - 64)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no home: give --home, or set ATTUNE_HOME or HOME");
    enum device_kind device = device_detect("/sys");
    if (o.device) code = settings_device_parse(o.device, &device, err);
    settings_default_of(device, &settings);
    if (code == ATTUNE_OK) code = read_base(base, &settings, err);
    if (code == ATTUNE_OK) code = home_make_folders(path, err);
    if (code == ATTUNE_OK) code = home_lock(path, &fd, err);
    if (code == ATTUNE_OK) code = home_file(path, "attune.conf", file, err);
    if (code == ATTUNE_OK && access(file, F_OK) == 0)
        code = error_set(err, ATTUNE_ERROR_STATE, path, "a home is there already; choose another with --home");
    if (code == ATTUNE_OK) code = fill_home(path, &settings, &o, err);
    home_unlock(fd);
    return code;
}
