/* Nights as scripts, through sensors, policy, ledger and governor, against what was decided when they were written.
 *
 * tests/golden/timelines/NAME.script is a device and what happens to it; NAME.log, what the governor said to it, read
 * by a person before it was committed. ATTUNE_TEST_WRITE_GOLDEN=1 writes the logs anew: read what changed.
 *
 * A script has one thing a line; # begins a comment, which the log repeats where it stands behind the first `at`.
 *   device laptop|phone|desktop|bare|locked    first of all; see simulator.h
 *   kind laptop|phone|desktop                  whose policy it is; else as the device looks
 *   policy KEY VALUE                           another value in that policy: the fields of struct policy, "window" too
 *   spent KEY VALUE                            by the night or the week before: the fields of struct spent; joules_*
 *                                              measured ones
 *   timezone TZ    start YYYY-MM-DD HH:MM:SS   local time; TZ as POSIX spells it
 *   work CPUS                                  that the work keeps busy where it may
 *   model WATTS                                of a busy CPU, as the model has it
 *   look DURATION                              between two looks; at every event one is taken too
 *   for DURATION                               all of it
 *   unlimited                                  no budgets, as while the nightly job waits
 *   EVENT                                      before it begins
 *   at DURATION EVENT                          in order; by the clock that goes on while the device sleeps
 * An event is one of simulator_do's, or
 *   wrote SIZE        the work has written that
 *   blind DURATION    nobody looks for so long, and the work goes on */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "energy/governor.h"
#include "tests/expect.h"
#include "tests/simulator.h"

enum { EVENTS_MAX = 64, LINE_MAX_ = 256, LOG_MAX = 1 << 16 };

struct timeline {
    struct simulator *device;
    struct governor *governor;
    struct policy policy;
    struct spent spent;
    double work, model, look, length, blind_until;
    struct timed {
        double at;
        int line;
        char text[LINE_MAX_];
    } event[EVENTS_MAX];
    int n_events;
    double began;  /* boottime */
    double worked; /* seconds in which the work might run */
    struct decision last;
    char log[LOG_MAX];
    size_t n_log;
    char why[SIMULATOR_WHY];
};

