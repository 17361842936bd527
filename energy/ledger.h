/* Joules: measured where there is a counter, from the battery where it feeds the device, else modelled from CPU
 * time. Each part keeps its label. Pure bookkeeping: no files, no clock of its own. */
#ifndef ENERGY_LEDGER_H
#define ENERGY_LEDGER_H

#include "energy/policy.h"

#define LEDGER_WATTS_PER_CPU 10.0 /* where nothing was learned yet: above what a core of most devices draws */

struct ledger {
    /* Joules per second of this process's CPU time, the model's. Learned where a counter is there, from the gaps in
     * which we used at least half a CPU. A counter counts the whole package: what idles along and what others do
     * meanwhile is in it. */
    double watts_per_cpu;
    int began;              /* there is a last snapshot */
    struct snapshot last;
    struct joules joules;   /* since ledger_begin */
    double cpu_s, seconds;  /* of the same; seconds of monotonic time */
    double modelled_cpu_s;  /* the part of cpu_s that was modelled */
    int64_t marked;         /* gaps whose measure was void: longer than a wrap, a counter that went back, a suspend */

    /* ---- of ledger.c ---- */
    double open_monotonic, open_boottime, open_cpu; /* where the gap began that is not charged yet: counters that are
                                                     * polled less often than this is called have not moved since */
    double learned_s;       /* CPU seconds behind watts_per_cpu; fades */
    struct ledger_package {
        char name[32];
        uint64_t uj, range;
        double watts, watts_peak; /* its usual power lately, 0: not known; the most over a gap */
        double seen;        /* monotonic */
        int here;           /* in the snapshot that began the gap */
    } package[RAPL_PACKAGES_MAX];
    int n_packages;
};
/* watts_per_cpu that is no amount: LEDGER_WATTS_PER_CPU. */
void ledger_begin(struct ledger *ledger, double watts_per_cpu);
/* Charges what lies between the last snapshot and this one, the time awake: what the device uses while it is suspended
 * is nobody's work. Counters: the difference, over one wrap. Modelled and marked is a gap that may hold more than one
 * wrap (at 1000 W), a counter that went back without being near its range or that stands still, a package that came,
 * went or is still away (for ten minutes), and a suspend over which a counter shows less than half or more than twice
 * the usual power. No counter: battery_watts by the trapezoid while the battery discharges at both ends, at most two
 * minutes apart and with no suspend between (else modelled and marked); else the model. A snapshot that is not newer
 * than the last is passed over. */
void ledger_advance(struct ledger *ledger, const struct snapshot *now);
/* What a killed run is charged for the time that nobody saw: cpu seconds it may have used, modelled and marked.
 * Nothing where that is no amount. */
void ledger_charge_gap(struct ledger *ledger, double cpu_s);

/* ---- what work costs on this device, learned ---- */

/* One kind of work in one setting (kernel table, threads, precision, base), in whatever units the caller counts. */
struct cost {
    double seconds_per_unit, watts; /* of whole runs; 0: not known */
    double seconds_spread, watts_spread; /* relative: root mean square of how far off the predictions were; 0.25 after
                                          * the first observation, which tells none */
    double weight;                  /* of what is known, in seconds observed; fades; 0: nothing is */
};
/* Newer counts for more: half of what is known is forgotten every `COST_HALF_S` seconds of work observed. */
enum { COST_HALF_S = 1200 };
/* An observation with anything that is not finite or not above 0 is passed over. Pieces that were observed one by one
 * give the same as all of them at once. */
void cost_observe(struct cost *cost, double units, double seconds, double joules);
/* What `units` take; NaN: not known. */
double cost_seconds(const struct cost *cost, double units);
double cost_joules(const struct cost *cost, double units);

#endif
