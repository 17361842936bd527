#include "cli/night_summary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading ---- */

/* Beyond them a record is damaged. */
enum { LOSS_MAX = 1000, CELSIUS_MAX = 1000 };

struct reading {
    struct nights *nights;
    int64_t since_ms, until_ms, limit;
    bool no_memory;
};

/* A record from before there was a window belongs to the night that it began in. */
static int64_t night_of(const attune_night *call) { return call->night_ms ? call->night_ms : call->started_ms; }

/* Figures that no program of ours writes count as not known: sums stay finite, and what is shown stays short. */
static double known(double value) { return value > 0 && value < (double)COUNT_MAX ? value : 0; }
static int64_t known_count(int64_t n) { return n > 0 && n < COUNT_MAX ? n : 0; }

static attune_night credible(const attune_night *from) {
    attune_night call = *from;
    call.runs = known_count(call.runs);
    call.tokens = known_count(call.tokens);
    call.steps = known_count(call.steps);
    call.marked = known_count(call.marked);
    call.pauses = known_count(call.pauses);
    if (call.written < 0 || call.written > COUNT_MAX * 1000) call.written = 0;
    call.seconds = known(call.seconds);
    call.work_seconds = known(call.work_seconds);
    call.joules_measured = known(call.joules_measured);
    call.joules_battery = known(call.joules_battery);
    call.joules_modelled = known(call.joules_modelled);
    bool judged = fabs(call.loss_before) < LOSS_MAX && fabs(call.loss_after) < LOSS_MAX;
    if (!judged) call.loss_before = call.loss_after = NAN;
    if (!(fabs(call.celsius_max) < CELSIUS_MAX)) call.celsius_max = NAN;
    return call;
}

static int on_night(const attune_night *call, void *user) {
    struct reading *r = user;
    struct nights *all = r->nights;
    if (r->since_ms && call->started_ms < r->since_ms) return 0;
    if (r->until_ms && call->started_ms >= r->until_ms) return 0;
    bool begins = all->n_calls == 0 || night_of(call) != night_of(&all->calls[all->n_calls - 1]);
    if (begins && r->limit > 0 && (int64_t)all->n == r->limit) {
        all->more = true;
        return 1;
    }
    if (all->n_calls == all->capacity) {
        size_t capacity = all->capacity ? all->capacity * 2 : 64;
        attune_night *calls = realloc(all->calls, capacity * sizeof *calls);
        r->no_memory = !calls;
        if (!calls) return 1;
        all->calls = calls;
        all->capacity = capacity;
    }
    all->calls[all->n_calls++] = credible(call);
    all->n += begins;
    return 0;
}

static bool worked(const attune_night *call) { return call->work_seconds > 0 || call->tokens > 0 || call->adapter > 0; }

static void sum_up(struct night *night) {
    const attune_night *newest = &night->calls[0];
    night->telling = NULL;
    night->night_ms = night_of(newest);
    night->started_ms = night->calls[night->n - 1].started_ms;
    night->ended_ms = newest->ended_ms;
    night->loss_before = night->loss_after = night->celsius_max = NAN;
    for (size_t i = 0; i < night->n; i++) {
        const attune_night *call = &night->calls[i];
        if (!night->telling && worked(call)) night->telling = call;
        night->runs += call->runs;
        night->tokens += call->tokens;
        night->steps += call->steps;
        night->marked += call->marked;
        night->written += call->written;
        night->pauses += call->pauses;
        night->seconds += call->seconds;
        night->work_seconds += call->work_seconds;
        night->joules_measured += call->joules_measured;
        night->joules_battery += call->joules_battery;
        night->joules_modelled += call->joules_modelled;
        night->published += call->adapter > 0;
        if (!night->adapter) night->adapter = call->adapter;
        if (isfinite(call->celsius_max) && !(call->celsius_max <= night->celsius_max))
            night->celsius_max = call->celsius_max;
        if (isfinite(night->loss_after) || !isfinite(call->loss_after)) continue;
        night->loss_before = call->loss_before;
        night->loss_after = call->loss_after;
    }
    if (!night->telling) night->telling = newest;
    night->joules = night->joules_measured + night->joules_battery + night->joules_modelled;
}

static bool group(struct nights *all) {
    size_t n = 0;
    all->items = calloc(all->n ? all->n : 1, sizeof *all->items);
    if (!all->items) return false;
    for (size_t i = 0; i < all->n_calls; i++) {
        if (i == 0 || night_of(&all->calls[i]) != night_of(&all->calls[i - 1])) all->items[n++].calls = &all->calls[i];
        all->items[n - 1].n++;
    }
    for (size_t i = 0; i < n; i++) sum_up(&all->items[i]);
    return true;
}

int cli_nights_read(const struct cli *cli, int64_t since_ms, int64_t until_ms, int64_t limit, struct nights *out) {
    attune_error err = {0};
    *out = (struct nights){.calls = NULL};
    struct reading reading = {.nights = out, .since_ms = since_ms, .until_ms = until_ms, .limit = limit};
    int code = attune_night_list(cli->home, 0, on_night, &reading, &err) == ATTUNE_OK ? CLI_GO : cli_fail(&err);
    if (code == CLI_GO && (reading.no_memory || !group(out))) code = cli_fail_text("out of memory listing the nights");
    if (code != CLI_GO) cli_nights_free(out);
    return code;
}

void cli_nights_free(struct nights *nights) {
    free(nights->calls);
    free(nights->items);
    *nights = (struct nights){.calls = NULL};
}

/* ---- words ---- */

