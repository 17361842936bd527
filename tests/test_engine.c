/* What an engine serves: adapters swapped while sessions run, merged weights out of the home's cache. */
#define _GNU_SOURCE
#include "tests/home_fixture.h"

#include "adapters/merged_cache.h"
#include "core/base/random.h"
#include "inference/engine.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>

enum { ANSWER = 24 };

struct answer {
    int32_t ids[ANSWER];
    size_t n;
};

/* ---- adapters ---- */

/* With random A and B, made for `base_sha256`. bad: one value is NaN. */
static void write_adapter(struct homes *f, const char *path, uint64_t seed, const char *base_sha256, int bad) {
    struct model *model = NULL;
    struct lora *lora = NULL;
    struct lora_config config = {.rank = 4, .alpha = 16, .targets = LORA_ALL_TARGETS};
    struct adapter_record record = {.origin = "imported"};
    OK(model_open(TINY_BASE, FILE_READ, &model, &f->err));
    OK(lora_create(model, &config, &lora, &f->err));
    for (size_t i = 0; i < lora->n; i++) lora->parameters[i] = random_uniform(seed, i) - 0.5f;
    if (bad) lora->parameters[lora->n / 2] = 12345.678f;
    snprintf(record.base_sha256, sizeof record.base_sha256, "%s", base_sha256 ? base_sha256 : sha256_of(TINY_BASE));
    unlink(path);
    OK(adapter_write(lora, model, &record, path, "adapter", NULL, &f->err));
    lora_destroy(lora);
    model_close(model);
    if (!bad) return;
    size_t n;
    float known = 12345.678f, nan_value = NAN;
    char *bytes = read_file(path, &n), *at = memmem(bytes, n, &known, sizeof known);
    assert_non_null(at);
    memcpy(at, &nan_value, sizeof nan_value);
    write_file(path, bytes, n);
    free(bytes);
}

/* A home with adapters 1 to n, the last one active, merged as f16 where nobody says otherwise. */
static void home_with_adapters(struct homes *f, int n) {
    make_home(f, TINY_BASE, 1);
    set_key(f, "merge", "f16");
    for (int i = 1; i <= n; i++) {
        int number;
        write_adapter(f, in_folder(f, "made.gguf"), (uint64_t)i, NULL, 0);
        OK(attune_adapter_import(f->home, in_folder(f, "made.gguf"), &number, &f->err));
        assert_int_equal(number, i);
        OK(attune_adapter_use(f->home, number, &f->err));
    }
}

/* ---- engines ---- */

static attune_engine *open_engine(struct homes *f, const char *adapter, const char *merge) {
    attune_engine_options o;
    attune_engine *engine = NULL;
    ATTUNE_INIT(o);
    o.adapter = adapter;
    o.merge = merge;
    o.threads = 2;
    OK(attune_engine_open(f->home, &o, &engine, &f->err));
    return engine;
}

static attune_engine_info info_of(const attune_engine *engine) {
    attune_engine_info info;
    ATTUNE_INIT(info);
    assert_int_equal(attune_engine_info_get(engine, &info, NULL), ATTUNE_OK);
    return info;
}

static attune_session *open_session(attune_engine *engine) {
    attune_session *session = NULL;
    attune_session_options o;
    ATTUNE_INIT(o);
    o.context = 128;
    assert_int_equal(attune_session_open(engine, &o, &session, NULL), ATTUNE_OK);
    return session;
}

static int answer_with(attune_session *session, const char *prompt, struct answer *out) {
    attune_generate_options o;
    const int32_t *ids;
    size_t n;
    ATTUNE_INIT(o);
    o.max_tokens = ANSWER;
    int code = attune_session_append_text(session, prompt, strlen(prompt), 0, NULL);
    if (code == ATTUNE_OK) code = attune_session_generate(session, &o, NULL, NULL, NULL, NULL);
    if (code == ATTUNE_OK) code = attune_session_ids(session, &ids, &n);
    if (code != ATTUNE_OK) return code;
    memset(out, 0, sizeof *out);
    out->n = n;
    memcpy(out->ids, ids, n * sizeof *ids);
    return ATTUNE_OK;
}

