#include "core/base/fault.h"
#include "job/run.h"

#include "adapters/adapter_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct search {
    const char *run;
    int number;
};
static int same_run(const attune_adapter_info *info, void *user) {
    struct search *search = user;
    if (strcmp(info->run, search->run) == 0 && strcmp(info->state, "revoked") != 0 &&
        strcmp(info->origin, "trained") == 0)
        search->number = info->number;
    return 0;
}

/* This run was published before, and its file is as it was: *info is its row. */
static int published_before(const char *home, attune_store *store, const struct model *model, const char *run,
                            attune_adapter_info *info, int *found, attune_error *err) {
    struct search search = {.run = run};
    struct lora *lora = NULL;
    *found = 0;
    int code = store_adapters(store, same_run, &search, err);
    if (code != ATTUNE_OK || !search.number) return code;
    code = store_adapter_get(store, search.number, info, err);
    if (code != ATTUNE_OK) return code;
    *found = home_adapter_read(home, model, info->number, info->sha256, &lora, NULL) == ATTUNE_OK;
    lora_destroy(lora);
    return ATTUNE_OK;
}

/* The file of this run, when an earlier call got as far as writing it and no further: the newest number's, without a
 * row. */
static int written_before(const char *home, attune_store *store, const struct model *model, int number,
                          const char *run, char sha256[65]) {
    attune_adapter_info info;
    char path[HOME_PATH_MAX + 32];
    struct adapter_record record;
    struct lora *lora = NULL;
    struct stat st;
    store_adapter_path(home, number, path, sizeof path);
    ATTUNE_INIT(info);
    if (number < 1 || stat(path, &st) != 0) return 0;
    if (store_adapter_get(store, number, &info, NULL) != ATTUNE_ERROR_NOT_FOUND) return 0;
    if (adapter_read(path, model, &lora, &record, sha256, NULL) != ATTUNE_OK) return 0;
    lora_destroy(lora);
    return strcmp(record.run, run) == 0;
}

static int write_file(const char *home, attune_store *store, const struct model *model, const struct lora *lora,
                      const char *parent_sha256, const struct store_run *run, attune_adapter_info *info,
                      attune_error *err) {
    char path[HOME_PATH_MAX + 32];
    struct adapter_record record = {.origin = "trained"};
    struct stat st;
    int number;
    int code = home_next_number(home, store, &number, err);
    if (code != ATTUNE_OK) return code;
    if (written_before(home, store, model, number - 1, run->id, info->sha256)) {
        number--;
    } else {
        snprintf(record.base_sha256, sizeof record.base_sha256, "%s", run->base_sha256);
        snprintf(record.run, sizeof record.run, "%s", run->id);
        snprintf(record.parent_sha256, sizeof record.parent_sha256, "%s", parent_sha256);
        plan_configuration(run, record.configuration, sizeof record.configuration);
        store_adapter_path(home, number, path, sizeof path);
        code = adapter_write(lora, model, &record, path, "adapter", info->sha256, err);
        if (code != ATTUNE_OK) return code;
    }
    store_adapter_path(home, number, path, sizeof path);
    if (stat(path, &st) != 0) return error_set_errno(err, path, "cannot look at the adapter just written");
    info->number = number;
    info->bytes = st.st_size;
    return ATTUNE_OK;
}

/* Nothing that has learned from forgotten rows stays. Forgetting has seen to it where it found the adapter's row. */
static void take_back(const char *home, attune_store *store, int number) {
    char path[HOME_PATH_MAX + 32];
    store_adapter_path(home, number, path, sizeof path);
    unlink(path);
    (void)store_adapter_state_set(store, number, "revoked", NULL); /* else home_reconcile sees to it */
}

static void describe(const struct lora *lora, const struct store_run *run, attune_adapter_info *info) {
    info->parent = run->parent;
    snprintf(info->state, sizeof info->state, "candidate");
    snprintf(info->origin, sizeof info->origin, "trained");
    snprintf(info->run, sizeof info->run, "%s", run->id);
    info->created_ms = run->ended_ms;
    info->examples = run->examples;
    info->rank = (int)lora->config.rank;
    info->alpha = (double)lora->config.alpha;
    info->loss_before = run->loss_before;
    info->loss_after = run->loss_after;
}

/* File -> row (candidate) -> one transaction in which CURRENT is swapped, the rows follow, and no forgetting can come
 * between. CURRENT is the moment that counts. */
int publish_adapter(const char *home, attune_store *store, const struct model *model, const struct lora *lora,
                    const char *parent_sha256, struct store_run *run, attune_error *err) {
    attune_adapter_info info;
    int found;
    ATTUNE_INIT(info);
    int code = published_before(home, store, model, run->id, &info, &found, err);
    if (code != ATTUNE_OK) return code;
    if (!found) {
        ATTUNE_INIT(info);
        code = write_file(home, store, model, lora, parent_sha256, run, &info, err);
        if (code != ATTUNE_OK) return code;
        describe(lora, run, &info);
        code = store_adapter_put(store, &info, run->number, err);
    }
    fault_point("publish.swap.before");
    if (code == ATTUNE_OK) code = home_activate(home, store, run, info.number, info.sha256, err);
    if (code == ATTUNE_ERROR_STATE && !found) take_back(home, store, info.number);
    if (code != ATTUNE_OK) return code;
    run->adapter = info.number;
    snprintf(run->state, sizeof run->state, "published");
    return ATTUNE_OK;
}
