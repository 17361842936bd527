/* Plans over a home made through the public interface, with tiny_llama as its base. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/random.h"
#include "job/run.h"
#include "tests/expect.h"

/* ---- a home ---- */

struct place {
    char home[64];
    attune_store *store;
    struct model *model;
    struct settings settings;
    int64_t time_ms; /* of the next row */
};

static void place_make(struct place *p) {
    attune_home_options options;
    ATTUNE_INIT(options);
    options.consent = 1;
    memset(p, 0, sizeof *p);
    strcpy(p->home, "/tmp/attune-plan-XXXXXX");
    assert_non_null(mkdtemp(p->home));
    OK(attune_home_init(p->home, ATTUNE_TEST_ROOT "/tests/golden/tiny_llama.gguf", &options, &err));
    OK(attune_store_open(p->home, NULL, &p->store, &err));
    OK(settings_read(p->home, &p->settings, &err));
    OK(home_model(p->home, &p->settings, FILE_READ, &p->model, &err));
    p->time_ms = 1700000000000;
}
static void place_free(struct place *p) {
    char command[128];
    attune_store_close(p->store);
    model_close(p->model);
    snprintf(command, sizeof command, "rm -rf '%s'", p->home);
    assert_int_equal(system(command), 0);
}
static int setup(void **state) {
    struct place *p = malloc(sizeof *p);
    if (!p) return -1;
    place_make(p);
    *state = p;
    return 0;
}
static int teardown(void **state) {
    place_free(*state);
    free(*state);
    return 0;
}

static struct row_source source_of(const struct place *p) {
    return (struct row_source){p->store, p->model, p->home};
}

/* No two of them are near-duplicates: 24 digits that nothing foretells. */
static void question(int i, char out[64]) {
    snprintf(out, 64, "what of %016llx%08llx?", (unsigned long long)random_u64(1, (uint64_t)i),
             (unsigned long long)random_u64(2, (uint64_t)i) >> 32);
}

/* Rows from..to, one prompt each unless `same` has them all ask it; more: further JSON of each row. In one import. */
static void add_rows_of(struct place *p, int from, int to, const char *same, const char *more) {
    char path[128];
    snprintf(path, sizeof path, "%s/rows.jsonl", p->home);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = from; i < to; i++) {
        char prompt[64];
        question(i, prompt);
        fprintf(f, "{\"prompt\": \"%s\", \"response\": \"answer %d of the old man\", \"time\": %lld%s}\n",
                same ? same : prompt, i, (long long)p->time_ms++, more);
    }
    assert_int_equal(fclose(f), 0);
    attune_import_result result;
    ATTUNE_INIT(result);
    OK(attune_store_import(p->store, path, NULL, &result, &err));
    assert_int_equal(result.rows, to - from);
    unlink(path);
}
static void questions(struct place *p, int from, int to) { add_rows_of(p, from, to, NULL, ""); }

static const struct budget NO_BUDGET = {0};

static struct plan made_with(struct place *p, const struct settings *settings, const struct budget *budget) {
    struct plan plan;
    struct row_source source = source_of(p);
    char reason[256] = "";
    memset(&plan, 0x5a, sizeof plan);
    OK(plan_make(&source, settings, 0, "", 0, budget, &plan, reason, &err));
    return plan;
}
static struct plan made(struct place *p) { return made_with(p, &p->settings, &NO_BUDGET); }

static const char *prompt_of(const struct plan *plan, size_t row) { return plan->examples.items[row].prompt_hash; }
static const char *hash_of(const struct plan *plan, size_t row) { return plan->examples.items[row].hash; }
static int asks(const struct plan *plan, const size_t *rows, size_t n, const char *prompt) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(prompt_of(plan, rows[i]), prompt) == 0) return 1;
    return 0;
}

/* ---- splitting ---- */

static void test_too_few(void **state) {
    struct place *p = *state;
    struct row_source source = source_of(p);
    struct plan plan;
    char reason[256] = "";
    memset(&plan, 0x5a, sizeof plan);
    for (int rows = 0; rows < 4; rows++) {
        *reason = 0;
        assert_int_equal(plan_make(&source, &p->settings, 0, "", 0, &NO_BUDGET, &plan, reason, NULL),
                         ATTUNE_PAUSED);
        assert_non_null(strstr(reason, "4"));
        questions(p, rows, rows + 1);
        add_rows_of(p, 100 + rows, 101 + rows, "the same question over and over", "");
        if (rows == 2) break; /* three and the same one: four */
    }
    assert_int_equal(*(unsigned char *)&plan, 0x5a);
    plan = made(p);
    plan_free(&plan);
    struct budget budget = {.max_examples = 3};
    assert_int_equal(plan_make(&source, &p->settings, 0, "", 0, &budget, &plan, reason, NULL),
                     ATTUNE_PAUSED);
}

