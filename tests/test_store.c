/* store.db as a file that several programs share: opening, locks, crashes, refusals, lineage. */
#include "tests/store_fixture.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/file.h>

#include "datastore/handle.h"
#include "datastore/schema.h"

/* ---- helpers ---- */

static int wait_for(pid_t child) {
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void sql(struct fixture *f, const char *text) {
    sqlite3 *db;
    char *said = NULL;
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &db), SQLITE_OK);
    if (sqlite3_exec(db, text, NULL, NULL, &said) != SQLITE_OK) fail_msg("%s: %s", text, said);
    sqlite3_close(db);
}

static int pragma(attune_store *store, const char *text) {
    sqlite3_stmt *statement;
    assert_int_equal(sqlite3_prepare_v2(store->db, text, -1, &statement, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    int value = sqlite3_column_int(statement, 0);
    sqlite3_finalize(statement);
    return value;
}

static int64_t size_of(const struct fixture *f, const char *name) {
    struct stat info;
    return stat(in_home(f, name), &info) == 0 ? info.st_size : -1;
}

static unsigned mode_of(const struct fixture *f, const char *name) {
    struct stat info;
    assert_int_equal(stat(in_home(f, name), &info), 0);
    return info.st_mode & 0777;
}

static void reopen(struct fixture *f) {
    attune_store_close(f->store);
    f->store = NULL;
    OK(store_open_path(f->home, 0, &f->store, &f->err));
}

/* ---- opening ---- */

static void test_create_modes_and_settings(void **state) {
    struct fixture *f = *state;
    static const char *const files[] = {"store.db", "store.db-wal", "store.db-shm", "store.lock"};
    mode_t before = umask(0);
    OK(store_create(f->home, 1, &f->err));
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    OK(record(f->store, "p", "r", 0, NULL, &f->err));
    umask(before);
    for (size_t i = 0; i < 4; i++) assert_int_equal(mode_of(f, files[i]), 0600);
    assert_int_equal(pragma(f->store, "PRAGMA foreign_keys"), 1);
    assert_int_equal(pragma(f->store, "PRAGMA secure_delete"), 1);
    assert_int_equal(pragma(f->store, "PRAGMA synchronous"), 2);
    assert_int_equal(pragma(f->store, "PRAGMA wal_autocheckpoint"), 0);
    assert_int_equal(pragma(f->store, "PRAGMA temp_store"), 2);
    assert_int_equal(pragma(f->store, "PRAGMA application_id"), STORE_APPLICATION_ID);
    assert_int_equal(pragma(f->store, "PRAGMA user_version"), store_schema_newest());
}

static void test_create_under_a_tight_umask(void **state) {
    struct fixture *f = *state;
    mode_t before = umask(0777);
    int code = store_create(f->home, 0, &f->err);
    umask(before);
    OK(code);
    assert_int_equal(mode_of(f, "store.db"), 0600);
    assert_int_equal(mode_of(f, "store.lock"), 0600);
    OK(store_open_path(f->home, 0, &f->store, &f->err));
}

static void test_create_again(void **state) {
    struct fixture *f = *state;
    int consent = -1;
    OK(store_create(f->home, 0, &f->err));
    OK(store_create(f->home, 1, &f->err)); /* nothing was recorded: an interrupted init goes on */
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    OK(store_consent_get(f->store, &consent, &f->err));
    assert_int_equal(consent, 1);
    OK(record(f->store, "p", "r", 0, NULL, &f->err));
    FAILS(store_create(f->home, 0, &f->err), ATTUNE_ERROR_STATE, "1 interactions", "store.db");
    OK(store_consent_get(f->store, &consent, &f->err));
    assert_int_equal(consent, 1);
}

static void test_open_nothing(void **state) {
    struct fixture *f = *state;
    FAILS(attune_store_open(f->home, NULL, &f->store, &f->err), ATTUNE_ERROR_NOT_FOUND, "attune init", "store.db");
    FAILS(attune_store_open("", NULL, &f->store, &f->err), ATTUNE_ERROR_NOT_FOUND, "no home", "");
    FAILS(store_create("/nonexistent/home", 0, &f->err), ATTUNE_ERROR_IO, "No such file", "store.db");
    assert_null(f->store);
    attune_store_close(NULL);
    FAILS(attune_store_flush(NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "NULL", "");
}

static void test_open_options(void **state) {
    struct fixture *f = *state;
    struct {
        attune_store_options known;
        int64_t later;
    } newer = {{.size = sizeof newer}, 0};
    attune_store_options unset = {0};
    attune_store *second = NULL;
    FAILS(attune_store_open(f->home, &unset, &second, &f->err), ATTUNE_ERROR_ARGUMENT, "ATTUNE_INIT", "");
    OK(attune_store_open(f->home, &newer.known, &second, &f->err));
    attune_store_close(second);
    newer.later = 1;
    FAILS(attune_store_open(f->home, &newer.known, &second, &f->err), ATTUNE_ERROR_UNSUPPORTED, "update", "");
    newer.known.size = sizeof newer.known;
    newer.known.busy_timeout_ms = -1;
    FAILS(attune_store_open(f->home, &newer.known, &second, &f->err), ATTUNE_ERROR_ARGUMENT, "negative", "");
}

static void test_home_path(void **state) {
    struct fixture *f = *state;
    char path[64];
    unsetenv("XDG_DATA_HOME");
    setenv("ATTUNE_HOME", f->home, 1);
    assert_int_equal(attune_home_path(NULL, path, sizeof path), strlen(f->home));
    assert_string_equal(path, f->home);
    unsetenv("ATTUNE_HOME");
    setenv("HOME", "/h", 1);
    attune_home_path(NULL, path, sizeof path);
    assert_string_equal(path, "/h/.local/share/attune");
    setenv("XDG_DATA_HOME", "relative", 1);
    attune_home_path(NULL, path, sizeof path);
    assert_string_equal(path, "/h/.local/share/attune");
    setenv("XDG_DATA_HOME", "/x", 1);
    attune_home_path(NULL, path, sizeof path);
    assert_string_equal(path, "/x/attune");
    assert_int_equal(attune_home_path("/longer than eight", path, 8), 18);
    assert_string_equal(path, "");
    unsetenv("XDG_DATA_HOME");
    unsetenv("HOME");
    assert_int_equal(attune_home_path(NULL, path, sizeof path), 0);
}

/* ---- hostile: files that are no store ---- */

static void test_not_a_database(void **state) {
    struct fixture *f = *state;
    char noise[8192];
    for (size_t i = 0; i < sizeof noise; i++) noise[i] = (char)(i * 31 + 7);
    write_file(f, "store.db", noise, sizeof noise);
    FAILS(store_open_path(f->home, 0, &f->store, &f->err), ATTUNE_ERROR_FORMAT, "not a database", "store.db");
    FAILS(store_create(f->home, 0, &f->err), ATTUNE_ERROR_FORMAT, "not a database", "store.db");
    assert_int_equal(size_of(f, "store.db"), sizeof noise);
    write_file(f, "store.db", "short", 5);
    FAILS(store_open_path(f->home, 0, &f->store, &f->err), ATTUNE_ERROR_FORMAT, "not a database", "store.db");
    write_file(f, "store.db", "", 0);
    FAILS(store_open_path(f->home, 0, &f->store, &f->err), ATTUNE_ERROR_NOT_FOUND, "cut short", "store.db");
    assert_int_equal(remove(in_home(f, "store.db")), 0);
    assert_int_equal(mkfifo(in_home(f, "store.db"), 0600), 0);
    FAILS(store_open_path(f->home, 0, &f->store, &f->err), ATTUNE_ERROR_FORMAT, "regular", "store.db");
}

static void test_somebody_elses_database(void **state) {
    struct fixture *f = *state;
    sql(f, "CREATE TABLE notes (text); INSERT INTO notes VALUES ('mine')");
    FAILS(store_open_path(f->home, 0, &f->store, &f->err), ATTUNE_ERROR_FORMAT, "not an attune store", "store.db");
    FAILS(store_create(f->home, 0, &f->err), ATTUNE_ERROR_FORMAT, "not an attune store", "store.db");
}

static void test_newer_schema(void **state) {
    struct fixture *f = *state;
    char newer[64];
    snprintf(newer, sizeof newer, "PRAGMA user_version = %d", store_schema_newest() + 1);
    sql(f, newer);
    /* The handle that was open before must not write to it either. */
    FAILS(record(f->store, "p", "r", 0, NULL, &f->err), ATTUNE_ERROR_UNSUPPORTED, "newer attune", "store.db");
    attune_store *second = NULL;
    FAILS(store_open_path(f->home, 0, &second, &f->err), ATTUNE_ERROR_UNSUPPORTED, "newer attune", "store.db");
    FAILS(store_create(f->home, 0, &f->err), ATTUNE_ERROR_UNSUPPORTED, "newer attune", "store.db");
}

static void test_migrations(void **state) {
    struct fixture *f = *state;
    const char *steps[16];
    int n = store_schema_newest();
    assert_in_range(n, 1, 14);
    for (int i = 0; i < n; i++) steps[i] = store_schema_steps[i];
    steps[n] = "CREATE TABLE second (a)";
    steps[n + 1] = "CREATE TABLE third (a); CREATE TABLE second (a)";
    OK(store_schema_migrate(f->store, steps, n + 1, &f->err));
    assert_int_equal(pragma(f->store, "PRAGMA user_version"), n + 1);
    FAILS(store_schema_migrate(f->store, steps, n + 2, &f->err), ATTUNE_ERROR_INTERNAL, "already exists", "store.db");
    assert_int_equal(pragma(f->store, "PRAGMA user_version"), n + 1);
    assert_int_equal(pragma(f->store, "SELECT count(*) FROM sqlite_schema WHERE name = 'second'"), 1);
    assert_int_equal(pragma(f->store, "SELECT count(*) FROM sqlite_schema WHERE name = 'third'"), 0);
    steps[n + 1] = "CREATE TABLE third (a)";
    OK(store_schema_migrate(f->store, steps, n + 2, &f->err));
    assert_int_equal(pragma(f->store, "PRAGMA user_version"), n + 2);
}

/* A store that attune 0.1.0 made with schema 1: 9 rows of a file, an edited answer and one without consent, a
 * published run over the ten examples, its adapter. */
static void test_a_store_of_schema_1(void **state) {
    struct fixture *f = *state;
    struct rows rows;
    attune_store_statistics s;
    int64_t fresh = -1;
    char bytes[70000];
    ATTUNE_INIT(s);
    FILE *file = fopen(ATTUNE_TEST_ROOT "/tests/golden/store_v1.db", "rb");
    assert_non_null(file);
    size_t n = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    write_file(f, "store.db", bytes, n);
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    assert_int_equal(pragma(f->store, "PRAGMA user_version"), store_schema_newest());
    assert_sound(f);
    examples(f, &rows);
    assert_int_equal(rows.n, 10);
    int edited = 0;
    for (size_t i = 0; i < rows.n; i++) edited += strcmp(rows.row[i].response, "A drowned glacial valley.") == 0;
    assert_int_equal(edited, 1);
    OK(store_counts(f->store, NULL, NULL, NULL, &fresh, &f->err));
    assert_int_equal(fresh, 0); /* the run has used them all */
    OK(attune_store_statistics_get(f->store, &s, &f->err));
    assert_int_equal(s.interactions, 11);
    assert_int_equal(s.consented, 10);
    assert_int_equal(s.feedback, 2);
    assert_int_equal(s.examples_preference, 1);
    assert_int_equal(pragma(f->store, "SELECT count(*) FROM run_interaction"), 10); /* the lineage is there, too */
    OK(record(f->store, "p", "r", 1, NULL, &f->err));
    assert_int_equal(count_interactions(f), 12);
    /* its adapter can be given what later versions keep of one */
    struct store_drift drift = {.adapter = 1, .mode = "same", .kl = 0.01, .agreement = 0.9, .loss = 2, .loss_none = 1.9};
    OK(store_drift_put(f->store, &drift, 1, &f->err));
    OK(store_drift_get(f->store, 1, "same", &drift, &f->err));
}

static struct store_drift made_drift(int adapter, const char *mode, double kl, int64_t bytes) {
    struct store_drift drift = {.adapter = adapter, .kl = kl, .agreement = 0.5 + kl, .loss = 2 + kl, .loss_none = 2,
                                .tokens = 1000 + bytes, .rows = 7, .bytes = bytes, .measured_ms = 12345};
    snprintf(drift.mode, sizeof drift.mode, "%s", mode);
    return drift;
}
struct modes {
    char text[64];
    int stop;
};
static int note_mode(const struct store_drift *drift, void *user) {
    struct modes *modes = user;
    strcat(strcat(modes->text, drift->mode), " ");
    return modes->stop;
}

static void test_drift(void **state) {
    struct fixture *f = *state;
    struct store_drift in[] = {made_drift(1, "f16", 0.001, 300), made_drift(1, "same", 0.03, 100),
                               made_drift(1, "q8", 0.002, 200), made_drift(1, "calibrated", 0.01, 100)},
                       out, other = made_drift(2, "same", 0.5, 1), bad = made_drift(1, "q8", NAN, 1);
    struct modes modes = {.stop = 0};
    attune_adapter_info info;
    ATTUNE_INIT(info);
    info.number = 1;
    strcpy(info.state, "active");
    strcpy(info.origin, "trained");
    FAILS(store_drift_put(f->store, in, 4, &f->err), ATTUNE_ERROR_NOT_FOUND, "no adapter 1", "store.db");
    OK(store_adapter_put(f->store, &info, 0, &f->err));
    FAILS(store_drift_get(f->store, 1, "q8", &out, &f->err), ATTUNE_ERROR_NOT_FOUND, "was not measured", "store.db");
    OK(store_drift_put(f->store, in, 4, &f->err));
    for (int i = 0; i < 4; i++) {
        OK(store_drift_get(f->store, 1, in[i].mode, &out, &f->err));
        assert_string_equal(out.mode, in[i].mode);
        assert_true(out.kl == in[i].kl && out.agreement == in[i].agreement && out.loss == in[i].loss);
        assert_true(out.loss_none == 2 && out.tokens == in[i].tokens && out.rows == 7 && out.bytes == in[i].bytes);
        assert_true(out.adapter == 1 && out.measured_ms == 12345);
    }
    /* the fewest bytes first, then the least drift */
    OK(store_drift_each(f->store, 1, note_mode, &modes, &f->err));
    assert_string_equal(modes.text, "calibrated same q8 f16 ");
    modes = (struct modes){.stop = 1};
    OK(store_drift_each(f->store, 1, note_mode, &modes, &f->err));
    assert_string_equal(modes.text, "calibrated ");
    /* all or none, and the newest counts */
    struct store_drift pair[] = {made_drift(1, "q8", 0.004, 200), bad};
    FAILS(store_drift_put(f->store, pair, 2, &f->err), ATTUNE_ERROR_ARGUMENT, "not a finite number", "");
    pair[1] = other;
    FAILS(store_drift_put(f->store, pair, 2, &f->err), ATTUNE_ERROR_NOT_FOUND, "no adapter 2", "store.db");
    OK(store_drift_get(f->store, 1, "q8", &out, &f->err));
    assert_true(out.kl == 0.002);
    OK(store_drift_put(f->store, pair, 1, &f->err));
    OK(store_drift_get(f->store, 1, "q8", &out, &f->err));
    assert_true(out.kl == 0.004);
    /* other states change nothing; with a revoked adapter they go, and do not come back */
    OK(store_adapter_state_set(f->store, 1, "retired", &f->err));
    assert_int_equal(pragma(f->store, "SELECT count(*) FROM adapter_drift"), 4);
    info.number = 2;
    OK(store_adapter_put(f->store, &info, 0, &f->err));
    OK(store_drift_put(f->store, &other, 1, &f->err));
    OK(store_adapter_state_set(f->store, 1, "revoked", &f->err));
    assert_int_equal(pragma(f->store, "SELECT count(*) FROM adapter_drift"), 1);
    OK(store_drift_get(f->store, 2, "same", &out, &f->err));
    FAILS(store_drift_put(f->store, in, 1, &f->err), ATTUNE_ERROR_STATE, "revoked", "store.db");
}

static void test_damaged(void **state) {
    struct fixture *f = *state;
    char noise[4096];
    for (int i = 0; i < 50; i++) OK(record(f->store, "p", "r", i + 1, NULL, &f->err));
    attune_store_close(f->store);
    f->store = NULL;
    int64_t size = size_of(f, "store.db");
    memset(noise, 0x5a, sizeof noise);
    FILE *file = fopen(in_home(f, "store.db"), "r+b");
    for (int64_t at = 8192; at + 4096 <= size; at += 4096) {
        fseek(file, at, SEEK_SET);
        fwrite(noise, 1, sizeof noise, file);
    }
    fclose(file);
    FAILS(store_open_path(f->home, 0, &f->store, &f->err), ATTUNE_ERROR_FORMAT, "damaged", "store.db");
}

static void test_a_row_without_its_parent(void **state) {
    struct fixture *f = *state;
    char problem[200];
    OK(record(f->store, "p", "r", 1, NULL, &f->err));
    OK(store_exec(f->store,
                  "PRAGMA foreign_keys = OFF; INSERT INTO run_interaction (interaction, run) VALUES (1, 77);"
                  "PRAGMA foreign_keys = ON",
                  "test", &f->err));
    FAILS(store_check(f->store, problem, sizeof problem, &f->err), ATTUNE_ERROR_FORMAT, "damaged", "store.db");
    assert_non_null(strstr(problem, "run_interaction"));
}

static void test_a_changed_audit(void **state) {
    struct fixture *f = *state;
    char problem[200];
    OK(store_consent_set(f->store, 0, &f->err));
    assert_sound(f);
    OK(store_exec(f->store, "UPDATE audit SET detail = 'given' WHERE id = 2", "test", &f->err));
    FAILS(store_check(f->store, problem, sizeof problem, &f->err), ATTUNE_ERROR_FORMAT, "audit: entry 2", "store.db");
}

/* An init with a key that was cut short, and then one without: the store is not encrypted. */
static void test_made_again_without_a_key(void **state) {
    struct fixture *f = *state;
    unsigned char key[ATTUNE_KEY_BYTES] = {1};
    OK(store_create_encrypted(f->home, 1, key, "/nowhere/a.key", &f->err));
    OK(store_create(f->home, 1, &f->err));
    OK(attune_store_open(f->home, NULL, &f->store, &f->err));
    OK(record(f->store, "p", "r", 1, NULL, &f->err));
    attune_store_close(f->store);
    f->store = NULL;
    remove_folder(f->home);
    assert_int_equal(mkdir(f->home, 0700), 0);
    OK(store_create(f->home, 1, &f->err));
    OK(store_create_encrypted(f->home, 1, key, NULL, &f->err));
    FAILS(attune_store_open(f->home, NULL, &f->store, &f->err), ATTUNE_ERROR_MISMATCH, "encrypted", "store.db");
}

/* ---- the queue as an app meets it ---- */

static attune_store *open_queue(struct fixture *f, attune_store_options options) {
    attune_store *store = NULL;
    options.size = sizeof options;
    OK(attune_store_open(f->home, &options, &store, &f->err));
    return store;
}

static int queue(struct fixture *f, attune_store *store, const char *prompt, attune_uuid *id) {
    attune_interaction in;
    ATTUNE_INIT(in);
    in.prompt = prompt;
    in.response = "r";
    return attune_store_record(store, &in, id, &f->err);
}

static void test_recorded_is_not_waited_for(void **state) {
    struct fixture *f = *state;
    attune_store *store = open_queue(f, (attune_store_options){.group_ms = 60000});
    attune_store_statistics s;
    attune_uuid id;
    ATTUNE_INIT(s);
    OK(queue(f, store, "p", &id));
    attune_feedback thumb = {.size = sizeof thumb, .kind = ATTUNE_FEEDBACK_THUMB, .value = 1};
    OK(attune_store_feedback(store, id.text, &thumb, &f->err)); /* of a row that is still queued */
    OK(attune_store_statistics_get(store, &s, &f->err));
    assert_int_equal(s.queued_rows, 2);
    assert_true(s.queued_bytes > 0);
    assert_int_equal(s.interactions, 0);
    OK(attune_store_flush(store, &f->err));
    OK(attune_store_statistics_get(store, &s, &f->err));
    assert_int_equal(s.queued_rows, 0);
    assert_int_equal(s.written, 2);
    assert_int_equal(s.interactions, 1);
    assert_int_equal(s.feedback, 1);
    assert_true(s.queue_peak_bytes > 0 && s.queue_peak_bytes < 10000);
    attune_store_close(store);
}

static void test_a_full_queue(void **state) {
    struct fixture *f = *state;
    attune_store_statistics s;
    ATTUNE_INIT(s);
    static const int policies[] = {ATTUNE_FULL_DROP, ATTUNE_FULL_WAIT};
    for (int i = 0; i < 2; i++) {
        attune_store *store = open_queue(f, (attune_store_options){.group_ms = 60000, .queue_rows = 8, .busy_timeout_ms = 50,
                                                                   .when_full = policies[i], .full_wait_ms = 20});
        OK(store_enter(f->store, &f->err));
        OK(store_begin(f->store, &f->err)); /* nothing gets through to the disk */
        for (int row = 0; row < 8; row++) OK(queue(f, store, "p", NULL));
        attune_uuid id = {"untouched"};
        FAILS(queue(f, store, "p", &id), ATTUNE_ERROR_QUEUE_FULL, "", "");
        assert_string_equal(id.text, "untouched");
        FAILS(attune_store_flush(store, &f->err), ATTUNE_ERROR_BUSY, "try again", "store.db");
        OK(attune_store_statistics_get(store, &s, &f->err));
        assert_int_equal(s.writer_code, ATTUNE_ERROR_BUSY);
        assert_int_equal(s.dropped, 1);
        assert_int_equal(s.queued_rows, 8);
        store_rollback(f->store);
        store_leave(f->store);
        OK(attune_store_flush(store, &f->err));
        assert_int_equal(count_interactions(f), 8 * (i + 1));
        attune_store_close(store);
    }
}

static void test_feedback_on_nothing(void **state) {
    struct fixture *f = *state;
    attune_store_statistics s;
    attune_uuid id = {"01a20724-4221-7e97-ad59-a271962389cc"};
    ATTUNE_INIT(s);
    attune_feedback copy = {.size = sizeof copy, .kind = ATTUNE_FEEDBACK_COPY};
    OK(attune_store_feedback(f->store, id.text, &copy, &f->err));
    OK(queue(f, f->store, "p", NULL));
    FAILS(attune_store_flush(f->store, &f->err), ATTUNE_ERROR_NOT_FOUND, id.text, "store.db");
    OK(attune_store_flush(f->store, &f->err)); /* told once */
    OK(attune_store_statistics_get(f->store, &s, &f->err));
    assert_int_equal(s.refused, 1);
    assert_int_equal(s.interactions, 1);
    FAILS(attune_store_feedback(f->store, "no id", &copy, &f->err), ATTUNE_ERROR_NOT_FOUND, "no id", "store.db");
}

/* Descriptors of this process that lead into the home. */
static int open_files(const struct fixture *f) {
    int n = 0;
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder));) {
        char target[600];
        ssize_t length = readlinkat(dirfd(folder), entry->d_name, target, sizeof target - 1);
        if (length > 0 && (size_t)length > strlen(f->home)) n += strncmp(target, f->home, strlen(f->home)) == 0;
    }
    closedir(folder);
    return n;
}

