/* May the device be used now? A pure function of what is sensed, what was spent, what is wanted and what was said
 * last. Knows nothing of models, SQL or threads. */
#ifndef ENERGY_POLICY_H
#define ENERGY_POLICY_H

#include "energy/sensors.h"
#include "energy/window.h"

enum device_kind { DEVICE_LAPTOP, DEVICE_PHONE, DEVICE_DESKTOP };
/* What a battery says about the device, with the chassis where firmware tells it (sys_root/class/dmi). */
enum device_kind device_detect(const char *sys_root);

struct policy {
    struct window window;
    int charger_required, battery_min;    /* battery_min: per cent */
    double charger_stable_s;              /* on a charger for so long before it starts again, after it was off one */
    int idle_required;
    double idle_s;                        /* nobody there for so long */
    double celsius_max, celsius_back;     /* pause at max, go on at max - back; max 0: not looked at */
    double pressure_cpu, pressure_memory; /* PSI shares: throttle at the first, pause at the second; 0: not looked at */
    uint64_t memory_free;                 /* bytes that must be left to others; 0: not looked at */
    int without_sensors;                  /* what counts where a wanted sensor is not there at all: 1 go on, 0 stop. The
                                           * power supply, when a charger is required, is never done without */
    double duty;                          /* share of the time that is used, 0.05 to 1 */
    int threads;                          /* at most; 0: all */
    /* budgets, 0: none. Of the night and the week what the ledger has is counted. */
    double seconds_run, seconds_night, seconds_week;
    double joules_run, joules_night, joules_week;
    double modelled_guard;                /* joules that are modelled count so much more: 1.15 */
    uint64_t written_night;               /* bytes */
    int now;                              /* 1: window, charger, battery and idleness are not asked; the rest holds */
};
/* For each kind of device: docs/guide-nightly.md has them as a table. */
void policy_default(enum device_kind kind, struct policy *out);

/* What the ledger and the caller's clock have. */
struct spent {
    double seconds_run, seconds_night, seconds_week;
    struct joules {
        double measured, battery, modelled;
    } run, night, week;
    uint64_t written_night;
};
double joules_counted(const struct joules *joules, double modelled_guard);
double joules_sum(const struct joules *joules);

/* THROTTLE: fewer threads or less of the time. PAUSE: soon again, keep what is in memory. STOP: end for now. */
enum verdict { VERDICT_RUN, VERDICT_THROTTLE, VERDICT_PAUSE, VERDICT_STOP };
enum reason {
    REASON_NONE,
    REASON_STALE,          /* the sensors do not answer: set by the governor */
    REASON_POWER_UNKNOWN, REASON_NO_CHARGER, REASON_DISCHARGING, REASON_CHARGER_FLAPS, REASON_BATTERY_LOW,
    REASON_BATTERY_UNKNOWN, REASON_WINDOW, REASON_IN_USE, REASON_IDLE_UNKNOWN, REASON_HOT, REASON_HEAT_UNKNOWN,
    REASON_PRESSURE_CPU, REASON_PRESSURE_MEMORY, REASON_MEMORY_SHORT, REASON_PRESSURE_UNKNOWN,
    REASON_TIME_RUN, REASON_TIME_NIGHT, REASON_TIME_WEEK, REASON_ENERGY_RUN, REASON_ENERGY_NIGHT, REASON_ENERGY_WEEK,
    REASON_WRITTEN,
    REASON_COUNT
};
const char *verdict_name(enum verdict verdict); /* "run", "throttle", "pause", "stop" */
const char *reason_name(enum reason reason);    /* short and stable, for records: "no_charger" */
const char *reason_text(enum reason reason);    /* for people: "not on a charger" */

/* Between decisions; zeroed at first. Its times are monotonic: what the device slept through was seen by nobody, and
 * makes neither a charger stable nor a machine relaxed. */
struct policy_state {
    int begun;             /* a decision was made */
    enum verdict verdict;  /* the last */
    int charger_on;        /* at the last look: online, and the battery does not discharge */
    int charger_seen_off;  /* at some look: by then, it has to be stable before anything starts */
    double charger_since;  /* the first look that saw it on again; with charger_on */
    int hot;               /* paused for heat, until it is cooler by celsius_back */
    /* Held for a while after the last look that showed the cause. */
    struct squeeze {
        int on, harder;       /* harder: it went on in spite of what was done */
        double since, until;
    } cpu, memory, short_of_memory;
};
struct decision {
    enum verdict verdict;
    enum reason reason;
    double duty;   /* 0 unless RUN or THROTTLE */
    int threads;   /* 0: all */
    double wait_s; /* it cannot get better before so long: the window opens, the charger is stable; NaN: not known */
};
/* A squeezed CPU gets half of the threads back; after SQUEEZE_HARDER_S half of the time too. Where half of the threads
 * cannot be told (0: all) or had (1), half of the time goes first, then half of that. */
#define SQUEEZE_HOLD_S 30.0   /* PSI's means are of 10 s */
#define SQUEEZE_HARDER_S 30.0
#define SHORT_HOLD_S 300.0    /* to begin again takes memory again */
/* The gravest condition is told: STOP before PAUSE before THROTTLE; of one gravity the first of enum reason. A run
 * stops, and gives its memory back, for what lasts; it pauses for heat and for stalls on memory.
 *
 * What is not known is not good: a charger that cannot be seen is none, a sum that is NaN has used up its budget. A
 * look that sees no charger (or a weak one: online, and the battery discharges) stops at once, and from then on the
 * charger has to be stable; a device that was never seen without one starts at once. */
void policy_decide(const struct policy *policy, const struct snapshot *now, const struct spent *spent,
                   struct policy_state *state, struct decision *out);

/* Every condition by itself, for people: name, what is sensed, what is wanted, what it would say now. In the order of
 * enum condition. */
enum condition { CONDITION_POWER, CONDITION_BATTERY, CONDITION_WINDOW, CONDITION_IDLE, CONDITION_HEAT,
                 CONDITION_PRESSURE_CPU, CONDITION_PRESSURE_MEMORY, CONDITION_MEMORY, CONDITION_TIME,
                 CONDITION_ENERGY, CONDITION_WRITTEN, CONDITION_COUNT };
struct condition_view {
    const char *name;               /* "power" */
    char sensed[96], wanted[96];    /* "on a charger, 83 %", "a charger" */
    enum verdict verdict;
    enum reason reason;
};
void policy_explain(const struct policy *policy, const struct snapshot *now, const struct spent *spent,
                    const struct policy_state *state, struct condition_view out[CONDITION_COUNT]);

#endif
