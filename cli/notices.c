#include "cli/notices.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#ifdef ATTUNE_SYSTEMD
#include <systemd/sd-daemon.h>

static void notify(const char *text) { (void)sd_notify(0, text); }

static double watchdog_seconds(void) {
    uint64_t us = 0;
    return sd_watchdog_enabled(0, &us) > 0 ? 1e-6 * (double)us : 0;
}
#else
static void notify(const char *text) { (void)text; }
static double watchdog_seconds(void) { return 0; }
#endif

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A quarter: a piece of work may take nearly half of the interval, and the watchdog is fed in time all the same. */
void notices_open(struct notices *notices) {
    *notices = (struct notices){.alive_every = watchdog_seconds() / 4, .alive_at = now()};
}

void notices_ready(void) { notify("READY=1"); }
void notices_stopping(void) { notify("STOPPING=1"); }

void notices_alive(struct notices *notices) {
    if (notices->alive_every <= 0 || now() - notices->alive_at < notices->alive_every) return;
    notices->alive_at = now();
    notify("WATCHDOG=1");
}

void notices_status(struct notices *notices, const char *format, ...) {
    char text[sizeof notices->status], message[sizeof text + 8];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    text[strcspn(text, "\n")] = '\0'; /* a line each is a notice each */
    if (strcmp(text, notices->status) == 0) return;
    memcpy(notices->status, text, sizeof text);
    snprintf(message, sizeof message, "STATUS=%s", text);
    notify(message);
}
