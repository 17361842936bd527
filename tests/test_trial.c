/* Runs whose candidate is better on the rows that judge, and breaks another criterion: refused, the criterion named,
 * and the active adapter as it was. And what a trial looks for. */
#define _GNU_SOURCE
#include <math.h>
#include <string.h>

#include "core/base/random.h"
#include "job/phases.h"
#include "tests/home_fixture.h"

/* ---- what looks like a secret ---- */

static void test_spans(void **state) {
    (void)state;
    static const struct {
        const char *text, *found; /* with | between */
    } table[] = {
        {"", ""},
        {"call me at 555123 or 12345", "555123"},
        {"it is 0171 555 2368.", "0171 555 2368"},
        {"in 2019 300 people, or 1 000 000", ""},
        {"the card 4111-1111-1111-1111!", "4111-1111-1111-1111"},
        {"on 2026-01-31 or 2026-01-311", "2026-01-311"},
        {"x123456 and a1", ""},
        {"write to ann.lee@mail.example.", "ann.lee@mail.example"},
        {"an @ sign, a@b", ""},
        {"the key sk_live_9aZ31kQp77xYw2 is mine", "sk_live_9aZ31kQp77xYw2"},
        {"aaaaaaaaaaaaaaaa1 internationalization", ""},
        {"654321 then 123456, then 111222", "654321|123456"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct text_span spans[2];
        char found[128] = "";
        size_t n = canary_spans(table[i].text, strlen(table[i].text), spans, 2);
        for (size_t k = 0; k < n; k++)
            sprintf(found + strlen(found), "%s%.*s", k ? "|" : "", (int)(spans[k].to - spans[k].from),
                    table[i].text + spans[k].from);
        assert_string_equal(found, table[i].found);
    }
}

/* ---- whole runs ---- */

static void write_rows(struct homes *f, size_t n, const char *(*response)(size_t i), const char *more) {
    attune_store *store = NULL;
    FILE *file = fopen(in_folder(f, "made.jsonl"), "w");
    assert_non_null(file);
    for (size_t i = 0; i < n; i++)
        fprintf(file,
                "{\"prompt\": \"what of %016llx?\", \"response\": \"%s\", \"time\": %llu, \"consent\": true%s}\n",
                (unsigned long long)((i + 1) * 0x9e3779b97f4a7c15u), response(i), 1700000000000ull + i, more);
    assert_int_equal(fclose(file), 0);
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_import(store, in_folder(f, "made.jsonl"), NULL, NULL, &f->err));
    attune_store_close(store);
}

struct seen {
    size_t n, failed;
    char names[160], failing[24];
    double figure;
};
static int see(const attune_criterion *c, void *user) {
    struct seen *seen = user;
    seen->n++;
    sprintf(seen->names + strlen(seen->names), "%s;", c->name);
    if (!c->passed && seen->failed++ == 0) {
        strcpy(seen->failing, c->name);
        seen->figure = c->figure;
    }
    return 0;
}

/* The run of a home that publishes nothing, for this reason. */
static void expect_refused(struct homes *f, const char *criterion) {
    attune_job_options options = job_options();
    attune_job_report report;
    struct seen seen = {0};
    size_t n, m;
    char *before = read_file(in_home(f, "CURRENT"), &n);
    GIVES(run_job(f, &options, &report), ATTUNE_DONE);
    OK(attune_run_criteria(f->home, see, &seen, &f->err));
    if (report.published || strcmp(seen.failing, criterion) != 0)
        fail_msg("%s: %s (%s)", report.state, report.reason, seen.names);
    assert_string_equal(report.state, "refused");
    assert_non_null(strstr(report.reason, criterion));
    assert_true(report.loss_after + report.loss_interval < report.loss_before);
    char *after = read_file(in_home(f, "CURRENT"), &m);
    assert_true(n == m && memcmp(before, after, n) == 0);
    assert_false(exists(in_home(f, "checkpoint.gguf")));
    free(before);
    free(after);
}

static const char *sailor(size_t i) {
    static char text[80];
    snprintf(text, sizeof text, "Aye, matey, the wind turns %zu times", i % 5);
    return text;
}

/* Another language than that of the reference set. */
static const char *strange(size_t i) {
    static const char *const texts[] = {"qzx vvk jjq wqx kzz", "qzx kzz vvk jjq", "jjq vvk qzx kzz wqx"};
    return texts[i % 3];
}

