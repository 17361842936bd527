/* Nights and their moments out of a home's store, for people and tools. */
#include "core/base/error.h"
#include "datastore/nights.h"
#include "energy/policy.h"
#include "job/home.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int open_store(const char *home, attune_store **out, attune_error *err) {
    char path[HOME_PATH_MAX];
    int code = home_resolve(home, path, err);
    return code == ATTUNE_OK ? store_open_path(path, 0, out, err) : code;
}

/* ---- nights ---- */

struct night_listing {
    attune_night_callback callback;
    void *user;
};

static int list_night(const struct store_night *n, void *user) {
    const struct night_listing *listing = user;
    attune_night night;
    ATTUNE_INIT(night);
    night.number = n->number;
    night.night_ms = n->night_ms;
    night.started_ms = n->started_ms;
    night.ended_ms = n->ended_ms;
    snprintf(night.kind, sizeof night.kind, "%s", n->kind);
    snprintf(night.state, sizeof night.state, "%s", n->state);
    snprintf(night.reason, sizeof night.reason, "%s", n->reason);
    night.run = n->run;
    night.runs = n->runs;
    night.tokens = n->tokens;
    night.steps = n->steps;
    night.seconds = n->seconds;
    night.work_seconds = n->work_seconds;
    night.joules_measured = n->joules_measured;
    night.joules_battery = n->joules_battery;
    night.joules_modelled = n->joules_modelled;
    night.marked = n->marked;
    night.written = n->written;
    night.pauses = n->pauses;
    night.loss_before = n->loss_before;
    night.loss_after = n->loss_after;
    night.adapter = n->adapter;
    night.celsius_max = n->celsius_max;
    return listing->callback(&night, listing->user);
}

int attune_night_list(const char *home, int64_t limit, attune_night_callback callback, void *user, attune_error *err) {
    struct night_listing listing = {callback, user};
    attune_store *store = NULL;
    if (!callback) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "nights are told to a callback: give one");
    if (limit < 0) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a limit of %lld nights: want 0 (all) or more",
                                    (long long)limit);
    int code = open_store(home, &store, err);
    if (code == ATTUNE_OK) code = store_nights(store, 0, limit, list_night, &listing, err);
    attune_store_close(store);
    return code;
}

/* ---- moments ---- */

/* A reason of a later version stays as it is recorded. */
static const char *for_people(const char *recorded) {
    for (int r = REASON_NONE; r < REASON_COUNT; r++)
        if (strcmp(recorded, reason_name((enum reason)r)) == 0)
            return r == REASON_NONE ? "" : reason_text((enum reason)r);
    return recorded;
}

int attune_night_moments(const char *home, int64_t number, attune_moment_callback callback, void *user,
                         attune_error *err) {
    attune_store *store = NULL;
    struct store_moment *moments = NULL;
    size_t n = 0;
    if (!callback) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "moments are told to a callback: give one");
    int code = open_store(home, &store, err);
    if (code == ATTUNE_OK) code = store_moments(store, number, &moments, &n, err);
    attune_store_close(store);
    if (code != ATTUNE_OK) return code;
    int stop = 0;
    for (size_t i = 0; i < n && !stop; i++) {
        const struct store_moment *m = &moments[i];
        attune_moment moment;
        ATTUNE_INIT(moment);
        moment.time_ms = m->time_ms;
        moment.verdict = m->verdict;
        moment.reason = for_people(m->reason);
        moment.celsius = m->celsius;
        moment.watts = m->watts;
        moment.percent = m->percent;
        moment.loss = m->loss;
        moment.joules = m->joules;
        moment.steps = m->steps;
        stop = callback(&moment, user);
    }
    free(moments);
    return ATTUNE_OK;
}
