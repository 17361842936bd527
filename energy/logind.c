/* org.freedesktop.login1(5): the manager's IdleHint says whether all sessions are idle, IdleSinceHintMonotonic since
 * when, in microseconds of CLOCK_MONOTONIC. Sessions of other classes than "user" are a login screen, cron, a daemon.
 *
 * sd_bus_call waits for a connection without an end, so calls are sent and the answers waited for here, with one
 * deadline for all that a look asks. */
#include "energy/sensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef ATTUNE_SYSTEMD
#include <systemd/sd-bus.h>
#include <time.h>

#define LOOK_S 0.1
#define RETRY_S 60.0
enum { SESSIONS_MAX = 64, SESSION_PATH_MAX = 200 };

struct logind {
    char *address;
    sd_bus *bus;      /* NULL: not connected */
    double failed_at; /* monotonic time of the last connection that failed; NaN: none has */
    double deadline;  /* of this look, of real time */
};

static double real_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* D-Bus specification, server addresses: bytes other than these are written as %xx. */
static char *bus_address(const char *run_root) {
    static const char prefix[] = "unix:path=", suffix[] = "/dbus/system_bus_socket";
    char *address = malloc(sizeof prefix + 3 * strlen(run_root) + sizeof suffix);
    if (!address) return NULL;
    char *p = address + sprintf(address, "%s", prefix);
    for (const char *c = run_root; *c; c++) {
        int plain =
            (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || strchr("-_/.", *c);
        p += sprintf(p, plain ? "%c" : "%%%02x", (unsigned char)*c);
    }
    strcpy(p, suffix);
    return address;
}

struct logind *logind_open(const char *run_root) {
    struct logind *logind = calloc(1, sizeof *logind);
    if (!logind) return NULL;
    logind->failed_at = NAN;
    logind->address = bus_address(run_root);
    if (logind->address) return logind;
    free(logind);
    return NULL;
}

void logind_close(struct logind *logind) {
    if (!logind) return;
    sd_bus_close_unref(logind->bus);
    free(logind->address);
    free(logind);
}

static int connect_bus(struct logind *logind) {
    sd_bus *bus = NULL;
    if (sd_bus_new(&bus) < 0) return 0;
    if (sd_bus_set_address(bus, logind->address) >= 0 && sd_bus_set_bus_client(bus, 1) >= 0 && sd_bus_start(bus) >= 0) {
        logind->bus = bus;
        return 1;
    }
    sd_bus_unref(bus);
    return 0;
}

/* ---- one call and its answer ---- */

static int keep_reply(sd_bus_message *reply, void *user, sd_bus_error *error) {
    (void)error;
    *(sd_bus_message **)user = sd_bus_message_ref(reply);
    return 1;
}

/* Sends and waits until the deadline. NULL: no answer. The message is released. */
static sd_bus_message *ask(struct logind *logind, sd_bus_message *message) {
    sd_bus_message *reply = NULL;
    sd_bus_slot *slot = NULL;
    int code = sd_bus_message_set_auto_start(message, 0);
    if (code >= 0) code = sd_bus_call_async(logind->bus, &slot, message, keep_reply, &reply, 0);
    while (code >= 0 && !reply) {
        code = sd_bus_process(logind->bus, NULL);
        double left = logind->deadline - real_now();
        if (code < 0 || reply || left <= 0) break;
        if (code == 0) code = sd_bus_wait(logind->bus, (uint64_t)(left * 1e6) + 1);
    }
    sd_bus_slot_unref(slot);
    sd_bus_message_unref(message);
    return reply;
}

static sd_bus_message *new_call(struct logind *logind, const char *path, const char *interface, const char *member) {
    sd_bus_message *message = NULL;
    int code = sd_bus_message_new_method_call(logind->bus, &message, "org.freedesktop.login1", path, interface, member);
    return code < 0 ? NULL : message;
}

enum answer { ANSWER_NONE, ANSWER_GONE, ANSWER_OK }; /* GONE: there is no such object any more */

static enum answer get_property(struct logind *logind, const char *path, const char *interface, const char *name,
                                const char *type, void *out, size_t size) {
    enum answer answer = ANSWER_NONE;
    const void *value = NULL;
    sd_bus_message *message = new_call(logind, path, "org.freedesktop.DBus.Properties", "Get"), *reply;
    if (!message) return ANSWER_NONE;
    if (sd_bus_message_append(message, "ss", interface, name) < 0) {
        sd_bus_message_unref(message);
        return ANSWER_NONE;
    }
    reply = ask(logind, message);
    if (!reply) return ANSWER_NONE;
    if (sd_bus_message_is_method_error(reply, SD_BUS_ERROR_UNKNOWN_OBJECT) > 0 ||
        sd_bus_message_is_method_error(reply, "org.freedesktop.login1.NoSuchSession") > 0)
        answer = ANSWER_GONE;
    else if (sd_bus_message_is_method_error(reply, NULL) <= 0 &&
             sd_bus_message_enter_container(reply, SD_BUS_TYPE_VARIANT, type) > 0) {
        if (*type == 's') {
            if (sd_bus_message_read_basic(reply, 's', &value) > 0) {
                snprintf(out, size, "%s", (const char *)value);
                answer = ANSWER_OK;
            }
        } else if (sd_bus_message_read_basic(reply, *type, out) > 0) {
            answer = ANSWER_OK;
        }
    }
    sd_bus_message_unref(reply);
    return answer;
}

/* ---- what is asked ---- */

/* Their object paths. -1: no answer, or more than anybody needs. */
static int list_sessions(struct logind *logind, char paths[SESSIONS_MAX][SESSION_PATH_MAX]) {
    const char *path;
    int n = 0, more = 0;
    sd_bus_message *reply,
        *message = new_call(logind, "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "ListSessions");
    reply = message ? ask(logind, message) : NULL;
    if (!reply) return -1;
    if (sd_bus_message_is_method_error(reply, NULL) > 0 || sd_bus_message_enter_container(reply, 'a', "(susso)") <= 0)
        n = -1;
    while (n >= 0 && (more = sd_bus_message_read(reply, "(susso)", NULL, NULL, NULL, NULL, &path)) > 0) {
        if (n == SESSIONS_MAX || strlen(path) >= SESSION_PATH_MAX)
            n = -1;
        else
            strcpy(paths[n++], path);
    }
    sd_bus_message_unref(reply);
    return more < 0 ? -1 : n;
}

/* 1: somebody is logged in; 0: nobody; -1: not known. */
static int somebody_there(struct logind *logind) {
    char paths[SESSIONS_MAX][SESSION_PATH_MAX], class[32];
    int n = list_sessions(logind, paths);
    for (int i = 0; i < n; i++) {
        enum answer answer =
            get_property(logind, paths[i], "org.freedesktop.login1.Session", "Class", "s", class, sizeof class);
        if (answer == ANSWER_NONE) return -1;
        /* "user-early" and "user-light" are people too */
        if (answer == ANSWER_OK && (strcmp(class, "user") == 0 || strncmp(class, "user-", 5) == 0)) return 1;
    }
    return n < 0 ? -1 : 0;
}

static double idle_seconds(struct logind *logind, const struct snapshot *now) {
    static const char path[] = "/org/freedesktop/login1", manager[] = "org.freedesktop.login1.Manager";
    uint64_t since_us = 0;
    int idle = 0, there = somebody_there(logind);
    if (there < 0) return NAN;
    if (!there) return INFINITY;
    if (get_property(logind, path, manager, "IdleHint", "b", &idle, sizeof idle) != ANSWER_OK) return NAN;
    if (!idle) return 0;
    if (get_property(logind, path, manager, "IdleSinceHintMonotonic", "t", &since_us, sizeof since_us) != ANSWER_OK)
        return NAN;
    if (since_us == 0) return NAN; /* idle, but since when was never noted */
    return fmax(0, now->monotonic - (double)since_us * 1e-6);
}

double logind_idle(struct logind *logind, const struct snapshot *now) {
    if (!logind) return NAN;
    double waited = now->monotonic - logind->failed_at;
    if (!logind->bus && waited >= 0 && waited < RETRY_S) return NAN;
    logind->deadline = real_now() + LOOK_S;
    double idle = NAN;
    if (logind->bus || connect_bus(logind)) {
        idle = idle_seconds(logind, now);
        /* A bus that answers, if only that there is no logind, stays. */
        if (isnan(idle) && (sd_bus_is_ready(logind->bus) <= 0 || real_now() >= logind->deadline))
            logind->bus = sd_bus_close_unref(logind->bus);
    }
    if (!logind->bus) logind->failed_at = now->monotonic;
    return idle;
}

#else

struct logind *logind_open(const char *run_root) {
    (void)run_root;
    return NULL;
}
void logind_close(struct logind *logind) { (void)logind; }
double logind_idle(struct logind *logind, const struct snapshot *now) {
    (void)logind;
    (void)now;
    return NAN;
}

#endif