struct words cli_night_date(int64_t ms) {
    struct words w = cli_time(ms);
    if (strlen(w.text) > 10) w.text[strlen(w.text) - strlen(" 23:05")] = '\0';
    return w;
}

struct words cli_energy(double joules) {
    struct words w;
    double wh = joules / 3600;
    if (!isfinite(wh) || wh < 0) snprintf(w.text, sizeof w.text, "-");
    else if (wh == 0) snprintf(w.text, sizeof w.text, "0 Wh");
    else if (wh < 0.1) snprintf(w.text, sizeof w.text, "%.3f Wh", wh);
    else if (wh < 10) snprintf(w.text, sizeof w.text, "%.2f Wh", wh);
    else if (wh < 100) snprintf(w.text, sizeof w.text, "%.1f Wh", wh);
    else if (wh < 1000) snprintf(w.text, sizeof w.text, "%.0f Wh", wh);
    else snprintf(w.text, sizeof w.text, "%.2f kWh", wh / 1000);
    return w;
}

const char *cli_night_known(const struct night *n) {
    int labels = (n->joules_measured > 0) + (n->joules_battery > 0) + (n->joules_modelled > 0);
    if (labels == 0) return "-";
    if (labels > 1) return "mixed";
    return n->joules_measured > 0 ? "measured" : n->joules_battery > 0 ? "battery" : "modelled";
}

void cli_energy_parts(double measured, double battery, double modelled, char *out, size_t size) {
    const struct {
        double joules;
        const char *label;
    } parts[] = {{measured, "measured"}, {battery, "from the battery"}, {modelled, "modelled"}};
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < 3 && used < size; i++)
        if (parts[i].joules > 0)
            used += (size_t)snprintf(out + used, size - used, "%s%s %s", used ? ", " : "",
                                     cli_energy(parts[i].joules).text, parts[i].label);
}

void cli_night_energy(const struct night *n, char *out, size_t size) {
    cli_energy_parts(n->joules_measured, n->joules_battery, n->joules_modelled, out, size);
    size_t used = strlen(out);
    if (n->marked > 0)
        snprintf(out + used, size - used, " (%s gap%s by the model)", cli_count(n->marked).text,
                 n->marked == 1 ? "" : "s");
}

void cli_night_ending(const struct night *n, char *out, size_t size) {
    const char *state = n->telling->state, *reason = n->telling->reason;
    bool plain = strcmp(state, "done") == 0 && reason[0];
    if (plain) snprintf(out, size, "%s", reason);
    else snprintf(out, size, "%s%s%s", state, reason[0] ? ": " : "", reason);
}

/* ---- JSON ---- */

static json_t *joules_json(double measured, double battery, double modelled) {
    return json_pack("{s:o, s:o, s:o, s:o}", "total", cli_json_number(measured + battery + modelled), "measured",
                     cli_json_number(measured), "battery", cli_json_number(battery), "modelled",
                     cli_json_number(modelled));
}

static json_t *adapter_json(int adapter) { return adapter ? json_integer(adapter) : json_null(); }

static json_t *call_json(const attune_night *c) {
    return json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:o, s:o, s:o, s:I, s:I, s:I, s:o, s:o, s:o, "
                     "s:o}",
                     "number", (json_int_t)c->number, "kind", cli_json_text(c->kind), "state", cli_json_text(c->state),
                     "reason", cli_json_text(c->reason), "started_ms", cli_json_time(c->started_ms), "ended_ms",
                     cli_json_time(c->ended_ms), "run", c->run ? json_integer(c->run) : json_null(), "runs",
                     (json_int_t)c->runs, "tokens", (json_int_t)c->tokens, "steps", (json_int_t)c->steps, "seconds",
                     cli_json_number(c->seconds), "work_seconds", cli_json_number(c->work_seconds), "joules",
                     joules_json(c->joules_measured, c->joules_battery, c->joules_modelled), "marked",
                     (json_int_t)c->marked, "written", (json_int_t)c->written, "pauses", (json_int_t)c->pauses,
                     "loss_before", cli_json_number(c->loss_before), "loss_after", cli_json_number(c->loss_after),
                     "adapter", adapter_json(c->adapter), "celsius_max", cli_json_number(c->celsius_max));
}

json_t *cli_night_json(const struct night *n) {
    json_t *calls = json_array();
    for (size_t i = 0; i < n->n; i++) json_array_append_new(calls, call_json(&n->calls[i]));
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:o, s:o, s:o, s:I, s:I, s:I, s:o, s:o, s:o, s:i, s:o, "
                     "s:o}",
                     "night_ms", cli_json_time(n->night_ms), "started_ms", cli_json_time(n->started_ms), "ended_ms",
                     cli_json_time(n->ended_ms), "state", cli_json_text(n->telling->state), "reason",
                     cli_json_text(n->telling->reason), "runs", (json_int_t)n->runs, "tokens", (json_int_t)n->tokens,
                     "steps", (json_int_t)n->steps, "seconds", cli_json_number(n->seconds), "work_seconds",
                     cli_json_number(n->work_seconds), "joules",
                     joules_json(n->joules_measured, n->joules_battery, n->joules_modelled), "marked",
                     (json_int_t)n->marked, "written", (json_int_t)n->written, "pauses", (json_int_t)n->pauses,
                     "loss_before", cli_json_number(n->loss_before), "loss_after", cli_json_number(n->loss_after),
                     "adapter", adapter_json(n->adapter), "published", n->published, "celsius_max",
                     cli_json_number(n->celsius_max), "calls", calls);
}
