/* Thousands of generations in one process: parallel sessions over one engine that is given other adapters meanwhile,
 * with random cancellation, resets, settings, saving and drafts. Each answer that was not cut short is the one that its
 * adapter gives. ATTUNE_TEST_FULL=1: ten times as many. */
#include "tests/session_fixture.h"

#include "core/base/random.h"

enum { THREADS = 4, ADAPTERS = 3, PROMPTS = 4, TOKENS = 12 };

#if defined(__SANITIZE_THREAD__)
#define SLOW 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLOW 1
#endif
#endif
#ifdef SLOW
enum { GENERATIONS = 200 };
#else
enum { GENERATIONS = 1000 };
#endif

static attune_engine *tiny;
static char folder[] = "/tmp/attune-stress-XXXXXX";
static char paths[ADAPTERS][64], hashes[ADAPTERS][65]; /* the first: none, the base */
static struct line expected[ADAPTERS][PROMPTS];
static const char *const prompts[PROMPTS] = {"Name a colour.", "the lord was the lord was the lord", "Hi",
                                             "And the sea? And the sea? And"};
static atomic_int left, swaps, stop;

/* The adapter-th from now on; the first: the base. */
static void serve(int adapter) {
    attune_error err = {0};
    fine(attune_engine_swap(tiny, adapter ? paths[adapter] : NULL, "none", &err), &err);
}

static void *swap_all_the_time(void *argument) {
    (void)argument;
    for (uint64_t i = 0; !atomic_load(&stop); i++) {
        serve((int)(random_u64(99, i) % ADAPTERS));
        atomic_fetch_add(&swaps, 1);
        usleep(500);
    }
    return NULL;
}

struct worker {
    attune_session *s;
    uint64_t key, draws;
    int whole, cut;
};
static uint64_t dice(struct worker *w, uint64_t sides) { return random_u64(w->key, w->draws++) % sides; }

static int cut_sometimes(const char *piece, size_t length, void *user) {
    struct worker *w = user;
    (void)piece;
    (void)length;
    if (dice(w, 40) == 0) attune_session_cancel(w->s);
    return dice(w, 40) == 0;
}

static int served(const attune_session *s) {
    attune_provenance p;
    attune_error err = {0};
    ATTUNE_INIT(p);
    fine(attune_session_provenance(s, &p, &err), &err);
    for (int i = 1; i < ADAPTERS; i++)
        if (strcmp(p.adapter, hashes[i]) == 0) return i;
    return 0;
}

/* Saved and restored, which fails where the file is of another adapter. */
static void save_and_restore(struct worker *w) {
    char path[80];
    attune_error err = {0};
    snprintf(path, sizeof path, "%s/%llu.gguf", folder, (unsigned long long)w->key);
    if (dice(w, 2)) fine(attune_session_save(w->s, path, &err), &err);
    int code = attune_session_restore(w->s, path, &err);
    if (code != ATTUNE_OK && code != ATTUNE_ERROR_MISMATCH && code != ATTUNE_ERROR_IO) fine(code, &err);
}

static void once(struct worker *w) {
    attune_error err = {0};
    attune_generate_result r;
    attune_generate_options o = greedy(TOKENS);
    size_t prompt = (size_t)dice(w, PROMPTS);
    attune_message m = {"user", prompts[prompt]};
    ATTUNE_INIT(r);
    o.lookup = (int)dice(w, 9);
    o.alternatives = dice(w, 4) ? 0 : 3;
    if (dice(w, 10) == 0) {
        attune_session_close(w->s);
        w->s = open_session_with(tiny, 128, ATTUNE_CONTEXT_SHIFT);
    }
    if (dice(w, 3) == 0) fine(attune_session_reset(w->s, &err), &err);
    if (dice(w, 50) == 0) save_and_restore(w);
    int fresh = dice(w, 4) != 0;
    fine(fresh ? attune_session_set(w->s, &m, 1, &err) : attune_session_append(w->s, &m, 1, &err), &err);
    int code = attune_session_generate(w->s, &o, cut_sometimes, w, &r, &err);
    if (code == ATTUNE_ERROR_CANCELLED) {
        w->cut++;
        return;
    }
    fine(code, &err);
    w->cut += r.reason == ATTUNE_STOP_CALLBACK;
    if (!fresh) return;
    struct line answer = {.n = 0};
    const struct line *whole = &expected[served(w->s)][prompt];
    line_add_answer(&answer, w->s);
    if (r.reason != ATTUNE_STOP_CALLBACK) assert_int_equal(answer.n, whole->n);
    assert_true(answer.n <= whole->n);
    assert_memory_equal(answer.ids, whole->ids, answer.n * sizeof *answer.ids);
    w->whole += r.reason != ATTUNE_STOP_CALLBACK;
}

static struct worker workers[THREADS];
static void *work(void *argument) {
    struct worker *w = argument;
    w->s = open_session_with(tiny, 128, ATTUNE_CONTEXT_SHIFT);
    while (atomic_fetch_sub(&left, 1) > 0) once(w);
    attune_session_close(w->s);
    return NULL;
}

static void many_generations(void **state) {
    (void)state;
    pthread_t threads[THREADS + 1];
    const char *full = getenv("ATTUNE_TEST_FULL");
    atomic_store(&left, full && *full ? 10 * GENERATIONS : GENERATIONS);
    assert_int_equal(pthread_create(&threads[THREADS], NULL, swap_all_the_time, NULL), 0);
    for (int i = 0; i < THREADS; i++) {
        workers[i].key = 1000 + (uint64_t)i;
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    int whole = 0, cut = 0;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        whole += workers[i].whole;
        cut += workers[i].cut;
    }
    atomic_store(&stop, 1);
    pthread_join(threads[THREADS], NULL);
    assert_true(whole > GENERATIONS / 10 && cut > GENERATIONS / 20 && atomic_load(&swaps) > 10);
    /* sessions have let go of all that they held */
    assert_int_equal(atomic_load(&tiny->variant->holders), 1);
}

static int set_up(void **state) {
    (void)state;
    char base[65];
    if (!mkdtemp(folder)) return 1;
    tiny = open_tiny(NULL, NULL);
    hash_bytes(tiny->model->gguf->file.data, tiny->model->gguf->file.size, base);
    for (int i = 0; i < ADAPTERS; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/a%d.gguf", folder, i);
        if (i) write_adapter(tiny, paths[i], base, 0.05f * (float)i, hashes[i]);
        serve(i);
        for (int p = 0; p < PROMPTS; p++) {
            attune_session *s = open_session(tiny, 128);
            say(s, "user", prompts[p]);
            generate(s, greedy(TOKENS), NULL, NULL);
            line_add_answer(&expected[i][p], s);
            attune_session_close(s);
        }
    }
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    attune_engine_close(tiny);
    for (int i = 0; i < ADAPTERS; i++) unlink(paths[i]);
    for (int i = 0; i < THREADS; i++) {
        char path[80];
        snprintf(path, sizeof path, "%s/%d.gguf", folder, 1000 + i);
        unlink(path);
    }
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(many_generations)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
