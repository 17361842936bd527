/* Idleness as logind tells it, with a thread of the test as the system bus and logind in one. */
#include "tests/sensor_tree.h"

#include <math.h>

#include "energy/sensors.h"

#ifdef ATTUNE_SYSTEMD
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-bus.h>
#include <time.h>

/* ---- the other end ---- */

enum behaviour {
    ANSWERS,
    NO_LOGIND,     /* the bus is there, the service is not */
    MUTE,          /* logind hangs */
    SILENT,        /* the bus hangs: nobody even greets */
    NOISE,         /* what comes is no D-Bus */
    SLAMS,         /* hangs up */
    OTHER_TYPES,   /* answers with what was not asked for */
    DENIES
};
static struct {
    atomic_int behaviour, idle, going, connections, calls, started_by_us;
    atomic_ullong since_us;
    int n_sessions, gone; /* gone: the session that is listed, but not there any more; -1: none. Set before looking */
    const char *class[80];
    int listener;
    pthread_t thread;
} peer;

static int deny(sd_bus_message *m) {
    return sd_bus_reply_method_errorf(m, SD_BUS_ERROR_ACCESS_DENIED, "no");
}

static int reply_sessions(sd_bus_message *m) {
    sd_bus_message *reply = NULL;
    int code = sd_bus_message_new_method_return(m, &reply);
    if (code >= 0) code = sd_bus_message_open_container(reply, 'a', "(susso)");
    for (int i = 0; code >= 0 && i < peer.n_sessions; i++) {
        char path[64];
        snprintf(path, sizeof path, "/org/freedesktop/login1/session/s%d", i);
        code = sd_bus_message_append(reply, "(susso)", "c1", 1000u, "somebody", "seat0", path);
    }
    if (code >= 0) code = sd_bus_message_close_container(reply);
    if (code >= 0) code = sd_bus_send(NULL, reply, NULL);
    sd_bus_message_unref(reply);
    return code;
}

static int reply_property(sd_bus_message *m) {
    const char *interface, *name;
    int session = -1;
    if (sd_bus_message_read(m, "ss", &interface, &name) < 0) return deny(m);
    if (strcmp(name, "Class") == 0) {
        if (sscanf(sd_bus_message_get_path(m), "/org/freedesktop/login1/session/s%d", &session) != 1) return deny(m);
        if (session == peer.gone) return sd_bus_reply_method_errorf(m, SD_BUS_ERROR_UNKNOWN_OBJECT, "gone");
        return sd_bus_reply_method_return(m, "v", "s", peer.class[session]);
    }
    if (strcmp(name, "IdleHint") == 0) return sd_bus_reply_method_return(m, "v", "b", atomic_load(&peer.idle));
    if (strcmp(name, "IdleSinceHintMonotonic") == 0)
        return sd_bus_reply_method_return(m, "v", "t", (uint64_t)atomic_load(&peer.since_us));
    return deny(m);
}

static int on_message(sd_bus_message *m, void *user, sd_bus_error *error) {
    (void)user, (void)error;
    if (sd_bus_message_is_method_call(m, "org.freedesktop.DBus", "Hello"))
        return sd_bus_reply_method_return(m, "s", ":1.7");
    atomic_fetch_add(&peer.calls, 1);
    if (sd_bus_message_get_auto_start(m)) atomic_fetch_add(&peer.started_by_us, 1);
    switch (atomic_load(&peer.behaviour)) {
    case MUTE: return 1;
    case NO_LOGIND: return sd_bus_reply_method_errorf(m, SD_BUS_ERROR_SERVICE_UNKNOWN, "nobody of that name");
    case DENIES: return deny(m);
    case OTHER_TYPES: return sd_bus_reply_method_return(m, "as", 1, "surprise");
    default: break;
    }
    if (sd_bus_message_is_method_call(m, "org.freedesktop.login1.Manager", "ListSessions")) return reply_sessions(m);
    if (sd_bus_message_is_method_call(m, "org.freedesktop.DBus.Properties", "Get")) return reply_property(m);
    return deny(m);
}

static void hold(int fd) {
    char bytes[256];
    while (atomic_load(&peer.going)) {
        struct pollfd p = {fd, POLLIN, 0};
        if (poll(&p, 1, 10) > 0 && read(fd, bytes, sizeof bytes) <= 0) break;
    }
    close(fd);
}

