/* The governor joins sensors, policy and ledger: a thread that looks once a second and at every uevent of the power
 * supply, and stops or slows the work through the callbacks that it was given.
 *
 * The work never waits for a sensor: it reads the last decision, and one that is older than GOVERNOR_STALE_S counts
 * as REASON_STALE. */
#ifndef ENERGY_GOVERNOR_H
#define ENERGY_GOVERNOR_H

#include "energy/ledger.h"

#define GOVERNOR_POLL_S 1.0
#define GOVERNOR_STALE_S 5.0

struct governor_options {
    struct sensors_options sensors;
    struct policy policy;
    struct spent spent;    /* of the night and the week before this run */
    double watts_per_cpu;  /* the model's */
    int event_fd;          /* readable when something changed, in place of the kernel's uevents; -1: those; -2: none, the
                            * poll alone */
    int thread;            /* 0: governor_look is called by the owner (tests, simulated time) */
    /* On the governor's thread, never twice at once. `act` at every change of verdict, duty or threads; must be
     * quick. `sample` after every look. Both nullable. */
    void (*act)(void *user, const struct decision *decision);
    void (*sample)(void *user, const struct snapshot *now, const struct decision *decision,
                   const struct ledger *ledger);
    void *user;
};
struct governor;
/* Looks once before it returns. */
int governor_open(const struct governor_options *options, struct governor **out, attune_error *err);
/* Ends the thread; one that a sensor holds for more than a second is left behind with what it uses, and ends alone. */
void governor_close(struct governor *governor);
/* One look now. From the owner where there is no thread; else asks the thread to look and waits at most a second. */
void governor_look(struct governor *governor);
/* The last decision, with staleness seen to. Any thread; never waits long. */
void governor_decision(struct governor *governor, struct decision *out);
/* The last snapshot, what was spent by now (this run's included), the state of the ledger. Any may be NULL. */
void governor_state(struct governor *governor, struct snapshot *now, struct spent *spent, struct ledger *ledger);
/* The owner tells what it has written; any thread. */
void governor_wrote(struct governor *governor, uint64_t bytes);
/* CPU seconds of the governor's own thread, looks that it took, uevents that it saw. */
struct governor_cost {
    double cpu_s;
    uint64_t looks, events;
};
void governor_cost_get(struct governor *governor, struct governor_cost *out);

#endif
