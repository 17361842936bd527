#define _GNU_SOURCE /* memmem */
#include "datastore/revoke.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/fault.h"
#include "core/base/file.h"
#include "datastore/home_files.h"
#include "datastore/lineage.h"

static const char revoking[] = "revoke what has learned from it";

/* ---- statements ---- */

/* With one integer (?1) and perhaps a text (?2). *changes (nullable) adds up. */
static int run_sql(attune_store *store, const char *sql, int64_t number, const char *text, int *changes,
                   attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, revoking, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = text ? store_bind(store, statement, revoking, err, "it", number, text)
                : store_bind(store, statement, revoking, err, "i", number);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, revoking, err);
    sqlite3_finalize(statement);
    if (code == ATTUNE_OK && changes) *changes += sqlite3_changes(store->db);
    return code;
}

/* *found: the query with ?1 = number gives a row. */
static int exists(attune_store *store, const char *sql, int64_t number, int *found, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, revoking, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, revoking, err, "i", number);
    if (code == ATTUNE_OK) code = store_step(store, statement, revoking, err);
    sqlite3_finalize(statement);
    *found = code == ATTUNE_CONTINUE;
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* ---- adapters ---- */

/* A run that would have given the same adapter once more has published the one that was there. */
static const char adapters_of_run[] = "UPDATE adapter SET state = 'revoked' WHERE state <> 'revoked' AND (run = ?1 OR "
                                      "number = (SELECT adapter FROM run WHERE number = ?1 AND adapter > 0))";

static const char children[] =
    "UPDATE adapter SET state = 'revoked' WHERE state <> 'revoked' AND ("
    "parent IN (SELECT number FROM adapter WHERE state = 'revoked') OR run IN (SELECT number FROM run WHERE "
    "parent IN (SELECT number FROM adapter WHERE state = 'revoked')))";

static int revoke_adapters(attune_store *store, const int64_t *runs, size_t n, int *revoked, attune_error *err) {
    int code = ATTUNE_OK, before;
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++)
        code = run_sql(store, adapters_of_run, runs[i], NULL, revoked, err);
    do {
        before = *revoked;
        if (code == ATTUNE_OK) code = store_exec(store, children, revoking, err);
        if (code == ATTUNE_OK) *revoked += sqlite3_changes(store->db);
    } while (code == ATTUNE_OK && *revoked > before);
    return code;
}

/* ---- runs under way ---- */

static int is_leftover(const char *name, const char *start) {
    size_t n = strlen(name), m = strlen(start);
    return n > m + 4 && strncmp(name, start, m) == 0 && strcmp(name + n - 4, ".tmp") == 0;
}

/* The metadata of an adapter file stands before its tensors and names the run: what does not is of another run, or too
 * short to hold anything that was learned. */
static int file_names_run(int folder, const char *name, const char *run) {
    char start[16 << 10];
    size_t n = 0;
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return 0;
    for (ssize_t got; n < sizeof start && (got = read(fd, start + n, sizeof start - n)) > 0;) n += (size_t)got;
    close(fd);
    return run[0] && memmem(start, n, run, strlen(run)) != NULL;
}

/* An adapter file of this run that no row knows yet, or that is not whole. */
static void drop_unknown_adapters(attune_store *store, const char *run) {
    char folder[1200];
    snprintf(folder, sizeof folder, "%s/adapters", store->home);
    DIR *dir = opendir(folder);
    if (!dir) return;
    for (struct dirent *entry; (entry = readdir(dir));) {
        int number = 0, end = 0, known = 0;
        int is_adapter = sscanf(entry->d_name, "%9d.gguf%n", &number, &end) == 1 && end > 0 && !entry->d_name[end];
        if (!is_adapter && !is_leftover(entry->d_name, ".")) continue;
        if (is_adapter && (exists(store, "SELECT 1 FROM adapter WHERE number = ?1", number, &known, NULL) || known))
            continue;
        if (file_names_run(dirfd(dir), entry->d_name, run)) unlinkat(dirfd(dir), entry->d_name, 0);
    }
    closedir(dir);
}

