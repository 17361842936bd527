#define _GNU_SOURCE
#include "energy/governor.h"

#include "energy/uevents.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* Three threads may be about: the owner's, those that ask for decisions, and the governor's own. Only that one, the
 * looker (the owner, where there is no thread), touches sensors, policy state and ledger, without the lock. What it
 * found out is then copied for the others under the lock, which is never held over a sensor or a callback: so whoever
 * asks is answered at once, whatever a sensor does.
 *
 * The owner and the thread each hold a reference. A thread that a sensor does not let go keeps what it uses alive,
 * and frees it when it ends. */

#define HELD_MAX_S 1.0    /* that a caller waits for the thread */
#define OPEN_MAX_S 2.0    /* the same for the first look: sensors and buses may have to be found */
#define EVENT_DEAF_S 0.02 /* after a look because of an event: bounds what a storm of them costs */
#define EVENT_AGAIN_S 0.1 /* and a second look: drivers tell before the files of all supplies have followed */

struct governor {
    /* the looker's */
    struct governor_options options;
    struct clock clock;
    struct sensors *sensors;
    struct policy_state state;
    struct snapshot seen;
    struct ledger charged;
    struct decision acted;
    int has_acted;
    double opened; /* monotonic */

    /* the thread's */
    pthread_t thread;
    int wake_fd, events_fd, timer_fd, again_fd;
    enum listening { QUIET, DEAF, AGAIN } listening;

    pthread_mutex_t lock;
    pthread_cond_t answer; /* a look ended, or the thread did */
    /* under `lock` */
    int references, quit, ended;
    uint64_t asked, answered; /* looks wanted: the last that was asked for, and that was done */
    int known;                /* there was a look */
    double looked_at;         /* boottime, before it began to read */
    struct snapshot now;
    struct decision decision;
    struct ledger ledger;
    uint64_t written;
    struct governor_cost cost;
};

static double thread_cpu(void) {
    struct timespec t;
    return clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0 ? (double)t.tv_sec + 1e-9 * (double)t.tv_nsec : 0;
}

/* ---- one look ---- */

static void add_joules(struct joules *to, const struct joules *joules) {
    to->measured += joules->measured;
    to->battery += joules->battery;
    to->modelled += joules->modelled;
}

/* Under the lock, or the looker's own. */
static struct spent spent_by(const struct governor *g, double monotonic, const struct ledger *ledger,
                             uint64_t written) {
    struct spent spent = g->options.spent;
    double seconds = monotonic > g->opened ? monotonic - g->opened : 0;
    spent.seconds_run += seconds;
    spent.seconds_night += seconds;
    spent.seconds_week += seconds;
    add_joules(&spent.run, &ledger->joules);
    add_joules(&spent.night, &ledger->joules);
    add_joules(&spent.week, &ledger->joules);
    spent.written_night += written;
    return spent;
}

static int differs(const struct decision *a, const struct decision *b) {
    return a->verdict != b->verdict || a->duty != b->duty || a->threads != b->threads;
}

static void look(struct governor *g) {
    double cpu = thread_cpu(), at = g->clock.boottime(g->clock.user);
    struct decision decision;
    pthread_mutex_lock(&g->lock);
    uint64_t asked = g->asked, written = g->written;
    pthread_mutex_unlock(&g->lock);

    sensors_read(g->sensors, &g->seen);
    ledger_advance(&g->charged, &g->seen);
    struct spent spent = spent_by(g, g->seen.monotonic, &g->charged, written);
    policy_decide(&g->options.policy, &g->seen, &spent, &g->state, &decision);

    pthread_mutex_lock(&g->lock);
    int quit = g->quit;
    g->known = 1;
    g->looked_at = at;
    g->now = g->seen;
    g->decision = decision;
    g->ledger = g->charged;
    g->cost.looks++;
    pthread_mutex_unlock(&g->lock);

    /* Once it is closed its owner may be gone. */
    if (!quit && g->options.act && (!g->has_acted || differs(&g->acted, &decision)))
        g->options.act(g->options.user, &decision);
    g->has_acted = 1;
    g->acted = decision;
    if (!quit && g->options.sample) g->options.sample(g->options.user, &g->seen, &decision, &g->charged);

    pthread_mutex_lock(&g->lock);
    g->cost.cpu_s += thread_cpu() - cpu;
    g->answered = asked;
    pthread_cond_broadcast(&g->answer);
    pthread_mutex_unlock(&g->lock);
}

/* ---- the thread ---- */

static void arm(int fd, double first_s, double every_s) {
    struct itimerspec when = {0};
    when.it_value.tv_sec = (time_t)first_s;
    when.it_value.tv_nsec = (long)((first_s - (double)(time_t)first_s) * 1e9);
    when.it_interval.tv_sec = (time_t)every_s;
    when.it_interval.tv_nsec = (long)((every_s - (double)(time_t)every_s) * 1e9);
    timerfd_settime(fd, 0, &when, NULL);
}

