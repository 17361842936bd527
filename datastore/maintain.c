/* What recording puts off, done in pieces that others do not notice. */
#include "datastore/derive.h"
#include "datastore/scrub.h"
#include "datastore/search.h"

/* How long one transaction of maintenance may hold the store: with its commit well below 100 ms. */
enum { PIECE_MS = 40 };

typedef int (*piece_work)(attune_store *store, int64_t until_ms, int *left, attune_error *err);

/* Pieces of one kind of work, each a transaction, until none is left or the time is over. */
static int do_pieces(attune_store *store, piece_work work, int64_t until_ms, int *left, attune_error *err) {
    int code = ATTUNE_OK;
    do {
        int64_t end = store_clock_ms() + PIECE_MS;
        code = store_begin(store, err);
        if (code == ATTUNE_OK)
            code = store_end(store, work(store, until_ms && until_ms < end ? until_ms : end, left, err), err);
    } while (code == ATTUNE_OK && *left && (!until_ms || store_clock_ms() < until_ms));
    return code;
}

static int64_t end_of(double seconds) { return seconds > 0 ? store_clock_ms() + (int64_t)(seconds * 1000) + 1 : 0; }

/* Nothing to do is found out by reading: it writes nothing. */
static int derive_until(attune_store *store, int64_t until_ms, int *left, attune_error *err) {
    int64_t waiting = 0;
    int code = store_derive_left(store, &waiting, err);
    return code == ATTUNE_OK && waiting ? do_pieces(store, store_derive_some, until_ms, left, err) : code;
}

int store_derive_pending(attune_store *store, double seconds, attune_error *err) {
    int left = 0;
    return store->reading || store->writing ? ATTUNE_OK : derive_until(store, end_of(seconds), &left, err);
}

int store_maintain(attune_store *store, double seconds, attune_error *err) {
    int derive_left = 0, index_left = 0, scrub_left = 0;
    int64_t waiting = 0, until = end_of(seconds);
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = derive_until(store, until, &derive_left, err);
    if (code == ATTUNE_OK) code = store_index_left(store, &waiting, err);
    if (code == ATTUNE_OK && waiting) code = do_pieces(store, store_index_some, until, &index_left, err);
    if (code == ATTUNE_OK) code = store_scrub_some(store, until, &scrub_left, err);
    store_leave(store);
    if (code != ATTUNE_OK) return code;
    return derive_left || index_left || scrub_left ? ATTUNE_CONTINUE : ATTUNE_OK;
}

int attune_store_maintain(attune_store *store, double seconds, attune_error *err) {
    if (!(seconds >= 0) || seconds > 1e9)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the seconds of maintenance must be 0 or more");
    int code = store_flush_queue(store, err);
    return code == ATTUNE_OK ? store_maintain(store, seconds, err) : code;
}