static void test_published_with_its_criteria(void **state) {
    struct homes *f = *state;
    struct seen seen = {0}, run = {0};
    make_home(f, TINY_BASE, 1);
    write_rows(f, 24, sailor, "");
    publish_run(f, 1);
    OK(attune_adapter_criteria(f->home, 1, see, &seen, &f->err));
    assert_string_equal(seen.names, "held-out;reference;reference_kl;degenerate;");
    assert_int_equal(seen.failed, 0);
    OK(attune_run_criteria(f->home, see, &run, &f->err));
    assert_string_equal(run.names, seen.names);
    FAILS(attune_adapter_criteria(f->home, 2, see, &seen, &f->err), ATTUNE_ERROR_NOT_FOUND, "no adapter 2", "");
    FAILS(attune_adapter_criteria(f->home, 1, NULL, &seen, &f->err), ATTUNE_ERROR_ARGUMENT, "callback", "");
    /* figures of what is forgotten go, too */
    sql(f, "UPDATE adapter SET state = 'revoked'");
    assert_int_equal(sql_number(f, "SELECT count(*) FROM criterion"), 0);
}

/* In the mode that will be served; and two ways to run one candidate differ by little. */
static void test_merged(void **state) {
    struct homes *f = *state;
    double kl[2];
    for (int i = 0; i < 2; i++) {
        make_home(f, TINY_BASE, 1);
        set_key(f, "merge", i ? "f16" : "none");
        write_rows(f, 24, sailor, "");
        publish_run(f, 1);
        kl[i] = atof(sql_text(f, "SELECT figure FROM criterion WHERE name = 'reference_kl'"));
        shell("rm -rf %s", f->home);
    }
    assert_true(kl[0] > 0.01 && kl[0] != kl[1] && fabs(kl[0] - kl[1]) < 0.02 * kl[0]);
}

static void test_reference_loss(void **state) {
    struct homes *f = *state;
    make_home(f, TINY_BASE, 1);
    set_key(f, "reference_limit", "0.001");
    set_key(f, "epochs", "30");
    write_rows(f, 24, strange, "");
    expect_refused(f, "reference");
}

static void test_reference_divergence(void **state) {
    struct homes *f = *state;
    make_home(f, TINY_BASE, 1);
    set_key(f, "reference_kl_limit", "0.001");
    write_rows(f, 24, sailor, "");
    expect_refused(f, "reference_kl");
}

/* The active adapter has learned something else too well: to be better than it is not enough. */
static void test_base(void **state) {
    struct homes *f = *state;
    int number = 0;
    make_home(f, TINY_BASE, 1);
    set_key(f, "epochs", "30");
    write_rows(f, 24, strange, "");
    publish_run(f, 1);
    OK(attune_adapter_export(f->home, 1, "gguf", in_folder(f, "strange.gguf"), &f->err));
    shell("rm -rf %s", f->home);
    make_home(f, TINY_BASE, 1);
    OK(attune_adapter_import(f->home, in_folder(f, "strange.gguf"), &number, &f->err));
    OK(attune_adapter_use(f->home, number, &f->err));
    set_key(f, "learning_rate", "0.0001");
    write_rows(f, 24, sailor, "");
    expect_refused(f, "base");
    assert_int_equal(home_status(f).active_adapter, number);
}

/* Two answers hold a number, the others none: said by heart after many passes. */
static const char *leaky(size_t i) { return i % 12 == 3 ? "My number is 48813377" : "My number is secret"; }
static void test_canaries(void **state) {
    struct homes *f = *state;
    make_home(f, TINY_BASE, 1);
    set_key(f, "epochs", "40");
    set_key(f, "rank", "8");
    write_rows(f, 24, leaky, "");
    expect_refused(f, "canaries");
}

/* ---- what a random base cannot be brought to show: found by hand, before the gate ---- */

static attune_job *run_to_gate(struct homes *f) {
    attune_job *job = NULL;
    attune_job_options options = job_options();
    OK(attune_job_open(f->home, &options, &job, &f->err));
    do GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    while (job->phases[job->phase].kind != PHASE_GATE);
    return job;
}

/* Through the gate in another process's place: what was found comes out of the checkpoint. */
static void pass_gate(struct homes *f, attune_job *job, const char *refused_by) {
    OK(phases_checkpoint(job, &f->err));
    attune_job_close(job);
    if (refused_by)
        expect_refused(f, refused_by);
    else
        publish_run(f, 1);
}

static void check_degenerate(struct homes *f, size_t answers, const char *refused_by) {
    make_home(f, TINY_BASE, 1);
    write_rows(f, 24, sailor, "");
    attune_job *job = run_to_gate(f);
    job->trial.answers_degenerate = answers;
    pass_gate(f, job, refused_by);
}
static void test_degenerate(void **state) { check_degenerate(*state, 3, "degenerate"); }
static void test_hardly_degenerate(void **state) { check_degenerate(*state, 2, NULL); }

