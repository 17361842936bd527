/* Each condition is judged by itself; a decision is the gravest of what they say, and an explanation all of it. What
 * looks leave behind (hysteresis) is noted first, so that both see the same state: noting a look twice is as good as
 * once. Comparisons are written so that NaN falls on the side of caution. */
#include "energy/policy.h"

#include "core/base/numerals.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define MIB 1048576.0
#define GIB (1024 * MIB)
#define HOUR 3600.0
#define DUTY_MIN 0.05
enum { THREADS_MAX = 4096 };

/* The reasons for the figures: docs/guide-nightly.md. */
static const struct policy default_of_kind[] = {
    [DEVICE_LAPTOP] = {.window = {.from = 22 * 60, .until = 7 * 60},
                       .charger_required = 1,
                       .battery_min = 40,
                       .charger_stable_s = 60,
                       .idle_required = 1,
                       .idle_s = 600,
                       .celsius_max = 85,
                       .celsius_back = 5,
                       .pressure_cpu = 0.4,
                       .pressure_memory = 0.1,
                       .memory_free = (uint64_t)(1 * GIB),
                       .without_sensors = 0,
                       .duty = 1,
                       .seconds_run = 2 * HOUR,
                       .seconds_night = 4 * HOUR,
                       .seconds_week = 14 * HOUR,
                       .joules_run = 150e3,
                       .joules_night = 250e3,
                       .joules_week = 1e6,
                       .modelled_guard = 1.15,
                       .written_night = (uint64_t)(3 * GIB)},
    [DEVICE_PHONE] = {.window = {.from = 0, .until = 0},
                      .charger_required = 1,
                      .battery_min = 30,
                      .charger_stable_s = 60,
                      .idle_required = 1,
                      .idle_s = 300,
                      .celsius_max = 45,
                      .celsius_back = 5,
                      .memory_free = (uint64_t)(400 * MIB),
                      .without_sensors = 0,
                      .duty = 1,
                      .seconds_run = 585,
                      .seconds_night = 1 * HOUR,
                      .seconds_week = 5 * HOUR,
                      .joules_night = 15e3,
                      .joules_week = 60e3,
                      .modelled_guard = 1.15,
                      .written_night = (uint64_t)(1 * GIB)},
    [DEVICE_DESKTOP] = {.window = {.from = 0, .until = 0},
                        .charger_required = 1,
                        .battery_min = 30,
                        .charger_stable_s = 60,
                        .idle_required = 1,
                        .idle_s = 600,
                        .celsius_max = 85,
                        .celsius_back = 5,
                        .pressure_cpu = 0.4,
                        .pressure_memory = 0.1,
                        .memory_free = (uint64_t)(1 * GIB),
                        .without_sensors = 1,
                        .duty = 1,
                        .seconds_run = 2 * HOUR,
                        .seconds_night = 6 * HOUR,
                        .seconds_week = 20 * HOUR,
                        .joules_run = 600e3,
                        .joules_night = 1.2e6,
                        .joules_week = 4e6,
                        .modelled_guard = 1.15,
                        .written_night = (uint64_t)(4 * GIB)},
};
enum { N_KINDS = sizeof default_of_kind / sizeof *default_of_kind };

void policy_default(enum device_kind kind, struct policy *out) {
    *out = default_of_kind[(unsigned)kind < N_KINDS ? kind : DEVICE_LAPTOP];
}

double joules_sum(const struct joules *j) { return j->measured + j->battery + j->modelled; }

double joules_counted(const struct joules *j, double modelled_guard) {
    return j->measured + j->battery + j->modelled * modelled_guard;
}

/* ---- words ---- */

static const char *const verdict_names[] = {
    [VERDICT_RUN] = "run", [VERDICT_THROTTLE] = "throttle", [VERDICT_PAUSE] = "pause", [VERDICT_STOP] = "stop"};

