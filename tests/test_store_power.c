/* Power cuts: at every sync and at many writes of a life of recording, maintenance and forgetting, what the disk may
 * hold then opens as a sound store with all that was promised.
 *
 * ATTUNE_TEST_SEED=N: other cuts. ATTUNE_TEST_FULL=1: more rounds, and a cut at every write. */
#define _GNU_SOURCE
#include "tests/store_fixture.h"

#include <pthread.h>

#include "tests/faulty_vfs.h"
#include "tests/torture.h"

enum { ROUNDS = 6, ROUNDS_FULL = 24, ROWS_A_ROUND = 6 };

/* ---- a cut ---- */

static struct {
    pthread_mutex_t lock; /* the writer's thread and the test's own both come here */
    const char *home, *image;
    const unsigned char *key; /* of an encrypted store */
    struct torture_ledger *ledger;
    uint64_t seed;
    int every; /* of so many writes one is cut */
    unsigned cuts, of_syncs;
    char problem[TORTURE_PROBLEM + 100]; /* of the first bad image */
} cut = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int open_image(attune_store **store, attune_error *err) {
    attune_store_options options;
    ATTUNE_INIT(options);
    options.key = cut.key;
    return attune_store_open(cut.image, &options, store, err);
}

static int count_example(const struct store_row *row, void *user, attune_error *err) {
    (void)err;
    ++*(int *)user;
    return row->messages ? ATTUNE_OK : ATTUNE_ERROR_INTERNAL;
}

/* Recording and maintenance go on in it. */
static int goes_on(struct torture_check *check, attune_store *store) {
    attune_error err = {0};
    attune_interaction in;
    int examples = 0;
    ATTUNE_INIT(in);
    in.prompt = "after the cut";
    in.response = "it goes on";
    int code = attune_store_record(store, &in, NULL, &err);
    if (code == ATTUNE_OK) code = store_examples(store, NULL, count_example, &examples, &err);
    if (code != ATTUNE_OK) return torture_problem(check, "it does not go on: %d %s", code, err.message);
    return torture_check_maintained(check, store);
}

/* How each text of a row begins is found nowhere else. */
static int holds_text(const unsigned char *bytes, size_t n, unsigned row) {
    char start[32];
    int length = snprintf(start, sizeof start, "w%u n%u p", cut.ledger->writer, row);
    return memmem(bytes, n, start, (size_t)length) != NULL;
}

/* A file of the image, as it lies on the disk before anybody opens it. */
static void check_wiped(struct torture_check *check, const char *name) {
    static unsigned char bytes[8 << 20];
    char path[128];
    snprintf(path, sizeof path, "%s/%s", cut.image, name);
    FILE *file = fopen(path, "rb");
    if (!file) return;
    size_t n = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    if (n == sizeof bytes) torture_problem(check, "the test has no room for %s", name);
    for (unsigned i = 0; i < atomic_load(&cut.ledger->n); i++)
        if (check->before[i].wiped && holds_text(bytes, n, i))
            torture_problem(check, "%s still holds texts of row %u, which was wiped", name, i);
}

static void look_at_image(uint64_t seed, const struct faulty_op *op) {
    struct torture_check check;
    attune_store *store = NULL;
    attune_error err = {0};
    if (torture_check_begin(&check, &cut.ledger, 1)) {
        if (faulty_power_cut(cut.home, cut.image, seed) != 0)
            torture_problem(&check, "the test cannot write an image");
        check_wiped(&check, "store.db");
        check_wiped(&check, "store.db-wal");
        if (open_image(&store, &err) != ATTUNE_OK)
            torture_problem(&check, "the store does not open: %d %s", err.code, err.message);
        else if (torture_check(&check, store) && seed % 8 == 3)
            goes_on(&check, store);
    }
    attune_store_close(store);
    if (check.problem[0] && !cut.problem[0])
        snprintf(cut.problem, sizeof cut.problem, "cut %u (seed %" PRIu64 ", class %u, %s): %s", cut.cuts, seed,
                 op->class, op->done ? "after" : "before", check.problem);
    torture_check_end(&check);
    faulty_forget(); /* the image's history; what is open is kept */
    cut.cuts++;
    cut.of_syncs += op->class == FAULTY_SYNC;
}