/* A timer, or the eventfd: what it counted is of no interest. */
static int count_read(int fd) {
    uint64_t count;
    return read(fd, &count, sizeof count) == sizeof count;
}

/* The owner's descriptor is in whatever mode the owner wants: one read after poll does not block. 0: nothing was
 * there. At its end, or when it is no good, it is not asked again. */
static int take_events(struct governor *g, short revents) {
    char bytes[4096];
    if (g->options.event_fd == -1 && revents & POLLIN) return uevents_take(g->events_fd);
    ssize_t n = revents & POLLIN ? read(g->events_fd, bytes, sizeof bytes) : 0;
    if (n > 0) return 1;
    if (n == 0 || (errno != EAGAIN && errno != EINTR)) g->events_fd = -1;
    return n == 0; /* that it was closed may mean something too */
}

/* An event: a look at once, deaf for a moment, then a second look. 1: look now. */
static int on_event(struct governor *g, short revents) {
    if (!take_events(g, revents)) return 0;
    pthread_mutex_lock(&g->lock);
    g->cost.events++;
    pthread_mutex_unlock(&g->lock);
    g->listening = DEAF;
    arm(g->again_fd, EVENT_DEAF_S, 0);
    return 1;
}
static int on_again(struct governor *g) {
    if (!count_read(g->again_fd)) return 0;
    int second = g->listening == AGAIN;
    g->listening = second ? QUIET : AGAIN;
    if (!second) arm(g->again_fd, EVENT_AGAIN_S - EVENT_DEAF_S, 0);
    return second;
}

static int is_over(struct governor *g) {
    pthread_mutex_lock(&g->lock);
    int quit = g->quit;
    pthread_mutex_unlock(&g->lock);
    return quit;
}

/* Waits until there is a reason to look. CPU time of waking up without one is counted too. */
static void wait_for_reason(struct governor *g) {
    for (int reason = 0; !reason;) {
        struct pollfd fds[4] = {{.fd = g->wake_fd, .events = POLLIN},
                                {.fd = g->timer_fd, .events = POLLIN},
                                {.fd = g->again_fd, .events = POLLIN},
                                {.fd = g->listening == DEAF ? -1 : g->events_fd, .events = POLLIN}};
        int n = poll(fds, 4, -1);
        double cpu = thread_cpu();
        if (n < 0 && errno != EINTR) { /* the kernel is out of memory */
            nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
            reason = 1;
        }
        if (n > 0 && fds[0].revents) reason |= count_read(g->wake_fd);
        if (n > 0 && fds[1].revents) reason |= count_read(g->timer_fd);
        if (n > 0 && fds[2].revents) reason |= on_again(g);
        if (n > 0 && fds[3].revents) reason |= on_event(g, fds[3].revents);
        pthread_mutex_lock(&g->lock);
        g->cost.cpu_s += thread_cpu() - cpu;
        pthread_mutex_unlock(&g->lock);
    }
}