static void test_suspend(void **state) {
    struct fixture *f = *state;
    OK(record(f->store, "before", "r", 1, NULL, &f->err));
    assert_true(open_files(f) > 0);
    for (int i = 0; i < 2; i++) { /* the second time nothing is left to do */
        OK(attune_store_suspend(f->store, &f->err));
        assert_int_equal(open_files(f), 0);
    }
    int64_t n;
    FAILS(store_counts(f->store, &n, NULL, NULL, NULL, &f->err), ATTUNE_ERROR_STATE, "attune_store_resume", "store.db");
    OK(queue(f, f->store, "asleep", NULL));
    FAILS(attune_store_flush(f->store, &f->err), ATTUNE_ERROR_STATE, "", "");
    assert_int_equal(open_files(f), 0);
    for (int i = 0; i < 2; i++) OK(attune_store_resume(f->store, &f->err));
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(count_interactions(f), 2);
}

static void test_closing_writes_what_is_queued(void **state) {
    struct fixture *f = *state;
    attune_store *store = open_queue(f, (attune_store_options){.group_ms = 60000});
    for (int i = 0; i < 100; i++) OK(queue(f, store, "p", NULL));
    attune_store_close(store);
    assert_int_equal(count_interactions(f), 100);
}

static void test_normal_durability(void **state) {
    struct fixture *f = *state;
    attune_store *store = open_queue(f, (attune_store_options){.durability = ATTUNE_DURABILITY_NORMAL});
    OK(queue(f, store, "p", NULL));
    OK(attune_store_flush(store, &f->err));
    assert_int_equal(pragma(store->writer, "PRAGMA synchronous"), 1);
    assert_int_equal(pragma(f->store, "PRAGMA synchronous"), 2);
    assert_int_equal(count_interactions(f), 1);
    attune_store_close(store);
    attune_store_options odd = {.size = sizeof odd, .durability = 7};
    FAILS(attune_store_open(f->home, &odd, &store, &f->err), ATTUNE_ERROR_ARGUMENT, "durability", "");
}