static void test_held_out(void **state) {
    struct place *p = *state;
    p->settings.held_out = 0.2;
    questions(p, 0, 200);
    struct plan plan = made(p);
    assert_int_equal(plan.folds, 0);
    assert_string_equal(plan.row.evaluation, "held-out");
    assert_string_equal(plan.row.state, "unfinished");
    assert_int_equal(plan.n_train + plan.n_judge, 200);
    assert_in_range(plan.n_judge, 20, 60); /* 40, give or take 5.7 */
    assert_int_equal(plan.row.examples, plan.n_train);
    assert_int_equal(plan.row.held_out, plan.n_judge);
    for (size_t i = 0; i < plan.n_judge; i++) {
        assert_false(asks(&plan, plan.train, plan.n_train, prompt_of(&plan, plan.judge[i])));
        if (i > 0) assert_true(plan.judge[i] > plan.judge[i - 1]);
    }
    for (size_t i = 1; i < plan.n_train; i++) assert_true(plan.train[i] > plan.train[i - 1]); /* oldest first */

    /* more rows: what judged is never trained on, what was trained on never judges */
    questions(p, 200, 260);
    struct plan later = made(p);
    assert_int_equal(later.folds, 0);
    assert_true(later.n_train > plan.n_train && later.n_judge > plan.n_judge);
    for (size_t i = 0; i < plan.n_judge; i++)
        assert_false(asks(&later, later.train, later.n_train, prompt_of(&plan, plan.judge[i])));
    for (size_t i = 0; i < plan.n_train; i++)
        assert_false(asks(&later, later.judge, later.n_judge, prompt_of(&plan, plan.train[i])));
    plan_free(&later);

    /* a larger share takes prompts from training only */
    p->settings.held_out = 0.22;
    later = made(p);
    for (size_t i = 0; i < plan.n_judge; i++)
        assert_true(asks(&later, later.judge, later.n_judge, prompt_of(&plan, plan.judge[i])));
    plan_free(&later);
    plan_free(&plan);

    /* no more than 64 judge, the newest; the others are not trained on for that */
    p->settings.held_out = 0.5;
    plan = made(p);
    assert_int_equal(plan.n_judge, 64);
    assert_true(plan.n_train + plan.n_judge < 260);
    for (size_t i = 0; i < plan.n_judge; i++)
        assert_false(asks(&plan, plan.train, plan.n_train, prompt_of(&plan, plan.judge[i])));
    plan_free(&plan);
}

/* Regenerations, edits and variations of one prompt are on one side, whichever. */
static void test_a_prompt_never_straddles(void **state) {
    struct place *p = *state;
    p->settings.held_out = 0.3;
    for (int q = 0; q < 40; q++) {
        char prompt[64];
        question(q, prompt);
        add_rows_of(p, 10 * q, 10 * q + 2, prompt, "");
        add_rows_of(p, 10 * q + 2, 10 * q + 3, prompt, ", \"edit\": \"she sang\"");
        prompt[0] = 'W', prompt[4] = '-', prompt[strlen(prompt) - 1] = '!';
        add_rows_of(p, 10 * q + 3, 10 * q + 4, prompt, "");
    }
    struct plan plan = made(p);
    assert_int_equal(plan.folds, 0);
    assert_int_equal(plan.examples.n, 160 + 2 * 40); /* an edit gives a pair too, which is two */
    for (size_t i = 0; i < plan.n_judge; i++)
        assert_false(asks(&plan, plan.train, plan.n_train, prompt_of(&plan, plan.judge[i])));
    plan_free(&plan);

    p->settings.held_out = 0.01; /* too few judge by themselves: folds */
    plan = made(p);
    assert_int_equal(plan.folds, 3);
    for (size_t i = 0; i < plan.n_train; i++)
        for (size_t j = 0; j < i; j++)
            if (strcmp(prompt_of(&plan, plan.train[i]), prompt_of(&plan, plan.train[j])) == 0)
                assert_int_equal(plan.fold[i], plan.fold[j]);
    plan_free(&plan);
}

static void test_folds(void **state) {
    struct place *p = *state;
    static const int counts[] = {4, 5, 6, 7, 20, 31};
    int there = 0;
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        questions(p, there, counts[c]);
        there = counts[c];
        struct plan plan = made(p);
        size_t n = plan.n_train, sizes[3] = {0}, *rows = malloc(n * sizeof *rows), *judged = malloc(n * sizeof *rows);
        assert_non_null(rows);
        assert_non_null(judged);
        assert_int_equal(plan.folds, 3);
        assert_string_equal(plan.row.evaluation, "cross-fit");
        assert_int_equal(n, counts[c]);
        assert_int_equal(plan.n_judge, n);
        assert_memory_equal(plan.judge, plan.train, n * sizeof *plan.judge);
        for (int fold = 0; fold < 3; fold++) {
            size_t trained = plan_fold_rows(&plan, fold, 0, rows);
            sizes[fold] = plan_fold_rows(&plan, fold, 1, judged);
            assert_int_equal(trained + sizes[fold], n);
            assert_true(trained > 0);
            for (size_t i = 0; i < sizes[fold]; i++)
                assert_false(asks(&plan, rows, trained, prompt_of(&plan, judged[i])));
        }
        assert_int_equal(sizes[0] + sizes[1] + sizes[2], n);
        for (int fold = 0; fold < 3; fold++) assert_in_range(sizes[fold], n / 3, (n + 2) / 3);
        free(rows);
        free(judged);
        plan_free(&plan);
    }
}

/* ---- budgets ---- */

static double tokens_of(const struct plan *plan, const size_t *rows, size_t n) {
    double tokens = 0;
    for (size_t i = 0; i < n; i++) tokens += (double)plan->examples.items[rows[i]].n - 1;
    return tokens;
}

