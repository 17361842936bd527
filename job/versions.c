/* Adapters of a home, by number: list, use, roll back, export, import. */
#include "adapters/adapter_file.h"
#include "adapters/peft.h"
#include "core/base/options.h"
#include "datastore/store.h"
#include "job/nightly.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* A home that is opened to look at, or (locked) to change. */
struct opened {
    char home[HOME_PATH_MAX];
    attune_store *store;
    int lock;
};

static void close_home(struct opened *o) {
    attune_store_close(o->store);
    home_unlock(o->lock);
}

static int open_home(const char *home, int change, struct opened *o, attune_error *err) {
    *o = (struct opened){.lock = -1};
    int code = home_resolve(home, o->home, err);
    if (code == ATTUNE_OK && change) code = home_lock(o->home, &o->lock, err);
    if (code == ATTUNE_OK) code = store_open_path(o->home, 0, &o->store, err);
    if (code != ATTUNE_OK) close_home(o);
    return code;
}

/* ---- looking ---- */

struct listing {
    const char *home;
    int current; /* CURRENT rules, also over a store that has not been reconciled yet */
    attune_adapter_callback callback;
    void *user;
};

static void as_files_say(const char *home, attune_adapter_info *info, int current) {
    info->active = info->number == current;
    if (strcmp(info->state, "revoked") == 0) return;
    if (!info->active && retention_removed(home, info)) {
        snprintf(info->state, sizeof info->state, "removed");
        return;
    }
    if (info->active)
        snprintf(info->state, sizeof info->state, "active");
    else if (strcmp(info->state, "active") == 0)
        snprintf(info->state, sizeof info->state, "retired");
}

static int list_one(const attune_adapter_info *info, void *user) {
    struct listing *listing = user;
    attune_adapter_info copy = *info;
    as_files_say(listing->home, &copy, listing->current);
    return listing->callback(&copy, listing->user);
}

int attune_adapter_list(const char *home, attune_adapter_callback callback, void *user, attune_error *err) {
    struct opened o;
    struct listing listing = {.callback = callback, .user = user};
    int code = open_home(home, 0, &o, err);
    if (code != ATTUNE_OK) return code;
    listing.home = o.home;
    code = store_current_read(o.home, &listing.current, NULL, NULL, err);
    if (code == ATTUNE_OK) code = store_adapters(o.store, list_one, &listing, err);
    close_home(&o);
    return code;
}

/* As the store has it: `use` mends a damaged CURRENT, so it must not need one. */
static int find(const struct opened *o, int number, attune_adapter_info *out, attune_error *err) {
    ATTUNE_INIT(*out);
    int code = store_adapter_get(o->store, number, out, err);
    if (code == ATTUNE_ERROR_NOT_FOUND)
        return error_set(err, code, NULL, "no adapter %d; `attune adapters list` shows those there are", number);
    return code;
}

struct drift_listing {
    attune_drift_callback callback;
    void *user;
};

static int list_drift(const struct store_drift *d, void *user) {
    const struct drift_listing *listing = user;
    attune_merge_drift drift;
    ATTUNE_INIT(drift);
    snprintf(drift.merge, sizeof drift.merge, "%s", d->mode);
    drift.kl = d->kl;
    drift.agreement = d->agreement;
    drift.loss = d->loss;
    drift.loss_none = d->loss_none;
    drift.tokens = d->tokens;
    drift.rows = d->rows;
    drift.bytes = d->bytes;
    drift.measured_ms = d->measured_ms;
    return listing->callback(&drift, listing->user);
}

int attune_adapter_drift(const char *home, int number, attune_drift_callback callback, void *user, attune_error *err) {
    struct opened o;
    attune_adapter_info info;
    struct drift_listing listing = {callback, user};
    if (!callback) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "drift is told to a callback: give one");
    int code = open_home(home, 0, &o, err);
    if (code != ATTUNE_OK) return code;
    code = find(&o, number, &info, err);
    if (code == ATTUNE_OK) code = store_drift_each(o.store, number, list_drift, &listing, err);
    close_home(&o);
    return code;
}

struct criteria_listing {
    attune_criterion_callback callback;
    void *user;
};

static int list_criterion(const struct store_criterion *c, void *user) {
    const struct criteria_listing *listing = user;
    attune_criterion criterion;
    ATTUNE_INIT(criterion);
    snprintf(criterion.name, sizeof criterion.name, "%s", c->name);
    snprintf(criterion.detail, sizeof criterion.detail, "%s", c->detail);
    criterion.figure = c->figure;
    criterion.threshold = c->threshold;
    criterion.passed = c->passed;
    return listing->callback(&criterion, listing->user);
}