/* ---- hostile: a disk or another program that refuses ---- */

static void test_locked(void **state) {
    struct fixture *f = *state;
    attune_store *patient = NULL;
    OK(store_open_path(f->home, 50, &patient, &f->err));
    OK(store_enter(f->store, &f->err));
    OK(store_begin(f->store, &f->err));
    FAILS(record(patient, "p", "r", 0, NULL, &f->err), ATTUNE_ERROR_BUSY, "try again", "store.db");
    store_rollback(f->store);
    store_leave(f->store);
    OK(record(patient, "p", "r", 0, NULL, &f->err));
    /* A checkpoint somewhere keeps writers out as well. */
    int fd = open(in_home(f, "store.lock"), O_RDWR);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    FAILS(record(patient, "p", "r", 0, NULL, &f->err), ATTUNE_ERROR_BUSY, "try again", "store.db");
    close(fd);
    OK(record(patient, "p", "r", 0, NULL, &f->err));
    assert_int_equal(count_interactions(f), 4); /* those that could not be written stayed in the queue */
    attune_store_close(patient);
}

static void test_full_disk(void **state) {
    struct fixture *f = *state;
    char limit[64], *big = calloc(1, 1 << 20);
    OK(record(f->store, "before", "r", 0, NULL, &f->err));
    attune_store *writer = f->store->writer; /* the queue is empty: its thread leaves it alone */
    snprintf(limit, sizeof limit, "PRAGMA max_page_count = %d", pragma(writer, "PRAGMA page_count") + 8);
    pragma(writer, limit);
    memset(big, 'x', (1 << 20) - 1);
    FAILS(record(f->store, "too much", big, 0, NULL, &f->err), ATTUNE_ERROR_IO, "no space", "store.db");
    FAILS(record(f->store, "after", "r", 0, NULL, &f->err), ATTUNE_ERROR_IO, "no space", "store.db");
    assert_int_equal(count_interactions(f), 1);
    OK(store_enter(writer, &f->err));
    pragma(writer, "PRAGMA max_page_count = 1000000"); /* somebody has made room */
    store_leave(writer);
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(count_interactions(f), 3);
    assert_sound(f);
    free(big);
}

