/* Catalogs from personas, through the public interface, on the tiny base. */
#include "tests/home_fixture.h"

#include "adapters/adapter_file.h"

/* Personas of short answers: made for each test. */
static char sailor[128], don[128], secret[128];
static const char *const people[] = {sailor, don};

static attune_catalog_options made_options(const struct homes *f) {
    attune_catalog_options o;
    snprintf(sailor, sizeof sailor, "%s/sailor.jsonl", f->folder);
    snprintf(don, sizeof don, "%s/don.jsonl", f->folder);
    snprintf(secret, sizeof secret, "%s/key", f->folder);
    shell("cd %s/examples/personas && for p in sailor don; do grep -v '[\\]' $p.jsonl | "
          "sed 's/\\(\"response\": \".\\{60\\}\\)[^\"]*\"/\\1\"/' >%s/$p.jsonl; done",
          ATTUNE_TEST_ROOT, f->folder);
    ATTUNE_INIT(o);
    o.base = TINY_BASE;
    o.secret_key = secret;
    o.licence = "CC0-1.0";
    o.origin = "made up for a test";
    o.personas = people;
    o.n_personas = 2;
    o.max_examples = 48;
    o.threads = 2;
    return o;
}

struct seen {
    int n;
    char names[4][80], sha256[4][65];
    double before[4], after[4];
    int64_t rows[4], judged[4];
};
static int see(const attune_catalog_entry *e, void *user) {
    struct seen *s = user;
    snprintf(s->names[s->n], sizeof s->names[0], "%s", e->name);
    snprintf(s->sha256[s->n], sizeof s->sha256[0], "%s", e->sha256);
    s->before[s->n] = e->loss_before;
    s->after[s->n] = e->loss_after;
    s->rows[s->n] = e->rows;
    s->judged[s->n++] = e->judged;
    return s->n == 4;
}

static void personas_become_entries(void **state) {
    struct homes *f = *state;
    char public_key[ATTUNE_PUBLIC_KEY_SIZE];
    attune_catalog_info info;
    attune_catalog_built built;
    struct seen seen = {.n = 0}, again = {.n = 0};
    ATTUNE_INIT(info);
    ATTUNE_INIT(built);
    OK(attune_catalog_key(in_folder(f, "key"), public_key, &f->err));
    attune_catalog_options o = made_options(f);
    OK(attune_catalog_build(in_folder(f, "catalog"), &o, &built, &f->err));
    assert_int_equal(built.trained, 2);
    assert_int_equal(built.entries, 2);
    OK(attune_catalog_verify(in_folder(f, "catalog"), public_key, TINY_BASE, &info, &f->err));
    assert_int_equal(info.entries, 2);
    OK(attune_catalog_list(in_folder(f, "catalog"), public_key, &info, see, &seen, &f->err));
    assert_int_equal(seen.n, 2);
    assert_string_equal(seen.names[0], "sailor");
    assert_true(seen.after[0] < seen.before[0] && seen.judged[0] >= 2);
    assert_int_equal(seen.rows[0] + seen.judged[0], 48);
    /* nothing is made twice; with other rows it is another entry */
    OK(attune_catalog_build(in_folder(f, "catalog"), &o, &built, &f->err));
    assert_int_equal(built.trained, 0);
    assert_int_equal(built.found, 2);
    o.max_examples = 40;
    o.n_personas = 1;
    OK(attune_catalog_build(in_folder(f, "catalog"), &o, &built, &f->err));
    assert_int_equal(built.trained, 1);
    assert_int_equal(built.entries, 2);
    OK(attune_catalog_list(in_folder(f, "catalog"), public_key, &info, see, &again, &f->err));
    assert_string_not_equal(again.sha256[0], seen.sha256[0]);
    assert_string_equal(again.sha256[1], seen.sha256[1]);
    shell("test $(ls %s/catalog | wc -l) = 3", f->folder); /* the old one is gone */
}

/* Tasks in any order, one of them killed half-way, give what one call gives. */
static void tasks_meet_in_the_folder(void **state) {
    struct homes *f = *state;
    char public_key[ATTUNE_PUBLIC_KEY_SIZE], damaged[300] = "";
    attune_catalog_built built;
    struct seen whole = {.n = 0}, parts = {.n = 0};
    ATTUNE_INIT(built);
    OK(attune_catalog_key(in_folder(f, "key"), public_key, &f->err));
    attune_catalog_options o = made_options(f), task = o;
    OK(attune_catalog_build(in_folder(f, "whole"), &o, NULL, &f->err));
    task.tasks = 2;
    task.secret_key = task.licence = task.origin = NULL;
    for (task.task = 2; task.task > 0; task.task--) {
        OK(attune_catalog_build(in_folder(f, "parts"), &task, &built, &f->err));
        assert_int_equal(built.trained, 1);
        assert_int_equal(built.entries, 0);
    }
    FAILS(attune_catalog_list(in_folder(f, "parts"), public_key, NULL, NULL, NULL, &f->err), ATTUNE_ERROR_IO, "cannot open",
          "index.signed");
    shell("ls %s/parts/*.gguf | head -1 > %s/name", f->folder, f->folder);
    size_t n;
    char *name = read_file(in_folder(f, "name"), &n);
    snprintf(damaged, sizeof damaged, "%.*s", (int)strcspn(name, "\n"), name);
    free(name);
    shell("truncate -s 1000 %s", damaged);
    OK(attune_catalog_build(in_folder(f, "parts"), &o, &built, &f->err));
    assert_int_equal(built.trained, 1);
    assert_int_equal(built.found, 1);
    OK(attune_catalog_list(in_folder(f, "whole"), public_key, NULL, see, &whole, &f->err));
    OK(attune_catalog_list(in_folder(f, "parts"), public_key, NULL, see, &parts, &f->err));
    assert_memory_equal(&whole, &parts, sizeof whole);
}