static void say(struct timeline *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(struct timeline *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t->log + t->n_log, LOG_MAX - t->n_log, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= LOG_MAX - t->n_log) fail_msg("a log of more than %d bytes", LOG_MAX);
    t->n_log += (size_t)n;
}
static int no(struct timeline *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int no(struct timeline *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(t->why, sizeof t->why, format, args);
    va_end(args);
    return 0;
}

/* ---- scripts ---- */

enum field { REAL, WHOLE, SIZE, WINDOW };
static const struct key {
    const char *name;
    enum field field;
    size_t offset;
} policy_keys[] =
    {
#define KEY(name, field)                                                                                               \
    { #name, field, offsetof(struct policy, name) }
        KEY(window, WINDOW),       KEY(charger_required, WHOLE),
        KEY(battery_min, WHOLE),   KEY(charger_stable_s, REAL),
        KEY(idle_required, WHOLE), KEY(idle_s, REAL),
        KEY(celsius_max, REAL),    KEY(celsius_back, REAL),
        KEY(pressure_cpu, REAL),   KEY(pressure_memory, REAL),
        KEY(memory_free, SIZE),    KEY(without_sensors, WHOLE),
        KEY(duty, REAL),           KEY(threads, WHOLE),
        KEY(seconds_run, REAL),    KEY(seconds_night, REAL),
        KEY(seconds_week, REAL),   KEY(joules_run, REAL),
        KEY(joules_night, REAL),   KEY(joules_week, REAL),
        KEY(modelled_guard, REAL), KEY(written_night, SIZE),
        KEY(now, WHOLE),           {NULL, REAL, 0},
#undef KEY
},
  spent_keys[] = {
#define KEY(name, field, member)                                                                                       \
    { name, field, offsetof(struct spent, member) }
      KEY("seconds_night", REAL, seconds_night), KEY("seconds_week", REAL, seconds_week),
      KEY("joules_night", REAL, night.measured), KEY("joules_week", REAL, week.measured),
      KEY("written_night", SIZE, written_night), {NULL, REAL, 0},
#undef KEY
};

static int set_key(struct timeline *t, const struct key *keys, void *object, const char *name, const char *value) {
    while (keys->name && strcmp(keys->name, name) != 0) keys++;
    if (!keys->name) return no(t, "no such key: \"%.30s\"", name);
    void *field = (char *)object + keys->offset;
    double real;
    if (keys->field == SIZE ? simulator_size(value, field) : keys->field == WINDOW && window_parse(value, field))
        return 1;
    if ((keys->field == REAL || keys->field == WHOLE) && simulator_real(value, 0, 1e12, &real)) {
        if (keys->field == REAL)
            *(double *)field = real;
        else
            *(int *)field = (int)real;
        return 1;
    }
    return no(t, "%s cannot be \"%.40s\"", name, value);
}

static int set_kind(struct timeline *t, const char *name) {
    static const char *const kinds[] = {
        [DEVICE_LAPTOP] = "laptop", [DEVICE_PHONE] = "phone", [DEVICE_DESKTOP] = "desktop"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(kinds[i], name) != 0) continue;
        policy_default((enum device_kind)i, &t->policy);
        return 1;
    }
    return no(t, "a kind is laptop, phone or desktop, not \"%.30s\"", name);
}
static int set_start(struct timeline *t, const char *text) {
    struct tm tm = {.tm_isdst = -1};
    int used = 0;
    if (sscanf(text, "%4d-%2d-%2d %2d:%2d:%2d%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour, &tm.tm_min,
               &tm.tm_sec, &used) != 6 ||
        text[used])
        return no(t, "start YYYY-MM-DD HH:MM:SS, not \"%.40s\"", text);
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    time_t seconds = mktime(&tm);
    if (seconds == (time_t)-1) return no(t, "no such time: \"%.40s\"", text);
    t->device->wall_ms = (int64_t)seconds * 1000;
    return 1;
}
static int set_device(struct timeline *t, const char *name) {
    static const char *const kinds[] = {"laptop", "phone", "desktop"};
    if (t->device) return no(t, "a second device");
    t->device = simulator_open(name);
    if (!t->device) return no(t, "no such device: \"%.30s\"", name);
    return set_kind(t, kinds[device_detect(t->device->sys)]);
}
static int positive(struct timeline *t, const char *text, double *out) {
    return simulator_duration(text, out) && *out > 0 ? 1 : no(t, "a duration above 0, not \"%.40s\"", text);
}

static int set_line(struct timeline *t, char *text) {
    char *first = text, *rest = strchr(text, ' ');
    char name[32];
    rest = rest ? rest + 1 : text + strlen(text);
    size_t n = rest > text && rest[-1] == ' ' ? (size_t)(rest - text) - 1 : strlen(text);
#define IS(word) (n == sizeof word - 1 && memcmp(first, word, n) == 0)
    if (IS("device")) return set_device(t, rest);
    if (!t->device) return no(t, "the device stands first");
    if (IS("kind")) return set_kind(t, rest);
    if (IS("start")) return set_start(t, rest);
    if (IS("timezone")) return *rest && setenv("TZ", rest, 1) == 0 ? (tzset(), 1) : no(t, "timezone TZ");
    if (IS("work")) return simulator_real(rest, 0, 64, &t->work) ? 1 : no(t, "CPUs, not \"%.40s\"", rest);
    if (IS("model")) return simulator_real(rest, 0, 1000, &t->model) ? 1 : no(t, "watts, not \"%.40s\"", rest);
    if (IS("look")) return positive(t, rest, &t->look);
    if (IS("unlimited") && !*rest) {
        struct policy *p = &t->policy;
        p->seconds_run = p->seconds_night = p->seconds_week = p->joules_run = p->joules_night = p->joules_week = 0;
        return 1;
    }
    if (IS("for")) return positive(t, rest, &t->length);
    if (IS("policy") || IS("spent")) {
        char *value = strchr(rest, ' ');
        if (!value || (size_t)(value - rest) >= sizeof name) return no(t, "%.6s KEY VALUE", first);
        snprintf(name, sizeof name, "%.*s", (int)(value - rest), rest);
        return IS("policy") ? set_key(t, policy_keys, &t->policy, name, value + 1)
                            : set_key(t, spent_keys, &t->spent, name, value + 1);
    }
#undef IS
    return simulator_do(t->device, text, t->why);
}

static int add_event(struct timeline *t, char *text, int line) {
    char *what = strchr(text, ' ');
    if (t->n_events == EVENTS_MAX) return no(t, "more than %d events", EVENTS_MAX);
    struct timed *event = &t->event[t->n_events];
    if (what) *what++ = 0;
    if (!what || !simulator_duration(text, &event->at)) return no(t, "at DURATION EVENT");
    if (t->n_events > 0 && event->at < event[-1].at) return no(t, "events stand in order of time");
    event->line = line;
    strcpy(event->text, what);
    t->n_events++;
    return 1;
}

/* 1; 0 with the line's number in front of the reason. */
static int parse(struct timeline *t, const char *script) {
    char text[LINE_MAX_], why[SIMULATOR_WHY];
    int line = 0, good = 1;
    setenv("TZ", "UTC0", 1);
    tzset();
    while (good && *script) {
        size_t n = strcspn(script, "\n");
        line++;
        if (n >= sizeof text) {
            good = no(t, "a line of %zu characters", n);
            break;
        }
        memcpy(text, script, n);
        text[n] = 0;
        script += n + (script[n] == '\n');
        if (n > 0 && text[n - 1] == ' ')
            good = no(t, "a blank at the end");
        else if (n == 0 || text[0] == '#')
            continue;
        else if (strncmp(text, "at ", 3) == 0)
            good = t->device ? add_event(t, text + 3, line) : no(t, "the device stands first");
        else if (t->n_events > 0)
            good = no(t, "behind the first `at` all lines begin with it");
        else
            good = set_line(t, text);
    }
    if (good && !(t->length > 0)) good = no(t, "no `for`");
    if (good && t->n_events > 0 && t->event[t->n_events - 1].at > t->length) good = no(t, "an event behind the end");
    if (good) return 1;
    memcpy(why, t->why, sizeof why);
    return no(t, "line %d: %.140s", line, why);
}

static struct timeline *timeline_new(void) {
    struct timeline *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->work = 2;
    t->model = 5;
    t->look = 1;
    return t;
}
static void timeline_free(struct timeline *t) {
    governor_close(t->governor);
    simulator_close(t->device);
    free(t);
    unsetenv("TZ");
    tzset();
}

/* ---- running them ---- */

static double elapsed(const struct timeline *t) { return t->device->boottime - t->began; }

static const char *clock_text(double seconds, char out[16]) {
    long s = (long)floor(seconds + 1e-6);
    snprintf(out, 16, "%02ld:%02ld:%02ld", s / 3600 % 1000, s / 60 % 60, s % 60);
    return out;
}
static const char *local_text(int64_t ms, char out[40]) {
    time_t seconds = (time_t)(ms / 1000);
    struct tm tm;
    localtime_r(&seconds, &tm);
    strftime(out, 40, "%d %b %H:%M:%S %z", &tm);
    return out;
}

static void say_decision(struct timeline *t, const struct decision *d) {
    char at[16], local[40], wait[16] = "-", threads[16] = "all";
    struct snapshot now;
    struct ledger ledger;
    governor_state(t->governor, &now, NULL, &ledger);
    if (!isnan(d->wait_s)) snprintf(wait, sizeof wait, "%.0f", d->wait_s);
    if (d->threads > 0) snprintf(threads, sizeof threads, "%d", d->threads);
    if (d->duty == 0) strcpy(threads, "-");
    say(t, "%s  %s  %-8s %-16s %4.2f %3s %6s %10.1f %9.1f %9.1f %2lld\n", clock_text(elapsed(t), at),
        local_text(t->device->wall_ms, local), verdict_name(d->verdict), reason_name(d->reason), d->duty, threads, wait,
        ledger.joules.measured, ledger.joules.battery, ledger.joules.modelled, (long long)ledger.marked);
}
static void look(struct timeline *t, int first) {
    struct decision d;
    if (!first) governor_look(t->governor);
    governor_decision(t->governor, &d);
    if (first || d.verdict != t->last.verdict || d.reason != t->last.reason || d.duty != t->last.duty ||
        d.threads != t->last.threads)
        say_decision(t, &d);
    t->last = d;
}

static double busy_cpus(const struct timeline *t) {
    double cpus = t->last.threads > 0 && t->last.threads < t->work ? t->last.threads : t->work;
    return t->last.verdict == VERDICT_RUN || t->last.verdict == VERDICT_THROTTLE ? cpus * t->last.duty : 0;
}

static int happen(struct timeline *t, const char *text) {
    uint64_t bytes;
    double seconds;
    if (strncmp(text, "wrote ", 6) == 0) {
        if (!simulator_size(text + 6, &bytes)) return no(t, "a size, not \"%.40s\"", text + 6);
        governor_wrote(t->governor, bytes);
        return 1;
    }
    if (strncmp(text, "blind ", 6) == 0) {
        if (!positive(t, text + 6, &seconds)) return 0;
        t->blind_until = elapsed(t) + seconds;
        return 1;
    }
    return simulator_do(t->device, text, t->why);
}

static void run(struct timeline *t, const char *name) {
    char at[16];
    double looked;
    int next = 0;
    struct governor_options options = {.sensors = {.sys_root = t->device->sys,
                                                   .proc_root = t->device->proc,
                                                   .run_root = t->device->run,
                                                   .device = t->device->app ? simulator_tell : NULL,
                                                   .device_user = t->device,
                                                   .clock = &t->device->clock},
                                       .policy = t->policy,
                                       .spent = t->spent,
                                       .watts_per_cpu = t->model,
                                       .event_fd = -2};
    t->began = t->device->boottime;
    say(t, "at        local time             verdict  reason           duty thr   wait   measured   battery  modelled "
           "marked\n");
    OK(governor_open(&options, &t->governor, &err));
    look(t, 1);
    looked = 0;
    while (elapsed(t) < t->length - 1e-6) {
        double to = fmin(looked + t->look, t->length), cpus = busy_cpus(t);
        int due = 0;
        if (next < t->n_events) to = fmin(to, t->event[next].at);
        if (to > elapsed(t)) {
            if (cpus > 0) t->worked += to - elapsed(t);
            simulator_pass(t->device, to - elapsed(t), cpus);
        }
        for (; next < t->n_events && t->event[next].at <= elapsed(t) + 1e-6; next++, due = 1) {
            say(t, "%s  > %s\n", clock_text(elapsed(t), at), t->event[next].text);
            if (!happen(t, t->event[next].text)) fail_msg("%s, line %d: %s", name, t->event[next].line, t->why);
        }
        if (!due && elapsed(t) < looked + t->look - 1e-6) continue;
        looked = elapsed(t);
        if (looked >= t->blind_until) look(t, 0);
    }
}

static void say_end(struct timeline *t) {
    struct spent spent;
    struct ledger ledger;
    char at[16];
    governor_look(t->governor);
    governor_state(t->governor, NULL, &spent, &ledger);
    const struct joules *joules = &ledger.joules;
    say(t, "%s  end: worked %.0f s, %.0f s of CPU; the device took %.1f J\n", clock_text(elapsed(t), at), t->worked,
        t->device->cpu, t->device->joules);
    say(t, "          charged: %.1f J = %.1f measured + %.1f battery + %.1f modelled (%.0f s of CPU), %lld marked\n",
        joules_sum(joules), joules->measured, joules->battery, joules->modelled, ledger.modelled_cpu_s,
        (long long)ledger.marked);
    say(t, "          run %.0f s, night %.0f s %.1f J, week %.0f s %.1f J, written %llu\n", spent.seconds_run,
        spent.seconds_night, joules_sum(&spent.night), spent.seconds_week, joules_sum(&spent.week),
        (unsigned long long)spent.written_night);
}

/* ---- golden logs ---- */

/* NULL: there is no such file. */
static char *whole_file(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *text = calloc(1, LOG_MAX + 1);
    assert_non_null(text);
    size_t n = fread(text, 1, LOG_MAX, f);
    assert_true(n < LOG_MAX && strlen(text) == n);
    fclose(f);
    return text;
}

enum { LINES_MAX = 400 };
static int cut_lines(char *text, char *line[LINES_MAX]) {
    int n = 0;
    char *save = NULL;
    for (char *at = text; (at = strtok_r(at, "\n", &save)) && n < LINES_MAX; at = NULL) line[n++] = at;
    return n;
}
/* As diff does it: what both have in the same order stays, by the longest common subsequence. */
static void print_difference(char *wanted, char *got) {
    static int common[LINES_MAX + 1][LINES_MAX + 1];
    static char *a[LINES_MAX], *b[LINES_MAX];
    int n = cut_lines(wanted, a), m = cut_lines(got, b), i = 0, j = 0;
    memset(common, 0, sizeof common);
    for (int p = n - 1; p >= 0; p--)
        for (int q = m - 1; q >= 0; q--)
            common[p][q] = strcmp(a[p], b[q]) == 0               ? common[p + 1][q + 1] + 1
                           : common[p + 1][q] > common[p][q + 1] ? common[p + 1][q]
                                                                 : common[p][q + 1];
    while (i < n || j < m) {
        if (i < n && j < m && strcmp(a[i], b[j]) == 0)
            i++, j++;
        else if (i < n && (j == m || common[i + 1][j] >= common[i][j + 1]))
            printf("-%s\n", a[i++]);
        else
            printf("+%s\n", b[j++]);
    }
}

static void test_script(void **state) {
    const char *path = *state, *name = strrchr(path, '/') + 1;
    char log[1024];
    struct timeline *t = timeline_new();
    char *script = whole_file(path);
    assert_non_null(script);
    if (!parse(t, script)) fail_msg("%s, %s", name, t->why);
    run(t, name);
    say_end(t);
    snprintf(log, sizeof log, "%.*slog", (int)(strlen(path) - strlen("script")), path);
    if (getenv("ATTUNE_TEST_WRITE_GOLDEN")) {
        FILE *f = fopen(log, "w");
        assert_non_null(f);
        assert_true(fputs(t->log, f) >= 0);
        assert_int_equal(fclose(f), 0);
    }
    char *wanted = whole_file(log);
    if (!wanted) fail_msg("%s has no log beside it: ATTUNE_TEST_WRITE_GOLDEN=1 writes it", name);
    if (strcmp(wanted, t->log) != 0) {
        print_difference(wanted, t->log);
        fail_msg("%s: other decisions than its log has (-: the log, +: now)", name);
    }
    free(wanted);
    free(script);
    timeline_free(t);
}

/* ---- the scripts' language ---- */

#define BEGIN "device laptop\nfor 1m\n"
static void test_language(void **state) {
    static const struct {
        const char *script, *why;
    } bad[] = {
        {"", "line 0: no `for`"},
        {"device laptop\n", "line 1: no `for`"},
        {"for 1m\n", "line 1: the device stands first"},
        {"at 1 plug\n", "line 1: the device stands first"},
        {"device toaster\n", "line 1: no such device: \"toaster\""},
        {"device laptop\ndevice phone\n", "line 2: a second device"},
        {BEGIN "kind toaster\n", "line 3: a kind is laptop, phone or desktop, not \"toaster\""},
        {BEGIN "plug \n", "line 3: a blank at the end"},
        {BEGIN "plug in\n", "line 3: plug: too few or too many words"},
        {BEGIN "explode\n", "line 3: nothing that is called \"explode\" can happen"},
        {BEGIN "work -1\n", "line 3: CPUs, not \"-1\""},
        {BEGIN "work 0x2\n", "line 3: CPUs, not \"0x2\""},
        {BEGIN "model nan\n", "line 3: watts, not \"nan\""},
        {BEGIN "look 0\n", "line 3: a duration above 0, not \"0\""},
        {BEGIN "look 1:60:00\n", "line 3: a duration above 0, not \"1:60:00\""},
        {BEGIN "policy battery 3\n", "line 3: no such key: \"battery\""},
        {BEGIN "policy battery_min\n", "line 3: policy KEY VALUE"},
        {BEGIN "policy battery_min much\n", "line 3: battery_min cannot be \"much\""},
        {BEGIN "policy window 25:00-07:00\n", "line 3: window cannot be \"25:00-07:00\""},
        {BEGIN "spent written_night 1T\n", "line 3: written_night cannot be \"1T\""},
        {BEGIN "start 2024-03-30\n", "line 3: start YYYY-MM-DD HH:MM:SS, not \"2024-03-30\""},
        {BEGIN "timezone\n", "line 3: timezone TZ"},
        {BEGIN "battery 101 full\n", "line 3: a battery's charge is a whole number up to 100, not \"101\""},
        {BEGIN "battery 50 tired\n",
         "line 3: a battery is charging, discharging, full, held or unknown, not \"tired\""},
        {BEGIN "zone 2 50000\n", "line 3: this device has zones 0 to 1, not \"2\""},
        {BEGIN "zone 0 hot\n", "line 3: millidegrees, not \"hot\""},
        {BEGIN "zone 0 50000 in 3m\n", "line 3: zone N MILLIDEGREES over DURATION"},
        {BEGIN "pressure heart 3\n", "line 3: pressure is of cpu, memory or io, not \"heart\""},
        {BEGIN "rapl up\n", "line 3: rapl range JOULES or rapl back"},
        {BEGIN "clock 1h\n", "line 3: clock +DURATION or -DURATION, not \"1h\""},
        {BEGIN "app idle long\n", "line 3: a duration, not \"long\""},
        {BEGIN "app happy\n", "line 3: no app happy"},
        {BEGIN "vanish /sys/class\n", "line 3: a path below sys/, proc/ or run/, not \"/sys/class\""},
        {BEGIN "vanish sys/../../etc\n", "line 3: a path below sys/, proc/ or run/, not \"sys/../../etc\""},
        {BEGIN "return sys/class\n", "line 3: nothing has happened to \"sys/class\""},
        {BEGIN "at 5s\n", "line 3: at DURATION EVENT"},
        {BEGIN "at soon plug\n", "line 3: at DURATION EVENT"},
        {BEGIN "at 9 plug\nat 8 plug\n", "line 4: events stand in order of time"},
        {BEGIN "at 9 plug\nwork 1\n", "line 4: behind the first `at` all lines begin with it"},
        {BEGIN "at 61 plug\n", "line 3: an event behind the end"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct timeline *t = timeline_new();
        if (parse(t, bad[i].script)) fail_msg("taken: %s", bad[i].script);
        assert_string_equal(t->why, bad[i].why);
        timeline_free(t);
    }
    struct timeline *t = timeline_new();
    assert_true(
        parse(t, "# a night\ndevice phone\n\npolicy window 22:00-07:00\nstart 2024-01-01 00:00:05\nfor 01:00:00.5\n"
                 "at 3m unplug\nat 00:03:00.5 plug\nat 1h blind 3s\n"));
    assert_int_equal(t->n_events, 3);
    assert_true(t->length == 3600.5 && t->event[1].at == 180.5 && t->event[2].at == 3600);
    assert_int_equal(t->device->wall_ms, INT64_C(1704067205000));
    assert_int_equal(t->policy.window.from, 22 * 60);
    timeline_free(t);
}

/* What nobody can be asked about as the script is read is found when it happens. */
static void test_bad_event(void **state) {
    struct timeline *t = timeline_new();
    (void)state;
    t->device = simulator_open("desktop");
    assert_non_null(t->device);
    assert_false(happen(t, "unplug"));
    assert_string_equal(t->why, "this device has no charger");
    assert_false(happen(t, "blind for ever"));
    assert_false(happen(t, "wrote much"));
    timeline_free(t);
}

int main(void) {
    glob_t found = {0};
    struct CMUnitTest *tests;
    size_t n = 0;
    if (glob(ATTUNE_TEST_ROOT "/tests/golden/timelines/*.script", 0, NULL, &found) != 0) return 1;
    tests = calloc(found.gl_pathc + 2, sizeof *tests);
    if (!tests) return 1;
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_language);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_bad_event);
    for (size_t i = 0; i < found.gl_pathc; i++)
        tests[n++] = (struct CMUnitTest){
            .name = strrchr(found.gl_pathv[i], '/') + 1, .test_func = test_script, .initial_state = found.gl_pathv[i]};
    int failed = _cmocka_run_group_tests("timelines", tests, n, NULL, NULL);
    free(tests);
    globfree(&found);
    return failed;
}
