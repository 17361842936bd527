/* attune_bench: figures of every kind, refusals. How fast it is, no test says. */
#include "core/model/model.h"
#include "tests/home_fixture.h"

static attune_bench_options quick(void) {
    attune_bench_options options;
    ATTUNE_INIT(options);
    options.threads = 2;
    options.seconds = 0.02;
    options.tokens = 48;
    options.rank = 2;
    return options;
}

static int positive(double x) { return isfinite(x) && x > 0; }

static attune_bench_result bench(struct homes *f, const char *kind, const attune_bench_options *options) {
    attune_bench_result r;
    ATTUNE_INIT(r);
    OK(attune_bench(TINY_BASE, kind, options, &r, &f->err));
    assert_true(positive(r.seconds) && positive(r.seconds_load) && positive(r.peak_rss_mib));
    assert_true(positive(r.limit_gflops) && positive(r.limit_gbytes_per_s));
    assert_int_equal(r.threads, 2);
    assert_true(strlen(r.kernels) > 0);
    return r;
}

static void test_kinds(void **state) {
    struct homes *f = *state;
    attune_bench_options options = quick();
    attune_bench_result r = bench(f, "train", &options);
    assert_true(positive(r.tokens_per_s) && positive(r.gflops) && r.tokens >= 2 * 48 && r.tokens % 48 == 0);
    r = bench(f, "decode", &options);
    assert_true(positive(r.tokens_per_s) && positive(r.gflops) && positive(r.gbytes_per_s) && positive(r.limit_share));
    assert_true(r.tokens >= 48 && r.tokens % 48 == 0);
    options.merge = "q8"; /* through merged weights */
    r = bench(f, "prefill", &options);
    assert_true(positive(r.tokens_per_s) && positive(r.gflops) && r.tokens >= 48);
    assert_true(r.base_share > 0 && r.base_share < 1 && strlen(r.arithmetic) > 0 && r.limit_share >= 0);
}

/* The bytes of tiny_llama's matrices, out of its file: what a token reads, and what merging them makes. */
static double matrix_bytes(struct homes *f, double *head, size_t *per_place) {
    struct model *model = NULL;
    double n = 0;
    OK(model_open(TINY_BASE, FILE_MAP, &model, &f->err));
    for (size_t l = 0; l < model->L; l++)
        for (int t = 0; t < TARGET_COUNT; t++)
            n += (double)model->layers[l].linear[t].rows * (double)model->layers[l].linear[t].row_bytes;
    *head = (double)model->head.rows * (double)model->head.row_bytes;
    *per_place = 2 * model->L * model->KV * model->D * sizeof(float);
    model_close(model);
    return n;
}

/* A token behind d others reads all weights and, with itself, d + 1 places of the cache. */
static void test_bytes(void **state) {
    struct homes *f = *state;
    attune_bench_options options = quick();
    double head, weights;
    size_t per_place;
    weights = matrix_bytes(f, &head, &per_place);
    options.tokens = 1;
    options.kv = ATTUNE_KV_F32;
    assert_int_equal(bench(f, "decode", &options).bytes, (int64_t)(weights + head + (double)per_place));
    options.depth = 20;
    assert_int_equal(bench(f, "decode", &options).bytes, (int64_t)(weights + head + 21.0 * (double)per_place));
    options.tokens = 5; /* 21, 22, 23, 24, 25 */
    assert_int_equal(bench(f, "decode", &options).bytes, (int64_t)(weights + head + 23.0 * (double)per_place));
}

static void test_merge(void **state) {
    struct homes *f = *state;
    attune_bench_options options = quick();
    double head, weights;
    size_t per_place;
    weights = matrix_bytes(f, &head, &per_place);
    attune_bench_result r = bench(f, "merge", &options), same;
    assert_true(r.tokens == 0 && r.tokens_per_s == 0 && positive(r.gbytes_per_s));
    options.merge = "same";
    same = bench(f, "merge", &options);
    assert_int_equal(same.bytes, (int64_t)weights);
    options.merge = "f16";
    assert_int_equal(bench(f, "merge", &options).bytes, r.bytes);
}

/* ---- train on rows ---- */

enum { ROWS = 6 };

