/* cache/tokens.gguf: spares tokenizing, changes nothing, believes nothing that could not be so, and never holds what
 * was forgotten. */
#include "core/base/random.h"
#include "core/model/gguf.h"
#include "job/run.h"
#include "job/token_cache.h"
#include "tests/home_fixture.h"

enum { ROWS = 12, MAX_TOKENS = 200 };
static const char HASH[] = "5555555555555555555555555555555555555555555555555555555555555555"; /* of no row */

struct place {
    struct homes *f;
    attune_store *store;
    struct model *model;
    struct settings settings;
};

static struct place open_place(struct homes *f) {
    struct place p = {.f = f};
    OK(attune_store_open(f->home, NULL, &p.store, &f->err));
    OK(settings_read(f->home, &p.settings, &f->err));
    OK(home_model(f->home, &p.settings, FILE_READ, &p.model, &f->err));
    return p;
}
static struct place make_place(struct homes *f) {
    make_home(f, TINY_BASE, 1);
    set_key(f, "max_tokens", "200");
    set_key(f, "micro_tokens", "200");
    import_rows(f, 0, ROWS);
    return open_place(f);
}
static void close_place(struct place *p) {
    attune_store_close(p->store);
    model_close(p->model);
}

static struct plan plan_of(struct place *p, int with_cache) {
    static const struct budget none = {0};
    struct homes *f = p->f;
    struct row_source source = {p->store, p->model, with_cache ? f->home : NULL};
    struct plan plan;
    char reason[256];
    OK(plan_make(&source, &p->settings, 0, "", 0, &none, &plan, reason, &f->err));
    return plan;
}

static void assert_same_examples(const struct example_set *a, const struct example_set *b) {
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < a->n; i++) {
        const struct example *x = &a->items[i], *y = &b->items[i];
        assert_int_equal(x->n, y->n);
        assert_int_equal(x->n_supervised, y->n_supervised);
        assert_memory_equal(x->ids, y->ids, x->n * sizeof *x->ids);
        assert_memory_equal(x->supervised, y->supervised, x->n);
        assert_true(x->key == y->key);
        assert_string_equal(x->hash, y->hash);
        assert_string_equal(x->prompt_hash, y->prompt_hash);
    }
}

static const char *cache_path(const struct homes *f) { return in_home(f, "cache/tokens.gguf"); }
static void assert_no_leftovers(const struct homes *f) { shell("test -z \"$(find %s -name '.*.tmp')\"", f->home); }

/* ---- what plans see ---- */

