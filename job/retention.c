/* What is cleared away at the end of a night. */
#include "job/nightly.h"

#include "adapters/merged_cache.h"
#include "job/learned_cache.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int retention_removed(const char *home, const attune_adapter_info *info) {
    char path[HOME_PATH_MAX + 32];
    struct stat st;
    if (strcmp(info->state, "retired") != 0 && strcmp(info->state, "rejected") != 0) return 0;
    store_adapter_path(home, info->number, path, sizeof path);
    return lstat(path, &st) != 0 && errno == ENOENT;
}

/* ---- adapters ---- */

struct version {
    int number, parent;
    int old, kept; /* not active any more; something may go back to it */
    char sha256[65];
};
struct versions {
    struct version *items; /* by number, rising */
    size_t n, room;
    int failed; /* no memory */
};

static int add_version(const attune_adapter_info *info, void *user) {
    struct versions *v = user;
    if (v->n == v->room) {
        size_t room = 2 * v->room + 16;
        struct version *items = realloc(v->items, room * sizeof *items);
        if (!items) {
            v->failed = 1;
            return 1;
        }
        v->items = items;
        v->room = room;
    }
    struct version *version = &v->items[v->n++];
    *version = (struct version){.number = info->number, .parent = info->parent};
    version->old = strcmp(info->state, "retired") == 0 || strcmp(info->state, "rejected") == 0;
    snprintf(version->sha256, sizeof version->sha256, "%s", info->sha256);
    return 0;
}

static struct version *version_of(const struct versions *v, int number) {
    for (size_t i = 0; i < v->n; i++)
        if (v->items[i].number == number) return &v->items[i];
    return NULL;
}

/* The adapter and so many of its parents. A parent is older: no chain is longer than there are versions. */
static void keep_line(struct versions *v, int number, size_t parents) {
    struct version *version = version_of(v, number);
    for (size_t i = 0; version && i <= parents; i++) {
        version->kept = 1;
        version = version->parent < version->number ? version_of(v, version->parent) : NULL;
    }
}

static void remove_version(const char *home, const struct version *version) {
    char path[HOME_PATH_MAX + 32];
    store_adapter_path(home, version->number, path, sizeof path);
    if (unlink(path) != 0) return;
    if (home_file(home, "cache", path, NULL) == ATTUNE_OK) (void)merged_cache_remove(path, version->sha256, NULL);
    learned_cache_remove(home, version->sha256);
}

/* The newest `keep` that are not active any more stay, and the active one's nearest so many parents: rollback goes to
 * them. So does what an unfinished run starts from. */
static int sweep_adapters(const char *home, attune_store *store, size_t keep, attune_error *err) {
    struct versions v = {0};
    struct store_run run;
    int current = 0;
    int code = store_current_read(home, &current, NULL, NULL, err);
    if (code == ATTUNE_OK) code = store_adapters(store, add_version, &v, err);
    if (code == ATTUNE_OK && v.failed) code = error_set_memory(err, "a list of adapters", v.room * sizeof *v.items);
    if (code != ATTUNE_OK) goto out;
    keep_line(&v, current, keep);
    if (store_run_last(store, "unfinished", &run, NULL) == ATTUNE_OK) keep_line(&v, run.parent, 0);
    for (size_t i = v.n; i-- > 0;) {
        if (!v.items[i].old) continue;
        if (keep > 0)
            keep--;
        else if (!v.items[i].kept)
            remove_version(home, &v.items[i]);
    }
out:
    free(v.items);
    return code;
}

int retention_sweep(const char *home, attune_store *store, const struct settings *settings, attune_error *err) {
    int code = home_reconcile(home, store, err); /* leftovers of writers that died go with it */
    if (code == ATTUNE_OK && settings->keep_adapters > 0)
        code = sweep_adapters(home, store, settings->keep_adapters, err);
    if (code == ATTUNE_OK && settings->keep_nights_days > 0)
        code = store_nights_remove(store, home_now_ms() - (int64_t)(settings->keep_nights_days * 86400e3), err);
    return code;
}
