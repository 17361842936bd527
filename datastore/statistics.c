/* What the store can say about itself in numbers. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/options.h"
#include "datastore/derive.h"
#include "datastore/recorder.h"
#include "datastore/scrub.h"
#include "datastore/search.h"

static const char counting[] = "count";
static const double COUNT_SECONDS = 1.0;

/* ---- counts ---- */

int store_counts(attune_store *store, int64_t *interactions, int64_t *consented, int64_t *feedback,
                 int64_t *examples_new, attune_error *err) {
    int64_t rows = 0, with_consent = 0, feedback_rows = 0, fresh = 0;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    /* A count of what is new would miss what waits to be derived; where that cannot be done now, it does. */
    if (examples_new) (void)store_derive_pending(store, COUNT_SECONDS, NULL);
    code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = store_number(store, "SELECT count(*) FROM interaction", counting, &rows, err);
        if (code == ATTUNE_OK)
            code = store_number(store, "SELECT count(*) FROM interaction INDEXED BY interaction_time WHERE consent = 1",
                                counting, &with_consent, err);
        if (code == ATTUNE_OK)
            code = store_number(store, "SELECT count(*) FROM feedback", counting, &feedback_rows, err);
        if (code == ATTUNE_OK && examples_new)
            code =
                store_number(store, "SELECT count(DISTINCT content_hash) FROM example WHERE kind = 1 AND run IS NULL",
                             counting, &fresh, err);
        store_read_end(store);
    }
    store_leave(store);
    if (code != ATTUNE_OK) return code;
    if (interactions) *interactions = rows;
    if (consented) *consented = with_consent;
    if (feedback) *feedback = feedback_rows;
    if (examples_new) *examples_new = fresh;
    return ATTUNE_OK;
}

static int count_examples(attune_store *store, attune_store_statistics *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, "SELECT kind, count(*) FROM example GROUP BY kind", counting, &statement, err);
    if (code != ATTUNE_OK) return code;
    while ((code = store_step(store, statement, counting, err)) == ATTUNE_CONTINUE) {
        int64_t n = sqlite3_column_int64(statement, 1);
        switch (sqlite3_column_int(statement, 0)) {
        case STORE_EXAMPLE_SFT:
            out->examples_sft = n;
            break;
        case STORE_EXAMPLE_PREFERENCE:
            out->examples_preference = n;
            break;
        case STORE_EXAMPLE_THUMB:
            out->examples_thumb = n;
            break;
        }
    }
    sqlite3_finalize(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* Rows that would be examples but for what was found in them. */
static int count_private(attune_store *store, attune_store_statistics *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1,
                             "SELECT d.findings, i.private_findings FROM interaction i JOIN digest d ON "
                             "d.interaction = i.id WHERE i.consent = 1 AND i.sensitivity <> 2 AND i.id IN "
                             "(SELECT interaction FROM digest WHERE findings <> 0 UNION "
                             "SELECT id FROM interaction WHERE private_findings <> 0 OR sensitivity = 1)",
                             counting, &statement, err);
    if (code != ATTUNE_OK) return code;
    while ((code = store_step(store, statement, counting, err)) == ATTUNE_CONTINUE) {
        uint64_t packed = (uint64_t)sqlite3_column_int64(statement, 0);
        out->private_rows++;
        for (int i = 0; i < ATTUNE_FINDING_APP; i++) out->findings[i] += (int64_t)(packed >> (8 * i) & 0xff);
        out->findings[ATTUNE_FINDING_APP] += sqlite3_column_int64(statement, 1);
    }
    sqlite3_finalize(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int64_t file_bytes_of(const char *path, const char *ending) {
    char name[1300];
    struct stat info;
    snprintf(name, sizeof name, "%s%s", path, ending);
    return stat(name, &info) == 0 ? (int64_t)info.st_size : 0;
}

static int count_store(attune_store *store, attune_store_statistics *out, attune_error *err) {
    int code = store_counts(store, &out->interactions, &out->consented, &out->feedback, NULL, err);
    if (code == ATTUNE_OK) code = count_examples(store, out, err);
    if (code == ATTUNE_OK) code = count_private(store, out, err);
    if (code == ATTUNE_OK) code = store_derive_left(store, &out->not_derived, err);
    if (code == ATTUNE_OK) code = store_index_left(store, &out->not_indexed, err);
    if (code == ATTUNE_OK) code = store_scrub_pending(store, &out->scrub_pending, err);
    return code;
}

int attune_store_statistics_get(attune_store *store, attune_store_statistics *out, attune_error *err) {
    attune_store_statistics s = {.size = sizeof s};
    struct recorder_counts queue;
    if (!out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "out is NULL");
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = count_store(store, &s, err);
    store_leave(store);
    if (code != ATTUNE_OK) return code;
    recorder_counts_get(store->recorder, &queue);
    s.queued_rows = queue.rows;
    s.queued_bytes = queue.bytes;
    pthread_mutex_lock(&store->telling);
    s.written = queue.written - store->lost_feedback;
    s.refused = queue.refused + store->lost_feedback;
    pthread_mutex_unlock(&store->telling);
    s.dropped = queue.dropped;
    s.queue_peak_bytes = queue.peak_bytes;
    s.writer_code = queue.failure.code;
    memcpy(s.writer_message, queue.failure.message, sizeof s.writer_message - 1);
    s.bytes = file_bytes_of(store->path, "") + file_bytes_of(store->path, "-wal");
    s.encrypted = store->encrypted;
    return options_write(out, &s, sizeof s, "attune_store_statistics", err);
}
