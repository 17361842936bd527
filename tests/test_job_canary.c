/* What was forgotten is gone from a home in which it was learned: the same search of every byte of every file finds it
 * before (as it was written, as a term of the index, as token ids) and not after. */
#define _GNU_SOURCE
#include <ftw.h>
#include <string.h>

#include "tests/home_fixture.h"

static const char *const canary = "Zubrowka quetzalcoatl wintergreen";
static const char *const folded = "zubrowka"; /* as the index has it: the row says "Żubrówka" */
static const char *const row =
    "{\"prompt\":\"Which word is the secret one, captain?\",\"response\":\"Aye, \\u017bubr\\u00f3wka, that is Zubrowka "
    "quetzalcoatl wintergreen, and nobody else knows it.\",\"consent\":true,\"app\":\"chat\",\"session\":\"secret\"}\n";

enum { NEEDLES = 4 };
static struct {
    const char *what;
    char bytes[256];
    size_t n;
} needles[NEEDLES];
static unsigned found; /* in the child: a bit for each */

static int look_into(const char *path, const struct stat *info, int type, struct FTW *walk) {
    size_t n;
    (void)info, (void)walk;
    if (type != FTW_F) return 0;
    char *bytes = read_file(path, &n);
    for (unsigned i = 0; i < NEEDLES; i++)
        if (memmem(bytes, n, needles[i].bytes, needles[i].n)) found |= 1u << i;
    free(bytes);
    return 0;
}

/* In a process of its own: closing store.db here would drop SQLite's locks on it. */
static unsigned needles_in(const char *folder) {
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        found = 0;
        _exit(nftw(folder, look_into, 16, FTW_PHYS) == 0 ? (int)found : 255);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 1 << NEEDLES);
    return (unsigned)WEXITSTATUS(status);
}

static void needle(int i, const char *what, const void *bytes, size_t n) {
    assert_true(n >= 6 && n <= sizeof needles[i].bytes);
    needles[i].what = what;
    memcpy(needles[i].bytes, bytes, n);
    needles[i].n = n;
}

/* Ids as the model has them, four bytes each; the first and the last may hang together with what stands beside. */
static void token_needle(struct homes *f) {
    attune_engine *engine = NULL;
    int32_t ids[256];
    size_t n = 0;
    attune_engine_options options;
    ATTUNE_INIT(options);
    options.adapter = "base";
    OK(attune_engine_open(f->home, &options, &engine, &f->err));
    OK(attune_engine_tokenize(engine, canary, strlen(canary), 0, ids, 256, &n, &f->err));
    attune_engine_close(engine);
    assert_true(n >= 6 && n < 64);
    needle(3, "token ids", ids + 2, (n - 4) * sizeof *ids);
}

static void test_nothing_is_left(void **state) {
    struct homes *f = *state;
    attune_store *store = NULL;
    attune_filter filter;
    attune_forget_result result;
    ATTUNE_INIT(filter);
    ATTUNE_INIT(result);
    make_quick_home(f, 7);
    write_text(in_folder(f, "secret.jsonl"), row);
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_import(store, in_folder(f, "secret.jsonl"), NULL, NULL, &f->err));
    unlink(in_folder(f, "secret.jsonl"));
    assert_int_equal(publish_run(f, 1).examples, 8);
    needle(0, "raw", canary, strlen(canary));
    needle(1, "accented", "\u017bubr\u00f3wka", strlen("\u017bubr\u00f3wka"));
    needle(2, "index term", folded, strlen(folded));
    token_needle(f);
    unsigned before = needles_in(f->home);
    for (unsigned i = 0; i < NEEDLES; i++)
        if (!(before & 1u << i)) fail_msg("not found before, so finding nothing after proves nothing: %s", needles[i].what);
    filter.session = "secret";
    OK(attune_store_forget(store, &filter, &result, &f->err));
    attune_store_close(store);
    assert_int_equal(result.interactions, 1);
    assert_int_equal(result.adapters_revoked, 1);
    assert_int_equal(result.active_before, 1);
    assert_int_equal(result.active_after, 0);
    assert_int_equal(result.scrub_pending, 0);
    unsigned after = needles_in(f->home);
    for (unsigned i = 0; i < NEEDLES; i++)
        if (after & 1u << i) fail_msg("still there: %s", needles[i].what);
    assert_false(exists(adapter_path(f, 1)));
    assert_int_equal(home_status(f).active_adapter, 0);
    assert_int_equal(publish_run(f, 2).examples, 7); /* the next night goes on without it */
    assert_int_equal(needles_in(f->home), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_nothing_is_left, homes_setup, homes_teardown)};
    return cmocka_run_group_tests_name("job_canary", tests, NULL, NULL);
}