static void at_io(const struct faulty_op *op, void *user) {
    (void)user;
    uint64_t chance = random_u64(cut.seed, 2 * op->n + (uint64_t)op->done);
    if (op->class == FAULTY_WRITE && (op->done || chance % (uint64_t)cut.every)) return;
    pthread_mutex_lock(&cut.lock);
    if (!cut.problem[0]) look_at_image(chance >> 8 & 15 ? chance : chance & 1, op);
    pthread_mutex_unlock(&cut.lock);
}

/* ---- a life ---- */

struct life {
    struct fixture *f;
    attune_store_options options;
    struct torture_ledger *ledger;
};

static void open_life(struct life *life) {
    struct fixture *f = life->f;
    OK(attune_store_open(f->home, &life->options, &f->store, &f->err));
}

/* Feedback to what is just queued, to what is on the disk, and to what is forgotten or full: that is left out. */
static void round_of_recording(struct life *life, unsigned round) {
    struct fixture *f = life->f;
    unsigned n = 0;
    for (unsigned i = 0; i < ROWS_A_ROUND; i++) {
        OK(torture_record(f->store, life->ledger, &n, &f->err));
        unsigned other = (unsigned)(random_u64(round, i) % (n + 1));
        if (i % 2) OK(torture_feedback(f->store, life->ledger, n, &f->err));
        if (i % 3 == 0 && !life->ledger->row[other].forgetting &&
            life->ledger->row[other].feedback_queued < TORTURE_FEEDBACK)
            OK(torture_feedback(f->store, life->ledger, other, &f->err));
        if (i == ROWS_A_ROUND / 2) OK(torture_flush(f->store, life->ledger, &f->err));
    }
    OK(torture_flush(f->store, life->ledger, &f->err));
}

static void round_of_life(struct life *life, unsigned round) {
    struct fixture *f = life->f;
    round_of_recording(life, round);
    if (round % 2) OK(attune_store_maintain(f->store, 0, &f->err));
    if (round % 3 == 1) {
        const unsigned some[] = {round * ROWS_A_ROUND - 1, round * ROWS_A_ROUND + 2};
        OK(torture_forget(f->store, life->ledger, some, 2, &f->err));
    }
    if (round % 3 == 2) { /* the log is folded into the store */
        OK(attune_store_suspend(f->store, &f->err));
        OK(attune_store_resume(f->store, &f->err));
    }
    if (round % 6 == 5) {
        attune_store_close(f->store);
        f->store = NULL;
        open_life(life);
    }
}

static void live(struct fixture *f, int durability, const unsigned char *key, uint64_t seed, int every) {
    struct life life = {.f = f};
    char image[] = "/tmp/attune-image-XXXXXX";
    ATTUNE_INIT(life.options);
    life.options.durability = durability;
    life.options.group_ms = 1;
    life.options.key = key;
    assert_non_null(life.ledger = calloc(1, sizeof *life.ledger));
    assert_non_null(mkdtemp(image));
    cut.home = f->home;
    cut.image = image;
    cut.key = key;
    cut.ledger = life.ledger;
    cut.seed = torture_seed(seed);
    cut.every = torture_full() ? 1 : every;
    cut.cuts = cut.of_syncs = 0;
    cut.problem[0] = '\0';

    open_life(&life);
    faulty_at(0, at_io, NULL);
    faulty_only(strrchr(f->home, '/')); /* not the image */
    faulty_set(FAULTY_CHANGE, 0, 0, SQLITE_OK);
    for (unsigned i = 0; i < (torture_full() ? ROUNDS_FULL : ROUNDS) && !cut.problem[0]; i++) round_of_life(&life, i);
    attune_store_close(f->store);
    f->store = NULL;
    faulty_clear();
    print_message("%u cuts, %u of them at syncs, of %" PRIu64 " changes of the disk (ATTUNE_TEST_SEED=%" PRIu64 ")\n",
                  cut.cuts, cut.of_syncs, faulty_count(), cut.seed);
    remove_folder(image);
    free(life.ledger);
    if (cut.problem[0]) fail_msg("%s", cut.problem);
    assert_true(cut.cuts >= 100);
}

