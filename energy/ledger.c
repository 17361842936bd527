/* Joules, gap by gap. A gap is measured by all packages or by none: what one of them cannot tell is modelled for all,
 * as a sum of measured and modelled parts would carry no honest label.
 *
 * RAPL (Linux: Documentation/power/powercap/powercap.rst): energy_uj counts up to max_energy_range_uj and begins again
 * at 0. It stands still, goes on or begins at 0 while the device is suspended, depending on the firmware, and says
 * nothing about which. What a package has used lately decides what can be believed. */
#include "energy/ledger.h"

#include <math.h>
#include <string.h>

#define WATTS_MAX 1000.0  /* of a package: no sound one draws more, so that no gap is measured that could hold two wraps */
/* A counter that went back was at its range if its package used less than the most of these; else it began anew. */
#define WRAP_WATTS 100.0
#define WRAP_USUAL 2.0    /* times its usual power */
#define WRAP_PEAK 1.25    /* times the most power that it was seen to draw over a gap */
#define AWAKE_TIMES 2.0   /* over a suspend a counter is believed within so many times its usual power, awake */
#define USUAL_S 30.0      /* seconds over which the usual power is taken */
#define SUSPEND_S 0.5     /* boottime that is so much ahead of monotonic time was a suspend */
#define STANDS_S 2.0      /* a counter that stands still for so long counts nothing: a package draws power when idle */
#define GONE_S 600.0      /* a package that was not seen for so long is not waited for any more */
#define BATTERY_GAP_S 120.0 /* two readings of a battery that are further apart tell nothing about what was between */

/* Learning: weights are seconds of CPU time of this process. */
#define LEARN_SHARE 0.5   /* of one CPU that we must have used: below, the counter tells of others */
#define LEARN_TIMES 3.0   /* a gap moves the model as if it were off by no more than so many times */
#define LEARN_FIRST_S 10.0
#define LEARN_MOST_S 300.0
#define LEARN_LOW 0.01
#define LEARN_HIGH 1000.0

static double amount(double x) { return isfinite(x) && x > 0 ? x : 0; }

/* From the last look that closed a gap until now. */
struct gap {
    double seconds, cpu; /* awake; of CPU time */
    int slept;
};

static struct gap gap_until(const struct ledger *ledger, const struct snapshot *now) {
    struct gap gap = {.seconds = now->monotonic - ledger->open_monotonic, .cpu = amount(now->cpu - ledger->open_cpu)};
    gap.slept = now->boottime - ledger->open_boottime - gap.seconds > SUSPEND_S;
    return gap;
}

/* ---- counters ---- */

static int is_sound(const struct energy_counter *counter) {
    return counter->range > 0 && counter->uj <= counter->range && memchr(counter->name, 0, sizeof counter->name);
}

static double wrap_watts(const struct ledger_package *package) {
    return package->watts == 0 ? WATTS_MAX
                               : fmax(fmax(package->watts * WRAP_USUAL, package->watts_peak * WRAP_PEAK), WRAP_WATTS);
}

static struct ledger_package *package_of(struct ledger *ledger, const struct energy_counter *counter) {
    for (int i = 0; i < ledger->n_packages; i++)
        if (strcmp(ledger->package[i].name, counter->name) == 0) return &ledger->package[i];
    return NULL;
}

static const struct energy_counter *counter_of(const struct snapshot *now, const struct ledger_package *package) {
    for (int i = 0; i < now->n_counters; i++)
        if (is_sound(&now->counter[i]) && strcmp(now->counter[i].name, package->name) == 0) return &now->counter[i];
    return NULL;
}

/* 0: not to be believed. */
static int joules_of(const struct ledger_package *package, const struct energy_counter *counter, const struct gap *gap,
                     double *joules) {
    double usual = package->watts * gap->seconds;
    if (counter->range != package->range) return 0;
    if (WATTS_MAX * gap->seconds >= (double)counter->range * 1e-6) return 0;
    int back = counter->uj < package->uj;
    uint64_t uj = back ? package->range - package->uj + counter->uj + 1 : counter->uj - package->uj;
    *joules = (double)uj * 1e-6;
    if (uj == 0 && gap->seconds >= STANDS_S) return 0;
    if (*joules > WATTS_MAX * gap->seconds) return 0;
    if (gap->slept) return usual > 0 && *joules >= usual / AWAKE_TIMES && *joules <= usual * AWAKE_TIMES;
    return !back || *joules <= wrap_watts(package) * gap->seconds;
}

static int has_moved(const struct ledger *ledger, const struct snapshot *now) {
    if (now->n_counters != ledger->n_packages) return 1;
    for (int i = 0; i < ledger->n_packages; i++) {
        const struct energy_counter *counter = counter_of(now, &ledger->package[i]);
        if (!counter || counter->uj != ledger->package[i].uj || counter->range != ledger->package[i].range) return 1;
    }
    return 0;
}

/* Sensors are polled less often than the ledger is asked: until the counters move the gap stays open. */
static int waits(const struct ledger *ledger, const struct snapshot *now, const struct gap *gap) {
    return ledger->n_packages > 0 && gap->seconds < STANDS_S && !has_moved(ledger, now);
}