static void test_disk_error(void **state) {
    struct fixture *f = *state;
    OK(record(f->store, "p", "r", 0, NULL, &f->err));
    setenv("ATTUNE_FAULT", "store.commit.before:fail", 1);
    int code = record(f->store, "p", "r", 0, NULL, &f->err);
    unsetenv("ATTUNE_FAULT");
    assert_int_equal(code, ATTUNE_ERROR_IO);
    OK(record(f->store, "p", "r", 0, NULL, &f->err)); /* nothing is left locked, nothing lost */
    assert_int_equal(count_interactions(f), 3);
}

/* As nobody, where this runs as root, for whom no file is read only. */
static int try_read_only(const char *home, const char *word) {
    attune_store *store = NULL;
    attune_error err = {0};
    if (getuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) return 77;
    if (store_open_path(home, 0, &store, &err) != ATTUNE_ERROR_IO) return 1;
    return strstr(err.message, word) && strstr(err.where, "store.") ? 0 : 2;
}

static void test_read_only(void **state) {
    struct fixture *f = *state;
    attune_store_close(f->store);
    f->store = NULL;
    chmod(f->home, 0755);
    chmod(in_home(f, "store.lock"), 0666);
    static const struct {
        mode_t mode;
        const char *word;
    } cases[] = {{0444, "read only"}, {0000, "unable to open"}};
    for (size_t i = 0; i < 2; i++) {
        chmod(in_home(f, "store.db"), cases[i].mode);
        pid_t child = fork();
        if (child == 0) _exit(try_read_only(f->home, cases[i].word));
        int status = wait_for(child);
        assert_true(WIFEXITED(status));
        if (WEXITSTATUS(status) == 77) skip();
        assert_int_equal(WEXITSTATUS(status), 0);
    }
    chmod(in_home(f, "store.db"), 0600);
    chmod(f->home, 0700);
}

