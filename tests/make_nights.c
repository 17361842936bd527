/* Fills a home with plausible nights, for looking at what shows them and as the input of its tests. Always the same for
 * the same arguments.
 *
 *   make_nights HOME N [hostile]
 *
 * N nights up to 2026-03-31: most train, some wait in vain, heat and unplugging interrupt them. hostile: one night
 * more, of figures and texts that no program of ours writes. */
#include "datastore/home_files.h"
#include "datastore/nights.h"

#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOMENTS_MAX = 512 };
static const int64_t LAST_NIGHT_MS = INT64_C(1774990800000); /* 2026-03-31T21:00Z */
static const int64_t DAY_MS = 86400000, MINUTE_MS = 60000;
static const char SHA[] = "00000000000000000000000000000000000000000000000000000000000000ab";

static uint64_t random_state = 1;
/* Uniform in [0, 1): a linear congruential generator with Knuth's MMIX constants. */
static double uniform(void) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(random_state >> 40) / (double)(1 << 24);
}

static void check(int code, const attune_error *err) {
    if (code == ATTUNE_OK) return;
    fprintf(stderr, "make_nights: %s (%s)\n", err->message, err->where);
    exit(1);
}

/* ---- one night ---- */

struct made {
    struct store_night night;
    struct store_moment moments[MOMENTS_MAX];
    size_t n;
    double celsius, joules, loss;
    int steps;
};

static void moment(struct made *m, int64_t at, const char *verdict, const char *reason, double watts) {
    if (m->n == MOMENTS_MAX) return;
    int works = strcmp(verdict, "run") == 0 || strcmp(verdict, "throttle") == 0;
    double wanted = works ? 42 + 1.9 * watts : 36;
    m->celsius += (wanted - m->celsius) * 0.12 + (uniform() - 0.5) * 0.8;
    m->joules += watts * 60;
    if (works) m->steps += 6;
    if (works) m->loss += (m->night.loss_after - m->loss) * 0.02;
    struct store_moment *to = &m->moments[m->n++];
    *to = (struct store_moment){.time_ms = at,
                                .celsius = m->celsius,
                                .watts = watts,
                                .percent = fmin(100, 78 + 0.2 * (double)m->n),
                                .loss = works ? m->loss + (uniform() - 0.5) * 0.25 : NAN,
                                .joules = m->joules,
                                .steps = m->steps};
    snprintf(to->verdict, sizeof to->verdict, "%s", verdict);
    snprintf(to->reason, sizeof to->reason, "%s", reason);
}

/* What is decided in minute `minute` of night `i`. */
static const char *decide(int i, int minute, const char **reason) {
    *reason = "none";
    if (minute < 12) return *reason = "in_use", "pause";
    if (i % 3 == 1 && minute >= 60 && minute < 74) return *reason = "hot", "pause";
    if (i % 4 == 2 && minute >= 90 && minute < 110) return *reason = "pressure_cpu", "throttle";
    if (i % 5 == 0 && minute >= 120 && minute < 127) return *reason = "no_charger", "stop";
    return "run";
}

static void make_work(struct made *m, int i) {
    int minutes = 130 + (int)(uniform() * 70), worked = 0;
    m->night.loss_before = 2.1 + 0.75 * exp(-i / 22.) + (uniform() - 0.5) * 0.08;
    m->night.loss_after = m->night.loss_before - 0.015 - 0.06 * uniform();
    int refused = uniform() < 0.22;
    if (refused) m->night.loss_after = m->night.loss_before + 0.02 * uniform();
    m->loss = m->night.loss_before - 0.1;
    for (int minute = 0; minute < minutes; minute++) {
        const char *reason, *verdict = decide(i, minute, &reason);
        int works = strcmp(verdict, "run") == 0 || strcmp(verdict, "throttle") == 0;
        worked += works;
        double watts = !works ? 3.5 : verdict[0] == 't' ? 9 : 17.5;
        moment(m, m->night.started_ms + minute * MINUTE_MS, verdict, reason, watts + uniform() * 1.5);
    }
    m->night.ended_ms = m->night.started_ms + minutes * MINUTE_MS;
    m->night.seconds = minutes * 60;
    m->night.work_seconds = worked * 60;
    m->night.tokens = worked * 60 * INT64_C(235);
    m->night.steps = m->steps;
    m->night.run = i + 1;
    m->night.runs = 1;
    m->night.written = (40 + (int64_t)(uniform() * 300)) << 20;
    m->night.pauses = 1 + (i % 3 == 1) + (i % 5 == 0);
    m->night.celsius_max = 71 + uniform() * 12;
    m->night.adapter = refused ? 0 : i + 1;
    snprintf(m->night.state, sizeof m->night.state, "done");
    snprintf(m->night.reason, sizeof m->night.reason, "%s",
             refused ? "the candidate is not better than the active adapter on rows that it has not seen"
                     : "the candidate is better on rows that it has not seen");
}

