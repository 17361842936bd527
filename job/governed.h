/* A job under the governor: may it go on, does the next piece end inside every budget, what did it cost.
 *
 * Joins energy/governor.h, the night's row (datastore/nights.h) and what work costs on this device. None of it reaches
 * an adapter's bytes: it decides when a unit begins or is dropped, never what is in it. */
#ifndef JOB_GOVERNED_H
#define JOB_GOVERNED_H

#include "datastore/nights.h"
#include "energy/governor.h"
#include "job/phases.h"

/* With the home's settings, store and pool there: looks once, and from then on a thread looks. */
int governed_open(attune_job *job, attune_error *err);
/* Ends the night's row, keeps what was learned of costs, ends the thread. Fine where it was not opened. */
void governed_close(attune_job *job);

/* The caller keeps one row for several jobs: this one adds its figures to *night, which was begun (or will be, before
 * the first step), and leaves kind, state, reason, started and ended as they are. Before the first step; borrowed until
 * the job is closed. */
void governed_adopt_night(attune_job *job, struct store_night *night);
/* What killed rows are charged: a store_night_callback. */
struct governed_killed {
    double watts_per_cpu;
    int threads;
};
void governed_charge_killed(struct store_night *night, void *killed);
/* Begins the row, once, if there is none: there is something to do. */
int governed_begin_night(attune_job *job, attune_error *err);

/* ---- before a piece of work ---- */

/* Why nothing may run now; NULL: it may. Cheap; lives until the next call. */
const char *governed_reason(attune_job *job);
/* The last decision, for whoever has to know whether it is worth waiting. */
void governed_decision(const attune_job *job, struct decision *out);
/* Somebody, or the governor, wants the work to stop. Any thread. */
int governed_stopped(const attune_job *job);
/* Why what was under way was cancelled. */
const char *governed_cancel_reason(attune_job *job);
/* Seconds of work that every budget and the window leave; INFINITY: nothing limits it. */
double governed_seconds_left(const attune_job *job);
/* There is a limit. */
int governed_limited(const attune_job *job);
/* Why a piece of so many seconds may not begin, with what keeping it takes; NULL: it may. first: nothing was done in
 * this call. */
const char *governed_budget_reason(attune_job *job, double seconds, int first);
/* Why a run is not worth opening: less is left than planning and one step take, as earlier nights know; NULL: it is, or
 * nobody knows. */
const char *governed_start_reason(attune_job *job);
/* Seconds that a checkpoint takes here, and whether another one, beside the last that a stop needs, fits into what may
 * be written tonight. */
double governed_checkpoint_seconds(const attune_job *job);
int governed_may_write(const attune_job *job, int checkpoints);

/* ---- around it ---- */

/* Compute begins, predicted to take so long (0: not known), and ends. */
void governed_work_begin(attune_job *job, double seconds);
void governed_work_end(attune_job *job);
/* A checkpoint took so long. */
void governed_checkpointed(attune_job *job, double seconds);
/* After each step of the job: what was written, the night's row where it is time. code: what the step gives; failure
 * (nullable): the message of its error. */
int governed_note(attune_job *job, int code, const char *failure, attune_error *err);
/* One look now, and what follows from it. For tests, and whoever knows that something has changed. */
void governed_look(attune_job *job);

/* ---- what work costs, learned by earlier calls ---- */

/* Work a second, training or judging; 0: not known. */
double governed_pace(const attune_job *job, int training);
/* So well that a plan needs no measurement. */
int governed_pace_trusted(const attune_job *job);

/* Of a job that would be opened with so many threads (0: as the settings say). ATTUNE_ERROR_NOT_FOUND: not known. */
int governed_cost(attune_store *store, const struct settings *settings, int threads, int training,
                  struct store_cost *out, attune_error *err);
/* What the night that now belongs to, and the last seven days, have spent as their rows say. */
int governed_spent(attune_store *store, const struct window *window, struct spent *out, attune_error *err);

void governed_report(const attune_job *job, attune_job_report *report);

#endif