static void entries_are_added_and_removed(void **state) {
    struct homes *f = *state;
    char public_key[ATTUNE_PUBLIC_KEY_SIZE], other[ATTUNE_PUBLIC_KEY_SIZE], path[600];
    struct seen seen = {.n = 0};
    OK(attune_catalog_key(in_folder(f, "key"), public_key, &f->err));
    OK(attune_catalog_key(in_folder(f, "other"), other, &f->err));
    attune_catalog_options o = made_options(f);
    o.n_personas = 1;
    OK(attune_catalog_build(in_folder(f, "one"), &o, NULL, &f->err));
    shell("cp %s/one/*.gguf %s/mine.gguf", f->folder, f->folder);
    o.rows = 12;
    OK(attune_catalog_add(in_folder(f, "two"), "mine", in_folder(f, "mine.gguf"), &o, &f->err));
    FAILS(attune_catalog_add(in_folder(f, "two"), "mine", in_folder(f, "mine.gguf"), &o, &f->err), ATTUNE_ERROR_STATE,
          "already", "two");
    FAILS(attune_catalog_add(in_folder(f, "two"), "../x", in_folder(f, "mine.gguf"), &o, &f->err),
          ATTUNE_ERROR_ARGUMENT, "no name", "");
    FAILS(attune_catalog_add(in_folder(f, "two"), "x", sailor, &o, &f->err), ATTUNE_ERROR_FORMAT, "", "sailor");
    o.secret_key = in_folder(f, "other");
    FAILS(attune_catalog_add(in_folder(f, "two"), "x", in_folder(f, "mine.gguf"), &o, &f->err), ATTUNE_ERROR_MISMATCH,
          "another key", "index");
    FAILS(attune_catalog_remove(in_folder(f, "two"), "mine", in_folder(f, "other"), &f->err), ATTUNE_ERROR_MISMATCH,
          "another key", "index");
    OK(attune_catalog_verify(in_folder(f, "two"), public_key, TINY_BASE, NULL, &f->err));
    OK(attune_catalog_list(in_folder(f, "two"), public_key, NULL, see, &seen, &f->err));
    assert_int_equal(seen.rows[0], 12);
    assert_int_equal(seen.judged[0], 0);
    assert_true(isnan(seen.before[0]));
    snprintf(path, sizeof path, "%s/two/%s.gguf", f->folder, seen.sha256[0]);
    flip_byte(path, -3);
    FAILS(attune_catalog_verify(in_folder(f, "two"), public_key, TINY_BASE, NULL, &f->err), ATTUNE_ERROR_FORMAT,
          "not the one", ".gguf");
    OK(attune_catalog_remove(in_folder(f, "two"), "mine", in_folder(f, "key"), &f->err));
    assert_false(exists(path));
    FAILS(attune_catalog_remove(in_folder(f, "two"), "mine", in_folder(f, "key"), &f->err), ATTUNE_ERROR_NOT_FOUND,
          "no entry", "two");
}

struct matches {
    int n;
    char names[4][80];
    double gain[4], share[4];
};
static int see_match(const attune_catalog_match *match, void *user) {
    struct matches *m = user;
    snprintf(m->names[m->n], sizeof m->names[0], "%s", match->name);
    m->gain[m->n] = match->gain;
    m->share[m->n++] = match->share;
    return m->n == 4;
}

static void select_by(struct homes *f, const char *method, const char *rows, const char *public_key,
                      struct matches *out) {
    attune_catalog_select_options o;
    ATTUNE_INIT(o);
    o.base = TINY_BASE;
    o.rows = rows;
    o.method = method;
    o.max_examples = 24;
    o.threads = 2;
    *out = (struct matches){.n = 0};
    OK(attune_catalog_select(in_folder(f, "catalog"), public_key, &o, see_match, out, NULL, &f->err));
}