static void serve(int fd) {
    sd_bus *bus = NULL;
    sd_id128_t id = {{1}};
    if (sd_bus_new(&bus) < 0) return;
    int code = sd_bus_set_fd(bus, fd, fd);
    if (code >= 0) code = sd_bus_set_server(bus, 1, id);
    if (code >= 0) code = sd_bus_add_filter(bus, NULL, on_message, NULL);
    if (code >= 0) code = sd_bus_start(bus);
    while (code >= 0 && atomic_load(&peer.going)) {
        code = sd_bus_process(bus, NULL);
        if (code == 0) code = sd_bus_wait(bus, 10000);
    }
    sd_bus_close_unref(bus);
}

static void *be_the_bus(void *user) {
    static const char noise[] = "HTTP/1.1 200 OK\r\n\r\n\0\xff\xfe and more that is nothing\r\n";
    (void)user;
    while (atomic_load(&peer.going)) {
        struct pollfd p = {peer.listener, POLLIN, 0};
        int fd = poll(&p, 1, 10) > 0 ? accept(peer.listener, NULL, NULL) : -1;
        if (fd < 0) continue;
        atomic_fetch_add(&peer.connections, 1);
        switch (atomic_load(&peer.behaviour)) {
        case SILENT: hold(fd); break;
        case NOISE:
            if (send(fd, noise, sizeof noise, MSG_NOSIGNAL) > 0) hold(fd);
            break;
        case SLAMS: close(fd); break;
        default: serve(fd);
        }
    }
    return NULL;
}

static int setup(void **state) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (tree_setup(state) != 0) return -1;
    tree_folders("run %1/dbus/x");
    snprintf(address.sun_path, sizeof address.sun_path, "%s/run %%1/dbus/system_bus_socket", tree_root);
    memset(&peer, 0, sizeof peer);
    peer.gone = -1;
    peer.class[0] = "user";
    peer.n_sessions = 1;
    peer.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    atomic_store(&peer.going, 1);
    if (bind(peer.listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(peer.listener, 8) != 0) return -1;
    return pthread_create(&peer.thread, NULL, be_the_bus, NULL);
}
static int teardown(void **state) {
    atomic_store(&peer.going, 0);
    pthread_join(peer.thread, NULL);
    close(peer.listener);
    return tree_teardown(state);
}

static struct logind *open_here(void) {
    struct logind *logind = logind_open(in_tree("run %1")); /* bytes that an address has to escape */
    assert_non_null(logind);
    return logind;
}
static double idle_at(struct logind *logind, double monotonic) {
    struct snapshot now = {.monotonic = monotonic};
    return logind_idle(logind, &now);
}
/* The deadline is real: a loaded machine may miss it once, and is asked again a minute later by the test's clock. */
static void expect(struct logind *logind, double *monotonic, double wanted) {
    double seen = NAN;
    for (int i = 0; i < 50; i++, *monotonic += 61) {
        seen = idle_at(logind, *monotonic);
        double should = wanted < 0 ? *monotonic + wanted : wanted; /* below 0: idle since then */
        if (isnan(wanted) ? isnan(seen) : seen == should || fabs(seen - should) < 1e-6) return;
    }
    fail_msg("idle for %f s, wanted %f", seen, wanted);
}

/* ---- ---- */

static void test_idle(void **state) {
    (void)state;
    double at = 1000;
    struct logind *logind = open_here();
    atomic_store(&peer.idle, 0);
    atomic_store(&peer.since_us, 5000000);
    expect(logind, &at, 0);
    atomic_store(&peer.idle, 1);
    expect(logind, &at, -5.0);
    atomic_store(&peer.since_us, 0); /* since when was never noted */
    expect(logind, &at, NAN);
    atomic_store(&peer.since_us, (uint64_t)1e15); /* in the future */
    expect(logind, &at, 0);
    atomic_store(&peer.since_us, UINT64_MAX);
    expect(logind, &at, 0);
    assert_int_equal(atomic_load(&peer.started_by_us), 0);
    assert_true(atomic_load(&peer.calls) > 0);
    logind_close(logind);
}