static void release(struct governor *g) {
    pthread_mutex_lock(&g->lock);
    int left = --g->references;
    pthread_mutex_unlock(&g->lock);
    if (left > 0) return;
    sensors_close(g->sensors);
    if (g->options.event_fd == -1 && g->events_fd >= 0) close(g->events_fd);
    if (g->wake_fd >= 0) close(g->wake_fd);
    if (g->timer_fd >= 0) close(g->timer_fd);
    if (g->again_fd >= 0) close(g->again_fd);
    pthread_cond_destroy(&g->answer);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

static void *govern(void *argument) {
    struct governor *g = argument;
    while (!is_over(g)) {
        look(g);
        if (!is_over(g)) wait_for_reason(g);
    }
    pthread_mutex_lock(&g->lock);
    g->ended = 1;
    pthread_cond_broadcast(&g->answer);
    pthread_mutex_unlock(&g->lock);
    release(g);
    return NULL;
}

/* ---- opening and closing ---- */

/* BOOTTIME: the first thing after a suspend is a look. */
static int timer_open(void) {
    int fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    return fd >= 0 ? fd : timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
}

static int thread_start(struct governor *g, attune_error *err) {
    g->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    g->timer_fd = timer_open();
    g->again_fd = timer_open();
    if (g->wake_fd < 0 || g->timer_fd < 0 || g->again_fd < 0)
        return error_set_errno(err, NULL, "cannot make the governor's timers");
    g->events_fd = g->options.event_fd == -1 ? uevents_open() : g->options.event_fd;
    arm(g->timer_fd, GOVERNOR_POLL_S, GOVERNOR_POLL_S);

    /* Signals belong to the host's own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    g->references = 2;
    int code = pthread_create(&g->thread, NULL, govern, g);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0) {
        pthread_setname_np(g->thread, "attune-governor");
        return ATTUNE_OK;
    }
    g->references = 1;
    return error_set(err, ATTUNE_ERROR_MEMORY, NULL, "cannot start the governor's thread: %s", strerror(code));
}

/* Until `look` number `asked` is done or, with 0, the thread has ended. 1: it is. Under the lock. */
static int await(struct governor *g, uint64_t asked, double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    until.tv_sec += (time_t)seconds + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    int code = 0;
    while (code == 0 && !g->ended && (asked == 0 || g->answered < asked))
        code = pthread_cond_timedwait(&g->answer, &g->lock, &until);
    return g->ended || (asked > 0 && g->answered >= asked);
}

int governor_open(const struct governor_options *options, struct governor **out, attune_error *err) {
    struct governor *g = calloc(1, sizeof *g);
    pthread_condattr_t monotonic;
    if (!g) return error_set_memory(err, "the governor", sizeof *g);
    g->options = *options;
    g->clock = options->sensors.clock ? *options->sensors.clock : clock_system;
    g->options.sensors.clock = &g->clock;
    g->wake_fd = g->timer_fd = g->again_fd = g->events_fd = -1;
    g->references = 1;
    pthread_mutex_init(&g->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&g->answer, &monotonic);
    pthread_condattr_destroy(&monotonic);

    g->opened = g->clock.monotonic(g->clock.user);
    g->asked = 1;
    ledger_begin(&g->charged, options->watts_per_cpu);
    int code = sensors_open(&g->options.sensors, &g->sensors, err);
    if (code == ATTUNE_OK && options->thread) code = thread_start(g, err);
    if (code != ATTUNE_OK) {
        release(g);
        return code;
    }
    g->options.sensors = (struct sensors_options){0}; /* its texts are the caller's */
    if (options->thread) {
        pthread_mutex_lock(&g->lock);
        await(g, 1, OPEN_MAX_S); /* a sensor that blocks: then there is no decision, which is stale */
        pthread_mutex_unlock(&g->lock);
    } else {
        look(g);
    }
    *out = g;
    return ATTUNE_OK;
}

void governor_close(struct governor *g) {
    if (!g) return;
    pthread_mutex_lock(&g->lock);
    g->quit = 1;
    int threaded = g->options.thread, ended = 0, own = threaded && pthread_equal(g->thread, pthread_self());
    if (threaded) {
        uint64_t one = 1;
        if (write(g->wake_fd, &one, sizeof one) < 0) {
        } /* full: it wakes as well */
        ended = !own && await(g, 0, HELD_MAX_S);
    }
    pthread_mutex_unlock(&g->lock);
    if (threaded && ended) pthread_join(g->thread, NULL);
    if (threaded && !ended) pthread_detach(g->thread);
    release(g);
}

/* ---- asking ---- */

void governor_look(struct governor *g) {
    if (!g->options.thread) {
        pthread_mutex_lock(&g->lock);
        g->asked++;
        pthread_mutex_unlock(&g->lock);
        look(g);
        return;
    }
    if (pthread_equal(g->thread, pthread_self())) return; /* from a callback: it looks already */
    uint64_t one = 1;
    pthread_mutex_lock(&g->lock);
    uint64_t asked = ++g->asked;
    if (write(g->wake_fd, &one, sizeof one) < 0) {
    }
    await(g, asked, HELD_MAX_S);
    pthread_mutex_unlock(&g->lock);
}

void governor_decision(struct governor *g, struct decision *out) {
    double now = g->clock.boottime(g->clock.user);
    pthread_mutex_lock(&g->lock);
    int known = g->known;
    double age = now - g->looked_at;
    *out = g->decision;
    pthread_mutex_unlock(&g->lock);
    if (!known || !(age <= GOVERNOR_STALE_S))
        *out = (struct decision){.verdict = VERDICT_STOP, .reason = REASON_STALE, .wait_s = NAN};
}

void governor_state(struct governor *g, struct snapshot *now, struct spent *spent, struct ledger *ledger) {
    double monotonic = g->clock.monotonic(g->clock.user);
    pthread_mutex_lock(&g->lock);
    if (now) *now = g->now;
    if (spent) *spent = spent_by(g, monotonic, &g->ledger, g->written);
    if (ledger) *ledger = g->ledger;
    pthread_mutex_unlock(&g->lock);
}

void governor_wrote(struct governor *g, uint64_t bytes) {
    pthread_mutex_lock(&g->lock);
    g->written = bytes < UINT64_MAX - g->written ? g->written + bytes : UINT64_MAX;
    pthread_mutex_unlock(&g->lock);
}

void governor_cost_get(struct governor *g, struct governor_cost *out) {
    pthread_mutex_lock(&g->lock);
    *out = g->cost;
    pthread_mutex_unlock(&g->lock);
}