static int no_callback(attune_error *err) {
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "criteria are told to a callback: give one");
}

int attune_adapter_criteria(const char *home, int number, attune_criterion_callback callback, void *user,
                            attune_error *err) {
    struct opened o;
    attune_adapter_info info;
    struct criteria_listing listing = {callback, user};
    int64_t run = 0;
    if (!callback) return no_callback(err);
    int code = open_home(home, 0, &o, err);
    if (code != ATTUNE_OK) return code;
    code = find(&o, number, &info, err);
    if (code == ATTUNE_OK) code = store_adapter_run(o.store, number, &run, err);
    if (code == ATTUNE_OK) code = store_criteria_each(o.store, run, list_criterion, &listing, err);
    close_home(&o);
    return code;
}

int attune_run_criteria(const char *home, attune_criterion_callback callback, void *user, attune_error *err) {
    struct opened o;
    struct store_run run;
    struct criteria_listing listing = {callback, user};
    if (!callback) return no_callback(err);
    int code = open_home(home, 0, &o, err);
    if (code != ATTUNE_OK) return code;
    code = store_run_last(o.store, NULL, &run, err);
    if (code == ATTUNE_OK) code = store_criteria_each(o.store, run.number, list_criterion, &listing, err);
    close_home(&o);
    return code == ATTUNE_ERROR_NOT_FOUND ? ATTUNE_OK : code;
}

int attune_adapter_get(const char *home, int number, attune_adapter_info *out, attune_error *err) {
    struct opened o;
    attune_adapter_info info;
    int current;
    int code = open_home(home, 0, &o, err);
    if (code != ATTUNE_OK) return code;
    code = find(&o, number, &info, err);
    if (code == ATTUNE_OK) code = store_current_read(o.home, &current, NULL, NULL, err);
    if (code == ATTUNE_OK) as_files_say(o.home, &info, current);
    if (code == ATTUNE_OK) code = options_write(out, &info, sizeof info, "attune_adapter_info", err);
    close_home(&o);
    return code;
}

/* ---- changing which is active ---- */

static int open_model(const char *home, struct model **out, attune_error *err) {
    struct settings settings;
    int code = settings_read(home, &settings, err);
    return code == ATTUNE_OK ? home_model(home, &settings, FILE_MAP, out, err) : code;
}

static int read_version(const struct opened *o, int number, struct model **model, struct lora **lora,
                        attune_adapter_info *info, attune_error *err) {
    int code = find(o, number, info, err);
    if (code != ATTUNE_OK) return code;
    if (strcmp(info->state, "revoked") == 0)
        return error_set(err, ATTUNE_ERROR_STATE, NULL, "adapter %d is revoked: it learned from what was forgotten",
                         number);
    if (retention_removed(o->home, info))
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, NULL,
                         "the file of adapter %d was removed (attune.conf: keep_adapters); `attune adapters list` tells "
                         "which are kept",
                         number);
    code = open_model(o->home, model, err);
    return code == ATTUNE_OK ? home_adapter_read(o->home, *model, number, info->sha256, lora, err) : code;
}

static int use(struct opened *o, int number, attune_error *err) {
    struct model *model = NULL;
    struct lora *lora = NULL;
    attune_adapter_info info = {.sha256 = ""};
    int code = number ? read_version(o, number, &model, &lora, &info, err) : ATTUNE_OK;
    if (code == ATTUNE_OK) code = home_activate(o->home, o->store, NULL, number, info.sha256, err);
    lora_destroy(lora);
    model_close(model);
    return code;
}

int attune_adapter_use(const char *home, int number, attune_error *err) {
    struct opened o;
    if (number < 0) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "adapters are numbered from 1; 0 is the base");
    int code = open_home(home, 1, &o, err);
    if (code != ATTUNE_OK) return code;
    code = use(&o, number, err);
    close_home(&o);
    return code;
}