/* ---- tests ---- */

static void create(struct fixture *f, const unsigned char *key) {
    OK(store_create_encrypted(f->home, 1, key, NULL, &f->err));
    faulty_volatile_names(1);
    faulty_folder_synced(f->home); /* by the store, past SQLite */
}

static void test_full(void **state) {
    struct fixture *f = *state;
    create(f, NULL);
    live(f, ATTUNE_DURABILITY_FULL, NULL, 11, 4);
}

static void test_normal(void **state) {
    struct fixture *f = *state;
    create(f, NULL);
    live(f, ATTUNE_DURABILITY_NORMAL, NULL, 12, 4);
}

static void test_encrypted(void **state) {
    struct fixture *f = *state;
    const unsigned char key[ATTUNE_KEY_BYTES] = {1, 2, 3};
    create(f, key);
    live(f, ATTUNE_DURABILITY_FULL, key, 13, 8);
}

/* What a disk holds that kept nothing but what was synced. */
static attune_store *after_cut(struct fixture *f, char image[32]) {
    attune_store *store = NULL;
    strcpy(image, "/tmp/attune-image-XXXXXX");
    assert_non_null(mkdtemp(image));
    assert_int_equal(faulty_power_cut(f->home, image, 0), 0);
    OK(attune_store_open(image, NULL, &store, &f->err));
    return store;
}

/* Taking back is for good when the call returns, however seldom recording syncs, and whoever reads meanwhile. */
static void test_taking_back(void **state) {
    struct fixture *f = *state;
    attune_store_options options;
    attune_filter filter;
    attune_uuid id[2];
    char image[32];
    sqlite3 *reader = NULL;
    int64_t rows = -1, consented = -1;
    ATTUNE_INIT(options);
    options.durability = ATTUNE_DURABILITY_NORMAL;
    create(f, NULL);
    OK(attune_store_open(f->home, &options, &f->store, &f->err));
    OK(record(f->store, "to be forgotten", "an answer", 1000, &id[0], &f->err));
    OK(record(f->store, "to be withdrawn", "an answer", 2000, &id[1], &f->err));
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &reader), SQLITE_OK);
    assert_int_equal(sqlite3_exec(reader, "BEGIN; SELECT count(*) FROM interaction", NULL, NULL, NULL), SQLITE_OK);

    ATTUNE_INIT(filter);
    filter.ids = (const char *const[]){id[0].text};
    filter.n_ids = 1;
    OK(attune_store_forget(f->store, &filter, NULL, &f->err));
    attune_store *store = after_cut(f, image);
    OK(store_counts(store, &rows, &consented, NULL, NULL, &f->err));
    attune_store_close(store);
    remove_folder(image);
    assert_int_equal(rows, 1);
    assert_int_equal(consented, 1);

    filter.ids = (const char *const[]){id[1].text};
    OK(attune_store_consent(f->store, 0, &filter, NULL, &f->err));
    store = after_cut(f, image);
    OK(store_counts(store, &rows, &consented, NULL, NULL, &f->err));
    attune_store_close(store);
    remove_folder(image);
    assert_int_equal(rows, 1);
    assert_int_equal(consented, 0);
    sqlite3_close(reader);
}

static int teardown(void **state) {
    int code = store_teardown(state);
    faulty_clear();
    faulty_volatile_names(0);
    faulty_forget();
    return code;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_full, bare_setup, teardown),
        cmocka_unit_test_setup_teardown(test_normal, bare_setup, teardown),
        cmocka_unit_test_setup_teardown(test_encrypted, bare_setup, teardown),
        cmocka_unit_test_setup_teardown(test_taking_back, bare_setup, teardown),
    };
    if (faulty_install() != SQLITE_OK) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
