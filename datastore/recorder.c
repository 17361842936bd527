#define _GNU_SOURCE
#include "datastore/recorder.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/fault.h"

/* How putting and writing meet.
 *
 * An item is let in by one compare-and-swap of `room`, counted in `pushed`, and pushed onto the stack `head`. The
 * writer empties the stack by one exchange and turns it round. Every change of `head` is a read-modify-write, so the
 * insertions have one order, each happens before the next, and the writer settles (commits or refuses) items in that
 * order, group after group. This is what flush rests on: let P be all items inserted no later than the last item that
 * was put before the flush. Each was counted before it was inserted, so the flush reads pushed >= |P|. P is the
 * beginning of the order in which items are settled, and `done` counts the settled beginning, so done >= that
 * reading means that P is settled. Items counted but not yet inserted may make a flush wait for their threads to go
 * on; they can never make it return early.
 *
 * Sleeping: the writer says in `asleep` what should wake it, then looks at `head` and `room` once more before it
 * sleeps; who puts changes `room` and `head`, then looks at `asleep`. All of these are sequentially consistent, so
 * one of the two sees the other. */

/* `room`: rows in the upper bits, bytes in the lower ones, so that both limits hold at every moment and an item that
 * does not fit takes away nobody's place for a while. */
enum { BYTES_BITS = 40 };
#define ROW_ONE (UINT64_C(1) << BYTES_BITS)
#define BYTES_MAX (ROW_ONE - 1)
#define ROWS_MAX ((UINT64_C(1) << (64 - BYTES_BITS)) - 1)

/* A transaction stays short: other processes wait for it. */
enum { GROUP_ITEMS = 1024, GROUP_BYTES = 4 << 20 };
enum { RETRY_FIRST_MS = 100, RETRY_LAST_MS = 5000, IDLE_PAUSE_MS = 50 };
/* Address space only; the host's own search for secrets runs on it too. */
enum { STACK_BYTES = 1 << 20 };
static const int64_t NEVER = INT64_MAX;

enum asleep {
    ASLEEP_NO,     /* or for a time that no item shortens */
    ASLEEP_EMPTY,  /* until there is an item */
    ASLEEP_COMPANY /* until the queue is half full */
};

enum move { MOVE_SLEEP, MOVE_WRITE, MOVE_IDLE, MOVE_RELEASE, MOVE_END };

struct recorder {
    /* What every put changes stands together, apart from what the writer works on. */
    _Alignas(64) _Atomic(struct recorder_item *) head; /* newest first */
    atomic_uint_fast64_t room;
    atomic_int_fast64_t pushed; /* counted before the item is in the list */
    atomic_int_fast64_t dropped, peak;
    atomic_int asleep; /* enum asleep */
    atomic_int started;

    _Alignas(64) struct recorder_options options;
    pthread_t thread;
    pthread_mutex_t lock; /* of all below but the writer's own; never held during a callback */
    pthread_cond_t wake, vacant, changed;

    int waiting; /* threads that wait for room */
    int suspended, closing;
    int64_t close_by;
    int64_t target; /* everything up to it shall be written durably now */
    int64_t demand; /* number of the attempt that shall not wait for its time */
    int holding;    /* write or idle was called since the last release, or is being called */
    int64_t attempts;
    int64_t failed_attempt; /* the last that failed */
    int64_t done, synced;   /* items settled; of them, settled for good */
    int64_t written, refused;
    int failing;
    attune_error failure; /* of failed_attempt; stays for those who have not looked yet when the writer has recovered */
    attune_error refusal; /* the first since the last flush; code ATTUNE_OK: none */

    /* The writer's own. Times are monotonic ms. */
    struct recorder_item *first, **last;      /* taken from the stack, oldest first */
    struct recorder_item *group[GROUP_ITEMS]; /* the oldest of all; stays together until it is settled */
    size_t group_n, group_total;              /* left in it; taken into it */
    int64_t window;                           /* until then items wait for company; 0: no window is open */
    int64_t retry_at, retry_pause;
    int64_t idle_at;
    int idle_wanted;
};

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ETIMEDOUT or 0. */
static int wait_until(pthread_cond_t *condition, pthread_mutex_t *lock, int64_t until) {
    if (until == NEVER) return pthread_cond_wait(condition, lock);
    struct timespec time = {.tv_sec = (time_t)(until / 1000), .tv_nsec = (long)(until % 1000) * 1000000};
    return pthread_cond_timedwait(condition, lock, &time);
}