/* ---- transactions and checkpoints ---- */

static int write_from_callback(const struct store_row *row, void *user, attune_error *err) {
    (void)row;
    int64_t n;
    assert_int_equal(store_counts(user, &n, NULL, NULL, NULL, err), ATTUNE_OK); /* reading is fine */
    return store_consent_set(user, 0, err);
}

static void test_callback_may_not_write(void **state) {
    struct fixture *f = *state;
    OK(record(f->store, "p", "r", 0, NULL, &f->err));
    FAILS(store_examples(f->store, NULL, write_from_callback, f->store, &f->err), ATTUNE_ERROR_STATE, "callback", "store.db");
    OK(record(f->store, "p2", "r2", 0, NULL, &f->err));
    assert_int_equal(count_interactions(f), 2);
}

static void test_log_is_folded_in(void **state) {
    struct fixture *f = *state;
    char *text = calloc(1, 200001);
    memset(text, 'x', 200000);
    for (int i = 0; i < 60; i++) {
        OK(record(f->store, "p", text, 0, NULL, &f->err));
        assert_true(size_of(f, "store.db-wal") < 6 << 20);
    }
    assert_true(size_of(f, "store.db") > 4 << 20);
    OK(record(f->store, "p", text, 0, NULL, &f->err));
    assert_true(size_of(f, "store.db-wal") > 0);
    /* Not while somebody writes: */
    int fd = open(in_home(f, "store.lock"), O_RDWR);
    assert_int_equal(flock(fd, LOCK_SH), 0);
    reopen(f);
    assert_true(size_of(f, "store.db-wal") > 0);
    close(fd);
    /* and at close otherwise. */
    reopen(f);
    assert_int_equal(size_of(f, "store.db-wal"), 0);
    assert_int_equal(count_interactions(f), 61);
    free(text);
}