static const char *six_rows(struct homes *f) {
    char text[2048] = "";
    for (int i = 0; i < ROWS; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "{\"prompt\": \"Say number %d\", \"response\": \"It is %d, aye, and no other.\"}\n", i, i * i);
    write_text(in_folder(f, "rows.jsonl"), text);
    return in_folder(f, "rows.jsonl");
}

static attune_bench_options with_rows(struct homes *f, const char *out) {
    attune_bench_options options;
    ATTUNE_INIT(options);
    options.threads = 2;
    options.rows = six_rows(f);
    options.out = out;
    return options;
}

static void test_rows(void **state) {
    struct homes *f = *state;
    attune_bench_options options = with_rows(f, in_folder(f, "one.gguf"));
    attune_bench_result one = bench(f, "train", &options), two;
    assert_int_equal(one.rows, ROWS);
    assert_int_equal(one.steps, 2); /* four rows, then two */
    assert_true(one.supervised_tokens > ROWS && one.tokens > 2 * one.supervised_tokens && one.dropped_steps == 0);
    assert_true(positive(one.loss) && positive(one.seconds_train) && one.seconds_train <= one.seconds);
    assert_true(one.seconds >= one.seconds_load + one.seconds_train);
    assert_true(fabs(one.rows_per_s * one.seconds - ROWS) < 1e-6);
    assert_true(fabs(one.supervised_tokens_per_s * one.seconds - (double)one.supervised_tokens) < 1e-3);
    assert_true(positive(one.seconds_limits) && one.base_share > 0 && one.base_share < 1);
    assert_true(strlen(one.arithmetic) > 0 && isfinite(one.limit_share) && one.limit_share >= 0);

    options.out = in_folder(f, "again.gguf");
    options.threads = 1;
    options.memory_bytes = (uint64_t)1 << 40;
    OK(attune_bench(TINY_BASE, "train", &options, NULL, &f->err));
    assert_true(same_files(in_folder(f, "one.gguf"), in_folder(f, "again.gguf")));

    options.out = in_folder(f, "twice.gguf");
    options.epochs = 2;
    ATTUNE_INIT(two);
    OK(attune_bench(TINY_BASE, "train", &options, &two, &f->err));
    assert_int_equal(two.rows, 2 * one.rows);
    assert_int_equal(two.steps, 2 * one.steps);
    assert_int_equal(two.tokens, 2 * one.tokens);
    assert_true(two.loss < one.loss);
    assert_false(same_files(in_folder(f, "one.gguf"), in_folder(f, "twice.gguf")));
}

/* It learns from the rows what it is told to keep. */
static void test_rows_adapter(void **state) {
    struct homes *f = *state;
    attune_bench_options options = with_rows(f, in_folder(f, "learned.gguf"));
    attune_engine *base = NULL, *learned = NULL;
    attune_eval_result before, after;
    ATTUNE_INIT(before);
    ATTUNE_INIT(after);
    options.epochs = 20;
    OK(attune_bench(TINY_BASE, "train", &options, NULL, &f->err));
    OK(attune_engine_open_files(TINY_BASE, NULL, NULL, &base, &f->err));
    OK(attune_engine_open_files(TINY_BASE, options.out, NULL, &learned, &f->err));
    OK(attune_eval(base, options.rows, NULL, &before, &f->err));
    OK(attune_eval(learned, options.rows, NULL, &after, &f->err));
    if (!(after.nll < before.nll - 0.1)) fail_msg("loss %g before, %g after", before.nll, after.nll);
    attune_engine_close(base);
    attune_engine_close(learned);
}

static void refuse(struct homes *f, const char *base, const char *kind, const attune_bench_options *options, int code,
                   const char *word, const char *place) {
    attune_bench_result r;
    memset(&r, 0x5a, sizeof r);
    r.size = sizeof r;
    attune_bench_result before = r;
    FAILS(attune_bench(base, kind, options, &r, &f->err), code, word, place);
    assert_memory_equal(&r, &before, sizeof r);
}