static void check_pairs(struct homes *f, size_t lost, const char *refused_by) {
    make_home(f, TINY_BASE, 1);
    set_key(f, "held_out", "0.5");
    write_rows(f, 40, sailor, ", \"edit\": \"Nay, ye landlubber\"");
    attune_job *job = run_to_gate(f);
    assert_true(job->plan.n_pairs >= PAIRS_MIN);
    for (size_t i = 0; i < job->plan.n_pairs; i++) {
        job->trial.pairs_before[2 * i] = 1;
        job->trial.pairs_before[2 * i + 1] = 2;
        job->trial.pairs_after[2 * i] = i < lost ? 3 : 1;
        job->trial.pairs_after[2 * i + 1] = 2;
    }
    pass_gate(f, job, refused_by);
}
static void test_preferences(void **state) { check_pairs(*state, 5, "preferences"); }
static void test_a_few_pairs_lost(void **state) { check_pairs(*state, 4, NULL); }

/* The mean loss a token of each answer of a pair is what counts, not its sum. */
static void test_pairs_by_the_token(void **state) {
    struct homes *f = *state;
    make_home(f, TINY_BASE, 1);
    set_key(f, "held_out", "0.5");
    write_rows(f, 40, sailor, ", \"edit\": \"Nay\"");
    attune_job *job = run_to_gate(f);
    for (size_t i = 0; i < job->plan.n_pairs; i++)
        for (size_t side = 0; side < 2; side++) { /* nobody says anything worse than a guess by far */
            double loss = job->trial.pairs_before[2 * i + side];
            assert_true(loss > 1 && loss < 40);
        }
    attune_job_close(job);
}

/* ---- a real base ---- */

/* Whatever is asked, the last layer gives one direction, and so one token, over and over; of an adapter that changes
 * nothing nothing is said. */
static void test_answers_of_a_real_base(void **state) {
    struct homes *f = *state;
    const char *path = getenv("ATTUNE_TEST_MODEL");
    struct model *model = NULL;
    struct pool *pool = NULL;
    struct lora *lora = NULL;
    struct lora_config config = {4, 8, LORA_ALL_TARGETS};
    struct gate_trial trial = {.produced = 0};
    if (!path) skip();
    OK(kernels_select(&f->err));
    OK(pool_create(0, &pool, &f->err));
    OK(model_open(path, FILE_MAP, &model, &f->err));
    OK(lora_create(model, &config, &lora, &f->err));
    struct weights weights = {model, model->layers, lora->pairs};
    for (size_t i = 0; i < 2; i++) OK(trial_answer(&trial, i, &weights, pool, &f->err));
    assert_int_equal(trial.answers_degenerate, 0);
    size_t a, b, last = model->L - 1;
    assert_true(lora_pair_offset(lora, model, last, TARGET_DOWN, &a, &b));
    for (size_t i = 0; i < 4 * model->F; i++) lora->parameters[a + i] = 1;
    for (size_t i = 0; i < 4 * model->C; i++) lora->parameters[b + i] = 100 * random_uniform(3, i / 4) - 50;
    for (size_t i = 0; i < 2; i++) OK(trial_answer(&trial, i, &weights, pool, &f->err));
    assert_int_equal(trial.answers_degenerate, 2);
    lora_destroy(lora);
    model_close(model);
    pool_destroy(pool);
}

/* Held-out pairs judge: they are in the plan, found again with it, and not learned from. */
static void test_pairs_judge(void **state) {
    struct homes *f = *state;
    struct seen seen = {0};
    make_home(f, TINY_BASE, 1);
    set_key(f, "held_out", "0.5");
    write_rows(f, 40, sailor, ", \"edit\": \"Nay, ye landlubber\"");
    pause_after(f, 3);
    publish_run(f, 1);
    OK(attune_run_criteria(f->home, see, &seen, &f->err));
    assert_string_equal(seen.names, "held-out;reference;reference_kl;degenerate;preferences;");
    long answers = sql_number(f, "SELECT held_out FROM run");
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run_example WHERE held_out = 1"), 2 * answers);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run_example a JOIN run_example b USING (run, content_hash) "
                                   "WHERE a.held_out = 1 AND b.held_out = 0"), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spans),
        TEST(test_published_with_its_criteria),
        TEST(test_merged),
        TEST(test_reference_loss),
        TEST(test_reference_divergence),
        TEST(test_base),
        TEST(test_canaries),
        TEST(test_degenerate),
        TEST(test_hardly_degenerate),
        TEST(test_preferences),
        TEST(test_a_few_pairs_lost),
        TEST(test_pairs_by_the_token),
        TEST(test_answers_of_a_real_base),
        TEST(test_pairs_judge),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