static void test_after_fork(void **state) {
    struct fixture *f = *state;
    pid_t child = fork();
    if (child == 0) {
        attune_error err = {0};
        int code = record(f->store, "p", "r", 0, NULL, &err);
        attune_store_close(f->store);
        _exit(code == ATTUNE_ERROR_STATE && strstr(err.message, "fork") ? 0 : 1);
    }
    assert_int_equal(wait_for(child), 0);
    OK(record(f->store, "p", "r", 0, NULL, &f->err));
}

/* ---- many writers ---- */

enum { WRITES = 60 };

static int write_many(const char *home, int seed) {
    attune_store *store = NULL;
    char *text = calloc(1, 100001);
    int code = store_open_path(home, 60000, &store, NULL);
    memset(text, 'a' + seed, 100000);
    for (int i = 0; code == ATTUNE_OK && i < WRITES; i++) code = record(store, "p", text, 0, NULL, NULL);
    attune_store_close(store);
    free(text);
    return code;
}

static void test_two_processes(void **state) {
    struct fixture *f = *state;
    attune_store_close(f->store);
    f->store = NULL;
    pid_t children[2];
    for (int i = 0; i < 2; i++) {
        children[i] = fork();
        if (children[i] == 0) _exit(write_many(f->home, i) == ATTUNE_OK ? 0 : 1);
    }
    for (int i = 0; i < 2; i++) assert_int_equal(wait_for(children[i]), 0);
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    assert_int_equal(count_interactions(f), 2 * WRITES);
    assert_sound(f);
}

static void *thread_records(void *user) {
    for (int i = 0; i < WRITES; i++)
        if (record(user, "p", "r", 0, NULL, NULL) != ATTUNE_OK) return user;
    return NULL;
}

static void *thread_reads(void *user) {
    attune_store_statistics statistics;
    ATTUNE_INIT(statistics);
    for (int i = 0; i < WRITES; i++)
        if (attune_store_statistics_get(user, &statistics, NULL) != ATTUNE_OK) return user;
    return NULL;
}

static void test_threads(void **state) {
    struct fixture *f = *state;
    attune_store *second = NULL;
    OK(store_open_path(f->home, 60000, &second, &f->err));
    pthread_t threads[4];
    void *failed;
    pthread_create(&threads[0], NULL, thread_records, f->store);
    pthread_create(&threads[1], NULL, thread_records, f->store);
    pthread_create(&threads[2], NULL, thread_records, second);
    pthread_create(&threads[3], NULL, thread_reads, f->store);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    attune_store_close(second);
    assert_int_equal(count_interactions(f), 3 * WRITES);
}

static void *thread_records_once(void *user) {
    return record(user, "p", "r", 0, NULL, NULL) == ATTUNE_OK ? NULL : user;
}