/* Early nights had no counter; some lost it for a while; some were on a battery that feeds the device. */
static void label_energy(struct made *m, int i) {
    m->night.joules_measured = m->night.joules_battery = m->night.joules_modelled = 0;
    if (i < 8) m->night.joules_modelled = m->joules;
    else if (i % 9 == 4) {
        m->night.joules_measured = m->joules * 0.7;
        m->night.joules_modelled = m->joules * 0.3;
        m->night.marked = 1 + i % 2;
    } else if (i % 7 == 3) {
        m->night.joules_measured = m->joules * 0.55;
        m->night.joules_battery = m->joules * 0.45;
    } else m->night.joules_measured = m->joules;
}

static void make_night(attune_store *store, int i, int64_t night_ms) {
    static struct made m;
    attune_error err = {0};
    memset(&m, 0, sizeof m);
    m.celsius = 38;
    m.night = (struct store_night){.night_ms = night_ms,
                                   .started_ms = night_ms + (5 + (int64_t)(uniform() * 20)) * MINUTE_MS,
                                   .loss_before = NAN,
                                   .loss_after = NAN,
                                   .celsius_max = NAN};
    snprintf(m.night.kind, sizeof m.night.kind, "nightly");
    snprintf(m.night.state, sizeof m.night.state, "running");
    check(store_night_begin(store, &m.night, NULL, NULL, &err), &err);
    if (i % 11 == 6) {
        m.night.ended_ms = m.night.started_ms + 30 * MINUTE_MS;
        m.night.seconds = 1800;
        snprintf(m.night.state, sizeof m.night.state, "waiting");
        snprintf(m.night.reason, sizeof m.night.reason, "not on a charger");
        moment(&m, m.night.started_ms, "stop", "no_charger", 2);
        m.night.joules_modelled = 9;
    } else {
        make_work(&m, i);
        label_energy(&m, i);
        if (i % 17 == 9) {
            m.night.adapter = 0;
            m.night.loss_before = m.night.loss_after = NAN;
            snprintf(m.night.state, sizeof m.night.state, "killed");
            snprintf(m.night.reason, sizeof m.night.reason, "the process ended without a word");
        }
    }
    check(store_night_update(store, &m.night, m.moments, m.n, &err), &err);
    if (!m.night.adapter) return;
    attune_adapter_info info;
    ATTUNE_INIT(info);
    info.number = m.night.adapter;
    info.created_ms = m.night.ended_ms;
    info.bytes = 9800000;
    info.examples = 40 + 7 * i;
    info.rank = 8;
    info.alpha = 16;
    info.loss_before = m.night.loss_before;
    info.loss_after = m.night.loss_after;
    snprintf(info.state, sizeof info.state, "retired");
    snprintf(info.origin, sizeof info.origin, "trained");
    snprintf(info.sha256, sizeof info.sha256, "%s", SHA);
    snprintf(info.run, sizeof info.run, "%s", SHA);
    check(store_adapter_put(store, &info, 0, &err), &err);
    struct store_drift drift = {.adapter = info.number, .mode = "same", .kl = 0.002 + 0.003 * uniform(),
                                .agreement = 0.985 + 0.01 * uniform(), .loss = info.loss_after + 0.002,
                                .loss_none = info.loss_after, .tokens = 4000, .rows = 40, .bytes = 92000000,
                                .measured_ms = info.created_ms};
    check(store_drift_put(store, &drift, 1, &err), &err);
    check(store_adapter_activate(store, info.number, &err), &err);
}

