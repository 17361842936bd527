/* attune_bench: figures of every kind, refusals. How fast it is, no test says. */
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
    assert_true(positive(r.tokens_per_s) && positive(r.gflops) && positive(r.gbytes_per_s));
    assert_true(r.tokens >= 48 && r.tokens % 48 == 0);
    options.merge = "q8"; /* through merged weights */
    r = bench(f, "prefill", &options);
    assert_true(positive(r.tokens_per_s) && positive(r.gflops) && r.tokens >= 48);
    options.merge = NULL; /* f16 */
    r = bench(f, "merge", &options);
    assert_true(r.tokens == 0 && r.tokens_per_s == 0);
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

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {TEST(test_kinds), TEST(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
