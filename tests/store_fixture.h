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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

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

static inline void remove_folder(const char *folder) {
    DIR *directory = opendir(folder);
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        unlink(path);
    }
    if (directory) closedir(directory);
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

static inline int record(attune_store *store, const char *prompt, const char *response, int64_t time_ms,
                         attune_uuid *id, attune_error *err) {
    attune_interaction interaction;
    ATTUNE_INIT(interaction);
    interaction.prompt = prompt;
    interaction.response = response;
    interaction.time_ms = time_ms;
    return attune_store_record(store, &interaction, id, err);
}

static inline int feedback(attune_store *store, const attune_uuid *id, int kind, int64_t value, const char *text,
                           attune_error *err) {
    attune_feedback feedback;
    ATTUNE_INIT(feedback);
    feedback.kind = kind;
    feedback.value = value;
    feedback.text = text;
    return attune_store_feedback(store, id->text, &feedback, err);
}

static inline int64_t count_interactions(struct fixture *f) {
    int64_t n = -1;
    OK(store_counts(f->store, &n, NULL, NULL, NULL, &f->err));
    return n;
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
        char prompt[256], response[256], content_hash[65], prompt_hash[65];
        size_t n_messages;
        int64_t time_ms, interaction;
    } row[32];
};

static inline int collect(const struct store_row *row, void *user, attune_error *err) {
    struct rows *rows = user;
    (void)err;
    assert_true(rows->n < 32);
    snprintf(rows->row[rows->n].prompt, 256, "%s", row->messages[row->n_messages - 1].content);
    snprintf(rows->row[rows->n].response, 256, "%s", row->response);
    snprintf(rows->row[rows->n].content_hash, 65, "%s", row->content_hash);
    snprintf(rows->row[rows->n].prompt_hash, 65, "%s", row->prompt_hash);
    rows->row[rows->n].n_messages = row->n_messages;
    rows->row[rows->n].time_ms = row->time_ms;
    rows->row[rows->n].interaction = row->interaction;
    rows->n++;
    return ATTUNE_OK;
}

static inline void examples(struct fixture *f, struct rows *rows) {
    rows->n = 0;
    OK(store_examples(f->store, collect, rows, &f->err));
}

#endif