static const struct {
    const char *name, *text;
} reasons[REASON_COUNT] = {
    [REASON_NONE] = {"none", ""},
    [REASON_STALE] = {"stale", "the sensors do not answer"},
    [REASON_POWER_UNKNOWN] = {"power_unknown", "the power supply cannot be read"},
    [REASON_NO_CHARGER] = {"no_charger", "not on a charger"},
    [REASON_DISCHARGING] = {"discharging", "on a charger, but the battery is discharging"},
    [REASON_CHARGER_FLAPS] = {"charger_flaps", "on a charger again, but not for long enough"},
    [REASON_BATTERY_LOW] = {"battery_low", "the battery is below the minimum charge"},
    [REASON_BATTERY_UNKNOWN] = {"battery_unknown", "the battery's charge cannot be read"},
    [REASON_WINDOW] = {"window", "outside the nightly window"},
    [REASON_IN_USE] = {"in_use", "the device is in use"},
    [REASON_IDLE_UNKNOWN] = {"idle_unknown", "whether the device is in use cannot be told"},
    [REASON_HOT] = {"hot", "the device is hot"},
    [REASON_HEAT_UNKNOWN] = {"heat_unknown", "the temperature cannot be read"},
    [REASON_PRESSURE_CPU] = {"pressure_cpu", "others wait for the CPU"},
    [REASON_PRESSURE_MEMORY] = {"pressure_memory", "others wait for memory"},
    [REASON_MEMORY_SHORT] = {"memory_short", "too little memory is free"},
    [REASON_PRESSURE_UNKNOWN] = {"pressure_unknown", "how busy CPU and memory are cannot be read"},
    [REASON_TIME_RUN] = {"time_run", "the time budget of the run is used up"},
    [REASON_TIME_NIGHT] = {"time_night", "the time budget of the night is used up"},
    [REASON_TIME_WEEK] = {"time_week", "the time budget of the week is used up"},
    [REASON_ENERGY_RUN] = {"energy_run", "the energy budget of the run is used up"},
    [REASON_ENERGY_NIGHT] = {"energy_night", "the energy budget of the night is used up"},
    [REASON_ENERGY_WEEK] = {"energy_week", "the energy budget of the week is used up"},
    [REASON_WRITTEN] = {"written", "enough was written to disk for one night"},
};

const char *verdict_name(enum verdict verdict) {
    return (unsigned)verdict <= VERDICT_STOP ? verdict_names[verdict] : "";
}
const char *reason_name(enum reason reason) { return (unsigned)reason < REASON_COUNT ? reasons[reason].name : ""; }
const char *reason_text(enum reason reason) { return (unsigned)reason < REASON_COUNT ? reasons[reason].text : ""; }

/* ---- what looks leave behind ---- */

static void note_charger(const struct snapshot *now, struct policy_state *state) {
    int on = now->power.supply == POWER_MAINS && !now->power.discharging;
    if (!on) state->charger_seen_off = 1;
    if (on && !state->charger_on) state->charger_since = now->monotonic;
    state->charger_on = on;
}

static void note_heat(const struct policy *policy, double celsius, struct policy_state *state) {
    if (celsius >= policy->celsius_max) state->hot = 1;
    if (celsius < policy->celsius_max - policy->celsius_back) state->hot = 0;
}

static void note_squeeze(struct squeeze *squeeze, int squeezed, double hold_s, double now) {
    if (squeeze->on && now >= squeeze->until) *squeeze = (struct squeeze){0};
    if (!squeezed) return;
    if (!squeeze->on) *squeeze = (struct squeeze){.on = 1, .since = now};
    if (now - squeeze->since >= SQUEEZE_HARDER_S) squeeze->harder = 1;
    squeeze->until = now + hold_s;
}

