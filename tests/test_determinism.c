/* What the bytes of an adapter do not depend on: threads, memory, pauses, and whether it was done before. On every
 * kernel table that this CPU has, in both precisions. A table is chosen once a process: each run is one of its own. */
#include "tests/home_fixture.h"

#include "core/kernels/kernels.h"

enum { ROWS = 22 };

enum allowed { AS_SET, LEAST, BETWEEN, MOST };

/* ---- a run, in a process of its own: HOME THREADS ALLOWED PRECISION PAUSE ---- */

/* A ceiling in bytes; tables need different sizes, so the process that runs asks. */
static int choose_memory(const char *home, enum allowed allowed, attune_job_options *options, attune_error *err) {
    uint64_t least, most;
    if (allowed == AS_SET) return ATTUNE_OK;
    options->memory_bytes = 1;
    int code = attune_job_memory(home, options, &least, err);
    options->memory_bytes = UINT64_C(1) << 40;
    if (code == ATTUNE_OK) code = attune_job_memory(home, options, &most, err);
    if (code == ATTUNE_OK && most < least) code = ATTUNE_ERROR_INTERNAL;
    if (allowed != MOST) options->memory_bytes = allowed == LEAST ? least : least + (most - least) / 2;
    return code;
}

static void pause_there(const attune_progress *progress, void *user) {
    struct stopper *stopper = user;
    (void)progress;
    if (++stopper->seen == stopper->units) attune_job_cancel(stopper->job);
}

static int run(char **argv) {
    struct stopper stopper = {.units = atol(argv[4])};
    attune_job_options options = job_options();
    attune_job_report report;
    attune_error err = {0};
    options.threads = atoi(argv[1]);
    options.precision = atoi(argv[3]);
    options.on_progress = stopper.units ? pause_there : NULL;
    options.user = &stopper;
    int code = choose_memory(argv[0], (enum allowed)atoi(argv[2]), &options, &err);
    if (code == ATTUNE_OK) code = attune_job_open(argv[0], &options, &stopper.job, &err);
    while (code == ATTUNE_OK || code == ATTUNE_CONTINUE) code = attune_job_step(stopper.job, &err);
    ATTUNE_INIT(report);
    if (code > 0 && attune_job_report_get(stopper.job, &report, &err) != ATTUNE_OK) code = err.code;
    attune_job_close(stopper.job);
    if (code == ATTUNE_DONE && report.published) return 0;
    if (code == ATTUNE_PAUSED && stopper.units) return 0;
    fprintf(stderr, "%d: %s (%s), %s: %s\n", code, err.message, err.where, report.state, report.reason);
    return 1;
}

static void run_in_child(const struct homes *f, int threads, enum allowed allowed, int precision, long pause) {
    shell("/proc/%d/exe run %s %d %d %d %ld", (int)getpid(), f->home, threads, (int)allowed, precision, pause);
}

/* ---- all of them end in the same bytes ---- */

struct ways {
    struct homes *f;
    int precision;
    char first[256]; /* the adapter of the first run */
    const char *kernels;
};

static void goes_the_same_way(struct ways *w, int threads, enum allowed allowed, long pause) {
    struct homes *f = w->f;
    shell("cp -a %s %s/kept", f->home, f->folder);
    if (pause) run_in_child(f, 3, AS_SET, w->precision, pause);
    run_in_child(f, threads, allowed, w->precision, 0);
    if (!*w->first) {
        snprintf(w->first, sizeof w->first, "%s/first.gguf", f->folder);
        shell("cp %s %s", adapter_path(f, 1), w->first);
    }
    if (!same_files(w->first, adapter_path(f, 1)))
        fail_msg("%s, precision %d: other bytes with %d threads, memory %d, a pause after %ld units", w->kernels,
                 w->precision, threads, (int)allowed, pause);
    shell("rm -rf %s && mv %s/kept %s", f->home, f->folder, f->home);
}

static void check_table(struct homes *f, const char *kernels, int precision) {
    struct ways ways = {.f = f, .precision = precision, .kernels = kernels};
    setenv("ATTUNE_KERNELS", kernels, 1);
    static const int threads[] = {1, 2, 3, 8, 2};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) goes_the_same_way(&ways, threads[i], AS_SET, 0);
    goes_the_same_way(&ways, 2, LEAST, 0);
    goes_the_same_way(&ways, 2, BETWEEN, 0);
    goes_the_same_way(&ways, 2, MOST, 0);
    goes_the_same_way(&ways, 1, LEAST, 6);
    goes_the_same_way(&ways, 8, MOST, 6);
    unsetenv("ATTUNE_KERNELS");
}

static void test_same_bytes(void **state) {
    struct homes *f = *state;
    make_quick_home(f, ROWS);
    set_key(f, "held_out", "0.5");
    set_key(f, "dropout", "0.1");
    set_key(f, "max_tokens", "96");
    set_key(f, "micro_tokens", "200");
    for (const struct kernels *const *k = kernels_all(); *k; k++) {
        if (!(*k)->supported()) continue;
        check_table(f, (*k)->name, ATTUNE_PRECISION_F32);
        if ((*k)->fast != (*k)->exact) check_table(f, (*k)->name, ATTUNE_PRECISION_AUTO);
    }
}

int main(int argc, char **argv) {
    if (argc == 7 && strcmp(argv[1], "run") == 0) return run(argv + 2);
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_same_bytes, homes_setup, homes_teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