/* All packages, each from its last reading; 0: one of them cannot tell, or one came that was not there. */
static int measure(struct ledger *ledger, const struct snapshot *now, const struct gap *gap, double *joules) {
    double part[RAPL_PACKAGES_MAX];
    *joules = 0;
    if (now->n_counters != ledger->n_packages) return 0;
    for (int i = 0; i < ledger->n_packages; i++) {
        const struct energy_counter *counter = counter_of(now, &ledger->package[i]);
        if (!counter || !ledger->package[i].here || !joules_of(&ledger->package[i], counter, gap, &part[i])) return 0;
        *joules += part[i];
    }
    for (int i = 0; i < ledger->n_packages; i++) {
        struct ledger_package *package = &ledger->package[i];
        double watts = part[i] / gap->seconds, share = gap->seconds / (gap->seconds + USUAL_S);
        package->watts = package->watts == 0 ? watts : package->watts + (watts - package->watts) * share;
        package->watts_peak = fmax(package->watts_peak, watts);
    }
    return 1;
}

static void forget_gone(struct ledger *ledger, const struct snapshot *now) {
    int kept = 0;
    for (int i = 0; i < ledger->n_packages; i++)
        if (!(now->monotonic - ledger->package[i].seen > GONE_S)) ledger->package[kept++] = ledger->package[i];
    ledger->n_packages = kept;
}

/* The next gap begins here. A counter that stood still is not there: when it moves it may tell at once what was
 * modelled meanwhile. */
static void open_gap(struct ledger *ledger, const struct snapshot *now) {
    int long_ago = now->monotonic - ledger->open_monotonic >= STANDS_S;
    ledger->open_monotonic = now->monotonic;
    ledger->open_boottime = now->boottime;
    ledger->open_cpu = now->cpu;
    for (int i = 0; i < ledger->n_packages; i++) ledger->package[i].here = 0;
    for (int i = 0; i < now->n_counters && i < RAPL_PACKAGES_MAX; i++) {
        const struct energy_counter *counter = &now->counter[i];
        if (!is_sound(counter)) continue;
        struct ledger_package *package = package_of(ledger, counter);
        if (!package && ledger->n_packages == RAPL_PACKAGES_MAX) continue;
        if (!package) {
            package = &ledger->package[ledger->n_packages++];
            memset(package, 0, sizeof *package);
            strcpy(package->name, counter->name);
            package->uj = ~counter->uj;
        }
        package->here = !long_ago || package->uj != counter->uj;
        package->uj = counter->uj;
        package->range = counter->range;
        package->seen = now->monotonic;
    }
    forget_gone(ledger, now);
}

/* ---- charging ---- */

static void charge_model(struct ledger *ledger, double cpu) {
    ledger->joules.modelled += cpu * ledger->watts_per_cpu;
    ledger->modelled_cpu_s += cpu;
}

/* A mean over CPU time that fades; single gaps, in which others worked, pull it by a bounded amount only. */
static void learn(struct ledger *ledger, const struct gap *gap, double joules) {
    double *watts = &ledger->watts_per_cpu;
    if (gap->slept || joules <= 0 || gap->cpu < LEARN_SHARE * gap->seconds) return;
    double seen = fmin(fmax(joules / gap->cpu, *watts / LEARN_TIMES), *watts * LEARN_TIMES);
    *watts += (seen - *watts) * gap->cpu / (ledger->learned_s + gap->cpu);
    *watts = fmin(fmax(*watts, LEARN_LOW), LEARN_HIGH);
    ledger->learned_s = fmin(ledger->learned_s + gap->cpu, LEARN_MOST_S);
}

static void charge_counters(struct ledger *ledger, const struct snapshot *now, const struct gap *gap) {
    double joules = 0;
    if (measure(ledger, now, gap, &joules)) {
        ledger->joules.measured += joules;
        learn(ledger, gap, joules);
    } else {
        charge_model(ledger, gap->cpu);
        ledger->marked++;
    }
}

static void charge_battery_or_model(struct ledger *ledger, const struct snapshot *now, const struct gap *gap) {
    double before = amount(ledger->last.battery_watts), after = amount(now->battery_watts);
    int known = before > 0 && after > 0;
    if (known && !gap->slept && gap->seconds <= BATTERY_GAP_S) {
        ledger->joules.battery += (before + after) / 2 * gap->seconds;
        return;
    }
    charge_model(ledger, gap->cpu);
    ledger->marked += known;
}

void ledger_begin(struct ledger *ledger, double watts_per_cpu) {
    memset(ledger, 0, sizeof *ledger);
    ledger->watts_per_cpu = amount(watts_per_cpu);
    if (ledger->watts_per_cpu == 0) ledger->watts_per_cpu = LEDGER_WATTS_PER_CPU;
    ledger->watts_per_cpu = fmin(fmax(ledger->watts_per_cpu, LEARN_LOW), LEARN_HIGH);
    ledger->learned_s = LEARN_FIRST_S;
}

void ledger_advance(struct ledger *ledger, const struct snapshot *now) {
    if (!isfinite(now->monotonic) || (ledger->began && now->monotonic <= ledger->last.monotonic)) return;
    if (ledger->began) {
        struct gap gap = gap_until(ledger, now);
        ledger->seconds += now->monotonic - ledger->last.monotonic;
        ledger->cpu_s += amount(now->cpu - ledger->last.cpu);
        if (waits(ledger, now, &gap)) {
            ledger->last = *now;
            return;
        }
        if (ledger->n_packages > 0 || now->n_counters > 0)
            charge_counters(ledger, now, &gap);
        else
            charge_battery_or_model(ledger, now, &gap);
    }
    open_gap(ledger, now);
    ledger->last = *now;
    ledger->began = 1;
}

void ledger_charge_gap(struct ledger *ledger, double cpu_s) {
    double cpu = amount(cpu_s);
    if (cpu == 0) return;
    charge_model(ledger, cpu);
    ledger->cpu_s += cpu;
    ledger->marked++;
}