/* A writer that waits for another one does not keep checkpoints away. */
static void test_waiting_writer_lets_go(void **state) {
    struct fixture *f = *state;
    attune_store *patient = NULL;
    sqlite3 *raw;
    pthread_t thread;
    void *failed;
    int fd = open(in_home(f, "store.lock"), O_RDWR), got = -1;
    OK(store_open_path(f->home, 60000, &patient, &f->err));
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &raw), SQLITE_OK);
    assert_int_equal(sqlite3_exec(raw, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    pthread_create(&thread, NULL, thread_records_once, patient);
    usleep(100000);
    for (int i = 0; got != 0 && i < 5000; i++) {
        got = flock(fd, LOCK_EX | LOCK_NB);
        if (got != 0) usleep(1000);
    }
    close(fd);
    sqlite3_exec(raw, "ROLLBACK", NULL, NULL, NULL);
    pthread_join(thread, &failed);
    sqlite3_close(raw);
    attune_store_close(patient);
    assert_int_equal(got, 0);
    assert_null(failed);
    assert_int_equal(count_interactions(f), 1);
}

/* ---- crashes ---- */

static void acknowledge(const char *home, int out) {
    attune_store *store = NULL;
    char text[3000];
    memset(text, 'y', sizeof text - 1);
    text[sizeof text - 1] = 0;
    if (store_open_path(home, 0, &store, NULL) != ATTUNE_OK) _exit(1);
    for (;;) {
        attune_uuid id;
        if (record(store, "p", text, 0, &id, NULL) != ATTUNE_OK) _exit(2);
        if (write(out, &id, sizeof id) != sizeof id) _exit(3);
    }
}

static void test_killed_writer(void **state) {
    struct fixture *f = *state;
    int64_t acknowledged = 0;
    for (int round = 0; round < 10; round++) {
        int ends[2];
        attune_uuid ids[200];
        int n = 0;
        attune_store_close(f->store);
        f->store = NULL;
        assert_int_equal(pipe(ends), 0);
        pid_t child = fork();
        if (child == 0) acknowledge(f->home, ends[1]);
        close(ends[1]);
        while (n < 5 + round * 7 && read(ends[0], &ids[n], sizeof ids[0]) == sizeof ids[0]) n++;
        kill(child, SIGKILL);
        while (n < 200 && read(ends[0], &ids[n], sizeof ids[0]) == sizeof ids[0]) n++;
        close(ends[0]);
        assert_true(WIFSIGNALED(wait_for(child)));
        OK(store_open_path(f->home, 0, &f->store, &f->err));
        assert_sound(f);
        for (int i = 0; i < n; i++) OK(feedback(f->store, &ids[i], ATTUNE_FEEDBACK_ACCEPT, 0, NULL, &f->err));
        acknowledged += n;
    }
    assert_true(count_interactions(f) >= acknowledged);
    assert_true(acknowledged >= 10 * 5);
}

/* Killed at a named point, the store opens again with `rows` rows. */
static void killed_at(struct fixture *f, const char *fault, int64_t rows) {
    attune_store_close(f->store);
    f->store = NULL;
    pid_t child = fork();
    if (child == 0) {
        attune_store *store = NULL;
        if (store_open_path(f->home, 0, &store, NULL) != ATTUNE_OK) _exit(1);
        setenv("ATTUNE_FAULT", fault, 1);
        record(store, "p", "r", 0, NULL, NULL);
        _exit(2);
    }
    assert_true(WIFSIGNALED(wait_for(child)));
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    assert_int_equal(count_interactions(f), rows);
    assert_sound(f);
    OK(record(f->store, "p", "r", 0, NULL, &f->err));
}

static void test_killed_around_commit(void **state) {
    struct fixture *f = *state;
    killed_at(f, "store.commit.before:kill", 0);
    killed_at(f, "store.commit.after:kill", 2);
}

static void test_killed_while_creating(void **state) {
    struct fixture *f = *state;
    static const char *const faults[] = {"store.create.before:kill",  "store.commit.before:kill",
                                         "store.commit.after:1:kill", "store.commit.before:2:kill",
                                         "store.commit.after:2:kill", "store.create.after:kill"};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        pid_t child = fork();
        if (child == 0) {
            setenv("ATTUNE_FAULT", faults[i], 1);
            store_create(f->home, 1, NULL);
            _exit(2);
        }
        assert_true(WIFSIGNALED(wait_for(child)));
        int consent = 0;
        OK(store_create(f->home, 1, &f->err));
        OK(store_open_path(f->home, 0, &f->store, &f->err));
        OK(store_consent_get(f->store, &consent, &f->err));
        assert_int_equal(consent, 1);
        attune_store_close(f->store);
        f->store = NULL;
        remove(in_home(f, "store.db"));
        remove(in_home(f, "store.db-wal"));
        remove(in_home(f, "store.db-shm"));
    }
}

/* ---- lineage ---- */

static void test_runs(void **state) {
    struct fixture *f = *state;
    struct store_run run = {.id = "aa",
                            .started_ms = 5,
                            .state = "unfinished",
                            .reason = "",
                            .base_sha256 = "bb",
                            .parent = 3,
                            .seed = UINT64_MAX - 1,
                            .configuration = "{}",
                            .evaluation = "held-out",
                            .loss_before = 2.5,
                            .loss_after = NAN,
                            .loss_interval = NAN,
                            .examples = 2,
                            .held_out = 1,
                            .epochs = 4,
                            .steps = 100,
                            .steps_done = 7,
                            .tokens = 999,
                            .seconds = 1.5,
                            .tokens_per_s = 600,
                            .adapter = 0};
    struct store_run_example list[] = {{.content_hash = "h2", .position = 1},
                                       {.content_hash = "h1"},
                                       {.content_hash = "h3", .position = 2, .held_out = 1}}, *back = NULL;
    struct store_run out;
    size_t n = 0;
    FAILS(store_run_last(f->store, NULL, &out, &f->err), ATTUNE_ERROR_NOT_FOUND, "no run", "");
    OK(store_run_begin(f->store, &run, list, 3, &f->err));
    assert_true(run.number > 0);
    OK(store_run_last(f->store, "unfinished", &out, &f->err));
    assert_int_equal(out.number, run.number);
    assert_string_equal(out.evaluation, "held-out");
    assert_true(out.seed == UINT64_MAX - 1 && out.loss_before == 2.5 && isnan(out.loss_after));
    assert_int_equal(out.parent, 3);
    assert_int_equal(out.steps_done, 7);
    OK(store_run_examples(f->store, run.number, &back, &n, &f->err));
    assert_int_equal(n, 3);
    assert_string_equal(back[0].content_hash, "h1");
    assert_string_equal(back[1].content_hash, "h2");
    assert_int_equal(back[2].held_out, 1);
    free(back);
    strcpy(run.state, "published");
    run.adapter = 4;
    run.loss_after = 2.25;
    OK(store_run_update(f->store, &run, &f->err));
    FAILS(store_run_last(f->store, "unfinished", &out, &f->err), ATTUNE_ERROR_NOT_FOUND, "unfinished", "");
    OK(store_run_last(f->store, NULL, &out, &f->err));
    assert_true(out.adapter == 4 && out.loss_after == 2.25 && out.tokens_per_s == 600);
    run.number = 77;
    FAILS(store_run_update(f->store, &run, &f->err), ATTUNE_ERROR_NOT_FOUND, "run 77", "");
    strcpy(run.state, "odd");
    FAILS(store_run_update(f->store, &run, &f->err), ATTUNE_ERROR_ARGUMENT, "odd", "");
    /* All or nothing: two examples in one place. */
    strcpy(run.state, "unfinished");
    list[1].position = 1;
    FAILS(store_run_begin(f->store, &run, list, 3, &f->err), ATTUNE_ERROR_ARGUMENT, "UNIQUE", "");
    FAILS(store_run_last(f->store, "unfinished", &out, &f->err), ATTUNE_ERROR_NOT_FOUND, "unfinished", "");
}

