/* What sensors may never hand on, whatever files and apps say: a number that is neither unknown nor possible. */
#ifndef TESTS_POSSIBLE_H
#define TESTS_POSSIBLE_H

#include <math.h>
#include <string.h>

#include "energy/sensors.h"

static inline int within(double value, double low, double high) { return value >= low && value <= high; }
/* NULL: every number is unknown or possible; else which one is not. */
static inline const char *impossible(const struct snapshot *s) {
    if (s->power.supply > POWER_BATTERY) return "supply";
    if (s->power.battery != 0 && s->power.battery != 1) return "battery";
    if (s->power.discharging != 0 && s->power.discharging != 1) return "discharging";
    if (s->power.percent < -1 || s->power.percent > 100) return "percent";
    if (!isnan(s->battery_watts) && !within(s->battery_watts, 0, 1e4)) return "battery_watts";
    if (!isnan(s->celsius) && !(s->celsius > -40 && s->celsius < 150)) return "celsius";
    if (!isnan(s->idle_s) && !(s->idle_s >= 0)) return "idle_s";
    if (!isnan(s->pressure_cpu) && !within(s->pressure_cpu, 0, 1)) return "pressure_cpu";
    if (!isnan(s->pressure_memory) && !within(s->pressure_memory, 0, 1)) return "pressure_memory";
    if (!isnan(s->pressure_io) && !within(s->pressure_io, 0, 1)) return "pressure_io";
    if (!isnan(s->load) && !within(s->load, 0, 1e6)) return "load";
    if (!isnan(s->cpus) && !(s->cpus > 0 && s->cpus < 1e6)) return "cpus";
    if (s->n_counters < 0 || s->n_counters > RAPL_PACKAGES_MAX) return "n_counters";
    for (int i = 0; i < s->n_counters; i++) {
        const struct energy_counter *c = &s->counter[i];
        if (!memchr(c->name, 0, sizeof c->name) || !c->name[0]) return "a counter's name";
        if (c->range == 0 || c->uj > c->range) return "a counter";
    }
    return NULL;
}

#endif