static void test_seconds(void **state) {
    struct place *p = *state;
    /* nothing but tokens costs; then each supervised one twice as much in training, and four times in judging */
    struct budget b = {.train_rate = 100, .evaluate_rate = 400, .overhead = 7}, dear = b;
    dear.training.supervised = 1;
    dear.judging.supervised = 3;
    questions(p, 0, 30);
    p->settings.epochs = 2;
    struct plan plan = made(p);
    assert_int_equal(plan.folds, 3);
    /* each row twice by the folds that it is in, twice by the whole, judged before, and after each pass */
    double tokens = tokens_of(&plan, plan.train, plan.n_train), folds = 0;
    size_t rows[30];
    for (int fold = 0; fold < 3; fold++) folds += tokens_of(&plan, rows, plan_fold_rows(&plan, fold, 0, rows));
    assert_true(fabs(plan_seconds(&plan, &b) - (7 + 3 * tokens / 400 + (2 * folds + 2 * tokens) / 100)) < 1e-9);
    double more = 0;
    for (size_t i = 0; i < plan.n_train; i++) more += (double)plan.examples.items[plan.train[i]].n_supervised;
    assert_true(fabs(plan_seconds(&plan, &dear) - plan_seconds(&plan, &b) - (3 * 3 * more / 400 + 6 * more / 100)) <
                1e-9);
    plan_free(&plan);

    p->settings.held_out = 0.5;
    questions(p, 30, 60);
    plan = made(p);
    assert_int_equal(plan.folds, 0);
    double wanted = 7 + 3 * tokens_of(&plan, plan.judge, plan.n_judge) / 400 +
                    2 * tokens_of(&plan, plan.train, plan.n_train) / 100;
    assert_true(fabs(plan_seconds(&plan, &b) - wanted) < 1e-9);
    plan_free(&plan);
}

/* Left to the plan, few rows are seen three times and 256 once. */
static void test_passes_by_rows(void **state) {
    struct place *p = *state;
    static const struct {
        int rows;
        double epochs;
    } table[] = {{12, 3}, {80, 3}, {128, 2}, {170, 1.5}, {256, 1}, {300, 1}};
    int have = 0;
    p->settings.epochs = 0;
    p->settings.held_out = 0.01; /* nearly none: cross-fitted, all rows are trained on */
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        questions(p, have, table[k].rows);
        have = table[k].rows;
        struct plan plan = made(p);
        assert_int_equal(plan.n_train, table[k].rows);
        assert_true(plan.settings.epochs == table[k].epochs);
        plan_free(&plan);
    }
}

/* Ever less time: first fewer passes, down to one; only then fewer rows, the oldest first; and never over it. */
static void check_budgets(struct place *p, int folds) {
    struct budget b = {.train_rate = 1000, .evaluate_rate = 4000, .overhead = 1};
    p->settings.epochs = 3;
    struct plan whole = made(p);
    assert_int_equal(whole.folds, folds);
    double all = plan_seconds(&whole, &b), epochs = 3;
    size_t rows = whole.n_train, fewer_epochs = 0, fewer_rows = 0;
    for (double share = 1.1; share > 0.02; share *= 0.8) {
        b.seconds = all * share;
        struct plan plan = made_with(p, &p->settings, &b);
        assert_true(plan.settings.epochs <= epochs && plan.n_train <= rows);
        assert_true(plan.settings.epochs >= 1);
        if (share >= 1) assert_true(plan.settings.epochs == 3 && plan.n_train == whole.n_train);
        if (plan.n_train < whole.n_train) assert_true(plan.settings.epochs == 1);
        fewer_epochs += plan.settings.epochs < epochs;
        fewer_rows += plan.n_train < rows;
        epochs = plan.settings.epochs;
        rows = plan.n_train;
        assert_true(rows >= 8);
        if (rows > 8) assert_true(plan_seconds(&plan, &b) <= b.seconds);
        for (size_t i = 0; i < rows; i++)
            assert_string_equal(hash_of(&plan, plan.train[i]), hash_of(&whole, whole.train[whole.n_train - rows + i]));
        if (!plan.folds) { /* what judges is cut to its share of the time too, the newest stay */
            assert_true(plan.n_judge >= 8);
            for (size_t i = 0; i < plan.n_judge; i++)
                assert_string_equal(hash_of(&plan, plan.judge[i]),
                                    hash_of(&whole, whole.judge[whole.n_judge - plan.n_judge + i]));
        }
        assert_int_equal(plan.row.steps, plan_steps(&plan, plan.n_train));
        assert_int_equal(plan.row.examples, plan.n_train);
        plan_free(&plan);
    }
    assert_true(fewer_epochs >= 3 && fewer_rows >= 3 && rows == 8);
    plan_free(&whole);
}
static void test_budget_with_folds(void **state) {
    questions(*state, 0, 50);
    check_budgets(*state, 3);
}
static void test_budget_with_held_out_rows(void **state) {
    struct place *p = *state;
    questions(p, 0, 120);
    p->settings.held_out = 0.2;
    check_budgets(p, 0);
}

