/* Whole runs over what people did with answers: edits, thumbs up and down, beside answers that nobody judged. */
#define _GNU_SOURCE
#include <string.h>

#include "tests/home_fixture.h"

/* No two prompts are near-duplicates. */
static void line(FILE *file, uint64_t i, const char *more) {
    fprintf(file,
            "{\"prompt\": \"what of %016llx?\", \"response\": \"I do not know of %llu\", \"time\": %llu, \"consent\": "
            "true%s}\n",
            (unsigned long long)((i + 1) * 0x9e3779b97f4a7c15u), (unsigned long long)i,
            1700000000000ull + (unsigned long long)i, more);
}

static void import_judged(struct homes *f, const char *down, const char *up) {
    attune_store *store = NULL;
    FILE *file = fopen(in_folder(f, "judged.jsonl"), "w");
    assert_non_null(file);
    for (uint64_t i = 0; i < 4; i++) line(file, i, ", \"edit\": \"Aye, matey, yer answer is that\"");
    for (uint64_t i = 4; i < 8; i++) line(file, i, down);
    for (uint64_t i = 8; i < 10; i++) line(file, i, up);
    assert_int_equal(fclose(file), 0);
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_import(store, in_folder(f, "judged.jsonl"), NULL, NULL, &f->err));
    attune_store_close(store);
}
static void make_judged_home(struct homes *f) {
    make_quick_home(f, 4);
    import_judged(f, ", \"thumb\": \"down\"", ", \"thumb\": \"up\"");
    /* a made base has no style that more than this would not destroy */
    set_key(f, "preference_weight", "1");
    set_key(f, "preference_sft", "0.1");
    set_key(f, "thumb_up", "1");
    set_key(f, "thumb_down", "1");
}

/* The bytes that a home ends in, elsewhere: as undisturbed(), at another name. */
static const char *ended(struct homes *f, const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s.gguf", f->folder, name);
    shell("mv %s %s", undisturbed(f), path);
    return path;
}

static void test_each_kind_teaches(void **state) {
    struct homes *f = *state;
    char all[256];
    make_judged_home(f);
    import_rows(f, 4, 16); /* enough to judge by that each of the runs is surely better */
    strcpy(all, ended(f, "all"));
    set_key(f, "preference_weight", "0");
    set_key(f, "preference_sft", "0");
    assert_false(same_files(all, ended(f, "without_pairs")));
    set_key(f, "preference_weight", "1");
    set_key(f, "preference_sft", "0.1");
    assert_true(same_files(all, ended(f, "again")));
    set_key(f, "thumb_down", "0");
    set_key(f, "thumb_up", "0");
    assert_false(same_files(all, ended(f, "without_thumbs")));
}

static void test_pauses_and_threads_leave_no_trace(void **state) {
    struct homes *f = *state;
    static const long each[] = {1, 4};
    char wanted[256];
    make_judged_home(f);
    set_key(f, "dropout", "0.1");
    strcpy(wanted, ended(f, "wanted"));
    for (size_t k = 0; k < 2; k++) {
        int code, calls = 0;
        shell("cp -a %s %s/kept", f->home, f->folder);
        do {
            attune_job_options options = job_options();
            options.threads = 1 + calls++ % 3;
            code = run_units(f, each[k], options, NULL);
        } while (code == ATTUNE_PAUSED && calls < 300);
        assert_int_equal(code, ATTUNE_DONE);
        assert_true(calls > 5);
        assert_true(same_files(wanted, adapter_path(f, 1)));
        shell("rm -rf %s && mv %s/kept %s", f->home, f->folder, f->home);
    }
}

/* Rows of the run, each with the interactions that it came from: what is forgotten takes the adapter along. */
static void test_what_was_judged_is_in_the_lineage(void **state) {
    struct homes *f = *state;
    attune_job_options options = job_options();
    make_judged_home(f);
    GIVES(run_job(f, &options, NULL), ATTUNE_DONE);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run_example"), 4 + 4 * 2 + 4 + 2 * 2);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run_interaction"), 14);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM example WHERE run IS NULL"), 0);
    GIVES(run_job(f, &options, NULL), ATTUNE_PAUSED); /* nothing new */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_each_kind_teaches),
        TEST(test_pauses_and_threads_leave_no_trace),
        TEST(test_what_was_judged_is_in_the_lineage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