static struct answer answer_of(attune_engine *engine) {
    struct answer answer;
    attune_session *session = open_session(engine);
    assert_int_equal(answer_with(session, "the old harbour", &answer), ATTUNE_OK);
    attune_session_close(session);
    return answer;
}

static int same_answers(const struct answer *a, const struct answer *b) { return memcmp(a, b, sizeof *a) == 0; }

/* What a new engine answers that merges in memory. */
static struct answer fresh_answer(struct homes *f, const char *adapter, const char *merge) {
    attune_engine_options o;
    attune_engine *engine = NULL;
    ATTUNE_INIT(o);
    o.adapter = adapter;
    o.merge = merge;
    o.no_cache = 1;
    OK(attune_engine_open(f->home, &o, &engine, &f->err));
    struct answer answer = answer_of(engine);
    attune_engine_close(engine);
    return answer;
}

static void expect_answer(attune_engine *engine, const struct answer *wanted) {
    struct answer got = answer_of(engine);
    assert_true(same_answers(&got, wanted));
}

/* Kept merges; the path of the last one. */
static int kept(struct homes *f, char path[600]) {
    int n = 0;
    DIR *dir = opendir(in_home(f, "cache"));
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        size_t length = strlen(entry->d_name);
        if (strncmp(entry->d_name, "merged-", 7) != 0 || strcmp(entry->d_name + length - 5, ".gguf") != 0) continue;
        if (path) snprintf(path, 600, "%s/cache/%s", f->home, entry->d_name);
        n++;
    }
    if (dir) closedir(dir);
    return n;
}

/* ---- the cache ---- */

static void merged_once(void **state) {
    struct homes *f = *state;
    static const char *const modes[] = {"f16", "q8", "none", "auto", NULL};
    home_with_adapters(f, 1);
    struct answer base = fresh_answer(f, "base", NULL);
    for (int i = 0; modes[i]; i++) {
        int merges = i < 2;
        struct answer wanted = fresh_answer(f, NULL, modes[i]);
        assert_false(same_answers(&wanted, &base));
        assert_int_equal(kept(f, NULL), i < 2 ? i : 2);
        for (int round = 0; round < 3; round++) {
            attune_engine *engine = open_engine(f, round == 2 ? "1" : NULL, modes[i]);
            attune_engine_info info = info_of(engine);
            assert_string_equal(info.merge, merges ? modes[i] : "none");
            assert_int_equal(info.from_cache, merges && round > 0);
            assert_int_equal(info.merged_bytes > 0, merges);
            assert_int_equal(info.seconds_merge > 0, merges && round == 0);
            assert_true(info.seconds_open > 0 && info.seconds_open >= info.seconds_merge);
            assert_string_equal(info.adapter_sha256, sha256_of(adapter_path(f, 1)));
            /* what was kept is used from the file at once: it is not in memory twice, nor for each process */
            assert_int_equal(engine->variant->merged && engine->variant->merged->gguf, merges);
            expect_answer(engine, &wanted);
            attune_engine_close(engine);
        }
    }
    attune_engine *engine = open_engine(f, "base", "f16");
    assert_string_equal(info_of(engine).merge, "none");
    assert_int_equal(info_of(engine).merged_bytes, 0);
    expect_answer(engine, &base);
    attune_engine_close(engine);
    assert_int_equal(kept(f, NULL), 2);
}

/* Whatever is in the folder, the answers are those of the adapter, and the next start has a whole cache. */
static void damaged_cache_is_made_again(void **state) {
    struct homes *f = *state;
    char path[600];
    home_with_adapters(f, 1);
    struct answer wanted = fresh_answer(f, NULL, NULL);
    attune_engine_close(open_engine(f, NULL, NULL));
    for (int how = 0; how < 5; how++) {
        assert_int_equal(kept(f, path), 1);
        usleep(25000); /* times of files go on in steps */
        if (how == 0) flip_byte(path, -1000);
        if (how == 1) flip_byte(path, 100);
        if (how == 2) assert_int_equal(truncate(path, 5000), 0);
        if (how == 3) write_text(path, "GGUF");
        if (how == 4) shell("rm -rf %s", in_home(f, "cache"));
        for (int round = 0; round < 2; round++) {
            attune_engine *engine = open_engine(f, NULL, NULL);
            assert_int_equal(info_of(engine).from_cache, round);
            expect_answer(engine, &wanted);
            attune_engine_close(engine);
        }
    }
    /* a folder that takes nothing: merged in memory */
    shell("rm -rf %s && touch %s", in_home(f, "cache"), in_home(f, "cache"));
    attune_engine *engine = open_engine(f, NULL, NULL);
    assert_int_equal(info_of(engine).from_cache, 0);
    assert_true(info_of(engine).merged_bytes > 0);
    expect_answer(engine, &wanted);
    attune_engine_close(engine);
}