/* The newest rows all ask the same: a short budget still leaves every fold something to train on. */
static void test_budget_leaves_prompts(void **state) {
    struct place *p = *state;
    struct budget b = {.seconds = 0.1, .train_rate = 10, .evaluate_rate = 40, .overhead = 1};
    p->settings.group_cap = 0;
    questions(p, 0, 10);
    add_rows_of(p, 100, 120, "the same question over and over", "");
    struct plan plan = made_with(p, &p->settings, &b);
    size_t rows[64];
    assert_int_equal(plan.folds, 3);
    assert_int_equal(plan.n_train, 23); /* three of the ten, and the twenty */
    for (int fold = 0; fold < 3; fold++) {
        assert_true(plan_fold_rows(&plan, fold, 0, rows) > 0);
        assert_true(plan_fold_rows(&plan, fold, 1, rows) > 0);
    }
    plan_free(&plan);
}

static void test_max_examples(void **state) {
    struct place *p = *state;
    struct budget b = {.max_examples = 12};
    questions(p, 0, 30);
    struct plan all = made(p), plan = made_with(p, &p->settings, &b);
    assert_int_equal(plan.n_train, 12);
    for (size_t i = 0; i < 12; i++)
        assert_string_equal(hash_of(&plan, plan.train[i]), hash_of(&all, all.train[18 + i])); /* the newest */
    plan_free(&plan);
    b.max_examples = 1000;
    plan = made_with(p, &p->settings, &b);
    assert_int_equal(plan.n_train, 30);
    plan_free(&plan);
    plan_free(&all);
}

/* Of near-duplicates, and of one app and source, the newest so many. */
static void test_caps(void **state) {
    struct place *p = *state;
    questions(p, 0, 20);
    add_rows_of(p, 100, 130, "the same question over and over", "");
    struct plan plan = made(p);
    assert_int_equal(plan.n_train, 28);
    for (int i = 20; i < 28; i++)
        assert_string_equal(prompt_of(&plan, plan.train[i]), prompt_of(&plan, plan.train[20]));
    plan_free(&plan);
    p->settings.group_cap = 3;
    plan = made(p);
    assert_int_equal(plan.n_train, 23);
    assert_int_equal(plan.origins[22].interaction, 50); /* the newest of all */
    assert_int_equal(plan.origins[20].interaction, 48);
    plan_free(&plan);
    p->settings.group_cap = 0;
    p->settings.source_cap = 35;
    add_rows_of(p, 200, 206, NULL, ", \"source\": \"mail\"");
    plan = made(p);
    assert_int_equal(plan.n_train, 41);
    assert_int_equal(plan.origins[0].interaction, 16);
    plan_free(&plan);
    p->settings.source_cap = 0;
    plan = made(p);
    assert_int_equal(plan.n_train, 56);
    plan_free(&plan);
}

/* The lineage names the interactions of each row, whichever side it is on. */
static void test_origins(void **state) {
    struct place *p = *state;
    for (int round = 0; round < 2; round++) {
        questions(p, 40 * round, 40 * round + 40);
        p->settings.held_out = round ? 0.4 : 0.01;
        struct plan plan = made(p);
        assert_int_equal(plan.folds, round ? 0 : 3);
        size_t n = plan.n_train + (round ? plan.n_judge : 0);
        assert_int_equal(n, 40 * (size_t)(round + 1));
        for (size_t i = 0; i < plan.examples.n; i++) {
            assert_int_equal(plan.origins[i].interaction, i + 1);
            assert_int_equal(plan.origins[i].other, 0);
        }
        sqlite3 *db = NULL;
        sqlite3_stmt *statement = NULL;
        char path[128];
        snprintf(path, sizeof path, "%s/store.db", p->home);
        assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
        static const char query[] = "SELECT count(*), sum(interaction) FROM run_interaction WHERE run = ?";
        assert_int_equal(sqlite3_prepare_v2(db, query, -1, &statement, NULL), SQLITE_OK);
        sqlite3_bind_int64(statement, 1, plan.row.number);
        assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
        assert_int_equal(sqlite3_column_int64(statement, 0), n);
        assert_int_equal(sqlite3_column_int64(statement, 1), n * (n + 1) / 2);
        sqlite3_finalize(statement);
        sqlite3_close(db);
        plan_free(&plan);
    }
}

static void test_sample(void **state) {
    struct place *p = *state;
    struct row_source source = source_of(p);
    struct example_set set = {0};
    OK(plan_sample(&source, &p->settings, 100, &set, &err));
    assert_int_equal(set.n, 0);
    example_set_free(&set);
    questions(p, 0, 20);
    struct plan plan = made(p);
    for (size_t most = 1; most < 2000; most = most * 3 + 50) {
        OK(plan_sample(&source, &p->settings, most, &set, &err));
        size_t tokens = 0;
        assert_in_range(set.n, 1, 20);
        for (size_t i = 0; i < set.n; i++) {
            tokens += set.items[i].n;
            assert_string_equal(set.items[i].hash, plan.examples.items[20 - set.n + i].hash);
        }
        assert_true(set.n == 1 || tokens <= most);
        if (set.n < 20) assert_true(tokens + plan.examples.items[20 - set.n - 1].n > most);
        example_set_free(&set);
    }
    plan_free(&plan);
}

/* ---- names ---- */