static void test_sessions(void **state) {
    (void)state;
    static const struct {
        const char *class[3];
        int n, gone;
        double wanted;
    } table[] = {{{NULL}, 0, -1, INFINITY},
                 {{"greeter"}, 1, -1, INFINITY},
                 {{"manager", "background", "lock-screen"}, 3, -1, INFINITY},
                 {{"greeter", "user"}, 2, -1, 0},
                 {{"user-early"}, 1, -1, 0},
                 {{"users"}, 1, -1, INFINITY},
                 {{"user"}, 1, 0, INFINITY}, /* has just left */
                 {{"user", "user"}, 2, 0, 0}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        double at = 1000;
        memcpy(peer.class, table[i].class, sizeof table[i].class);
        peer.n_sessions = table[i].n;
        peer.gone = table[i].gone;
        struct logind *logind = open_here();
        expect(logind, &at, table[i].wanted);
        logind_close(logind);
    }
    for (int i = 0; i < 80; i++) peer.class[i] = "greeter";
    peer.gone = -1;
    peer.n_sessions = 65;
    double at = 1000;
    struct logind *logind = open_here();
    expect(logind, &at, NAN);
    logind_close(logind);
}

/* Whatever is at the other end: unknown, soon, and not asked again for a minute where the bus itself is bad. */
static void test_bad_ends(void **state) {
    (void)state;
    static const enum behaviour bad[] = {NO_LOGIND, MUTE, SILENT, NOISE, SLAMS, OTHER_TYPES, DENIES};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct timespec from, to;
        atomic_store(&peer.behaviour, (int)bad[i]);
        struct logind *logind = open_here();
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (int look = 0; look < 3; look++) assert_true(isnan(idle_at(logind, 1000 + look)));
        clock_gettime(CLOCK_MONOTONIC, &to);
        if (to.tv_sec - from.tv_sec > 30) fail_msg("behaviour %d held up the look", (int)bad[i]);
        logind_close(logind);
    }
}

/* A bus that hangs costs one look in a minute; and then it may be well again. */
static void test_connects_again(void **state) {
    (void)state;
    atomic_store(&peer.behaviour, SLAMS);
    struct logind *logind = open_here();
    for (int i = 0; i < 60; i++) assert_true(isnan(idle_at(logind, 1000 + i)));
    for (int i = 0; i < 200 && atomic_load(&peer.connections) == 0; i++) usleep(10000);
    usleep(50000);
    assert_int_equal(atomic_load(&peer.connections), 1);
    atomic_store(&peer.behaviour, ANSWERS);
    double at = 1060;
    expect(logind, &at, 0);
    int before = atomic_load(&peer.connections);
    if (at == 1060) { /* no deadline was missed */
        for (int i = 0; i < 5; i++)
            if (isnan(idle_at(logind, at + i))) break;
        assert_true(atomic_load(&peer.connections) <= before);
    }
    logind_close(logind);
}

static void test_no_bus(void **state) {
    (void)state;
    char far[400];
    struct logind *logind = logind_open("/nonexistent/attune");
    assert_true(isnan(idle_at(logind, 5)));
    logind_close(logind);
    memset(far, 'x', sizeof far - 1); /* longer than any socket's path */
    far[0] = '/';
    far[sizeof far - 1] = 0;
    logind = logind_open(far);
    assert_true(isnan(idle_at(logind, 5)));
    logind_close(logind);
    logind = logind_open("/tmp,unixexec:path=/bin/false;tcp:host=localhost"); /* a path, never another address */
    assert_true(isnan(idle_at(logind, 5)));
    logind_close(logind);
    tree_text("dbus/system_bus_socket", "a file\n");
    logind = logind_open(tree_root);
    assert_true(isnan(idle_at(logind, 5)));
    logind_close(logind);
    assert_true(isnan(idle_at(NULL, 5)));
    logind_close(NULL);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_idle), TEST(test_sessions), TEST(test_bad_ends), TEST(test_connects_again), TEST(test_no_bus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void test_not_built(void **state) {
    struct snapshot now = {.monotonic = 5};
    (void)state;
    assert_null(logind_open("/run"));
    assert_true(isnan(logind_idle(NULL, &now)));
    logind_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_not_built)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
