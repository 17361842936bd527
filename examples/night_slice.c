/* What an app does when the system gives it some minutes at night: one slice of a run, with a battery that the app
 * knows and attune cannot read. docs/guide-nightly.md tells where the calls stand on Android and iOS.
 *
 *   night_slice HOME PERCENT [unplugged]        cc night_slice.c $(pkg-config --cflags --libs attune)
 *
 * Exit code 0: the run has ended. 3: ask the system for another slice. 1: an error. */
#include "attune.h"

#include <stdio.h>
#include <stdlib.h>

/* What the system's notices put down; the words here stand in for them. */
struct battery {
    int plugged, discharging, percent, tenths; /* tenths of a degree Celsius */
    double screen_off_s;
};

static void tell(attune_device *device, void *user) {
    struct battery *battery = user; /* kept by a receiver of ACTION_BATTERY_CHANGED */
    device->power = battery->plugged ? ATTUNE_POWER_MAINS : ATTUNE_POWER_BATTERY;
    device->discharging = battery->discharging;
    device->percent = battery->percent;
    device->celsius = battery->tenths / 10.0;
    device->idle_s = battery->screen_off_s;
}

int main(int argc, char **argv) {
    attune_error err = {0};
    attune_job *job = NULL;
    attune_job_options options;
    attune_job_report report;
    if (argc < 3) {
        fprintf(stderr, "usage: night_slice HOME PERCENT [unplugged]\n");
        return 2;
    }
    struct battery battery = {.plugged = argc == 3, .discharging = argc > 3, .percent = atoi(argv[2]), .tenths = 285,
                              .screen_off_s = 3600};
    ATTUNE_INIT(options);
    ATTUNE_INIT(report);
    options.time_s = 585;
    options.background = 1;
    options.device = tell;
    options.device_user = &battery;
    int code = attune_job_open(argv[1], &options, &job, &err);
    if (code == ATTUNE_OK) code = ATTUNE_CONTINUE;
    while (code == ATTUNE_CONTINUE) code = attune_job_step(job, &err);
    if (code >= 0 && attune_job_report_get(job, &report, &err) != ATTUNE_OK) code = err.code;
    attune_job_close(job);
    if (code < 0) {
        fprintf(stderr, "night_slice: %s%s%s\n", err.message, *err.where ? ": " : "", err.where);
        return 1;
    }
    printf("%s: %s\n", report.state, report.reason);
    return code == ATTUNE_DONE ? 0 : 3;
}