static void test_run_id(void **state) {
    struct place *p = *state, other;
    struct row_source source = source_of(p);
    char id[65], reason[256];
    questions(p, 0, 20);
    struct plan plan = made(p);
    strcpy(id, plan.row.id);
    assert_int_equal(strlen(id), 64);
    plan_free(&plan);
    plan = made(p); /* again */
    assert_string_equal(plan.row.id, id);
    plan_free(&plan);
    place_make(&other); /* the same rows in another home, at another time */
    other.time_ms += 86400000;
    questions(&other, 0, 20);
    plan = made(&other);
    assert_string_equal(plan.row.id, id);
    plan_free(&plan);

    struct settings changed[8];
    for (size_t i = 0; i < 8; i++) changed[i] = p->settings;
    changed[0].train.seed++;
    changed[1].train.learning_rate *= 1.5f;
    changed[2].epochs = 4;
    changed[3].shuffle = 0;
    changed[4].merge = MERGE_NONE;
    changed[5].train.lora.rank++;
    changed[6].memory *= 2; /* these two change nothing that is computed */
    changed[7].policy.charger_required = 0;
    for (size_t i = 0; i < 8; i++) {
        plan = made_with(p, &changed[i], &NO_BUDGET);
        if ((strcmp(plan.row.id, id) == 0) != (i >= 6)) fail_msg("settings %zu: run %s", i, plan.row.id);
        plan_free(&plan);
    }
    OK(plan_make(&source, &p->settings, 1, "0123", 0, &NO_BUDGET, &plan, reason, &err));
    assert_string_not_equal(plan.row.id, id);
    plan_free(&plan);
    /* who has to be beaten is part of it; under which number, is not */
    attune_adapter_info twin = {.size = sizeof twin, .rank = 8, .alpha = 16, .state = "retired", .origin = "trained"};
    for (int number = 1; number <= 3; number++) {
        twin.number = number;
        memset(twin.sha256, number == 3 ? 'b' : 'a', 64);
        OK(store_adapter_put(p->store, &twin, 0, &err));
    }
    char beaten[3][65];
    for (int number = 1; number <= 3; number++) {
        OK(plan_make(&source, &p->settings, 0, "", number, &NO_BUDGET, &plan, reason, &err));
        strcpy(beaten[number - 1], plan.row.id);
        plan_free(&plan);
    }
    assert_string_not_equal(beaten[0], id);
    assert_string_equal(beaten[0], beaten[1]);
    assert_string_not_equal(beaten[0], beaten[2]);
    questions(&other, 20, 21);
    plan = made(&other);
    assert_string_not_equal(plan.row.id, id);
    plan_free(&plan);
    place_free(&other);
}

/* ---- storing and loading ---- */

static void assert_same_rows(const struct plan *a, const size_t *x, const struct plan *b, const size_t *y, size_t n) {
    for (size_t i = 0; i < n; i++) assert_string_equal(hash_of(a, x[i]), hash_of(b, y[i]));
}
static void check_load(struct place *p, int folds) {
    struct row_source source = source_of(p);
    struct plan plan = made(p), back;
    struct store_run row;
    assert_int_equal(plan.folds, folds);
    questions(p, 500 + 20 * folds, 520 + 20 * folds); /* what came in meanwhile is not the plan's */
    OK(store_run_last(p->store, "unfinished", &row, &err));
    assert_string_equal(row.id, plan.row.id);
    OK(plan_load(&source, &row, &back, &err));
    assert_int_equal(back.folds, plan.folds);
    assert_int_equal(back.opponent, plan.opponent);
    assert_int_equal(back.n_train, plan.n_train);
    assert_int_equal(back.n_judge, plan.n_judge);
    assert_same_rows(&plan, plan.train, &back, back.train, plan.n_train);
    assert_same_rows(&plan, plan.judge, &back, back.judge, plan.n_judge);
    if (folds) assert_memory_equal(plan.fold, back.fold, plan.n_train * sizeof *plan.fold);
    assert_true(plan.settings.epochs == back.settings.epochs);
    assert_memory_equal(&plan.settings.train.lora, &back.settings.train.lora, sizeof plan.settings.train.lora);
    assert_true(plan.settings.train.learning_rate == back.settings.train.learning_rate);
    assert_int_equal(plan.settings.train.seed, back.settings.train.seed);
    assert_int_equal(plan.settings.merge, back.settings.merge);
    size_t steps = plan_steps(&plan, plan.n_train);
    assert_int_equal(steps, plan_steps(&back, back.n_train));
    for (size_t s = 0; s < steps; s++) {
        size_t a[4], b[4], n = plan_step_rows(&plan, plan.train, plan.n_train, s, a);
        assert_int_equal(plan_step_rows(&back, back.train, back.n_train, s, b), n);
        assert_same_rows(&plan, a, &back, b, n);
        for (size_t i = 0; i < n; i++) {
            const struct example *x = &plan.examples.items[a[i]], *y = &back.examples.items[b[i]];
            assert_int_equal(x->n, y->n);
            assert_memory_equal(x->ids, y->ids, x->n * sizeof *x->ids);
            assert_memory_equal(x->supervised, y->supervised, x->n);
            assert_int_equal(x->key, y->key);
        }
    }
    plan_free(&back);
    plan_free(&plan);
}
/* Answers, edits of them (each an answer and a pair), thumbs up (each an answer too) and down. */
static void add_kinds(struct place *p) {
    add_rows_of(p, 0, 24, NULL, "");
    add_rows_of(p, 24, 32, NULL, ", \"edit\": \"what the young man made of it\"");
    add_rows_of(p, 32, 40, NULL, ", \"thumb\": \"down\"");
    add_rows_of(p, 40, 48, NULL, ", \"thumb\": \"up\"");
}
static size_t count_kind(const struct plan *plan, const size_t *rows, size_t n, enum example_kind kind) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += plan->examples.items[rows[i]].kind == kind;
    return count;
}