static void note(const struct policy *policy, const struct snapshot *now, struct policy_state *state) {
    int crowded = now->pressure_cpu >= policy->pressure_cpu, stalled = now->pressure_memory >= policy->pressure_memory;
    int scarce = now->memory_available && now->memory_available < policy->memory_free;
    note_charger(now, state);
    note_heat(policy, now->celsius, state);
    note_squeeze(&state->cpu, crowded, SQUEEZE_HOLD_S, now->monotonic);
    note_squeeze(&state->memory, stalled, SQUEEZE_HOLD_S, now->monotonic);
    note_squeeze(&state->short_of_memory, scarce, SHORT_HOLD_S, now->monotonic);
}

/* ---- conditions: what each says by itself ---- */

struct looked {
    const struct policy *policy;
    const struct snapshot *now;
    const struct spent *spent;
    const struct policy_state *state; /* this look is noted in it */
};
struct said {
    enum verdict verdict;
    enum reason reason;
    double wait_s; /* NaN: not known */
};
static const struct said nothing = {VERDICT_RUN, REASON_NONE, NAN};
static struct said said(enum verdict verdict, enum reason reason, double wait_s) {
    return (struct said){verdict, reason, wait_s};
}
static struct said stop(enum reason reason) { return said(VERDICT_STOP, reason, NAN); }
/* For a sensor that is not there. */
static struct said without(const struct looked *l, enum reason reason) {
    return l->policy->without_sensors ? nothing : stop(reason);
}

static struct said judge_power(const struct looked *l) {
    double stable = l->now->monotonic - l->state->charger_since;
    if (!l->policy->charger_required || l->policy->now) return nothing;
    if (l->now->power.supply == POWER_BATTERY) return stop(REASON_NO_CHARGER);
    if (l->now->power.supply != POWER_MAINS) return stop(REASON_POWER_UNKNOWN);
    if (l->now->power.discharging) return stop(REASON_DISCHARGING);
    if (l->state->charger_seen_off && !(stable >= l->policy->charger_stable_s))
        return said(VERDICT_STOP, REASON_CHARGER_FLAPS, l->policy->charger_stable_s - stable);
    return nothing;
}

/* A battery that was seen has to tell its charge; where not even the supplies can be seen, a sensor is missing. */
static struct said judge_battery(const struct looked *l) {
    const struct power_snapshot *power = &l->now->power;
    if (l->policy->battery_min <= 0 || l->policy->now) return nothing;
    if (power->battery && power->percent < 0) return stop(REASON_BATTERY_UNKNOWN);
    if (power->battery && power->percent < l->policy->battery_min) return stop(REASON_BATTERY_LOW);
    if (!power->battery && power->supply == POWER_UNKNOWN) return without(l, REASON_BATTERY_UNKNOWN);
    return nothing;
}

static struct said judge_window(const struct looked *l) {
    double wait = window_wait(&l->policy->window, l->now->wall_ms);
    if (l->policy->now) return nothing;
    if (!(wait <= 0)) return said(VERDICT_STOP, REASON_WINDOW, wait);
    return nothing;
}

static struct said judge_idle(const struct looked *l) {
    double wait = l->policy->idle_s - l->now->idle_s;
    if (!l->policy->idle_required || l->policy->now) return nothing;
    if (isnan(l->now->idle_s)) return without(l, REASON_IDLE_UNKNOWN);
    if (wait > 0) return said(VERDICT_STOP, REASON_IN_USE, wait);
    return nothing;
}

/* A sensor that vanishes while it is hot has not said that it is cooler. */
static struct said judge_heat(const struct looked *l) {
    if (l->policy->celsius_max <= 0) return nothing;
    if (isnan(l->now->celsius) && !l->policy->without_sensors) return stop(REASON_HEAT_UNKNOWN);
    if (l->state->hot) return said(VERDICT_PAUSE, REASON_HOT, NAN);
    return nothing;
}

