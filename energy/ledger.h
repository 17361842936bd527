/* Joules: measured where there is a counter, from the battery where it feeds the device, else modelled from CPU
 * time. Each part keeps its label. Pure bookkeeping: no files, no clock of its own. */
#ifndef ENERGY_LEDGER_H
#define ENERGY_LEDGER_H

#include "energy/policy.h"

struct ledger {
    double watts_per_cpu;   /* joules per second of CPU time, the model's; learned where a counter is there */
    int began;              /* there is a last snapshot */
    struct snapshot last;
    struct joules joules;   /* since ledger_begin */
    double cpu_s, seconds;  /* of the same; seconds of monotonic time */
    double modelled_cpu_s;  /* the part of cpu_s that was modelled */
    int64_t marked;         /* gaps whose measure was void: longer than a wrap, a counter that went back, a suspend */
};
void ledger_begin(struct ledger *ledger, double watts_per_cpu);
/* Charges what lies between the last snapshot and this one. Counters: the difference, over one wrap; a gap that may
 * hold more than one wrap, a counter that went back without being near its range, packages that come or go, are
 * modelled and marked. No counter: battery_watts by the trapezoid while the battery discharges at both ends; else the
 * model. */
void ledger_advance(struct ledger *ledger, const struct snapshot *now);
/* What a killed run is charged for the time that nobody saw: cpu seconds it may have used, modelled and marked. */
void ledger_charge_gap(struct ledger *ledger, double cpu_s);

/* ---- what work costs on this device, learned ---- */

/* One kind of work in one setting (kernel table, threads, precision, base), in whatever units the caller counts. */
struct cost {
    double seconds_per_unit, watts; /* of whole runs; 0: not known */
    double seconds_spread, watts_spread; /* relative, of the last observations */
    double weight;                  /* of what is known, in seconds observed; fades */
};
/* Newer counts for more: half of what is known is forgotten every `COST_HALF_S` seconds of work observed. */
enum { COST_HALF_S = 1200 };
void cost_observe(struct cost *cost, double units, double seconds, double joules);
/* What `units` take; NaN: not known. */
double cost_seconds(const struct cost *cost, double units);
double cost_joules(const struct cost *cost, double units);

#endif