/* ---- room ---- */

static int64_t rows_in(uint64_t room) { return (int64_t)(room >> BYTES_BITS); }
static int64_t bytes_in(uint64_t room) { return (int64_t)(room & BYTES_MAX); }

static int half_used(const struct recorder *r, uint64_t room) {
    return rows_in(room) >= r->options.rows - r->options.rows / 2 ||
           bytes_in(room) >= r->options.bytes - r->options.bytes / 2;
}

/* 1: the item may come in. */
static int take_room(struct recorder *r, size_t bytes, uint64_t *after) {
    uint64_t room = atomic_load(&r->room);
    do {
        if (room != 0 && (rows_in(room) >= r->options.rows || bytes_in(room) + (int64_t)bytes > r->options.bytes))
            return 0;
        *after = room + ROW_ONE + bytes;
    } while (!atomic_compare_exchange_weak(&r->room, &room, *after));
    int_fast64_t peak = atomic_load_explicit(&r->peak, memory_order_relaxed);
    while (bytes_in(*after) > peak && !atomic_compare_exchange_weak(&r->peak, &peak, bytes_in(*after))) {
    }
    return 1;
}

/* Freed first: what is let in instead must not come on top of it. */
static void free_items(struct recorder *r, struct recorder_item *const *items, size_t n) {
    uint64_t room = 0;
    for (size_t i = 0; i < n; i++) {
        room += ROW_ONE + items[i]->bytes;
        free(items[i]);
    }
    atomic_fetch_sub(&r->room, room);
}

static int wait_for_room(struct recorder *r, size_t bytes, uint64_t *after) {
    int64_t until = now_ms() + r->options.full_wait_ms;
    int taken, timed_out = 0;
    pthread_mutex_lock(&r->lock);
    r->waiting++;
    while (!(taken = take_room(r, bytes, after)) && !timed_out) {
        pthread_cond_signal(&r->wake);
        timed_out = wait_until(&r->vacant, &r->lock, until) == ETIMEDOUT;
    }
    r->waiting--;
    pthread_mutex_unlock(&r->lock);
    return taken;
}

/* ---- the writer ---- */

static int is_queued(struct recorder *r) { return r->group_n || r->first || atomic_load(&r->head); }

/* No time for company. */
static int is_hurried(struct recorder *r) {
    return r->target > r->synced || r->waiting || r->closing || half_used(r, atomic_load(&r->room));
}

/* All is settled that a flush or close asked for, but not for good. */
static int wants_sync(const struct recorder *r) { return r->target > r->synced && r->done >= r->target; }

static enum move sleep_until(int64_t until, enum asleep asleep, int64_t *until_out, enum asleep *asleep_out) {
    *until_out = until;
    *asleep_out = asleep;
    return MOVE_SLEEP;
}

/* What to do when there is something to write or to sync. */
static enum move decide_busy(struct recorder *r, int64_t now, int64_t *until, enum asleep *asleep) {
    if (r->failing) {
        if (now >= r->retry_at || r->attempts < r->demand) return MOVE_WRITE;
        return sleep_until(r->closing && r->close_by < r->retry_at ? r->close_by : r->retry_at, ASLEEP_NO, until,
                           asleep);
    }
    if (r->group_n || r->first || is_hurried(r)) return MOVE_WRITE;
    if (!r->window) r->window = now + r->options.group_ms;
    if (now >= r->window) return MOVE_WRITE;
    return sleep_until(r->window, ASLEEP_COMPANY, until, asleep);
}

/* What the writer does next; with MOVE_SLEEP, until when and what wakes it. Called with the lock. */
static enum move decide(struct recorder *r, int64_t *until, enum asleep *asleep) {
    int64_t now = now_ms();
    int busy = is_queued(r) || wants_sync(r);
    if (r->closing && (!busy || (r->failing && r->attempts >= r->demand && now >= r->close_by))) return MOVE_END;
    if (r->suspended && !r->closing) return r->holding ? MOVE_RELEASE : sleep_until(NEVER, ASLEEP_NO, until, asleep);
    if (busy) return decide_busy(r, now, until, asleep);
    /* The window stays open for a while after a group: under steady traffic the clock wakes the writer, and no put has
     * to. Where the queue is half full of items that are not inserted yet, their insertion is waited for. */
    if (now < r->window) return sleep_until(r->window, is_hurried(r) ? ASLEEP_EMPTY : ASLEEP_COMPANY, until, asleep);
    r->window = 0;
    if (!r->options.idle || !r->idle_wanted) return sleep_until(NEVER, ASLEEP_EMPTY, until, asleep);
    if (now >= r->idle_at) return MOVE_IDLE;
    return sleep_until(r->idle_at, ASLEEP_EMPTY, until, asleep);
}

