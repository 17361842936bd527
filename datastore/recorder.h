/* The recorder: a bounded queue in memory and one thread that writes it in groups. Knows no SQL and no
 * interactions: what an item is and how it is written is the caller's (record.c).
 *
 * The process that forked from the one that made a recorder must not touch it: the thread is not there. */
#ifndef DATASTORE_RECORDER_H
#define DATASTORE_RECORDER_H

#include "core/base/error.h"

/* First member of what is queued: one malloc'ed block that the recorder frees. */
struct recorder_item {
    struct recorder_item *next;
    size_t bytes; /* of the whole block, as it counts against the limit */
};

/* On the recorder's thread. n > 0: writes all items, in order, in one transaction that is committed when it returns
 * ATTUNE_OK, and synced when `durable` (the option of that name). n 0: syncs everything written before; `durable` is 1.
 * After an error nothing of the items was written: they are given again, the same or fewer, before any others.
 * *bad (n before the call) may name the item at fault: one that can never be written, which the recorder then
 * drops and counts as refused, and gives the others at once. Must not call the recorder, but for its counts. */
typedef int (*recorder_write)(void *user, struct recorder_item *const *items, size_t n, int durable, size_t *bad,
                              attune_error *err);
/* On the recorder's thread, when nothing is queued, at most once in 50 ms: work in pieces of at most 50 ms. Returns 1
 * to be called again soon, 0 when there is nothing to do until items were written. May be NULL. */
typedef int (*recorder_idle)(void *user);
/* On the recorder's thread, at suspend and at close: gives back what write and idle have taken; they take it again
 * when they are called next. Not called when neither was since the last time. May be NULL. */
typedef void (*recorder_release)(void *user);

struct recorder_options {
    int64_t rows, bytes;         /* limits; an item larger than bytes is let in when nothing else waits */
    int group_ms, full_wait_ms;  /* as in attune_store_options, defaults filled in */
    int wait_when_full, durable; /* durable: every group; else flush and close sync */
    recorder_write write;
    recorder_idle idle;
    recorder_release release;
    void *user;
};

struct recorder_counts {
    int64_t rows, bytes; /* now in memory: queued or being written */
    int64_t peak_bytes;  /* the most there ever was */
    int64_t written, dropped, refused;
    attune_error failure; /* code ATTUNE_OK: the writer gets on */
};

struct recorder;
/* Starts no thread yet: the first item does. rows is at most 2^24 - 1, bytes 2^40 - 1. */
int recorder_create(const struct recorder_options *options, struct recorder **out, attune_error *err);
/* Any thread. Takes the item on ATTUNE_OK only; ATTUNE_ERROR_QUEUE_FULL as the options say. Takes no lock but to wake
 * a writer that sleeps, which it does not while items keep coming, or to wait for room. Items of one thread are
 * written in their order. */
int recorder_put(struct recorder *recorder, struct recorder_item *item, attune_error *err);
/* Any thread. All that was put before is written durably, or the writer's error of an attempt that began after this
 * call: the items stay queued and are tried again, by the next flush at once. Items that were refused since the last
 * flush are told once (ATTUNE_OK for all else has happened): the error of the first of them.
 * ATTUNE_ERROR_STATE while suspended with something left to write or to sync. */
int recorder_flush(struct recorder *recorder, attune_error *err);
/* Any thread. Suspended: items are taken until the queue is full, nothing is written, `release` has run when it
 * returns; a flush that waits in another thread is ended with ATTUNE_ERROR_STATE. Idempotent, both. */
void recorder_suspend(struct recorder *recorder);
void recorder_resume(struct recorder *recorder);
void recorder_counts_get(struct recorder *recorder, struct recorder_counts *out);
/* Writes and syncs what is queued, suspended or not, at least once, and after an error until wait_ms have passed;
 * then runs release, ends the thread, frees everything. No other call may be under way. NULL is fine. */
void recorder_close(struct recorder *recorder, int wait_ms);

#endif