static struct said judge_pressure_cpu(const struct looked *l) {
    const struct squeeze *squeeze = &l->state->cpu;
    if (l->policy->pressure_cpu <= 0) return nothing;
    if (isnan(l->now->pressure_cpu) && !l->policy->without_sensors) return stop(REASON_PRESSURE_UNKNOWN);
    if (squeeze->on) return said(VERDICT_THROTTLE, REASON_PRESSURE_CPU, squeeze->until - l->now->monotonic);
    return nothing;
}

static struct said judge_pressure_memory(const struct looked *l) {
    const struct squeeze *squeeze = &l->state->memory;
    if (l->policy->pressure_memory <= 0) return nothing;
    if (isnan(l->now->pressure_memory) && !l->policy->without_sensors) return stop(REASON_PRESSURE_UNKNOWN);
    if (squeeze->on) return said(VERDICT_PAUSE, REASON_PRESSURE_MEMORY, squeeze->until - l->now->monotonic);
    return nothing;
}

static struct said judge_memory(const struct looked *l) {
    const struct squeeze *squeeze = &l->state->short_of_memory;
    if (!l->policy->memory_free) return nothing;
    if (squeeze->on) return said(VERDICT_STOP, REASON_MEMORY_SHORT, squeeze->until - l->now->monotonic);
    if (!l->now->memory_available) return without(l, REASON_PRESSURE_UNKNOWN);
    return nothing;
}

static double next_night(const struct looked *l) { return window_next(&l->policy->window, l->now->wall_ms); }

static int used_up(double budget, double spent) { return budget > 0 && !(spent < budget); }

struct budget {
    double most, spent; /* most 0: none */
    enum reason reason;
};
/* Of a run and its night the run is told, and the night waited for. */
static struct said judge_budgets(const struct looked *l, struct budget run, struct budget night, struct budget week) {
    double wait = used_up(night.most, night.spent) ? next_night(l) : NAN;
    if (used_up(run.most, run.spent)) return said(VERDICT_STOP, run.reason, wait);
    if (used_up(night.most, night.spent)) return said(VERDICT_STOP, night.reason, wait);
    if (used_up(week.most, week.spent)) return stop(week.reason);
    return nothing;
}

static struct said judge_time(const struct looked *l) {
    struct budget run = {l->policy->seconds_run, l->spent->seconds_run, REASON_TIME_RUN};
    struct budget night = {l->policy->seconds_night, l->spent->seconds_night, REASON_TIME_NIGHT};
    struct budget week = {l->policy->seconds_week, l->spent->seconds_week, REASON_TIME_WEEK};
    return judge_budgets(l, run, night, week);
}

static struct said judge_energy(const struct looked *l) {
    double guard = l->policy->modelled_guard;
    struct budget run = {l->policy->joules_run, joules_counted(&l->spent->run, guard), REASON_ENERGY_RUN};
    struct budget night = {l->policy->joules_night, joules_counted(&l->spent->night, guard), REASON_ENERGY_NIGHT};
    struct budget week = {l->policy->joules_week, joules_counted(&l->spent->week, guard), REASON_ENERGY_WEEK};
    return judge_budgets(l, run, night, week);
}

static struct said judge_written(const struct looked *l) {
    uint64_t most = l->policy->written_night;
    if (most && l->spent->written_night >= most) return said(VERDICT_STOP, REASON_WRITTEN, next_night(l));
    return nothing;
}

static struct said (*const judges[CONDITION_COUNT])(const struct looked *) = {
    [CONDITION_POWER] = judge_power,
    [CONDITION_BATTERY] = judge_battery,
    [CONDITION_WINDOW] = judge_window,
    [CONDITION_IDLE] = judge_idle,
    [CONDITION_HEAT] = judge_heat,
    [CONDITION_PRESSURE_CPU] = judge_pressure_cpu,
    [CONDITION_PRESSURE_MEMORY] = judge_pressure_memory,
    [CONDITION_MEMORY] = judge_memory,
    [CONDITION_TIME] = judge_time,
    [CONDITION_ENERGY] = judge_energy,
    [CONDITION_WRITTEN] = judge_written,
};

