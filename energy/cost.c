/* What a unit of work takes here, from what it took. */
#include <math.h>

#include "energy/ledger.h"

#define SPREAD_FIRST 0.25 /* one observation tells no spread: this stands for it, and fades with it */
#define ERROR_MOST 4.0    /* relative error of a prediction, so that one mishap does not hide all that follows */

static int is_amount(double x) { return isfinite(x) && x > 0; }

static int is_known(const struct cost *cost) {
    return is_amount(cost->weight) && is_amount(cost->seconds_per_unit) && is_amount(cost->watts);
}

/* The spread is the root mean square of how far off the predictions were. */
static double spread_of(double spread, double predicted, double seen, double old, double fresh) {
    double off = fmin(fabs(seen / predicted - 1), ERROR_MOST);
    double before = isfinite(spread) ? spread : SPREAD_FIRST;
    return sqrt((old * before * before + fresh * off * off) / (old + fresh));
}

/* Seconds count for 2^(-age / COST_HALF_S), those of a long observation each by its own age: it makes no difference
 * whether a run is told in one piece or in many. */
void cost_observe(struct cost *cost, double units, double seconds, double joules) {
    double per_unit = seconds / units, watts = joules / seconds;
    if (!is_amount(units) || !is_amount(seconds) || !is_amount(joules) || !is_amount(per_unit) || !is_amount(watts))
        return;
    double keep = exp2(-seconds / COST_HALF_S), fresh = (1 - keep) * COST_HALF_S / M_LN2;
    if (!is_amount(fresh)) return;
    if (!is_known(cost)) {
        *cost = (struct cost){.seconds_per_unit = per_unit, .watts = watts, .seconds_spread = SPREAD_FIRST,
                              .watts_spread = SPREAD_FIRST, .weight = fresh};
        return;
    }
    double old = cost->weight * keep, all = old + fresh;
    cost->seconds_spread = spread_of(cost->seconds_spread, cost->seconds_per_unit, per_unit, old, fresh);
    cost->watts_spread = spread_of(cost->watts_spread, cost->watts, watts, old, fresh);
    cost->seconds_per_unit = all / (old / cost->seconds_per_unit + fresh / per_unit);
    cost->watts = (old * cost->watts + fresh * watts) / all;
    cost->weight = all;
}

double cost_seconds(const struct cost *cost, double units) {
    return is_known(cost) && isfinite(units) && units >= 0 ? units * cost->seconds_per_unit : NAN;
}

double cost_joules(const struct cost *cost, double units) { return cost_seconds(cost, units) * cost->watts; }