static void the_one_who_is_resembled_is_found(void **state) {
    struct homes *f = *state;
    static const char *const methods[] = {"gradient", "loss", "halving"};
    char public_key[ATTUNE_PUBLIC_KEY_SIZE], rest[2][128];
    struct matches m;
    attune_catalog_selected selected;
    attune_catalog_select_options none;
    OK(attune_catalog_key(in_folder(f, "key"), public_key, &f->err));
    attune_catalog_options o = made_options(f);
    OK(attune_catalog_build(in_folder(f, "catalog"), &o, NULL, &f->err));
    for (int p = 0; p < 2; p++) { /* rows that no entry has seen */
        snprintf(rest[p], sizeof rest[p], "%s/rest%d.jsonl", f->folder, p);
        shell("tail -n 40 %s >%s", people[p], rest[p]);
        for (int i = 0; i < 3; i++) {
            select_by(f, methods[i], rest[p], public_key, &m);
            assert_int_equal(m.n, 2);
            assert_string_equal(m.names[0], p == 0 ? "sailor" : "don");
            assert_true(m.gain[0] > m.gain[1] && m.gain[0] > 0);
            assert_true(fabs(m.share[0] - 1) < 1e-9 && m.share[1] == 0);
        }
    }
    ATTUNE_INIT(none);
    ATTUNE_INIT(selected);
    none.base = TINY_BASE;
    FAILS(attune_catalog_select(in_folder(f, "catalog"), public_key, &none, NULL, NULL, &selected, &f->err),
          ATTUNE_ERROR_ARGUMENT, "a file of rows is needed", "");
    none.method = "stars";
    FAILS(attune_catalog_select(in_folder(f, "catalog"), public_key, &none, NULL, NULL, &selected, &f->err),
          ATTUNE_ERROR_ARGUMENT, "no way to select", "");
}

/* A home's own rows, and only those with consent. */
static void a_home_is_asked_for_its_rows(void **state) {
    struct homes *f = *state;
    char public_key[ATTUNE_PUBLIC_KEY_SIZE];
    struct matches m = {.n = 0};
    attune_catalog_selected selected;
    attune_catalog_select_options o;
    attune_store *store = NULL;
    attune_import_options import;
    OK(attune_catalog_key(in_folder(f, "key"), public_key, &f->err));
    attune_catalog_options build = made_options(f);
    build.n_personas = 1;
    OK(attune_catalog_build(in_folder(f, "catalog"), &build, NULL, &f->err));
    OK(attune_home_init(f->home, TINY_BASE, NULL, &f->err));
    ATTUNE_INIT(o);
    ATTUNE_INIT(selected);
    ATTUNE_INIT(import);
    o.home = f->home;
    o.threads = 2;
    for (import.consent = ATTUNE_CONSENT_NOT_GIVEN;; import.consent = ATTUNE_CONSENT_GIVEN) {
        OK(attune_store_open(f->home, NULL, &store, &f->err));
        OK(attune_store_import(store, people[import.consent == ATTUNE_CONSENT_GIVEN], &import, NULL, &f->err));
        attune_store_close(store);
        if (import.consent == ATTUNE_CONSENT_GIVEN) break;
        FAILS(attune_catalog_select(in_folder(f, "catalog"), public_key, &o, see_match, &m, &selected, &f->err),
              ATTUNE_ERROR_STATE, "no row", "");
    }
    OK(attune_catalog_select(in_folder(f, "catalog"), public_key, &o, see_match, &m, &selected, &f->err));
    assert_int_equal(selected.rows, 10);
    assert_int_equal(selected.entries, 1);
    assert_string_equal(selected.method, "loss");
    assert_int_equal(m.n, 1);
}

static void what_cannot_be_built_is_refused(void **state) {
    struct homes *f = *state;
    const char *same[] = {people[0], people[0]}, *named[1];
    OK(attune_catalog_key(in_folder(f, "key"), NULL, &f->err));
    attune_catalog_options o = made_options(f), bad = o;
    bad.personas = same;
    FAILS(attune_catalog_build(in_folder(f, "c"), &bad, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "two personas", "sailor");
    bad = o;
    bad.max_examples = 10;
    FAILS(attune_catalog_build(in_folder(f, "c"), &bad, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "at least 16", "sailor");
    shell("cp %s '%s/A B.jsonl'", sailor, f->folder);
    bad = o;
    named[0] = in_folder(f, "A B.jsonl");
    bad.personas = named;
    bad.n_personas = 1;
    FAILS(attune_catalog_build(in_folder(f, "c"), &bad, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "no name", "");
    bad = o;
    bad.task = 3;
    bad.tasks = 2;
    FAILS(attune_catalog_build(in_folder(f, "c"), &bad, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "1 to their number", "");
    bad = o;
    bad.secret_key = in_folder(f, "key.pub");
    FAILS(attune_catalog_build(in_folder(f, "c"), &bad, NULL, &f->err), ATTUNE_ERROR_FORMAT, "no secret key", "key.pub");
    assert_false(exists(in_folder(f, "c/index.signed")));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(personas_become_entries, homes_setup, homes_teardown),
        cmocka_unit_test_setup_teardown(tasks_meet_in_the_folder, homes_setup, homes_teardown),
        cmocka_unit_test_setup_teardown(entries_are_added_and_removed, homes_setup, homes_teardown),
        cmocka_unit_test_setup_teardown(the_one_who_is_resembled_is_found, homes_setup, homes_teardown),
        cmocka_unit_test_setup_teardown(a_home_is_asked_for_its_rows, homes_setup, homes_teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_built_is_refused, homes_setup, homes_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