static void test_refusals(void **state) {
    struct homes *f = *state;
    attune_bench_options options = quick();
    refuse(f, TINY_BASE, "fly", &options, ATTUNE_ERROR_ARGUMENT, "train, decode, prefill or merge", "");
    refuse(f, TINY_BASE, "", &options, ATTUNE_ERROR_ARGUMENT, "train", "");
    refuse(f, TINY_BASE, NULL, &options, ATTUNE_ERROR_ARGUMENT, "train", "");
    refuse(f, NULL, "train", &options, ATTUNE_ERROR_ARGUMENT, "base", "");
    refuse(f, in_folder(f, "none.gguf"), "train", &options, ATTUNE_ERROR_IO, "No such file", "none.gguf");
    refuse(f, PERSONA, "decode", &options, ATTUNE_ERROR_FORMAT, "GGUF", "sailor.jsonl");
    options.merge = "f64";
    refuse(f, TINY_BASE, "merge", &options, ATTUNE_ERROR_ARGUMENT, "f64", "");
    refuse(f, TINY_BASE, "decode", &options, ATTUNE_ERROR_ARGUMENT, "f64", "");
    options = quick();
    options.adapter = TINY_BASE;
    refuse(f, TINY_BASE, "decode", &options, ATTUNE_ERROR_FORMAT, "adapter", "tiny_llama.gguf");
    options = quick();
    options.tokens = -1;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "tokens", "");
    options.tokens = 2 << 20;
    refuse(f, TINY_BASE, "decode", &options, ATTUNE_ERROR_ARGUMENT, "tokens", "");
    options = quick();
    options.rank = 257;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "rank", "");
    options = quick();
    options.seconds = -1;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "seconds", "");
    options.seconds = INFINITY;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "seconds", "");
    options.seconds = NAN;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "seconds", "");
    options = quick();
    options.threads = -3;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "threads", "");
    memset(&options, 0, sizeof options);
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "ATTUNE_INIT", "attune_bench_options");
}

static void test_refused_rows(void **state) {
    struct homes *f = *state;
    attune_bench_options options = with_rows(f, in_folder(f, "new.gguf"));
    refuse(f, TINY_BASE, "decode", &options, ATTUNE_ERROR_ARGUMENT, "for train", "");
    options.rows = in_folder(f, "none.jsonl");
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_NOT_FOUND, "no such file", "none.jsonl");
    write_text(in_folder(f, "empty.jsonl"), "\n");
    options.rows = in_folder(f, "empty.jsonl");
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "nothing to learn", "empty.jsonl");
    write_text(in_folder(f, "bad.jsonl"), "{\"prompt\": 1}\n");
    options.rows = in_folder(f, "bad.jsonl");
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_FORMAT, "", "bad.jsonl");
    assert_false(exists(options.out));
    options = with_rows(f, in_folder(f, "old.gguf"));
    write_text(options.out, "mine");
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_STATE, "", "old.gguf");
    options = with_rows(f, NULL);
    options.epochs = -1;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "epochs", "");
    options = with_rows(f, NULL);
    options.precision = 9;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "precision", "");
    options = quick();
    options.precision = ATTUNE_PRECISION_F32;
    refuse(f, TINY_BASE, "merge", &options, ATTUNE_ERROR_ARGUMENT, "precision is for train", "");
    options = quick();
    options.depth = 4;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "for decode and prefill", "");
    refuse(f, TINY_BASE, "merge", &options, ATTUNE_ERROR_ARGUMENT, "for decode and prefill", "");
    options.depth = -1;
    refuse(f, TINY_BASE, "decode", &options, ATTUNE_ERROR_ARGUMENT, "depth", "");
    options = quick();
    options.kv = 3;
    refuse(f, TINY_BASE, "decode", &options, ATTUNE_ERROR_ARGUMENT, "f16, q8 or f32", "");
    options = quick();
    options.merge = "none";
    refuse(f, TINY_BASE, "merge", &options, ATTUNE_ERROR_ARGUMENT, "merges nothing", "");
    options = quick();
    options.epochs = 2;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "rows", "");
    options = quick();
    options.out = in_folder(f, "new.gguf");
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "rows", "");
    options = quick();
    options.memory_bytes = 1 << 20;
    refuse(f, TINY_BASE, "train", &options, ATTUNE_ERROR_ARGUMENT, "MiB", "memory");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {TEST(test_kinds),       TEST(test_bytes),        TEST(test_merge),
                                       TEST(test_rows),        TEST(test_rows_adapter), TEST(test_refusals),
                                       TEST(test_refused_rows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