/* Called with the lock. */
static void doze(struct recorder *r, int64_t until, enum asleep asleep) {
    atomic_store(&r->asleep, asleep);
    if ((asleep == ASLEEP_EMPTY && atomic_load(&r->head)) ||
        (asleep == ASLEEP_COMPANY && half_used(r, atomic_load(&r->room)))) {
        atomic_store(&r->asleep, ASLEEP_NO);
        return;
    }
    wait_until(&r->wake, &r->lock, until);
    atomic_store(&r->asleep, ASLEEP_NO);
}

/* Appends what was put to the writer's list, oldest first. */
static void take_all(struct recorder *r) {
    struct recorder_item *item = atomic_exchange(&r->head, NULL), *oldest = NULL, **end = item ? &item->next : NULL;
    while (item) {
        struct recorder_item *next = item->next;
        item->next = oldest;
        oldest = item;
        item = next;
    }
    if (!oldest) return;
    *r->last = oldest;
    r->last = end;
}

static void fill_group(struct recorder *r) {
    size_t n = 0, bytes = 0;
    while (r->first && n < GROUP_ITEMS && (n == 0 || bytes + r->first->bytes <= GROUP_BYTES)) {
        struct recorder_item *item = r->first;
        r->first = item->next;
        item->next = NULL;
        bytes += item->bytes;
        r->group[n++] = item;
    }
    if (!r->first) r->last = &r->first;
    r->group_n = r->group_total = n;
}

/* The disk takes items again. Called with the lock. */
static void recover(struct recorder *r) {
    r->failing = 0;
    r->retry_at = r->retry_pause = 0;
}

/* The group is settled. Called with the lock. */
static void settle(struct recorder *r) {
    /* A group of which everything was refused leaves nothing to sync. */
    int whole = r->options.durable || (r->group_n == 0 && r->synced == r->done);
    if (r->group_n > 0) r->idle_wanted = 1;
    r->written += (int64_t)r->group_n;
    r->done += (int64_t)r->group_total;
    if (whole) r->synced = r->done;
    r->group_n = r->group_total = 0;
    recover(r);
}

/* Called with the lock. */
static void fail(struct recorder *r, int sync, int64_t began, const attune_error *err) {
    r->failing = 1;
    r->failure = *err;
    r->failed_attempt = r->attempts;
    /* An attempt that a flush brought forward says nothing about how long the cause lasts. */
    if (began >= r->retry_at) r->retry_pause = r->retry_pause ? r->retry_pause * 2 : RETRY_FIRST_MS;
    if (r->retry_pause > RETRY_LAST_MS) r->retry_pause = RETRY_LAST_MS;
    r->retry_at = now_ms() + r->retry_pause;
    /* Everyone who waited for this sync is told; what comes after it can perhaps be written. */
    if (sync && !r->closing && r->demand <= r->attempts) r->target = r->synced;
}

/* Called with the lock. The items that stay in the group keep the refused one's place in group_total, so that it is
 * counted as done together with those before it. */
static void refuse(struct recorder *r, size_t bad, const attune_error *err) {
    memmove(r->group + bad, r->group + bad + 1, (r->group_n - bad - 1) * sizeof *r->group);
    r->group_n--;
    r->refused++;
    if (r->refusal.code == ATTUNE_OK) r->refusal = *err;
    recover(r);
    if (r->group_n == 0) settle(r);
}

