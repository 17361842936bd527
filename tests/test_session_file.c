/* Saved sessions: what comes back, and what is refused. */
#include "tests/session_fixture.h"

#include <sys/stat.h>

static attune_engine *tiny;
static char folder[] = "/tmp/attune-saved-XXXXXX", saved[64];

static unsigned char *read_file(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    unsigned char *bytes = malloc(1 << 22);
    *n = fread(bytes, 1, 1 << 22, file);
    fclose(file);
    return bytes;
}
static void write_file(const char *path, const void *bytes, size_t n) {
    FILE *file = fopen(path, "wb");
    assert_true(file && fwrite(bytes, 1, n, file) == n && fclose(file) == 0);
}

/* The same state, and so the same future: bit for bit. */
static void expect_same(attune_session *a, attune_session *b) {
    assert_int_equal(a->line.n, b->line.n);
    assert_int_equal(a->cache.used, b->cache.used);
    assert_int_equal(a->appended, b->appended);
    assert_memory_equal(a->line.ids, b->line.ids, a->line.n * sizeof *a->line.ids);
    attune_generate_options o = greedy(30);
    o.temperature = 1;
    o.seed = 5;
    for (int turn = 0; turn < 2; turn++) {
        const float *x, *y;
        attune_error err = {0};
        if (a->appended == APPENDED_NOTHING) {
            say(a, "user", "And the sea?");
            say(b, "user", "And the sea?");
        }
        fine(attune_session_logits(a, &x, &err), &err);
        fine(attune_session_logits(b, &y, &err), &err);
        assert_memory_equal(x, y, tiny->model->V * sizeof *x);
        attune_generate_result r = generate(a, o, NULL, NULL), t = generate(b, o, NULL, NULL);
        assert_int_equal(r.reused_tokens, t.reused_tokens);
        assert_int_equal(r.prompt_tokens, t.prompt_tokens);
        assert_string_equal(attune_session_text(a), attune_session_text(b));
    }
}

static void save(attune_session *s) {
    attune_error err = {0};
    fine(attune_session_save(s, saved, &err), &err);
}

/* At every stage of a conversation, into a new session and over another conversation. */
static void what_is_restored_goes_on_the_same(void **state) {
    (void)state;
    for (int stage = 0; stage < 7; stage++)
        for (int kv = 0; kv < 3; kv++) {
            attune_session *s[2] = {NULL, NULL};
            attune_session_options o;
            attune_error err = {0};
            const float *logits;
            ATTUNE_INIT(o);
            o.kv = kv;
            int code = attune_session_open(tiny, &o, &s[0], &err);
            if (code == ATTUNE_ERROR_UNSUPPORTED) continue;
            fine(code, &err);
            fine(attune_session_open(tiny, &o, &s[1], &err), &err);
            text(s[1], "something else that is longer than what comes then, so that it is overwritten");
            generate(s[1], greedy(10), NULL, NULL);
            if (stage > 0) say(s[0], "user", "Name a colour.");
            if (stage == 2) fine(attune_session_logits(s[0], &logits, &err), &err);
            if (stage > 2) generate(s[0], greedy(10), NULL, NULL);
            if (stage == 4) say(s[0], "user", "Another one.");
            if (stage == 5) text(s[0], " and so");
            if (stage == 6) {
                text(s[0], " and so");
                generate(s[0], greedy(200), NULL, NULL); /* until the context is full */
            }
            save(s[0]);
            fine(attune_session_restore(s[1], saved, &err), &err);
            assert_string_equal(attune_session_text(s[1]), "");
            if (stage == 6) {
                assert_int_equal(s[1]->line.n, s[0]->line.n);
                assert_int_equal(attune_session_append_text(s[1], "x", 1, 0, &err), ATTUNE_ERROR_CONTEXT_FULL);
            } else {
                expect_same(s[0], s[1]);
            }
            attune_session_close(s[0]);
            attune_session_close(s[1]);
        }
}