/* ---- the decision ---- */

/* What is waited for is the longest wait that is known: before that nothing gets better. */
static struct said gravest(const struct looked *l) {
    struct said all[CONDITION_COUNT], worst = nothing;
    for (int i = 0; i < CONDITION_COUNT; i++) {
        all[i] = judges[i](l);
        if (all[i].verdict > worst.verdict || (all[i].verdict == worst.verdict && all[i].reason < worst.reason))
            worst = all[i];
    }
    worst.wait_s = NAN;
    for (int i = 0; i < CONDITION_COUNT; i++) {
        if (all[i].verdict == worst.verdict) worst.wait_s = fmax(worst.wait_s, all[i].wait_s);
    }
    return worst;
}

/* Threads as the policy and the cgroup's quota allow; 0: all. */
static int threads_allowed(const struct looked *l) {
    int threads = l->policy->threads;
    double cpus = ceil(l->now->cpus);
    if (cpus >= 1 && (threads <= 0 || cpus < threads)) threads = (int)fmin(cpus, THREADS_MAX);
    return threads;
}

static void allow(const struct looked *l, struct decision *out) {
    out->threads = threads_allowed(l);
    out->duty = l->policy->duty > 0 ? fmin(fmax(l->policy->duty, DUTY_MIN), 1) : 1;
    if (out->verdict != VERDICT_THROTTLE) return;
    if (l->state->cpu.harder) out->duty /= 2;
    if (out->threads <= 1) out->duty /= 2;
    if (out->threads > 1) out->threads = (out->threads + 1) / 2;
}

void policy_decide(const struct policy *policy, const struct snapshot *now, const struct spent *spent,
                   struct policy_state *state, struct decision *out) {
    struct looked l = {policy, now, spent, state};
    note(policy, now, state);
    struct said worst = gravest(&l);
    *out = (struct decision){.verdict = worst.verdict, .reason = worst.reason, .wait_s = worst.wait_s};
    if (worst.verdict <= VERDICT_THROTTLE) allow(&l, out);
    state->begun = 1;
    state->verdict = worst.verdict;
}

/* ---- for people ---- */