static void test_kinds(void **state) {
    struct place *p = *state;
    size_t rows[80];
    add_kinds(p);
    p->settings.held_out = 0.01;
    struct plan plan = made(p);
    assert_int_equal(plan.folds, 3);
    assert_int_equal(plan.n_train, 40 + 8 + 16);
    assert_int_equal(plan.row.examples, plan.n_train);
    assert_int_equal(count_kind(&plan, plan.train, plan.n_train, EXAMPLE_SFT), 40);
    assert_int_equal(count_kind(&plan, plan.train, plan.n_train, EXAMPLE_PREFERENCE), 8);
    assert_int_equal(count_kind(&plan, plan.train, plan.n_train, EXAMPLE_THUMB), 16);
    assert_int_equal(plan.n_judge, 40);
    assert_int_equal(count_kind(&plan, plan.judge, plan.n_judge, EXAMPLE_SFT), 40);
    int down = 0;
    for (size_t i = 0; i < plan.n_train; i++) {
        const struct example *row = &plan.examples.items[plan.train[i]];
        if (i > 0) assert_true(plan.origins[plan.train[i]].time_ms >= plan.origins[plan.train[i - 1]].time_ms);
        assert_true((row->kind == EXAMPLE_PREFERENCE) == (row[1].kind == EXAMPLE_REJECTED &&
                                                          plan.train[i] + 1 < plan.examples.n));
        if (row->kind == EXAMPLE_PREFERENCE)
            assert_int_equal(plan.origins[plan.train[i] + 1].interaction, plan.origins[plan.train[i]].interaction);
        if (row->kind == EXAMPLE_THUMB) down += row->label < 0;
    }
    assert_int_equal(down, 8);
    for (int fold = 0; fold < 3; fold++) {
        size_t judged = plan_fold_rows(&plan, fold, 1, rows);
        assert_int_equal(count_kind(&plan, rows, judged, EXAMPLE_SFT), judged);
        size_t trained = plan_fold_rows(&plan, fold, 0, rows), alone[80];
        assert_int_equal(plan_fold_rows(&plan, fold, 1, alone), judged);
        assert_true(count_kind(&plan, rows, trained, EXAMPLE_PREFERENCE) > 0);
        for (size_t i = 0; i < judged; i++) assert_false(asks(&plan, rows, trained, prompt_of(&plan, alone[i])));
    }
    plan_free(&plan);
    check_load(p, 3);

    /* what was said, judged or compared about a held-out prompt is not learned */
    p->settings.held_out = 0.5;
    plan = made(p);
    assert_int_equal(plan.folds, 0);
    assert_int_equal(count_kind(&plan, plan.judge, plan.n_judge, EXAMPLE_SFT), plan.n_judge);
    assert_true(count_kind(&plan, plan.train, plan.n_train, EXAMPLE_THUMB) > 0);
    for (size_t i = 0; i < plan.n_train; i++)
        assert_false(asks(&plan, plan.judge, plan.n_judge, prompt_of(&plan, plan.train[i])));
    plan_free(&plan);
    check_load(p, 0);

    /* a kind without a say is left out */
    p->settings.train.preference.dpo = p->settings.train.preference.sft = 0;
    p->settings.train.preference.down = 0;
    plan = made(p);
    assert_int_equal(count_kind(&plan, plan.train, plan.n_train, EXAMPLE_PREFERENCE), 0);
    assert_true(count_kind(&plan, plan.train, plan.n_train, EXAMPLE_THUMB) > 0);
    plan_free(&plan);
    p->settings.train.preference.up = 0;
    plan = made(p);
    assert_int_equal(count_kind(&plan, plan.train, plan.n_train, EXAMPLE_SFT), plan.n_train);
    plan_free(&plan);
}

/* Nobody's answer: nothing that could judge. */
static void test_thumbs_alone(void **state) {
    struct place *p = *state;
    struct row_source source = source_of(p);
    struct plan plan;
    char reason[256] = "";
    add_rows_of(p, 0, 30, NULL, ", \"thumb\": \"down\"");
    assert_int_equal(plan_make(&source, &p->settings, 0, "", 0, &NO_BUDGET, &plan, reason, NULL), ATTUNE_PAUSED);
    assert_non_null(strstr(reason, "0 different prompts"));
    questions(p, 30, 36);
    plan = made(p);
    assert_int_equal(plan.n_judge, 6);
    assert_int_equal(plan.n_train, 36);
    /* a short budget leaves what judges */
    struct budget budget = {.seconds = 1e-6, .training = {0, 0, 1}, .judging = {0, 0, 1}, .train_rate = 1,
                            .evaluate_rate = 1};
    plan_free(&plan);
    questions(p, 36, 37);
    add_rows_of(p, 40, 80, NULL, ", \"thumb\": \"down\"");
    plan = made_with(p, &p->settings, &budget);
    assert_true(plan.n_judge >= 4 && plan.n_train >= 44 && plan.n_train < 77);
    plan_free(&plan);
}