/* With what the job would have made in the night; here simply one that is known. */
static void calibrated_is_only_kept(void **state) {
    struct homes *f = *state;
    attune_engine *engine = NULL;
    attune_engine_options o;
    ATTUNE_INIT(o);
    home_with_adapters(f, 1);
    o.merge = "calibrated";
    FAILS(attune_engine_open(f->home, &o, &engine, &f->err), ATTUNE_ERROR_NOT_FOUND, "nightly job", "1.gguf");
    assert_null(engine);
    FAILS(attune_engine_open_files(TINY_BASE, adapter_path(f, 1), &o, &engine, &f->err), ATTUNE_ERROR_NOT_FOUND,
          "nightly job", "1.gguf");

    /* chosen because it was measured, and gone from the cache: what has no drift will do */
    struct variant_request request = {.adapter = adapter_path(f, 1), .number = 1, .merge = MERGE_CALIBRATED};
    engine = open_engine(f, "base", NULL);
    assert_int_equal(engine_replace(engine, &request, NULL), ATTUNE_ERROR_NOT_FOUND);
    request.automatic = 1;
    OK(engine_replace(engine, &request, &f->err));
    assert_string_equal(info_of(engine).merge, "none");
    assert_int_equal(info_of(engine).adapter, 1);
    attune_engine_close(engine);
    engine = NULL;

    struct model *model = NULL;
    struct lora *lora = NULL;
    struct merged *merged = NULL;
    struct pool *pool = NULL;
    char sha256[65];
    OK(model_open(TINY_BASE, FILE_MAP, &model, &f->err));
    model_set_hash(model, sha256_of(TINY_BASE));
    OK(adapter_read(adapter_path(f, 1), model, &lora, NULL, sha256, &f->err));
    OK(pool_create(2, &pool, &f->err));
    int code = merge_create(model, lora, MERGE_SAME, pool, NULL, &merged, &f->err);
    if (code == ATTUNE_OK) {
        struct merged_key key = {sha256, MERGE_CALIBRATED};
        struct answer wanted = fresh_answer(f, NULL, "same");
        OK(merged_cache_keep(in_home(f, "cache"), &key, model, pool, merged, 0, &f->err));
        OK(attune_engine_open(f->home, &o, &engine, &f->err));
        assert_string_equal(info_of(engine).merge, "calibrated");
        assert_int_equal(info_of(engine).from_cache, 1);
        expect_answer(engine, &wanted);
        attune_engine_close(engine);
    }
    merge_destroy(merged);
    lora_destroy(lora);
    pool_destroy(pool);
    model_close(model);
    assert_int_equal(code, ATTUNE_OK);
}

/* Forgetting takes what learned from the rows, merged or not; and a merge that comes late goes when the home is put in
 * order. */
static void forgotten_with_the_adapter(void **state) {
    struct homes *f = *state;
    attune_store *store = NULL;
    attune_filter all;
    attune_forget_result result;
    attune_job *job = NULL;
    char path[600];
    ATTUNE_INIT(all);
    ATTUNE_INIT(result);
    make_quick_home(f, 12);
    publish_run(f, 1);
    attune_engine_close(open_engine(f, NULL, "f16"));
    assert_int_equal(kept(f, path), 1);
    shell("cp %s %s", path, in_folder(f, "late.gguf"));
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_forget(store, &all, &result, &f->err));
    attune_store_close(store);
    assert_int_equal(result.adapters_revoked, 1);
    assert_int_equal(kept(f, NULL), 0);
    shell("cp %s %s", in_folder(f, "late.gguf"), path);
    write_text(in_home(f, "cache/merged-0000000000000000-of-another.gguf"), "not of this adapter");
    assert_int_equal(kept(f, NULL), 2);
    OK(attune_job_open(f->home, NULL, &job, &f->err));
    attune_job_close(job);
    assert_false(exists(path));
    assert_int_equal(kept(f, NULL), 1);
}