enum { WORDS = sizeof((struct condition_view *)0)->sensed };
static void add(char words[WORDS], const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Behind what is there; cut at WORDS - 1. */
static void add(char words[WORDS], const char *format, ...) {
    size_t used = strlen(words);
    va_list args;
    va_start(args, format);
    vsnprintf(words + used, WORDS - used, format, args);
    va_end(args);
}

/* "45 s", "12 min", "1 h 20 min" */
static void add_time(char words[WORDS], double s) {
    double minutes = floor(s / 60);
    if (!(s >= 0 && s < 1e9))
        add(words, "?");
    else if (s < 60)
        add(words, "%.0f s", floor(s));
    else if (minutes < 60 || fmod(minutes, 60) == 0)
        add(words, "%.0f %s", minutes < 60 ? minutes : minutes / 60, minutes < 60 ? "min" : "h");
    else
        add(words, "%.0f h %.0f min", floor(minutes / 60), fmod(minutes, 60));
}

static void add_joules(char words[WORDS], double joules) {
    if (joules < 1e3)
        add(words, "%.0f J", joules);
    else if (joules < 1e6)
        add(words, "%.3g kJ", joules / 1e3);
    else
        add(words, "%.4g MJ", joules / 1e6);
}

static void add_bytes(char words[WORDS], uint64_t bytes) {
    if ((double)bytes < GIB)
        add(words, "%.0f MiB", (double)bytes / MIB);
    else
        add(words, "%.1f GiB", (double)bytes / GIB);
}

static void add_share(char words[WORDS], double share) {
    if (isnan(share))
        add(words, "not known");
    else
        add(words, "tasks wait %.0f %% of the time", 100 * share);
}

typedef void (*add_amount)(char words[WORDS], double amount);
/* "run 12 min, night 1 h, week 2 h"; those without a budget are left out. */
static void add_spans(char words[WORDS], add_amount add_one, const char *between, const double budget[3],
                      const double amount[3]) {
    static const char *const names[] = {"run", "night", "week"};
    for (int i = 0; i < 3; i++) {
        if (budget[i] <= 0) continue;
        add(words, "%s%s%s", *words ? ", " : "", names[i], between);
        add_one(words, amount[i]);
    }
}

static void view_power(const struct looked *l, struct condition_view *out) {
    const struct power_snapshot *power = &l->now->power;
    const struct policy_state *state = l->state;
    if (power->supply == POWER_BATTERY)
        add(out->sensed, "on battery");
    else if (power->supply != POWER_MAINS)
        add(out->sensed, "not known");
    else
        add(out->sensed, power->discharging ? "on a charger, but the battery discharges" : "on a charger");
    if (state->charger_seen_off && state->charger_on) {
        add(out->sensed, " for ");
        add_time(out->sensed, l->now->monotonic - state->charger_since);
    }
    if (power->battery && power->percent >= 0) add(out->sensed, ", %d %%", power->percent);
    if (!l->policy->charger_required || l->policy->now) return;
    add(out->wanted, "a charger");
    if (!state->charger_seen_off) return;
    add(out->wanted, " for ");
    add_time(out->wanted, l->policy->charger_stable_s);
}

static void view_battery(const struct looked *l, struct condition_view *out) {
    const struct power_snapshot *power = &l->now->power;
    if (power->battery && power->percent >= 0)
        add(out->sensed, "%d %%", power->percent);
    else if (power->battery)
        add(out->sensed, "a battery of unknown charge");
    else
        add(out->sensed, power->supply == POWER_UNKNOWN ? "not known" : "no battery");
    if (l->policy->battery_min > 0 && !l->policy->now) add(out->wanted, "%d %% or more", l->policy->battery_min);
}

static void view_window(const struct looked *l, struct condition_view *out) {
    char window[16];
    struct tm local;
    time_t s = (time_t)(l->now->wall_ms / 1000);
    if (localtime_r(&s, &local))
        add(out->sensed, "%02d:%02d", local.tm_hour, local.tm_min);
    else
        add(out->sensed, "not known");
    window_text(&l->policy->window, window);
    if (!l->policy->now && strcmp(window, "always") != 0) add(out->wanted, "%s", window);
}

static void view_idle(const struct looked *l, struct condition_view *out) {
    double idle = l->now->idle_s;
    if (isnan(idle))
        add(out->sensed, "not known");
    else if (isinf(idle))
        add(out->sensed, "nobody is logged in");
    else {
        add(out->sensed, "nobody there for ");
        add_time(out->sensed, idle);
    }
    if (!l->policy->idle_required || l->policy->now) return;
    add(out->wanted, "nobody there for ");
    add_time(out->wanted, l->policy->idle_s);
}

static void view_heat(const struct looked *l, struct condition_view *out) {
    const struct policy *policy = l->policy;
    if (isnan(l->now->celsius))
        add(out->sensed, "not known");
    else
        add(out->sensed, "%.0f C", l->now->celsius);
    if (policy->celsius_max <= 0) return;
    if (l->state->hot)
        add(out->wanted, "below %.0f C, after %.0f C", policy->celsius_max - policy->celsius_back, policy->celsius_max);
    else
        add(out->wanted, "below %.0f C", policy->celsius_max);
}

static void view_squeeze(const struct looked *l, const struct squeeze *squeeze, double most,
                         struct condition_view *out) {
    if (most <= 0) return;
    add(out->wanted, "below %.0f %%", 100 * most);
    if (!squeeze->on) return;
    add(out->wanted, ", for ");
    add_time(out->wanted, ceil(squeeze->until - l->now->monotonic));
}

static void view_pressure_cpu(const struct looked *l, struct condition_view *out) {
    add_share(out->sensed, l->now->pressure_cpu);
    view_squeeze(l, &l->state->cpu, l->policy->pressure_cpu, out);
}

static void view_pressure_memory(const struct looked *l, struct condition_view *out) {
    add_share(out->sensed, l->now->pressure_memory);
    view_squeeze(l, &l->state->memory, l->policy->pressure_memory, out);
}

static void view_memory(const struct looked *l, struct condition_view *out) {
    if (l->now->memory_available) {
        add_bytes(out->sensed, l->now->memory_available);
        add(out->sensed, " free");
    } else
        add(out->sensed, "not known");
    if (!l->policy->memory_free) return;
    add_bytes(out->wanted, l->policy->memory_free);
    add(out->wanted, " free");
    if (!l->state->short_of_memory.on) return;
    add(out->wanted, ", for ");
    add_time(out->wanted, ceil(l->state->short_of_memory.until - l->now->monotonic));
}

static const double all_spans[3] = {1, 1, 1};

static void view_time(const struct looked *l, struct condition_view *out) {
    const double budget[] = {l->policy->seconds_run, l->policy->seconds_night, l->policy->seconds_week};
    const double spent[] = {l->spent->seconds_run, l->spent->seconds_night, l->spent->seconds_week};
    add_spans(out->sensed, add_time, " ", all_spans, spent);
    add_spans(out->wanted, add_time, " below ", budget, budget);
}

static void view_energy(const struct looked *l, struct condition_view *out) {
    const double budget[] = {l->policy->joules_run, l->policy->joules_night, l->policy->joules_week};
    const struct joules *const sums[] = {&l->spent->run, &l->spent->night, &l->spent->week};
    double spent[3];
    for (int i = 0; i < 3; i++) spent[i] = joules_counted(sums[i], l->policy->modelled_guard);
    add_spans(out->sensed, add_joules, " ", all_spans, spent);
    add_spans(out->wanted, add_joules, " below ", budget, budget);
}

static void view_written(const struct looked *l, struct condition_view *out) {
    add_bytes(out->sensed, l->spent->written_night);
    add(out->sensed, " tonight");
    if (!l->policy->written_night) return;
    add(out->wanted, "below ");
    add_bytes(out->wanted, l->policy->written_night);
}

static const struct {
    const char *name;
    void (*view)(const struct looked *, struct condition_view *);
} views[CONDITION_COUNT] = {
    [CONDITION_POWER] = {"power", view_power},
    [CONDITION_BATTERY] = {"battery", view_battery},
    [CONDITION_WINDOW] = {"window", view_window},
    [CONDITION_IDLE] = {"idle", view_idle},
    [CONDITION_HEAT] = {"heat", view_heat},
    [CONDITION_PRESSURE_CPU] = {"pressure_cpu", view_pressure_cpu},
    [CONDITION_PRESSURE_MEMORY] = {"pressure_memory", view_pressure_memory},
    [CONDITION_MEMORY] = {"memory", view_memory},
    [CONDITION_TIME] = {"time", view_time},
    [CONDITION_ENERGY] = {"energy", view_energy},
    [CONDITION_WRITTEN] = {"written", view_written},
};

void policy_explain(const struct policy *policy, const struct snapshot *now, const struct spent *spent,
                    const struct policy_state *state, struct condition_view out[CONDITION_COUNT]) {
    struct policy_state noted = *state;
    struct looked l = {policy, now, spent, &noted};
    note(policy, now, &noted);
    locale_t before = numerals_enter();
    for (int i = 0; i < CONDITION_COUNT; i++) {
        struct said said_now = judges[i](&l);
        out[i] = (struct condition_view){.name = views[i].name, .verdict = said_now.verdict, .reason = said_now.reason};
        views[i].view(&l, &out[i]);
        if (!*out[i].wanted) add(out[i].wanted, "anything");
    }
    numerals_leave(before);
}