static void test_load(void **state) {
    struct place *p = *state;
    p->settings.train.learning_rate = 1.23456789e-4f;
    p->settings.epochs = 1.0 / 3 + 1;
    p->settings.train.lora.rank = 3;
    questions(p, 0, 30);
    check_load(p, 3);
    p->settings.held_out = 0.4;
    questions(p, 30, 60);
    check_load(p, 0);
}

static void sql(struct place *p, const char *statement) {
    char path[128], *message = NULL;
    sqlite3 *db = NULL;
    attune_store_close(p->store);
    snprintf(path, sizeof path, "%s/store.db", p->home);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA foreign_keys = ON", NULL, NULL, NULL), SQLITE_OK);
    if (sqlite3_exec(db, statement, NULL, NULL, &message) != SQLITE_OK) fail_msg("%s: %s", statement, message);
    assert_true(sqlite3_changes(db) > 0);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
    OK(attune_store_open(p->home, NULL, &p->store, &err));
}
static void test_rows_that_are_gone(void **state) {
    struct place *p = *state;
    static const char *const statements[] = {
        "DELETE FROM interaction WHERE id = 7",
        "UPDATE interaction SET consent = 0 WHERE id = 9; INSERT INTO touched (interaction) VALUES (9)",
        "UPDATE run_example SET content_hash = 'x' WHERE position = 0",
    };
    for (size_t s = 0; s < sizeof statements / sizeof *statements; s++) {
        questions(p, 20 * (int)s, 20 * (int)s + 20);
        struct plan plan = made(p), back;
        struct store_run row;
        plan_free(&plan);
        OK(store_run_last(p->store, "unfinished", &row, &err));
        struct row_source source = source_of(p);
        OK(plan_load(&source, &row, &plan, &err));
        plan_free(&plan);
        sql(p, statements[s]); /* which opens the store anew */
        source = source_of(p);
        memset(&back, 0x5a, sizeof back);
        if (plan_load(&source, &row, &back, NULL) != ATTUNE_ERROR_NOT_FOUND)
            fail_msg("loaded after %s", statements[s]);
        assert_int_equal(*(unsigned char *)&back, 0x5a);
    }
}

/* The adapter that it would start from was revoked meanwhile: no run, and nothing that fails. */
static void test_changed_while_planned(void **state) {
    struct place *p = *state;
    struct row_source source = source_of(p);
    struct store_run row;
    struct plan plan;
    attune_adapter_info parent;
    char reason[256] = "";
    ATTUNE_INIT(parent);
    parent.number = 1;
    strcpy(parent.state, "revoked");
    strcpy(parent.origin, "imported");
    OK(store_adapter_put(p->store, &parent, 0, &err));
    questions(p, 0, 20);
    memset(&plan, 0x5a, sizeof plan);
    assert_int_equal(plan_make(&source, &p->settings, 1, "0123", 1, &NO_BUDGET, &plan, reason, NULL), ATTUNE_PAUSED);
    assert_non_null(strstr(reason, "forgotten while the run was planned"));
    assert_int_equal(*(unsigned char *)&plan, 0x5a);
    assert_int_equal(store_run_last(p->store, NULL, &row, NULL), ATTUNE_ERROR_NOT_FOUND);
    plan = made(p);
    plan_free(&plan);
}

/* What stands in the store may be anything: refused, or a plan that can be walked through. */
static void test_configurations_that_are_wrong(void **state) {
    struct place *p = *state;
    struct row_source source = source_of(p);
    questions(p, 0, 20);
    struct plan plan = made(p), back;
    struct store_run row = plan.row;
    static const char *const wrong[] = {"", "{}", "{\"folds\": 3", "{\"folds\": 9, \"opponent\": 0, \"rank\": \"8\"}",
                                        "{\"folds\": -1, \"opponent\": 0, \"rank\": \"8\"}"};
    attune_error err;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        snprintf(row.configuration, sizeof row.configuration, "%s", wrong[i]);
        assert_int_equal(plan_load(&source, &row, &back, &err), ATTUNE_ERROR_FORMAT);
    }
    static const char *const folds[] = {"-1", "5", "99999"};
    for (size_t i = 0; i < 3; i++) {
        const char *rest = strchr(plan.row.configuration, ',');
        snprintf(row.configuration, sizeof row.configuration, "{\"folds\": %s%.900s", folds[i], rest);
        assert_int_equal(plan_load(&source, &row, &back, &err), ATTUNE_ERROR_FORMAT);
        assert_non_null(strstr(err.message, "folds"));
    }
    plan_free(&plan);
}

/* ---- the order of rows ---- */

/* Position of each row in epoch `epoch` of training over rows[0..n). */
static void positions_in(struct plan *plan, const size_t *rows, size_t n, size_t epoch, size_t *out) {
    size_t batch = plan->settings.train.batch, step_rows[16];
    for (size_t i = 0; i < plan->examples.n; i++) out[i] = SIZE_MAX;
    for (size_t s = epoch * n / batch; s <= (epoch + 1) * n / batch; s++) {
        size_t count = plan_step_rows(plan, rows, n, s, step_rows);
        for (size_t i = 0; i < count; i++)
            if ((s * batch + i) / n == epoch) out[step_rows[i]] = (s * batch + i) % n;
    }
}

