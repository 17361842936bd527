/* How far wiping is, as numbers in the table `mark`:
 *   scrub           transactions that have deleted something, counted
 *   scrub_indexed   up to which of them the full-text index holds no deleted terms any more
 *   scrub_page      where the pass over the pages of store.db goes on; 0: at the start
 *   scrub_from      up to which of them the pass under way wipes
 *   scrub_found     pages in which that pass found something
 *   scrubbed        up to which of them nothing is left
 * So what is deleted while others wipe is never taken for wiped. */
#include "datastore/scrub.h"

#include "core/base/fault.h"
#include "datastore/forget.h"
#include "datastore/revoke.h"
#include "datastore/search.h"
#include "datastore/wipe.h"

static const char wiping[] = "wipe what was forgotten";

enum {
    STEP_MS = 25,       /* in one transaction: with its commit well below 100 ms */
    PAUSE_MS = 10,      /* between two, for others to write */
    PATIENCE_MS = 1000, /* for whoever reads or writes without a break */
    MERGE_PAGES_MAX = 256
};

struct marks {
    int64_t wanted, indexed, page, from, found, done;
};

static int read_marks(attune_store *store, struct marks *out, attune_error *err) {
    const struct {
        const char *name;
        int64_t *value;
    } marks[] = {{"scrub", &out->wanted},    {"scrub_indexed", &out->indexed}, {"scrub_page", &out->page},
                 {"scrub_from", &out->from}, {"scrub_found", &out->found},     {"scrubbed", &out->done}};
    int code = ATTUNE_OK;
    for (size_t i = 0; i < sizeof marks / sizeof marks[0] && code == ATTUNE_OK; i++)
        code = store_mark_get(store, marks[i].name, marks[i].value, err);
    return code;
}

int store_scrub_mark(attune_store *store, attune_error *err) {
    int64_t wanted = 0;
    int code = store_mark_get(store, "scrub", &wanted, err);
    return code == ATTUNE_OK ? store_mark_put(store, "scrub", wanted + 1, err) : code;
}

int store_scrub_pending(attune_store *store, int *pending, attune_error *err) {
    struct marks marks;
    int sweep = 0;
    int code = read_marks(store, &marks, err);
    if (code == ATTUNE_OK) code = store_sweep_pending(store, &sweep, err);
    *pending = marks.done < marks.wanted || sweep;
    return code;
}

/* ---- the full-text index ----
 * A negative number of pages asks FTS5 to bring all segments onto one level and merge them there
 * (sqlite.org/fts5.html, "The 'merge' Command"); the terms of deleted rows fall out when the last two become one. Calls
 * that find nothing to do are the only sure sign of that: with positive numbers a few young segments keep FTS5 from
 * going on. What counts as pages are those written, so the number adapts to how much falls out. */

static int merge(attune_store *store, int pages, int *worked, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int before = sqlite3_total_changes(store->db);
    int code =
        store_prepare(store, -1, "INSERT INTO search (search, rank) VALUES ('merge', ?)", wiping, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, wiping, err, "i", -(int64_t)pages);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, wiping, err);
    sqlite3_finalize(statement);
    *worked = sqlite3_total_changes(store->db) - before >= 2; /* the statement itself counts as one */
    return code;
}

/* Such a merge puts what it makes on a new level, and FTS5 gives no level back: its record of them, the row 10, grows
 * by two bytes each, and SQLite 3.40 takes more than 2000 levels for damage. */
static int is_worn(attune_store *store, int64_t *worn, attune_error *err) {
    return store_number(store, "SELECT ifnull(max(length(block)), 0) > 3000 FROM search_data WHERE id = 10", wiping,
                        worn, err);
}

