/* What the tests of datastore/ share: a home in a fresh folder, and shorthands. */
#ifndef TESTS_STORE_FIXTURE_H
#define TESTS_STORE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "datastore/seal.h"
#include "datastore/store.h"

struct fixture {
    char home[64];
    attune_store *store; /* closed by the teardown if a test leaves it open */
    attune_error err;
};

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        int code_ = (call);                                                                                            \
        if (code_ != ATTUNE_OK) print_error("%s: %s\n", f->err.where, f->err.message);                                 \
        assert_int_equal(code_, ATTUNE_OK);                                                                            \
    } while (0)

/* The call fails with this code, its message holds `word`, and its place holds `place`. */
#define FAILS(call, wanted, word, place)                                                                               \
    do {                                                                                                               \
        memset(&f->err, 0, sizeof f->err);                                                                             \
        assert_int_equal((call), (wanted));                                                                            \
        assert_int_equal(f->err.code, (wanted));                                                                       \
        if (!strstr(f->err.message, word)) fail_msg("no '%s' in: %s", word, f->err.message);                           \
        if (!strstr(f->err.where, place)) fail_msg("no '%s' in: %s", place, f->err.where);                             \
    } while (0)

/* fd: of the folder, which is closed. */
static inline void empty_folder(int fd) {
    DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (unlinkat(fd, entry->d_name, 0) == 0) continue;
        empty_folder(openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        unlinkat(fd, entry->d_name, AT_REMOVEDIR);
    }
    if (directory) closedir(directory);
}

static inline void remove_folder(const char *folder) {
    empty_folder(open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    rmdir(folder);
}

static inline int bare_setup(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->home, "/tmp/attune-test-XXXXXX");
    if (!mkdtemp(f->home)) return -1;
    *state = f;
    return 0;
}

/* With a store whose home has given consent. */
static inline int store_setup(void **state) {
    if (bare_setup(state) != 0) return -1;
    struct fixture *f = *state;
    return store_create(f->home, 1, &f->err) || store_open_path(f->home, 0, &f->store, &f->err);
}

/* The same, with its texts encrypted; the key is read from the home's file "key" whenever the store is opened. */
static inline int encrypted_setup(void **state) {
    unsigned char key[ATTUNE_KEY_BYTES];
    char file[128];
    if (bare_setup(state) != 0) return -1;
    struct fixture *f = *state;
    snprintf(file, sizeof file, "%s/key", f->home);
    return key_file_make(file, key, &f->err) || store_create_encrypted(f->home, 1, key, file, &f->err) ||
           store_open_path(f->home, 0, &f->store, &f->err);
}

static inline int store_teardown(void **state) {
    struct fixture *f = *state;
    attune_store_close(f->store);
    remove_folder(f->home);
    free(f);
    return 0;
}

/* Path of a file in the home; the last four answers live. */
static inline const char *in_home(const struct fixture *f, const char *name) {
    static char paths[4][128];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", f->home, name);
    return path;
}

static inline const char *write_file(const struct fixture *f, const char *name, const char *bytes, size_t n) {
    const char *path = in_home(f, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
    return path;
}

/* Recorded, and on the disk. */
static inline int record(attune_store *store, const char *prompt, const char *response, int64_t time_ms,
                         attune_uuid *id, attune_error *err) {
    attune_interaction interaction;
    ATTUNE_INIT(interaction);
    interaction.prompt = prompt;
    interaction.response = response;
    interaction.time_ms = time_ms;
    int code = attune_store_record(store, &interaction, id, err);
    return code == ATTUNE_OK ? attune_store_flush(store, err) : code;
}

static inline int feedback(attune_store *store, const attune_uuid *id, int kind, int64_t value, const char *text,
                           attune_error *err) {
    attune_feedback feedback;
    ATTUNE_INIT(feedback);
    feedback.kind = kind;
    feedback.value = value;
    feedback.text = text;
    int code = attune_store_feedback(store, id->text, &feedback, err);
    return code == ATTUNE_OK ? attune_store_flush(store, err) : code;
}

static inline int64_t count_interactions(struct fixture *f) {
    int64_t n = -1;
    OK(store_counts(f->store, &n, NULL, NULL, NULL, &f->err));
    return n;
}

/* The one number that a query of store.db gives, asked beside attune. */
static inline int64_t query_number(struct fixture *f, const char *query) {
    sqlite3 *db = NULL;
    sqlite3_stmt *statement = NULL;
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &db), SQLITE_OK);
    if (sqlite3_prepare_v2(db, query, -1, &statement, NULL) != SQLITE_OK) fail_msg("%s: %s", query, sqlite3_errmsg(db));
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    int64_t number = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    sqlite3_close(db);
    return number;
}

static inline void assert_sound(struct fixture *f) {
    char problem[200];
    OK(store_check(f->store, problem, sizeof problem, &f->err));
    assert_string_equal(problem, "");
}

/* ---- rows that a callback collected ---- */
struct rows {
    size_t n;
    struct {
        char prompt[256], response[256], rejected[256], content_hash[65], prompt_hash[65];
        size_t n_messages;
        int kind, label;
        double weight;
        int64_t time_ms, interaction, other;
    } row[32];
};

static inline int collect(const struct store_row *row, void *user, attune_error *err) {
    struct rows *rows = user;
    (void)err;
    assert_true(rows->n < 32);
    snprintf(rows->row[rows->n].prompt, 256, "%s", row->messages[row->n_messages - 1].content);
    snprintf(rows->row[rows->n].response, 256, "%s", row->response);
    snprintf(rows->row[rows->n].rejected, 256, "%s", row->rejected ? row->rejected : "");
    snprintf(rows->row[rows->n].content_hash, 65, "%s", row->content_hash);
    snprintf(rows->row[rows->n].prompt_hash, 65, "%s", row->prompt_hash);
    rows->row[rows->n].n_messages = row->n_messages;
    rows->row[rows->n].time_ms = row->time_ms;
    rows->row[rows->n].interaction = row->interaction;
    rows->row[rows->n].other = row->other;
    rows->row[rows->n].kind = row->kind;
    rows->row[rows->n].label = row->label;
    rows->row[rows->n].weight = row->weight;
    rows->n++;
    return ATTUNE_OK;
}

static inline void examples(struct fixture *f, struct rows *rows) {
    rows->n = 0;
    OK(store_examples(f->store, NULL, collect, rows, &f->err));
}

#endif