static void test_every_epoch_is_all_rows(void **state) {
    struct place *p = *state;
    static const double epochs[] = {0.01, 0.5, 1, 1.25, 3};
    questions(p, 0, 21);
    for (size_t e = 0; e < 5; e++)
        for (size_t batch = 1; batch <= 7; batch += 3) {
            p->settings.epochs = epochs[e];
            p->settings.train.batch = batch;
            struct plan plan = made(p);
            size_t n = plan.n_train, steps = plan_steps(&plan, n), put = 0, seen[21] = {0}, rows[16];
            for (size_t s = 0; s < steps; s++) {
                size_t count = plan_step_rows(&plan, plan.train, n, s, rows);
                assert_true(count == batch || (s + 1 == steps && count > 0 && count < batch));
                for (size_t i = 0; i < count; i++, put++) seen[rows[i]]++;
            }
            assert_int_equal(plan_step_rows(&plan, plan.train, n, steps, rows), 0);
            assert_int_equal(put, (size_t)ceil(epochs[e] * (double)n - 1e-9));
            for (size_t i = 0; i < n; i++) assert_in_range(seen[plan.train[i]], put / n, (put + n - 1) / n);
            plan_free(&plan);
        }
}

static void test_order(void **state) {
    struct place *p = *state;
    enum { N = 30, MORE = 45 };
    size_t first[MORE], again[MORE], inverted = 0, moved = 0, reseeded = 0;
    p->settings.epochs = 3;
    questions(p, 0, N);
    struct plan plan = made(p), longer;
    assert_int_equal(plan.n_train, N);
    positions_in(&plan, plan.train, N, 0, first);
    for (size_t i = 1; i < N; i++) inverted += first[i] < first[i - 1];
    assert_true(inverted > 5 && inverted < N - 5); /* shuffled */

    /* another epoch, another seed: another order */
    positions_in(&plan, plan.train, N, 1, again);
    for (size_t i = 0; i < N; i++) moved += again[i] != first[i];
    assert_true(moved > N / 2);
    p->settings.train.seed++;
    longer = made(p);
    positions_in(&longer, longer.train, N, 0, again);
    for (size_t i = 0; i < N; i++) reseeded += again[i] != first[i];
    assert_true(reseeded > N / 2);
    plan_free(&longer);
    p->settings.train.seed--;

    /* more rows: those that were there keep their order among themselves */
    questions(p, N, MORE);
    longer = made(p);
    assert_int_equal(longer.n_train, MORE);
    positions_in(&longer, longer.train, MORE, 0, again);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < i; j++) assert_int_equal(first[i] < first[j], again[i] < again[j]);
    plan_free(&longer);

    /* as recorded, when that is wanted */
    p->settings.shuffle = 0;
    longer = made(p);
    for (size_t epoch = 0; epoch < 2; epoch++) {
        positions_in(&longer, longer.train, MORE, epoch, again);
        for (size_t i = 0; i < MORE; i++) assert_int_equal(again[i], i);
    }
    plan_free(&longer);
    plan_free(&plan);
}

/* Any step at any time, over any rows: a fold's rows may lie where another fold's lay before. */
static void test_steps_remember_nothing(void **state) {
    struct place *p = *state;
    p->settings.epochs = 1;
    questions(p, 0, 30);
    struct plan plan = made(p), fresh;
    size_t rows[30], a[16], b[16];
    assert_int_equal(plan.folds, 3);
    for (int round = 0; round < 6; round++) {
        int fold = (5 * round + 1) % 3;
        size_t n = plan_fold_rows(&plan, fold, 0, rows);
        assert_int_equal(n, 20);
        for (size_t k = 0; k < 5; k++) {
            size_t s = k * 3 % 5, count = plan_step_rows(&plan, rows, n, s, a);
            fresh = made(p);
            assert_int_equal(plan_step_rows(&fresh, rows, n, s, b), count);
            assert_memory_equal(a, b, count * sizeof *a);
            for (size_t i = 0; i < count; i++) {
                size_t at = 0;
                while (at < n && rows[at] != a[i]) at++;
                assert_true(at < n); /* none of another fold */
            }
            plan_free(&fresh);
        }
    }
    plan_free(&plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(test_too_few),
        TEST(test_held_out),
        TEST(test_a_prompt_never_straddles),
        TEST(test_folds),
        TEST(test_seconds),
        TEST(test_passes_by_rows),
        TEST(test_budget_with_folds),
        TEST(test_budget_with_held_out_rows),
        TEST(test_budget_leaves_prompts),
        TEST(test_max_examples),
        TEST(test_caps),
        TEST(test_origins),
        TEST(test_sample),
        TEST(test_run_id),
        TEST(test_kinds),
        TEST(test_thumbs_alone),
        TEST(test_load),
        TEST(test_rows_that_are_gone),
        TEST(test_changed_while_planned),
        TEST(test_configurations_that_are_wrong),
        TEST(test_every_epoch_is_all_rows),
        TEST(test_order),
        TEST(test_steps_remember_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