/* ---- swaps ---- */

static void swapped(void **state) {
    struct homes *f = *state;
    home_with_adapters(f, 2);
    struct answer wanted[3] = {fresh_answer(f, "base", NULL), fresh_answer(f, "1", NULL), fresh_answer(f, "2", NULL)};
    struct answer unmerged = fresh_answer(f, "1", "none");
    attune_engine *engine = open_engine(f, NULL, NULL);
    expect_answer(engine, &wanted[2]);
    /* a session keeps what it began with */
    attune_session *old = open_session(engine);
    OK(attune_engine_swap(engine, "1", NULL, &f->err));
    assert_int_equal(info_of(engine).adapter, 1);
    assert_string_equal(info_of(engine).merge, "f16");
    assert_int_equal(info_of(engine).from_cache, 0);
    expect_answer(engine, &wanted[1]);
    struct answer got;
    assert_int_equal(answer_with(old, "the old harbour", &got), ATTUNE_OK);
    assert_true(same_answers(&got, &wanted[2]));
    attune_session_close(old);
    OK(attune_engine_swap(engine, "base", NULL, &f->err));
    assert_int_equal(info_of(engine).adapter, 0);
    expect_answer(engine, &wanted[0]);
    OK(attune_engine_swap(engine, "1", "none", &f->err));
    assert_int_equal(info_of(engine).merged_bytes, 0);
    expect_answer(engine, &unmerged);
    OK(attune_engine_swap(engine, adapter_path(f, 2), "f16", &f->err));
    assert_int_equal(info_of(engine).adapter, -1);
    assert_int_equal(info_of(engine).from_cache, 1);
    expect_answer(engine, &wanted[2]);
    attune_engine_close(engine);
}

/* Nothing said: the active adapter of now, merged as the settings say now; or what was said at open. */
static void swapped_as_asked_at_open(void **state) {
    struct homes *f = *state;
    home_with_adapters(f, 2);
    attune_engine *active = open_engine(f, NULL, NULL), *first = open_engine(f, "1", "q8");
    assert_int_equal(info_of(active).adapter, 2);
    OK(attune_adapter_use(f->home, 1, &f->err));
    assert_int_equal(attune_engine_is_stale(active), 1);
    OK(attune_engine_swap(active, NULL, NULL, &f->err));
    assert_int_equal(attune_engine_is_stale(active), 0);
    assert_int_equal(info_of(active).adapter, 1);
    set_key(f, "merge", "none");
    OK(attune_engine_swap(active, NULL, NULL, &f->err));
    assert_string_equal(info_of(active).merge, "none");
    assert_int_equal(attune_engine_is_stale(first), 1);
    OK(attune_engine_swap(first, "2", "f16", &f->err));
    OK(attune_engine_swap(first, NULL, NULL, &f->err));
    assert_int_equal(attune_engine_is_stale(first), 0);
    assert_int_equal(info_of(first).adapter, 1);
    assert_string_equal(info_of(first).merge, "q8");
    OK(attune_adapter_use(f->home, 0, &f->err));
    OK(attune_engine_swap(active, NULL, NULL, &f->err));
    assert_int_equal(info_of(active).adapter, 0);
    OK(attune_engine_swap(first, NULL, NULL, &f->err));
    assert_int_equal(info_of(first).adapter, 1);
    attune_engine_close(active);
    attune_engine_close(first);
}