/* One call of write. Called with the lock, which it lets go meanwhile. */
static void attempt(struct recorder *r) {
    /* A sync goes first, or items that keep coming would put it off for ever. */
    int sync = wants_sync(r);
    r->holding = 1;
    r->attempts++;
    pthread_mutex_unlock(&r->lock);
    int64_t began = now_ms();
    if (!sync && !r->group_n) {
        take_all(r);
        r->window = began + r->options.group_ms;
        fill_group(r);
    }

    size_t n = sync ? 0 : r->group_n, bad = n;
    attune_error err = {0};
    int code = r->options.write(r->options.user, r->group, n, sync || r->options.durable, &bad, &err);
    if (code != ATTUNE_OK && err.code == ATTUNE_OK) err.code = code;
    if (code == ATTUNE_OK)
        free_items(r, r->group, n);
    else if (bad < n)
        free_items(r, r->group + bad, 1);

    pthread_mutex_lock(&r->lock);
    if (code != ATTUNE_OK && bad < n)
        refuse(r, bad, &err);
    else if (code != ATTUNE_OK)
        fail(r, sync, began, &err);
    else if (!sync)
        settle(r);
    else {
        r->synced = r->done;
        if (!r->group_n) recover(r);
    }
    if (r->waiting) pthread_cond_broadcast(&r->vacant);
    pthread_cond_broadcast(&r->changed);
}

/* Called with the lock, which it lets go meanwhile. */
static void idle(struct recorder *r) {
    r->holding = 1;
    pthread_mutex_unlock(&r->lock);
    int more = r->options.idle(r->options.user);
    pthread_mutex_lock(&r->lock);
    r->idle_wanted = more != 0;
    r->idle_at = now_ms() + IDLE_PAUSE_MS;
}

/* Called with the lock, which it lets go meanwhile. */
static void release(struct recorder *r) {
    if (!r->holding) return;
    if (r->options.release) {
        pthread_mutex_unlock(&r->lock);
        r->options.release(r->options.user);
        pthread_mutex_lock(&r->lock);
    }
    r->holding = 0;
    pthread_cond_broadcast(&r->changed);
}