/* Inside a write transaction. *clean 1: no terms but those of rows that are there. */
static int merge_some(attune_store *store, int *pages, int *clean, attune_error *err) {
    int64_t until = store_clock_ms() + STEP_MS, rows = 0, wanted = 0, worn = 0;
    int worked = 0;
    int code = store_number(store, "SELECT EXISTS (SELECT 1 FROM interaction)", wiping, &rows, err);
    if (code == ATTUNE_OK) code = is_worn(store, &worn, err);
    if (code == ATTUNE_OK && (!rows || worn))
        code = store_index_restart(store, err);
    else if (code == ATTUNE_OK)
        do {
            int64_t started = store_clock_ms();
            code = merge(store, *pages, &worked, err);
            int64_t took = store_clock_ms() - started;
            if (took < STEP_MS / 5 && *pages < MERGE_PAGES_MAX) *pages *= 2;
            if (took > STEP_MS && *pages > 1) *pages /= 2;
        } while (code == ATTUNE_OK && worked && store_clock_ms() < until);
    *clean = !worked;
    if (code != ATTUNE_OK || worked) return code;
    code = store_mark_get(store, "scrub", &wanted, err);
    return code == ATTUNE_OK ? store_mark_put(store, "scrub_indexed", wanted, err) : code;
}

static int merge_step(attune_store *store, int *pages, attune_error *err) {
    int clean = 0;
    int code = store_begin(store, err);
    if (code != ATTUNE_OK) return code;
    code = merge_some(store, pages, &clean, err);
    fault_point("scrub.merge.before");
    return store_end(store, code, err);
}

/* ---- the pages ---- */

/* Balancing by others between two steps of a pass can carry a page that is still to be wiped behind the pass: a pass
 * in several steps that found something is followed by another one. */
static int note_pages(attune_store *store, const struct marks *marks, int64_t page, int64_t found, int whole,
                      attune_error *err) {
    int clean = page == 0 && (whole || found == 0);
    int code = store_mark_put(store, "scrub_page", page, err);
    if (code == ATTUNE_OK) code = store_mark_put(store, "scrub_from", marks->from, err);
    if (code == ATTUNE_OK) code = store_mark_put(store, "scrub_found", page == 0 ? 0 : found, err);
    if (code == ATTUNE_OK && clean) code = store_mark_put(store, "scrubbed", marks->from, err);
    return code;
}

/* *marks as read before, so that no page is read into the cache before it was wiped. */
static int wipe_step(attune_store *store, struct marks *marks, attune_error *err) {
    int64_t page = marks->page, found = marks->found;
    int whole = page == 0;
    if (whole) marks->from = marks->indexed, found = 0;
    int code = store_begin_alone(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_wipe_pages(store, &page, store_clock_ms() + STEP_MS, &found, err);
    if (code == ATTUNE_OK) code = note_pages(store, marks, page, found, whole, err);
    fault_point("scrub.pages.before");
    return store_end(store, code, err);
}

/* ---- all of it ---- */

/* One step of whatever comes next. ATTUNE_DONE: nothing is left; ATTUNE_CONTINUE: somebody stands in the way. */
static int step(attune_store *store, int64_t until_ms, int *pages, attune_error *err) {
    struct marks marks;
    int left = 0;
    int code = read_marks(store, &marks, err);
    if (code != ATTUNE_OK) return code;
    if (marks.done >= marks.wanted) return ATTUNE_DONE;
    if (marks.page == 0) {
        if (marks.indexed < marks.wanted) return merge_step(store, pages, err);
        code = store_lineage_wipe_some(store, until_ms, &left, err);
        if (code != ATTUNE_OK || left) return code;
    }
    return wipe_step(store, &marks, err);
}

/* Other threads get at the handle between two steps. */
static int step_alone(attune_store *store, int64_t until_ms, int *pages, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = step(store, until_ms, pages, err);
    store_leave(store);
    return code;
}

int store_scrub_some(attune_store *store, int64_t until_ms, int *left, attune_error *err) {
    int pages = 4, code;
    int64_t stuck = 0;
    *left = 0;
    code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    int swept = store_sweep(store, err);
    store_leave(store);
    while ((code = step_alone(store, until_ms, &pages, swept == ATTUNE_OK ? err : NULL)) != ATTUNE_DONE) {
        int64_t now = store_clock_ms();
        if (code < 0) break;
        if (code == ATTUNE_OK) stuck = 0;
        if (code == ATTUNE_CONTINUE && !stuck) stuck = now;
        if ((until_ms && now >= until_ms) || (stuck && now - stuck >= PATIENCE_MS)) {
            *left = 1;
            break;
        }
        store_sleep_ms(PAUSE_MS);
    }
    if (swept != ATTUNE_OK) return swept;
    return code < 0 ? code : ATTUNE_OK;
}
