#include "job/rollback.h"
#include "job/nightly.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- the test ---- */

/* ln of the integral of p^good (1-p)^bad over Beta(1/2, 1/2). */
static double log_mixture(struct store_outcomes c) {
    double good = (double)c.good, bad = (double)c.bad;
    return lgamma(good + 0.5) + lgamma(bad + 0.5) - lgamma(good + bad + 1) - 2 * lgamma(0.5);
}

/* ln of p^good (1-p)^bad at its greatest. */
static double log_greatest(struct store_outcomes c) {
    double good = (double)c.good, bad = (double)c.bad, n = good + bad;
    return (good > 0 ? good * log(good / n) : 0) + (bad > 0 ? bad * log(bad / n) : 0);
}

double rollback_evidence(struct store_outcomes before, struct store_outcomes now) {
    struct store_outcomes both = {before.good + now.good, before.bad + now.bad};
    /* shares in the order that the hypothesis allows are free; else its best is one share for both */
    int allowed = (double)now.good * (double)(before.good + before.bad) >=
                  (double)before.good * (double)(now.good + now.bad);
    double greatest = allowed ? log_greatest(before) + log_greatest(now) : log_greatest(both);
    return exp(log_mixture(before) + log_mixture(now) - greatest);
}

/* ---- looking ---- */

static int count_of(attune_store *store, const char *base_sha256, int number, char sha256[65],
                    struct store_outcomes *out, attune_error *err) {
    attune_adapter_info info;
    ATTUNE_INIT(info);
    *info.sha256 = 0;
    int code = number ? store_adapter_get(store, number, &info, err) : ATTUNE_OK;
    if (code != ATTUNE_OK) return code;
    memcpy(sha256, info.sha256, sizeof info.sha256);
    return store_outcomes_count(store, base_sha256, number, info.sha256, out, err);
}

/* The nearest that may be used, is still there and was not itself rejected; 0: the base. */
static int predecessor(const char *home, attune_store *store, int number, int *out, attune_error *err) {
    attune_adapter_info info;
    ATTUNE_INIT(info);
    int code = store_adapter_get(store, number, &info, err);
    while (code == ATTUNE_OK) {
        if (info.parent >= number)
            return error_set(err, ATTUNE_ERROR_FORMAT, NULL, "adapter %d has the parent %d, which is younger", number,
                             info.parent);
        *out = number = info.parent;
        if (number == 0) return ATTUNE_OK;
        code = store_adapter_get(store, number, &info, err);
        if (code == ATTUNE_OK && strcmp(info.state, "revoked") != 0 && strcmp(info.state, "rejected") != 0 &&
            !retention_removed(home, &info))
            break;
    }
    return code;
}

int rollback_look(const char *home, attune_store *store, const char *base_sha256, int active, struct rollback *out,
                  attune_error *err) {
    struct rollback r = {.from = active};
    char own[65];
    if (active == 0) {
        *out = r;
        return ATTUNE_OK;
    }
    int code = predecessor(home, store, active, &r.to, err);
    if (code == ATTUNE_OK) code = count_of(store, base_sha256, active, own, &r.now, err);
    if (code == ATTUNE_OK) code = count_of(store, base_sha256, r.to, r.sha256, &r.before, err);
    if (code != ATTUNE_OK) return code;
    r.evidence = rollback_evidence(r.before, r.now);
    r.wanted = r.evidence >= ROLLBACK_EVIDENCE;
    *out = r;
    return ATTUNE_OK;
}

/* ---- acting ---- */

static int write_current(void *user, attune_error *err) {
    const struct {
        const char *home;
        const struct rollback *rollback;
    } *choice = user;
    return store_current_write(choice->home, choice->rollback->to, choice->rollback->sha256, err);
}

static void describe(const struct rollback *r, char *out, size_t size) {
    char name[32] = "the base";
    if (r->to) snprintf(name, sizeof name, "adapter %d", r->to);
    snprintf(out, size, "rolled back to %s: %lld of %lld answers were good, %lld of %lld before (evidence %.3g)", name,
             (long long)r->now.good, (long long)(r->now.good + r->now.bad), (long long)r->before.good,
             (long long)(r->before.good + r->before.bad), r->evidence);
}

/* The file of what is gone back to is read first: a damaged one must not become active. */
int rollback_act(const char *home, attune_store *store, const struct model *model, const struct rollback *rollback,
                 attune_error *err) {
    struct lora *lora = NULL;
    char reason[256];
    struct {
        const char *home;
        const struct rollback *rollback;
    } choice = {home, rollback};
    if (!rollback->wanted) return ATTUNE_OK;
    int code = rollback->to ? home_adapter_read(home, model, rollback->to, rollback->sha256, &lora, err) : ATTUNE_OK;
    lora_destroy(lora);
    describe(rollback, reason, sizeof reason);
    return code == ATTUNE_OK
               ? store_adapter_reject(store, rollback->from, rollback->to, reason, write_current, &choice, err)
               : code;
}