static void *work(void *argument) {
    struct recorder *r = argument;
#if defined(__linux__)
    pthread_setname_np(pthread_self(), "attune-recorder");
#endif
    int64_t until = NEVER;
    enum asleep asleep = ASLEEP_NO;
    pthread_mutex_lock(&r->lock);
    for (enum move move = MOVE_SLEEP; move != MOVE_END;) {
        move = decide(r, &until, &asleep);
        if (move == MOVE_SLEEP) doze(r, until, asleep);
        if (move == MOVE_WRITE) attempt(r);
        if (move == MOVE_IDLE) idle(r);
        if (move == MOVE_RELEASE || move == MOVE_END) release(r);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static int start(struct recorder *r, attune_error *err) {
    int failed = 0;
    pthread_mutex_lock(&r->lock);
    if (!atomic_load(&r->started)) {
        pthread_attr_t attributes;
        sigset_t all, before;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, STACK_BYTES);
        /* Signals belong to the host's own threads. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        failed = fault_fails("recorder.start") ? errno : pthread_create(&r->thread, &attributes, work, r);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
        if (!failed) atomic_store(&r->started, 1);
    }
    pthread_mutex_unlock(&r->lock);
    errno = failed;
    return failed ? error_set_errno(err, NULL, "cannot start the thread that writes what is recorded") : ATTUNE_OK;
}

/* ---- the callers' side ---- */

int recorder_create(const struct recorder_options *options, struct recorder **out, attune_error *err) {
    assert(options->write);
    if (options->rows < 1 || options->rows > (int64_t)ROWS_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "queue_rows must be 1 to %lld, not %lld",
                         (long long)ROWS_MAX, (long long)options->rows);
    if (options->bytes < 1 || options->bytes > (int64_t)BYTES_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "queue_bytes must be 1 to %lld, not %lld",
                         (long long)BYTES_MAX, (long long)options->bytes);
    if (options->group_ms < 0 || options->full_wait_ms < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "%s must not be negative",
                         options->group_ms < 0 ? "group_ms" : "full_wait_ms");
    struct recorder *r = aligned_alloc(64, sizeof *r);
    if (!r) return error_set_memory(err, "the recorder", sizeof *r);
    memset(r, 0, sizeof *r);
    r->options = *options;
    r->last = &r->first;
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&r->wake, &monotonic);
    pthread_cond_init(&r->vacant, &monotonic);
    pthread_cond_init(&r->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *out = r;
    return ATTUNE_OK;
}

static int full(struct recorder *r, attune_error *err) {
    atomic_fetch_add(&r->dropped, 1);
    return error_set(err, ATTUNE_ERROR_QUEUE_FULL, NULL,
                     "the queue (%lld rows, %lld bytes) has no room: more is recorded than the disk takes; record "
                     "later, flush to learn what holds the writer up, or give the queue more",
                     (long long)r->options.rows, (long long)r->options.bytes);
}

int recorder_put(struct recorder *r, struct recorder_item *item, attune_error *err) {
    uint64_t room;
    if (item->bytes > BYTES_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "%zu bytes are too many to record", item->bytes);
    if (!atomic_load_explicit(&r->started, memory_order_acquire)) {
        int code = start(r, err);
        if (code != ATTUNE_OK) return code;
    }
    if (!take_room(r, item->bytes, &room) && !(r->options.wait_when_full && wait_for_room(r, item->bytes, &room)))
        return full(r, err);
    atomic_fetch_add(&r->pushed, 1);
    item->next = atomic_load(&r->head);
    while (!atomic_compare_exchange_weak(&r->head, &item->next, item)) {
    }
    /* The item may be gone already. Of those that find the writer asleep one wakes it. */
    int asleep = atomic_load(&r->asleep);
    if (asleep == ASLEEP_EMPTY || (asleep == ASLEEP_COMPANY && half_used(r, room))) {
        if (atomic_exchange(&r->asleep, ASLEEP_NO) == ASLEEP_NO) return ATTUNE_OK;
        pthread_mutex_lock(&r->lock);
        pthread_cond_signal(&r->wake);
        pthread_mutex_unlock(&r->lock);
    }
    return ATTUNE_OK;
}

/* Everything up to `target` now, by an attempt that has not begun. Returns its number. Called with the lock. */
static int64_t urge(struct recorder *r, int64_t target) {
    if (r->target < target) r->target = target;
    r->demand = r->attempts + 1;
    pthread_cond_signal(&r->wake);
    return r->demand;
}

int recorder_flush(struct recorder *r, attune_error *err) {
    int code = ATTUNE_OK;
    int64_t target = atomic_load(&r->pushed);
    pthread_mutex_lock(&r->lock);
    if (r->synced < target && !r->suspended) {
        int64_t number = urge(r, target);
        while (r->synced < target && !r->suspended && r->failed_attempt < number)
            pthread_cond_wait(&r->changed, &r->lock);
    }
    const attune_error *told = NULL;
    if (r->synced >= target) {
        if (r->refusal.code != ATTUNE_OK) told = &r->refusal;
    } else if (r->suspended)
        code = error_set(err, ATTUNE_ERROR_STATE, NULL,
                         "recording is suspended with %lld rows not on the disk: resume, then flush",
                         (long long)(target - r->synced));
    else
        told = &r->failure;
    if (told) {
        code = told->code;
        if (err) *err = *told;
    }
    if (told == &r->refusal) r->refusal.code = ATTUNE_OK;
    pthread_mutex_unlock(&r->lock);
    return code;
}

void recorder_suspend(struct recorder *r) {
    pthread_mutex_lock(&r->lock);
    r->suspended = 1;
    pthread_cond_signal(&r->wake);
    pthread_cond_broadcast(&r->changed);
    while (r->suspended && r->holding) pthread_cond_wait(&r->changed, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

void recorder_resume(struct recorder *r) {
    pthread_mutex_lock(&r->lock);
    r->suspended = 0;
    pthread_cond_signal(&r->wake);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

void recorder_counts_get(struct recorder *r, struct recorder_counts *out) {
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&r->lock);
    uint64_t room = atomic_load(&r->room);
    out->rows = rows_in(room);
    out->bytes = bytes_in(room);
    out->peak_bytes = atomic_load(&r->peak);
    out->written = r->written;
    out->dropped = atomic_load(&r->dropped);
    out->refused = r->refused;
    if (r->failing) out->failure = r->failure;
    pthread_mutex_unlock(&r->lock);
}

void recorder_close(struct recorder *r, int wait_ms) {
    if (!r) return;
    if (atomic_load(&r->started)) {
        pthread_mutex_lock(&r->lock);
        r->closing = 1;
        r->close_by = now_ms() + wait_ms;
        urge(r, atomic_load(&r->pushed));
        pthread_mutex_unlock(&r->lock);
        pthread_join(r->thread, NULL);
    }
    take_all(r);
    for (free_items(r, r->group, r->group_n); r->first;) {
        struct recorder_item *item = r->first;
        r->first = item->next;
        free(item);
    }
    pthread_cond_destroy(&r->changed);
    pthread_cond_destroy(&r->vacant);
    pthread_cond_destroy(&r->wake);
    pthread_mutex_destroy(&r->lock);
    free(r);
}