static attune_session *talked(attune_engine *engine) {
    attune_session *s = open_session(engine, 0);
    say(s, "user", "Name a colour.");
    generate(s, greedy(6), NULL, NULL);
    say(s, "user", "And the sea?");
    return s;
}

/* The file is private, and takes the place of an older one. */
static void files_are_private_and_replaced(void **state) {
    (void)state;
    struct stat st;
    attune_error err = {0};
    attune_session *s = talked(tiny);
    write_file(saved, "old", 3);
    assert_int_equal(chmod(saved, 0644), 0);
    save(s);
    assert_int_equal(stat(saved, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(attune_session_save(s, "/nowhere/at/all", &err), ATTUNE_ERROR_IO);
    assert_int_equal(attune_session_save(s, NULL, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(attune_session_restore(s, "/nowhere/at/all", &err), ATTUNE_ERROR_IO);
    assert_int_equal(attune_session_restore(s, NULL, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(attune_session_restore(s, TINY, &err), ATTUNE_ERROR_FORMAT);
    attune_session_close(s);
}

/* Restoring fails with `code`, and the session goes on as one that never tried. */
static void expect_refused(attune_session *s, int code) {
    attune_error err = {0};
    size_t line = s->line.n, used = s->cache.used;
    assert_int_equal(attune_session_restore(s, saved, &err), code);
    assert_int_equal(err.code, code);
    assert_true(*err.message && *err.where);
    assert_int_equal(attune_session_restore(s, saved, NULL), code);
    assert_true(s->line.n == line && s->cache.used == used);
}

static void what_belongs_elsewhere_is_refused(void **state) {
    (void)state;
    char path[64], base[65], sha256[65];
    snprintf(path, sizeof path, "%s/a.gguf", folder);
    hash_bytes(tiny->model->gguf->file.data, tiny->model->gguf->file.size, base);
    write_adapter(tiny, path, base, 0.05f, sha256);
    attune_engine *beside = open_tiny(path, "none"), *merged = open_tiny(path, "f16"), *other = NULL;
    attune_error err = {0};
    fine(attune_engine_open_files(ATTUNE_TEST_ROOT "/tests/golden/tiny_qwen2.gguf", NULL, NULL, &other, &err), &err);
    attune_engine *engines[] = {tiny, beside, merged, other};
    for (int from = 0; from < 4; from++) {
        attune_session *s = talked(engines[from]);
        save(s);
        for (int to = 0; to < 4; to++) {
            attune_session *t = talked(engines[to]);
            struct line before = {.n = 0}, after = {.n = 0};
            line_add_answer(&before, t);
            if (from == to)
                fine(attune_session_restore(t, saved, &err), &err);
            else
                expect_refused(t, ATTUNE_ERROR_MISMATCH);
            if (from != to) line_add_answer(&after, t);
            if (from != to) assert_memory_equal(&before, &after, sizeof before);
            generate(t, greedy(3), NULL, NULL);
            attune_session_close(t);
        }
        attune_session_close(s);
    }
    attune_engine_close(beside);
    attune_engine_close(merged);
    attune_engine_close(other);
    unlink(path);
}

static void a_smaller_context_is_refused(void **state) {
    (void)state;
    attune_session *s = talked(tiny), *small = open_session(tiny, 32), *fits = open_session(tiny, (int64_t)s->line.n);
    attune_error err = {0};
    save(s);
    assert_true(s->line.n > 32 + LINE_SPARE);
    text(small, "the");
    expect_refused(small, ATTUNE_ERROR_CONTEXT_FULL);
    generate(small, greedy(3), NULL, NULL);
    fine(attune_session_restore(fits, saved, &err), &err);
    attune_session_close(s);
    attune_session_close(small);
    attune_session_close(fits);
}

/* ---- damage ---- */

static void every_truncation_is_found(void **state) {
    (void)state;
    attune_session *s = talked(tiny), *t = talked(tiny);
    size_t n;
    save(s);
    unsigned char *bytes = read_file(saved, &n);
    for (size_t length = 0; length < n; length += length < 2000 ? 1 : 997) {
        attune_error err = {0};
        write_file(saved, bytes, length);
        assert_int_equal(attune_session_restore(t, saved, &err), ATTUNE_ERROR_FORMAT);
        assert_non_null(strstr(err.where, "attune-saved"));
    }
    expect_same(s, t);
    free(bytes);
    attune_session_close(s);
    attune_session_close(t);
}

/* A flipped bit is found wherever it is, but for padding and what nothing is read from; and what is restored
 * in spite of it is what was saved. */
static void flipped_bits_are_found(void **state) {
    (void)state;
    attune_session *s = talked(tiny), *t = open_session(tiny, 0);
    const float *logits;
    attune_error err = {0};
    fine(attune_session_logits(s, &logits, &err), &err);
    save(s);
    size_t n, found = 0, tried = 0;
    unsigned char *bytes = read_file(saved, &n);
    for (size_t at = 0; at < n; at += at < 1500 ? 1 : 61, tried++) {
        unsigned char bit = (unsigned char)(1u << (at % 8));
        bytes[at] ^= bit;
        write_file(saved, bytes, n);
        int code = attune_session_restore(t, saved, &err);
        bytes[at] ^= bit;
        if (code != ATTUNE_OK) {
            assert_true(code == ATTUNE_ERROR_FORMAT || code == ATTUNE_ERROR_UNSUPPORTED);
            found++;
            continue;
        }
        assert_true(t->line.n == s->line.n && t->cache.used == s->cache.used && t->scored == s->scored);
        assert_memory_equal(t->line.ids, s->line.ids, s->line.n * sizeof *s->line.ids);
        assert_memory_equal(t->logits, s->logits, tiny->model->V * sizeof *logits);
    }
    assert_true(tried > 2000 && found > tried * 9 / 10 && found < tried);
    free(bytes);
    attune_session_close(s);
    attune_session_close(t);
}

/* Digests are right here: a file made to deceive. */
enum lie { LIE_NONE, LIE_TOKEN, LIE_NEGATIVE, LIE_NAN, LIE_INFINITE, LIE_LIES };
static void what_cannot_be_is_refused(void **state) {
    (void)state;
    for (int lie = LIE_NONE; lie < LIE_LIES; lie++) {
        attune_session *s = talked(tiny), *t = talked(tiny);
        float *k = (float *)(void *)s->cache.k;
        attune_error err = {0};
        size_t D = tiny->model->D;
        if (lie == LIE_TOKEN) s->line.ids[2] = (int32_t)tiny->model->V;
        if (lie == LIE_NEGATIVE) s->line.ids[s->line.n - 1] = -1;
        if (lie == LIE_NAN) k[D * 3 + 1] = NAN;
        if (lie == LIE_INFINITE) k[0] = -INFINITY;
        save(s);
        if (lie == LIE_NONE)
            fine(attune_session_restore(t, saved, &err), &err);
        else
            expect_refused(t, ATTUNE_ERROR_FORMAT);
        generate(t, greedy(3), NULL, NULL);
        attune_session_close(s);
        attune_session_close(t);
    }
}

static int set_up(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return 1;
    snprintf(saved, sizeof saved, "%s/saved.gguf", folder);
    tiny = open_tiny(NULL, NULL);
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    attune_engine_close(tiny);
    unlink(saved);
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_restored_goes_on_the_same), cmocka_unit_test(files_are_private_and_replaced),
        cmocka_unit_test(what_belongs_elsewhere_is_refused), cmocka_unit_test(a_smaller_context_is_refused),
        cmocka_unit_test(every_truncation_is_found),         cmocka_unit_test(flipped_bits_are_found),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