int attune_adapter_rollback(const char *home, int *now, attune_error *err) {
    struct opened o;
    attune_adapter_info info;
    int current, parent = 0;
    int code = open_home(home, 1, &o, err);
    if (code != ATTUNE_OK) return code;
    code = store_current_read(o.home, &current, NULL, NULL, err);
    if (code == ATTUNE_OK && current == 0)
        code = error_set(err, ATTUNE_ERROR_STATE, NULL, "the base is active: there is nothing to roll back to");
    if (code == ATTUNE_OK) code = find(&o, current, &info, err);
    if (code == ATTUNE_OK && info.parent >= current)
        code = error_set(err, ATTUNE_ERROR_FORMAT, NULL, "adapter %d has the parent %d, which is younger", current,
                         info.parent);
    /* over revoked ones, to the nearest that may be used */
    if (code == ATTUNE_OK) code = home_clean_ancestor(o.store, info.parent, &parent, err);
    if (code == ATTUNE_OK) code = use(&o, parent, err);
    if (code == ATTUNE_OK && now) *now = parent;
    close_home(&o);
    return code;
}

/* ---- moving ---- */

int attune_adapter_export(const char *home, int number, const char *format, const char *path, attune_error *err) {
    struct opened o;
    struct model *model = NULL;
    struct lora *lora = NULL;
    struct file_bytes file;
    struct file_writer writer = {0};
    attune_adapter_info info;
    char from[HOME_PATH_MAX + 32];
    int peft = format && strcmp(format, "peft") == 0;
    if (!format || (!peft && strcmp(format, "gguf") != 0))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "unknown format \"%.40s\": gguf or peft",
                         format ? format : "");
    if (number < 1) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the base is no adapter: give a number from 1");
    if (!path) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "exporting wants a path to write to");
    int code = open_home(home, 0, &o, err);
    if (code != ATTUNE_OK) return code;
    code = read_version(&o, number, &model, &lora, &info, err);
    if (code == ATTUNE_OK && peft) {
        code = peft_export(lora, model, path, err);
    } else if (code == ATTUNE_OK) {
        store_adapter_path(o.home, number, from, sizeof from);
        code = file_bytes_open(from, FILE_READ, SIZE_MAX, &file, err);
        if (code == ATTUNE_OK) {
            code = file_writer_open(path, "export", &writer, err);
            if (code == ATTUNE_OK) code = file_writer_add(&writer, file.data, file.size, err);
            if (code == ATTUNE_OK) code = file_writer_publish_new(&writer, err);
            file_writer_abandon(&writer);
            file_bytes_close(&file);
        }
    }
    lora_destroy(lora);
    model_close(model);
    close_home(&o);
    return code;
}

static int read_foreign(const char *path, const struct model *model, struct lora **out, struct adapter_record *record,
                        attune_error *err) {
    struct stat st;
    char sha256[65];
    *record = (struct adapter_record){.run = ""};
    if (stat(path, &st) != 0) return error_set_errno(err, path, "cannot open the adapter");
    return S_ISDIR(st.st_mode) ? peft_import(path, model, out, err)
                               : adapter_read(path, model, out, record, sha256, err);
}

int attune_adapter_import(const char *home, const char *path, int *number, attune_error *err) {
    struct opened o;
    struct model *model = NULL;
    struct lora *lora = NULL;
    struct adapter_record record;
    attune_adapter_info info;
    struct stat st;
    char to[HOME_PATH_MAX + 32];
    ATTUNE_INIT(info);
    if (!path) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "importing wants a file or folder");
    int code = open_home(home, 1, &o, err);
    if (code != ATTUNE_OK) return code;
    code = open_model(o.home, &model, err);
    if (code == ATTUNE_OK) code = read_foreign(path, model, &lora, &record, err);
    if (code == ATTUNE_OK) code = home_next_number(o.home, o.store, &info.number, err);
    if (code != ATTUNE_OK) goto out;
    snprintf(record.origin, sizeof record.origin, "imported");
    snprintf(record.base_sha256, sizeof record.base_sha256, "%s", model->sha256);
    store_adapter_path(o.home, info.number, to, sizeof to);
    code = adapter_write(lora, model, &record, to, "adapter", info.sha256, err);
    if (code != ATTUNE_OK) goto out;
    if (stat(to, &st) == 0) info.bytes = st.st_size;
    info.created_ms = home_now_ms();
    info.rank = (int)lora->config.rank;
    info.alpha = (double)lora->config.alpha;
    info.loss_before = info.loss_after = NAN;
    snprintf(info.state, sizeof info.state, "candidate");
    snprintf(info.origin, sizeof info.origin, "imported");
    snprintf(info.run, sizeof info.run, "%s", record.run);
    code = store_adapter_put(o.store, &info, 0, err);
    if (code == ATTUNE_OK && number) *number = info.number;
out:
    lora_destroy(lora);
    model_close(model);
    close_home(&o);
    return code;
}