static void failed_swaps_change_nothing(void **state) {
    struct homes *f = *state;
    home_with_adapters(f, 1);
    attune_engine *engine = open_engine(f, NULL, NULL);
    struct answer wanted = answer_of(engine);
    char other[65];
    memset(other, 'a', 64);
    other[64] = 0;
    write_adapter(f, in_folder(f, "other.gguf"), 9, other, 0);
    write_adapter(f, in_folder(f, "nan.gguf"), 9, NULL, 1);
    FAILS(attune_engine_swap(engine, "7", NULL, &f->err), ATTUNE_ERROR_NOT_FOUND, "adapter 7", "7.gguf");
    FAILS(attune_engine_swap(engine, in_folder(f, "none.gguf"), NULL, &f->err), ATTUNE_ERROR_IO, "No such file", "none");
    FAILS(attune_engine_swap(engine, TINY_BASE, NULL, &f->err), ATTUNE_ERROR_FORMAT, "adapter", "tiny_llama");
    FAILS(attune_engine_swap(engine, in_folder(f, "other.gguf"), NULL, &f->err), ATTUNE_ERROR_MISMATCH, "base",
          "other.gguf");
    FAILS(attune_engine_swap(engine, in_folder(f, "nan.gguf"), NULL, &f->err), ATTUNE_ERROR_FORMAT, "finite",
          "nan.gguf");
    FAILS(attune_engine_swap(engine, NULL, "f64", &f->err), ATTUNE_ERROR_ARGUMENT, "f64", "");
    FAILS(attune_engine_swap(engine, NULL, "calibrated", &f->err), ATTUNE_ERROR_NOT_FOUND, "nightly", "1.gguf");
    FAILS(attune_engine_swap(NULL, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "no engine", "");
    assert_int_equal(info_of(engine).adapter, 1);
    assert_string_equal(info_of(engine).merge, "f16");
    expect_answer(engine, &wanted);
    /* in a child there are no threads that could merge */
    pid_t child = fork();
    if (child == 0) _exit(attune_engine_swap(engine, "base", NULL, NULL) == ATTUNE_ERROR_STATE ? 0 : 1);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    attune_engine_close(engine);
}

static void files_are_swapped(void **state) {
    struct homes *f = *state;
    attune_engine *engine = NULL;
    char first[256], second[256], other[65];
    snprintf(first, sizeof first, "%s/first.gguf", f->folder);
    snprintf(second, sizeof second, "%s/second.gguf", f->folder);
    write_adapter(f, first, 1, NULL, 0);
    write_adapter(f, second, 2, NULL, 0);
    memset(other, 'a', 64);
    other[64] = 0;
    write_adapter(f, in_folder(f, "other.gguf"), 3, other, 0);
    OK(attune_engine_open_files(TINY_BASE, first, NULL, &engine, &f->err));
    struct answer one = answer_of(engine);
    OK(attune_engine_swap(engine, second, "none", &f->err));
    assert_string_equal(info_of(engine).merge, "none");
    struct answer two = answer_of(engine);
    assert_false(same_answers(&one, &two));
    OK(attune_engine_swap(engine, NULL, NULL, &f->err));
    expect_answer(engine, &one);
    OK(attune_engine_swap(engine, second, "auto", &f->err));
    assert_string_equal(info_of(engine).merge, "none");
    FAILS(attune_engine_swap(engine, "active", NULL, &f->err), ATTUNE_ERROR_IO, "No such file", "active");
    attune_engine_close(engine);
    /* from the base alone, whose hash nobody has needed yet */
    OK(attune_engine_open_files(TINY_BASE, NULL, NULL, &engine, &f->err));
    struct answer base = answer_of(engine);
    FAILS(attune_engine_swap(engine, in_folder(f, "other.gguf"), NULL, &f->err), ATTUNE_ERROR_MISMATCH, "base",
          "other.gguf");
    OK(attune_engine_swap(engine, first, NULL, &f->err));
    expect_answer(engine, &one);
    OK(attune_engine_swap(engine, NULL, NULL, &f->err));
    expect_answer(engine, &base);
    assert_int_equal(info_of(engine).adapter, 0);
    attune_engine_close(engine);
}

/* ---- options ---- */

static int cancel(double share, void *user) {
    int *calls = user;
    assert_true(share >= 0 && share <= 1);
    return ++*calls;
}

static void options_are_checked(void **state) {
    struct homes *f = *state;
    attune_engine *engine = NULL;
    attune_engine_options o;
    static const double limits[] = {-1, -1e-300, INFINITY, NAN};
    home_with_adapters(f, 1);
    for (int i = 0; i < 6; i++) {
        ATTUNE_INIT(o);
        if (i < 4) o.drift_limit = limits[i];
        else o.precision = i == 4 ? -1 : 3;
        FAILS(attune_engine_open(f->home, &o, &engine, &f->err), ATTUNE_ERROR_ARGUMENT, i < 4 ? "drift" : "precision",
              "attune_engine_options");
        FAILS(attune_engine_open_files(TINY_BASE, NULL, &o, &engine, &f->err), ATTUNE_ERROR_ARGUMENT,
              i < 4 ? "drift" : "precision", "attune_engine_options");
    }
    OK(attune_adapter_use(f->home, 1, &f->err));
    FAILS(attune_engine_open(f->home, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "", "");
    int calls = 0;
    ATTUNE_INIT(o);
    o.on_progress = cancel;
    o.user = &calls;
    int code = attune_engine_open(f->home, &o, &engine, &f->err);
    assert_int_equal(code, calls ? ATTUNE_ERROR_CANCELLED : ATTUNE_OK); /* asked, and obeyed */
    if (code == ATTUNE_OK) attune_engine_close(engine);
    else assert_int_equal(kept(f, NULL), 0);
}

/* ---- swaps while sessions run in other threads ---- */

enum { TALKERS = 3, SWAPS = 40 };

struct talk {
    attune_engine *engine;
    const struct answer *wanted; /* (3) by adapter number */
    atomic_int *done;
    int answers, wrong;
};

static void *talk(void *argument) {
    struct talk *t = argument;
    while (!atomic_load(t->done) || t->answers == 0) {
        attune_session *session = NULL;
        attune_session_options o;
        attune_provenance p;
        struct answer got;
        ATTUNE_INIT(o);
        ATTUNE_INIT(p);
        o.context = 64;
        if (attune_session_open(t->engine, &o, &session, NULL) != ATTUNE_OK ||
            answer_with(session, "the old harbour", &got) != ATTUNE_OK ||
            attune_session_provenance(session, &p, NULL) != ATTUNE_OK)
            t->wrong++;
        else if (!same_answers(&got, &t->wanted[0]) && !same_answers(&got, &t->wanted[1]) &&
                 !same_answers(&got, &t->wanted[2]))
            t->wrong++;
        attune_session_close(session);
        t->answers++;
        attune_engine_info info;
        ATTUNE_INIT(info);
        if (attune_engine_info_get(t->engine, &info, NULL) != ATTUNE_OK) t->wrong++;
        (void)attune_engine_is_stale(t->engine);
    }
    return NULL;
}

static void *swap_too(void *argument) {
    struct talk *t = argument;
    for (int i = 0; i < SWAPS / 2; i++)
        if (attune_engine_swap(t->engine, NULL, NULL, NULL) != ATTUNE_OK) t->wrong++;
    return NULL;
}

static void swaps_beside_sessions(void **state) {
    struct homes *f = *state;
    static const char *const adapters[] = {"base", "1", "2"};
    struct answer wanted[3];
    struct talk talks[TALKERS + 1];
    pthread_t threads[TALKERS + 1];
    atomic_int done;
    home_with_adapters(f, 2);
    for (int i = 0; i < 3; i++) wanted[i] = fresh_answer(f, adapters[i], NULL);
    assert_false(same_answers(&wanted[1], &wanted[2]));
    attune_engine *engine = open_engine(f, NULL, NULL);
    atomic_init(&done, 0);
    for (int i = 0; i <= TALKERS; i++) {
        talks[i] = (struct talk){.engine = engine, .wanted = wanted, .done = &done};
        assert_int_equal(pthread_create(&threads[i], NULL, i < TALKERS ? talk : swap_too, &talks[i]), 0);
    }
    for (int i = 0; i < SWAPS; i++) {
        /* out of the cache, and merged anew */
        if (i % 8 == 5) shell("rm -f %s/merged-*", in_home(f, "cache"));
        OK(attune_engine_swap(engine, adapters[i % 3], NULL, &f->err));
    }
    atomic_store(&done, 1);
    for (int i = 0; i <= TALKERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(talks[i].wrong, 0);
    }
    attune_engine_close(engine);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(merged_once),
        TEST(damaged_cache_is_made_again),
        TEST(calibrated_is_only_kept),
        TEST(forgotten_with_the_adapter),
        TEST(swapped),
        TEST(swapped_as_asked_at_open),
        TEST(failed_swaps_change_nothing),
        TEST(files_are_swapped),
        TEST(options_are_checked),
        TEST(swaps_beside_sessions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