/* ---- what no program of ours writes ---- */

static void make_hostile(attune_store *store, int64_t night_ms) {
    attune_error err = {0};
    static const double wild[] = {NAN, INFINITY, -INFINITY, 1e300, -1e300, -5, 0, 1e-300};
    struct store_night night = {.night_ms = night_ms, .started_ms = night_ms, .loss_before = NAN, .loss_after = NAN,
                                .celsius_max = NAN};
    snprintf(night.kind, sizeof night.kind, "nightly");
    snprintf(night.state, sizeof night.state, "running");
    check(store_night_begin(store, &night, NULL, NULL, &err), &err);
    night.ended_ms = night_ms + DAY_MS;
    night.seconds = night.work_seconds = 1;
    snprintf(night.state, sizeof night.state, "done");
    struct store_moment moments[16] = {{.time_ms = 0}};
    for (size_t i = 0; i < 16; i++) {
        double v = wild[i % 8];
        moments[i] = (struct store_moment){.time_ms = night_ms + (int64_t)(i % 5) * 1000, .celsius = v, .watts = v,
                                           .percent = v, .loss = v};
        snprintf(moments[i].verdict, sizeof moments[i].verdict, "run");
        snprintf(moments[i].reason, sizeof moments[i].reason, "\"><svg/onload=x>");
    }
    check(store_night_update(store, &night, moments, 16, &err), &err);
}

/* Behind the store's back: what its checks would refuse. */
static void make_worse(const char *home) {
    char path[1200], *why = NULL;
    sqlite3 *db = NULL;
    snprintf(path, sizeof path, "%s/store.db", home);
    if (sqlite3_open(path, &db) == SQLITE_OK &&
        sqlite3_exec(
            db,
            "PRAGMA ignore_check_constraints = ON;"
            "UPDATE night SET kind = '<b>', state = '\"''<&>', tokens = -9223372036854775808, seconds = 1e300,"
            " work_seconds = 1e300, joules_measured = 9e999, joules_battery = -3, joules_modelled = 1e300,"
            " written = 9223372036854775807, marked = 9223372036854775807, pauses = 9223372036854775807,"
            " loss_before = 1e300, loss_after = -1e300, celsius_max = 9e999,"
            " reason = CAST(X'3C7363726970743E616C65727428223122293C2F7363726970743E2026FFC3011B5B33316D205D5D3E20"
            "EFBFBE' AS TEXT) WHERE number = (SELECT max(number) FROM night);"
            "UPDATE moment SET verdict = '<i>\"&' WHERE night = (SELECT max(number) FROM night) AND"
            " time_ms % 2000 = 0",
            NULL, NULL, &why) == SQLITE_OK) {
        sqlite3_close(db);
        return;
    }
    fprintf(stderr, "make_nights: %s\n", why ? why : sqlite3_errmsg(db));
    exit(1);
}

int main(int argc, char **argv) {
    attune_error err = {0};
    attune_store *store = NULL;
    if (argc < 3) {
        fprintf(stderr, "usage: make_nights HOME N [hostile]\n");
        return 2;
    }
    int n = atoi(argv[2]), active = 0;
    check(store_open_path(argv[1], 0, &store, &err), &err);
    for (int i = 0; i < n; i++) make_night(store, i, LAST_NIGHT_MS - (int64_t)(n - 1 - i) * DAY_MS);
    for (int i = n; i > 0 && !active; i--) {
        attune_adapter_info info;
        ATTUNE_INIT(info);
        if (store_adapter_get(store, i, &info, &err) == ATTUNE_OK) active = i;
    }
    if (argc > 3) make_hostile(store, LAST_NIGHT_MS + DAY_MS);
    attune_store_close(store);
    if (argc > 3) make_worse(argv[1]);
    if (active) check(store_current_write(argv[1], active, SHA, &err), &err);
    return 0;
}
