/* What a timer calls at night: one training run within an hour, or a part of one.
 *
 *   nightly_job [HOME]            cc nightly_job.c $(pkg-config --cflags --libs attune)
 *
 * Exit code 0: the run has ended, published or refused. 3: not finished, or not now; call again. 1: an error. */
#include "attune.h"

#include <signal.h>
#include <stdio.h>

enum { FINISHED = 0, FAILED = 1, AGAIN = 3 };

/* For the handler: set before it is installed, and the job outlives it. */
static attune_job *volatile running;

static void on_terminate(int number) {
    (void)number;
    attune_job_cancel(running);
}

static void on_signals(void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

/* A line for each tenth of the run. */
static void on_progress(const attune_progress *now, void *user) {
    int64_t *shown = user, tenth = now->total > 0 ? 10 * now->done / now->total : 0;
    if (tenth == *shown) return;
    *shown = tenth;
    fprintf(stderr, "%3lld %%  %s, %.0f s left\n", (long long)(10 * tenth), now->phase, now->seconds_left);
}

static int fail(const attune_error *err) {
    fprintf(stderr, "nightly_job: %s%s%s\n", err->message, *err->where ? ": " : "", err->where);
    return err->code == ATTUNE_ERROR_BUSY ? AGAIN : FAILED; /* another job is at it already */
}

int main(int argc, char **argv) {
    attune_error err = {0};
    attune_job *job = NULL;
    attune_job_options options;
    attune_job_report report;
    const char *home = argc > 1 ? argv[1] : NULL;
    int64_t shown = -1; /* tenths */
    ATTUNE_INIT(options);
    ATTUNE_INIT(report);
    options.time_s = 3600;
    options.on_progress = on_progress;
    options.user = &shown;
    if (attune_job_open(home, &options, &job, &err) != ATTUNE_OK) return fail(&err);
    running = job;
    on_signals(on_terminate);

    int code;
    do code = attune_job_step(job, &err);
    while (code == ATTUNE_CONTINUE);

    on_signals(SIG_DFL);
    if (code >= 0) code = attune_job_report_get(job, &report, &err) == ATTUNE_OK ? code : err.code;
    attune_job_close(job);
    if (code < 0) return fail(&err);
    printf("%s: %s\n", report.state, report.reason);
    if (report.published)
        printf("adapter %d: held-out loss %.3f before, %.3f after, over %lld rows\n", report.adapter,
               report.loss_before, report.loss_after, (long long)report.held_out);
    return code == ATTUNE_DONE ? FINISHED : AGAIN;
}