static void test_same_plan(void **state) {
    struct homes *f = *state;
    struct place p = make_place(f);
    struct plan without = plan_of(&p, 0);
    assert_false(exists(cache_path(f)));
    assert_int_equal(without.examples.n, ROWS);
    struct plan first = plan_of(&p, 1);
    struct stat st, again;
    assert_int_equal(stat(cache_path(f), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    struct plan second = plan_of(&p, 1), loaded;
    assert_same_examples(&without.examples, &first.examples);
    assert_same_examples(&without.examples, &second.examples);
    assert_string_equal(without.row.id, second.row.id);
    struct row_source source = {p.store, p.model, f->home};
    OK(plan_load(&source, &second.row, &loaded, &f->err));
    for (size_t i = 0; i < loaded.n_train; i++)
        assert_string_equal(loaded.examples.items[loaded.train[i]].hash, second.examples.items[second.train[i]].hash);
    /* nothing was new: the file stays as it is */
    assert_int_equal(stat(cache_path(f), &again), 0);
    assert_true(st.st_ino == again.st_ino);
    assert_no_leftovers(f);
    plan_free(&loaded);
    plan_free(&without);
    plan_free(&first);
    plan_free(&second);
    close_place(&p);
}

/* Tokens of another text under the hash of a row. */
static void plant(struct place *p, const char *hash, int64_t run) {
    struct homes *f = p->f;
    struct token_cache *cache = NULL;
    struct example_set set = {0};
    attune_message message = {"user", "who sings on the pier?"};
    struct store_row row = {.kind = STORE_EXAMPLE_SFT, .messages = &message, .n_messages = 1,
                            .response = "a planted answer", .content_hash = hash,
                            .prompt_hash = "0123456789abcdef"};
    int added = 0;
    unlink(cache_path(f));
    OK(token_cache_open(f->home, p->model, p->settings.train.max_tokens, &cache, &f->err));
    token_cache_watch(cache);
    OK(token_cache_add(cache, &row, &set, &added, &f->err));
    assert_int_equal(added, 1);
    token_cache_keep(cache, &set, p->store, run);
    token_cache_close(cache);
    example_set_free(&set);
}

static size_t differing(const struct example_set *a, const struct example_set *b) {
    size_t n = 0;
    for (size_t i = 0; i < a->n; i++)
        n += a->items[i].n != b->items[i].n ||
             memcmp(a->items[i].ids, b->items[i].ids, a->items[i].n * sizeof(int32_t)) != 0;
    return n;
}

/* What is remembered is what a plan takes, and a plan that was stored as well. */
static void test_rows_come_from_memory(void **state) {
    struct homes *f = *state;
    struct place p = make_place(f);
    struct plan plain = plan_of(&p, 0), loaded;
    plant(&p, plain.examples.items[5].hash, plain.row.number);
    assert_true(exists(cache_path(f)));
    struct row_source source = {p.store, p.model, f->home};
    OK(plan_load(&source, &plain.row, &loaded, &f->err));
    assert_int_equal(differing(&plain.examples, &loaded.examples), 1);
    plan_free(&loaded);
    struct plan planted = plan_of(&p, 1);
    assert_int_equal(differing(&plain.examples, &planted.examples), 1);
    assert_string_equal(planted.examples.items[5].hash, plain.examples.items[5].hash);
    assert_string_equal(planted.examples.items[5].prompt_hash, plain.examples.items[5].prompt_hash); /* the row's own */
    plan_free(&planted);
    /* with another length or another base it is of no use */
    p.settings.train.max_tokens = MAX_TOKENS - 1;
    struct plan shorter = plan_of(&p, 0);
    planted = plan_of(&p, 1);
    assert_same_examples(&shorter.examples, &planted.examples);
    plan_free(&planted);
    plan_free(&shorter);
    p.settings.train.max_tokens = MAX_TOKENS;
    plant(&p, plain.examples.items[5].hash, plain.row.number);
    char kept = p.model->sha256[0];
    p.model->sha256[0] = kept == '0' ? '1' : '0';
    planted = plan_of(&p, 1);
    assert_int_equal(differing(&plain.examples, &planted.examples), 0);
    plan_free(&planted);
    p.model->sha256[0] = kept;
    plan_free(&plain);
    close_place(&p);
}

/* Hashes in the file, ascending; *n of them. */
static struct gguf *open_cache(struct homes *f, const struct gguf_string **hashes, size_t *n) {
    struct gguf *gguf = NULL;
    OK(gguf_open(cache_path(f), FILE_READ, &gguf, &f->err));
    const struct gguf_pair *rows = gguf_find(gguf, "attune.rows");
    assert_non_null(rows);
    *hashes = rows->strings;
    *n = (size_t)rows->count;
    return gguf;
}
static int holds(struct homes *f, const char *hash) {
    const struct gguf_string *hashes;
    size_t n, found = 0;
    struct gguf *gguf = open_cache(f, &hashes, &n);
    for (size_t i = 0; i < n; i++) found += hashes[i].size == 64 && memcmp(hashes[i].data, hash, 64) == 0;
    gguf_close(gguf);
    return found == 1;
}
static size_t rows_in_cache(struct homes *f) {
    const struct gguf_string *hashes;
    size_t n;
    gguf_close(open_cache(f, &hashes, &n));
    return n;
}

/* What is new joins it; what is gone, or may not be used any more, is not carried on. */
static void test_follows_the_rows(void **state) {
    struct homes *f = *state;
    struct place p = make_place(f);
    struct plan plan = plan_of(&p, 1);
    char gone[65];
    strcpy(gone, plan.examples.items[3].hash);
    assert_int_equal(rows_in_cache(f), ROWS);
    assert_true(holds(f, gone));
    plan_free(&plan);
    close_place(&p);
    import_rows(f, ROWS, 3);
    sql(f, "PRAGMA foreign_keys = ON; DELETE FROM interaction WHERE id = 4");
    p = open_place(f);
    plan = plan_of(&p, 1);
    assert_int_equal(plan.examples.n, ROWS + 2);
    assert_int_equal(rows_in_cache(f), ROWS + 2);
    assert_false(holds(f, gone));
    for (size_t i = 0; i < plan.examples.n; i++) assert_true(holds(f, plan.examples.items[i].hash));
    plan_free(&plan);
    close_place(&p);
}

/* Rows that give no example are remembered as such: their answer lies behind the cut. */
static void test_rows_that_give_nothing(void **state) {
    struct homes *f = *state;
    struct place p = make_place(f);
    char text[3000], line[3200];
    memset(text, 0, sizeof text);
    for (size_t i = 0; i < 300; i++) snprintf(text + 9 * i, 10, "%08llx ", (unsigned long long)random_u64(7, i) >> 32);
    snprintf(line, sizeof line, "{\"prompt\": \"%s\", \"response\": \"no\"}\n", text);
    write_text(in_folder(f, "long.jsonl"), line);
    OK(attune_store_import(p.store, in_folder(f, "long.jsonl"), NULL, NULL, &f->err));
    struct stat st, again;
    struct plan first = plan_of(&p, 1);
    assert_int_equal(stat(cache_path(f), &st), 0);
    assert_int_equal(first.examples.n, ROWS);
    assert_int_equal(rows_in_cache(f), ROWS + 1);
    struct plan second = plan_of(&p, 1);
    assert_same_examples(&first.examples, &second.examples);
    assert_int_equal(stat(cache_path(f), &again), 0);
    assert_true(st.st_ino == again.st_ino);
    plan_free(&first);
    plan_free(&second);
    close_place(&p);
}

/* ---- forgetting ---- */

static void test_forgetting_comes_first(void **state) {
    struct homes *f = *state;
    struct place p = make_place(f);
    struct plan plan = plan_of(&p, 0);
    struct token_cache *cache = NULL;
    struct example_set set = {0};
    for (int round = 0; round < 5; round++) {
        OK(token_cache_open(f->home, p.model, MAX_TOKENS, &cache, &f->err));
        if (round != 1) token_cache_watch(cache);
        attune_message message = {"user", "who sings on the pier?"};
        struct store_row row = {.messages = &message, .n_messages = 1, .response = "the old man",
                                .content_hash = round == 4 ? HASH : plan.examples.items[0].hash,
                                .prompt_hash = "0123456789abcdef"};
        int added;
        OK(token_cache_add(cache, &row, &set, &added, &f->err));
        if (round == 2) OK(store_caches_remove(f->home, &f->err)); /* as forgetting does, in the middle */
        token_cache_keep(cache, &set, p.store, round == 3 ? plan.row.number + 1 : plan.row.number);
        token_cache_close(cache);
        example_set_free(&set);
        /* kept; not watched, so not kept; forgotten; of a run that does not stand; of a row that is gone */
        assert_int_equal(exists(cache_path(f)), round == 0);
        unlink(cache_path(f));
        assert_no_leftovers(f);
    }
    assert_true(exists(in_home(f, "cache/base.sha256")));
    plan_free(&plan);
    close_place(&p);
}

static void test_none_where_the_store_is_encrypted(void **state) {
    struct homes *f = *state;
    attune_home_options options;
    attune_job_options job = job_options();
    ATTUNE_INIT(options);
    options.consent = 1;
    options.key_file = in_folder(f, "key");
    OK(attune_home_init(f->home, TINY_BASE, &options, &f->err));
    quick_settings(f);
    import_rows(f, 0, 8);
    GIVES(run_job(f, &job, NULL), ATTUNE_DONE);
    assert_int_equal(home_status(f).active_adapter, 1);
    assert_false(exists(cache_path(f)));
    assert_no_leftovers(f);
    shell("rm -rf %s", f->home);
    make_home(f, TINY_BASE, 1);
    import_rows(f, 0, 8);
    GIVES(run_job(f, &job, NULL), ATTUNE_DONE);
    assert_true(exists(cache_path(f)));
}

/* ---- files that are not as they should be ---- */

/* How a row comes out of the file: 1 as it was planted there, 0 tokenized from its own text; never otherwise. */
static int looked_up(struct place *p, const char *hash, const struct example *planted, const struct example *own) {
    struct homes *f = p->f;
    struct token_cache *cache = NULL;
    struct example_set set = {0};
    attune_message message = {"user", "what is this?"};
    struct store_row row = {.messages = &message, .n_messages = 1, .response = "its own answer",
                            .content_hash = hash, .prompt_hash = "0123456789abcdef"};
    int added = 0, found = -1;
    OK(token_cache_open(f->home, p->model, MAX_TOKENS, &cache, &f->err));
    OK(token_cache_add(cache, &row, &set, &added, &f->err));
    token_cache_close(cache);
    assert_int_equal(added, 1);
    const struct example *e = &set.items[0];
    if (planted && e->n == planted->n && memcmp(e->ids, planted->ids, e->n * sizeof *e->ids) == 0) found = 1;
    if (e->n == own->n && memcmp(e->ids, own->ids, e->n * sizeof *e->ids) == 0) found = 0;
    example_set_free(&set);
    return found;
}

static struct example_set tokens_of(struct place *p, const char *prompt, const char *response, const char *hash) {
    struct homes *f = p->f;
    struct example_set set = {0};
    attune_message message = {"user", prompt};
    int added = 0;
    OK(example_add(&set, p->model, &message, 1, response, hash, "0123456789abcdef", MAX_TOKENS, &added, &f->err));
    assert_int_equal(added, 1);
    return set;
}

static void test_damaged(void **state) {
    struct homes *f = *state;
    struct place p = make_place(f);
    struct plan plan = plan_of(&p, 0);
    const char *hash = plan.examples.items[2].hash;
    struct example_set planted = tokens_of(&p, "who sings on the pier?", "a planted answer", hash);
    struct example_set own = tokens_of(&p, "what is this?", "its own answer", hash);
    plant(&p, hash, plan.row.number);
    size_t n, believed = 0;
    char *good = read_file(cache_path(f), &n), path[256];
    snprintf(path, sizeof path, "%s", cache_path(f));
    assert_int_equal(looked_up(&p, hash, &planted.items[0], &own.items[0]), 1);
    for (size_t keep = 0; keep < n; keep += 7) {
        write_file(path, good, keep);
        int found = looked_up(&p, hash, &planted.items[0], &own.items[0]);
        if (found < 0) fail_msg("cut to %zu bytes: neither", keep);
        believed += (size_t)found;
    }
    for (size_t at = 0; at < n; at++) {
        write_file(path, good, n);
        flip_byte(path, (long)at);
        int found = looked_up(&p, hash, &planted.items[0], &own.items[0]);
        if (found < 0) fail_msg("byte %zu flipped: neither", at);
        believed += (size_t)found;
    }
    assert_in_range(believed, 0, 70); /* the padding behind all, and what no reader looks at */
    unlink(path);
    shell("mkfifo %s", path);
    assert_int_equal(looked_up(&p, hash, &planted.items[0], &own.items[0]), 0);
    unlink(path);
    /* a plan puts a good one in its place */
    write_file(path, good, n / 2);
    struct plan again = plan_of(&p, 1);
    assert_same_examples(&plan.examples, &again.examples);
    assert_int_equal(rows_in_cache(f), ROWS);
    plan_free(&again);
    free(good);
    example_set_free(&planted);
    example_set_free(&own);
    plan_free(&plan);
    close_place(&p);
}

/* A file under a true digest that says what cannot be. */
struct forged {
    const char *what;
    const char *hashes[2];
    uint32_t lengths[2];
    int32_t ids[4];
    uint8_t supervised[4];
    size_t n, tokens;
    const char *version, *base; /* NULL: as they should be */
    uint64_t max_tokens;        /* 0: as it should be */
};

static void write_forged(struct place *p, const struct forged *forged) {
    struct homes *f = p->f;
    struct gguf_writer *w = NULL;
    struct hash hash;
    char hex[65];
    uint64_t max_tokens = forged->max_tokens ? forged->max_tokens : MAX_TOKENS;
    hash_start(&hash);
    hash_add_u64(&hash, max_tokens);
    hash_add_u64(&hash, forged->n);
    for (size_t i = 0; i < forged->n; i++) hash_add(&hash, forged->hashes[i], 64);
    hash_add(&hash, forged->lengths, 4 * forged->n);
    hash_add(&hash, forged->ids, 4 * forged->tokens);
    hash_add(&hash, forged->supervised, forged->tokens);
    hash_finish(&hash, hex);
    OK(gguf_writer_create(&w, &f->err));
    gguf_put_string(w, "general.type", "token cache");
    gguf_put_string(w, "attune.version", forged->version ? forged->version : ATTUNE_VERSION);
    gguf_put_string(w, "attune.base.sha256", forged->base ? forged->base : p->model->sha256);
    gguf_put_u64(w, "attune.max_tokens", max_tokens);
    gguf_put_strings(w, "attune.rows", forged->hashes, forged->n);
    gguf_put_array(w, "attune.lengths", GGUF_U32, forged->lengths, forged->n);
    gguf_put_array(w, "attune.ids", GGUF_I32, forged->ids, forged->tokens);
    gguf_put_array(w, "attune.supervised", GGUF_U8, forged->supervised, forged->tokens);
    gguf_put_string(w, "attune.digest", hex);
    OK(gguf_writer_publish(w, cache_path(f), "test", 0, NULL, &f->err));
    gguf_writer_destroy(w);
}

static void test_forged(void **state) {
    struct homes *f = *state;
    struct place p = make_place(f);
    static const char low[] = "1111111111111111111111111111111111111111111111111111111111111111";
    static const char odd[] = "55555555555555555555555555555555555555555555555555555555555555";
    struct example_set own = tokens_of(&p, "what is this?", "its own answer", HASH);
    int32_t over = (int32_t)p.model->V;
    const struct forged good = {"good", {low, HASH}, {2, 2}, {1, 2, 3, 4}, {0, 1, 0, 1}, 2, 4, NULL, NULL, 0};
    const struct forged bad[] = {
        {"an id beyond the vocabulary", {low, HASH}, {2, 2}, {1, 2, over, 4}, {0, 1, 0, 1}, 2, 4, NULL, NULL, 0},
        {"a negative id", {low, HASH}, {2, 2}, {-1, 2, 3, 4}, {0, 1, 0, 1}, 2, 4, NULL, NULL, 0},
        {"supervised twice", {low, HASH}, {2, 2}, {1, 2, 3, 4}, {0, 1, 2, 1}, 2, 4, NULL, NULL, 0},
        {"nothing to learn at the end", {low, HASH}, {2, 2}, {1, 2, 3, 4}, {0, 1, 1, 0}, 2, 4, NULL, NULL, 0},
        {"a row of one token", {low, HASH}, {1, 3}, {1, 2, 3, 4}, {1, 1, 0, 1}, 2, 4, NULL, NULL, 0},
        {"too few tokens", {low, HASH}, {2, 3}, {1, 2, 3, 4}, {0, 1, 0, 1}, 2, 4, NULL, NULL, 0},
        {"too many tokens", {low, HASH}, {2, 0}, {1, 2, 3, 4}, {0, 1, 0, 1}, 2, 4, NULL, NULL, 0},
        {"a length that wraps", {low, HASH}, {2, 4294967295u}, {1, 2, 3, 4}, {0, 1, 0, 1}, 2, 4, NULL, NULL, 0},
        {"not in order", {HASH, low}, {2, 2}, {1, 2, 3, 4}, {0, 1, 0, 1}, 2, 4, NULL, NULL, 0},
        {"a row twice", {HASH, HASH}, {2, 2}, {1, 2, 3, 4}, {0, 1, 0, 1}, 2, 4, NULL, NULL, 0},
        {"another version", {low, HASH}, {2, 2}, {1, 2, 3, 4}, {0, 1, 0, 1}, 2, 4, "0.0.9", NULL, 0},
        {"another base", {low, HASH}, {2, 2}, {1, 2, 3, 4}, {0, 1, 0, 1}, 2, 4, NULL, low, 0},
        {"another length", {low, HASH}, {2, 2}, {1, 2, 3, 4}, {0, 1, 0, 1}, 2, 4, NULL, NULL, MAX_TOKENS + 1},
    };
    struct example planted = {.n = 2, .ids = (int32_t[]){3, 4}};
    write_forged(&p, &good);
    assert_int_equal(looked_up(&p, HASH, &planted, &own.items[0]), 1);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_forged(&p, &bad[i]);
        int found = looked_up(&p, HASH, &planted, &own.items[0]);
        if (found != 0) fail_msg("%s: %d", bad[i].what, found);
    }
    struct forged short_hash = good;
    char padded[65] = "";
    strcpy(padded, odd); /* what its digest takes: 64 bytes of it are there */
    short_hash.hashes[0] = padded;
    write_forged(&p, &short_hash);
    assert_int_equal(looked_up(&p, HASH, &planted, &own.items[0]), 0);
    /* one that remembers nothing */
    struct forged empty = {"empty", {low, HASH}, {0}, {0}, {0}, 0, 0, NULL, NULL, 0};
    write_forged(&p, &empty);
    assert_int_equal(looked_up(&p, HASH, &planted, &own.items[0]), 0);
    example_set_free(&own);
    close_place(&p);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_same_plan),
        TEST(test_rows_come_from_memory),
        TEST(test_follows_the_rows),
        TEST(test_rows_that_give_nothing),
        TEST(test_forgetting_comes_first),
        TEST(test_none_where_the_store_is_encrypted),
        TEST(test_damaged),
        TEST(test_forged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