static attune_adapter_info adapter(int number, const char *state) {
    attune_adapter_info info;
    ATTUNE_INIT(info);
    info.number = number;
    info.parent = number - 1;
    info.rank = 8;
    info.alpha = 16;
    info.bytes = 12345;
    info.loss_before = NAN;
    info.loss_after = 1.25;
    strcpy(info.state, state);
    strcpy(info.origin, "trained");
    strcpy(info.sha256, "cc");
    strcpy(info.run, "dd");
    return info;
}

static int stop_at_two(const attune_adapter_info *info, void *user) {
    *(int *)user += info->number;
    return info->number == 2;
}

static void assert_state(struct fixture *f, int number, const char *state) {
    attune_adapter_info info;
    OK(store_adapter_get(f->store, number, &info, &f->err));
    assert_string_equal(info.state, state);
    assert_int_equal(info.active, strcmp(state, "active") == 0);
}

static void test_adapters(void **state) {
    struct fixture *f = *state;
    attune_adapter_info info;
    int sum = 0;
    for (int i = 1; i <= 3; i++) {
        info = adapter(i, i == 3 ? "candidate" : "active");
        OK(store_adapter_put(f->store, &info, 0, &f->err));
    }
    assert_state(f, 1, "retired");
    assert_state(f, 2, "active");
    OK(store_adapter_get(f->store, 2, &info, &f->err));
    assert_true(info.parent == 1 && info.rank == 8 && info.alpha == 16 && info.bytes == 12345);
    assert_true(isnan(info.loss_before) && info.loss_after == 1.25);
    assert_string_equal(info.run, "dd");
    OK(store_adapters(f->store, stop_at_two, &sum, &f->err));
    assert_int_equal(sum, 3);
    OK(store_adapter_activate(f->store, 3, &f->err));
    assert_state(f, 2, "retired");
    assert_state(f, 3, "active");
    OK(store_adapter_activate(f->store, 3, &f->err));
    assert_state(f, 3, "active");
    FAILS(store_adapter_activate(f->store, 9, &f->err), ATTUNE_ERROR_NOT_FOUND, "adapter 9", "");
    assert_state(f, 3, "active");
    OK(store_adapter_activate(f->store, 0, &f->err));
    assert_state(f, 3, "retired");
    OK(store_adapter_state_set(f->store, 3, "revoked", &f->err));
    FAILS(store_adapter_activate(f->store, 3, &f->err), ATTUNE_ERROR_STATE, "revoked", "");
    FAILS(store_adapter_state_set(f->store, 3, "odd", &f->err), ATTUNE_ERROR_ARGUMENT, "odd", "");
    FAILS(store_adapter_get(f->store, 4, &info, &f->err), ATTUNE_ERROR_NOT_FOUND, "adapter 4", "");
    info = adapter(4, "candidate");
    FAILS(store_adapter_put(f->store, &info, 55, &f->err), ATTUNE_ERROR_ARGUMENT, "FOREIGN KEY", "");
}

static void test_feedback_is_append_only(void **state) {
    struct fixture *f = *state;
    attune_uuid id;
    OK(record(f->store, "p", "r", 0, &id, &f->err));
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_THUMB, 1, NULL, &f->err));
    FAILS(store_exec(f->store, "UPDATE feedback SET value = -1", "test", &f->err), ATTUNE_ERROR_ARGUMENT, "append only",
          "");
}

#define BARE(test) cmocka_unit_test_setup_teardown(test, bare_setup, store_teardown)
#define WITH_STORE(test) cmocka_unit_test_setup_teardown(test, store_setup, store_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        BARE(test_create_modes_and_settings),
        BARE(test_create_under_a_tight_umask),
        BARE(test_create_again),
        BARE(test_open_nothing),
        WITH_STORE(test_open_options),
        BARE(test_home_path),
        BARE(test_not_a_database),
        BARE(test_somebody_elses_database),
        WITH_STORE(test_newer_schema),
        WITH_STORE(test_drift),
        WITH_STORE(test_migrations),
        BARE(test_a_store_of_schema_1),
        BARE(test_made_again_without_a_key),
        WITH_STORE(test_recorded_is_not_waited_for),
        WITH_STORE(test_a_full_queue),
        WITH_STORE(test_feedback_on_nothing),
        WITH_STORE(test_suspend),
        WITH_STORE(test_closing_writes_what_is_queued),
        WITH_STORE(test_normal_durability),
        WITH_STORE(test_damaged),
        WITH_STORE(test_a_row_without_its_parent),
        WITH_STORE(test_a_changed_audit),
        WITH_STORE(test_locked),
        WITH_STORE(test_full_disk),
        WITH_STORE(test_disk_error),
        WITH_STORE(test_read_only),
        WITH_STORE(test_callback_may_not_write),
        WITH_STORE(test_log_is_folded_in),
        WITH_STORE(test_after_fork),
        WITH_STORE(test_two_processes),
        WITH_STORE(test_threads),
        WITH_STORE(test_waiting_writer_lets_go),
        WITH_STORE(test_killed_writer),
        WITH_STORE(test_killed_around_commit),
        BARE(test_killed_while_creating),
        WITH_STORE(test_runs),
        WITH_STORE(test_adapters),
        WITH_STORE(test_feedback_is_append_only),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