/* Only a run that is unfinished puts a checkpoint in place, and only inside a write transaction. */
static int drop_checkpoint(const attune_store *store, attune_error *err) {
    char path[1200];
    int code = ATTUNE_OK;
    snprintf(path, sizeof path, "%s/checkpoint.gguf", store->home);
    if (unlink(path) != 0 && errno != ENOENT) code = error_set_errno(err, path, "cannot remove the checkpoint");
    DIR *dir = opendir(store->home);
    if (!dir) return code;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (is_leftover(entry->d_name, ".checkpoint.gguf.")) unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    return code;
}

/* It starts from a revoked adapter, or has to beat one. */
static const char built_upon_revoked[] =
    "SELECT 1 FROM run r JOIN adapter a ON a.state = 'revoked' AND (a.number = r.parent OR a.number = "
    "CASE WHEN json_valid(r.configuration) THEN json_extract(r.configuration, '$.opponent') END) "
    "WHERE r.number = ?1";

static int is_among(int64_t number, const int64_t *numbers, size_t n) {
    for (size_t low = 0, high = n; low < high;) {
        size_t middle = low + (high - low) / 2;
        if (numbers[middle] == number) return 1;
        if (numbers[middle] < number)
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

static int end_run(attune_store *store, int64_t number, const char *id, const char *reason, int *ended,
                   attune_error *err) {
    char sql[160];
    snprintf(sql, sizeof sql, "UPDATE run SET state = 'failed', reason = ?2, ended_ms = %lld WHERE number = ?1",
             (long long)store_now_ms());
    int code = run_sql(store, sql, number, reason, ended, err);
    if (code != ATTUNE_OK) return code;
    (void)drop_checkpoint(store, NULL); /* sweeping tries again, and tells */
    drop_unknown_adapters(store, id);
    return ATTUNE_OK;
}

/* The next unfinished run behind *number; 0: there is none. */
static int next_unfinished(attune_store *store, int64_t *number, char id[65], attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1,
                             "SELECT number, id FROM run WHERE state = 'unfinished' AND number > ? ORDER BY number "
                             "LIMIT 1",
                             revoking, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, revoking, err, "i", *number);
    if (code == ATTUNE_OK) code = store_step(store, statement, revoking, err);
    *number = code == ATTUNE_CONTINUE ? sqlite3_column_int64(statement, 0) : 0;
    if (code == ATTUNE_CONTINUE) store_column_text(statement, 1, id, 65);
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int end_runs(attune_store *store, const int64_t *runs, size_t n, const char *reason, int *ended,
                    attune_error *err) {
    int64_t number = 0;
    char id[65];
    for (;;) {
        int upon = 0;
        int code = next_unfinished(store, &number, id, err);
        if (code != ATTUNE_OK || !number) return code;
        int holds = is_among(number, runs, n);
        if (!holds) code = exists(store, built_upon_revoked, number, &upon, err);
        if (code == ATTUNE_OK && (holds || upon))
            code = end_run(store, number, id,
                           holds ? reason : "the adapter that it starts from, or has to beat, was revoked", ended, err);
        if (code != ATTUNE_OK) return code;
    }
}

/* ---- CURRENT ---- */

struct version {
    int known, parent;
    char state[16], sha256[65];
};

static int read_version(attune_store *store, int number, struct version *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    memset(out, 0, sizeof *out);
    int code = store_prepare(store, -1, "SELECT parent, state, sha256 FROM adapter WHERE number = ?", revoking,
                             &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, revoking, err, "i", (int64_t)number);
    if (code == ATTUNE_OK) code = store_step(store, statement, revoking, err);
    if (code == ATTUNE_CONTINUE) {
        out->known = 1;
        out->parent = sqlite3_column_int(statement, 0);
        store_column_text(statement, 1, out->state, sizeof out->state);
        store_column_text(statement, 2, out->sha256, sizeof out->sha256);
    }
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int may_serve(const attune_store *store, int number, const struct version *version) {
    char path[1200];
    struct stat st;
    if (!version->known || strcmp(version->state, "revoked") == 0 || strcmp(version->state, "rejected") == 0) return 0;
    store_adapter_path(store->home, number, path, sizeof path);
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

/* From `number` on over its parents; *out 0: the base. */
static int clean_ancestor(attune_store *store, int number, int *out, char sha256[65], attune_error *err) {
    struct version version;
    *out = 0;
    while (number > 0) {
        int code = read_version(store, number, &version, err);
        if (code != ATTUNE_OK) return code;
        if (may_serve(store, number, &version)) {
            *out = number;
            memcpy(sha256, version.sha256, 65);
            return ATTUNE_OK;
        }
        number = version.known && version.parent < number ? version.parent : 0;
    }
    return ATTUNE_OK;
}

/* Away from an adapter that is revoked. One that nobody knows, or a CURRENT that cannot be read, does not tell what it
 * has learned: where something was revoked it gives way to the base. */
static int leave_revoked(attune_store *store, int any_revoked, struct store_revoked *out, attune_error *err) {
    struct version version = {0};
    int number = 0, next = 0;
    char sha256[65] = "";
    int damaged = store_current_read(store->home, &number, NULL, NULL, NULL) != ATTUNE_OK;
    int code = number ? read_version(store, number, &version, err) : ATTUNE_OK;
    if (code != ATTUNE_OK) return code;
    int unclear = damaged || (number && !version.known);
    if (!(version.known && strcmp(version.state, "revoked") == 0) && !(unclear && any_revoked))
        /* Swapped by a call that died before it could commit, perhaps: CURRENT rules over the rows. */
        return any_revoked ? store_adapter_set(store, number, "active", err) : ATTUNE_OK;
    if (version.known) code = clean_ancestor(store, version.parent, &next, sha256, err);
    if (code == ATTUNE_OK) code = store_current_write(store->home, next, sha256, err);
    if (code == ATTUNE_OK) code = store_adapter_set(store, next, "active", err);
    if (code == ATTUNE_OK) out->after = next;
    return code;
}

void store_revoked_start(const attune_store *store, struct store_revoked *out) {
    memset(out, 0, sizeof *out);
    (void)store_current_read(store->home, &out->before, NULL, NULL, NULL);
    out->after = out->before;
}

/* ---- revoking ---- */

int store_revoke(attune_store *store, const int64_t *runs, size_t n, const char *reason, struct store_revoked *out,
                 attune_error *err) {
    char detail[96];
    int adapters = 0, ended = 0, active = out->after;
    if (n == 0) return ATTUNE_OK;
    int code = revoke_adapters(store, runs, n, &adapters, err);
    if (code == ATTUNE_OK) code = end_runs(store, runs, n, reason, &ended, err);
    if (code == ATTUNE_OK) code = leave_revoked(store, adapters > 0, out, err);
    fault_point("revoke.current.after");
    if (code == ATTUNE_OK && (adapters || ended)) {
        snprintf(detail, sizeof detail, "adapters %d, runs ended %d, active %d then %d", adapters, ended, active,
                 out->after);
        code = store_audit(store, "revoke", detail, err);
        if (code == ATTUNE_OK) code = store_sweep_mark(store, err);
    }
    out->adapters += adapters;
    out->runs += ended;
    return code;
}

/* Whether the run `r` has an adapter that is revoked. */
#define IS_REVOKED                                                                                                     \
    "EXISTS (SELECT 1 FROM adapter a WHERE a.state = 'revoked' AND (a.run = r.number OR a.number = r.adapter))"
#define REVOKED_RUNS "(SELECT number FROM run r WHERE " IS_REVOKED ")"

/* ?1: how many examples. Another run that has used one and still stands takes its place. */
static const char release[] =
    "UPDATE example SET run = (SELECT max(r.number) FROM run_example x JOIN run r ON r.number = x.run WHERE "
    "x.content_hash = lower(hex(example.content_hash)) AND r.state = 'published' AND NOT " IS_REVOKED ") "
    "WHERE id IN (SELECT id FROM example WHERE run IN " REVOKED_RUNS " LIMIT ?1)";

int store_revoked_release(attune_store *store, attune_error *err) {
    enum { AT_ONCE = 400 };
    int64_t left = 0;
    for (;;) {
        int code = store_number(store, "SELECT EXISTS (SELECT 1 FROM example WHERE run IN " REVOKED_RUNS ")", revoking,
                                &left, err);
        if (code != ATTUNE_OK || !left) return code;
        code = store_begin(store, err);
        if (code == ATTUNE_OK) code = store_end(store, run_sql(store, release, AT_ONCE, NULL, NULL, err), err);
        if (code != ATTUNE_OK) return code;
    }
}

/* ---- sweeping: "sweep" counts what made it necessary, "swept" is how far it was done ---- */

int store_sweep_mark(attune_store *store, attune_error *err) {
    int64_t wanted = 0;
    int code = store_mark_get(store, "sweep", &wanted, err);
    return code == ATTUNE_OK ? store_mark_put(store, "sweep", wanted + 1, err) : code;
}

static int sweep_marks(attune_store *store, int64_t *wanted, int64_t *done, attune_error *err) {
    int code = store_mark_get(store, "sweep", wanted, err);
    return code == ATTUNE_OK ? store_mark_get(store, "swept", done, err) : code;
}

int store_sweep_pending(attune_store *store, int *pending, attune_error *err) {
    int64_t wanted = 0, done = 0;
    int code = sweep_marks(store, &wanted, &done, err);
    *pending = done < wanted;
    return code;
}

static int unlink_adapters(attune_store *store, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    char path[1200];
    int failed = ATTUNE_OK;
    int code =
        store_prepare(store, -1, "SELECT number FROM adapter WHERE state = 'revoked'", revoking, &statement, err);
    while (code == ATTUNE_OK && (code = store_step(store, statement, revoking, err)) == ATTUNE_CONTINUE) {
        store_adapter_path(store->home, sqlite3_column_int(statement, 0), path, sizeof path);
        if (unlink(path) != 0 && errno != ENOENT && failed == ATTUNE_OK)
            failed = error_set_errno(err, path, "cannot remove an adapter that was revoked");
        code = ATTUNE_OK;
    }
    sqlite3_finalize(statement);
    snprintf(path, sizeof path, "%s/adapters", store->home);
    if (failed == ATTUNE_OK && access(path, F_OK) == 0) failed = file_sync_folder(path, err);
    return code == ATTUNE_DONE ? failed : code;
}

/* In a transaction, so that no run begins and writes its first checkpoint meanwhile. */
static int unlink_checkpoint(attune_store *store, attune_error *err) {
    int64_t busy = 0;
    int code = store_begin(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_number(store, "SELECT EXISTS (SELECT 1 FROM run WHERE state = 'unfinished')", revoking, &busy, err);
    if (code == ATTUNE_OK && !busy) code = drop_checkpoint(store, err);
    store_rollback(store);
    int synced = file_sync_folder(store->home, code == ATTUNE_OK ? err : NULL);
    return code == ATTUNE_OK ? synced : code;
}

int store_sweep(attune_store *store, attune_error *err) {
    int64_t wanted = 0, done = 0;
    int code = sweep_marks(store, &wanted, &done, err);
    if (code != ATTUNE_OK || done >= wanted) return code;
    fault_point("sweep.before");
    int (*const parts[])(attune_store *, attune_error *) = {unlink_adapters, unlink_checkpoint};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        int part = parts[i](store, code == ATTUNE_OK ? err : NULL);
        if (code == ATTUNE_OK) code = part;
    }
    int caches = store_caches_remove(store->home, code == ATTUNE_OK ? err : NULL);
    if (code == ATTUNE_OK) code = caches;
    if (code != ATTUNE_OK) return code;
    fault_point("sweep.after");
    code = store_begin(store, err);
    return code == ATTUNE_OK ? store_end(store, store_mark_put(store, "swept", wanted, err), err) : code;
}
