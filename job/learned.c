/* What an adapter has learned: joins its rows (learned_rows.c), its manner (style.c, tone_words.c) and what is kept of
 * both (learned_cache.c). The result is one JSON object, in memory as in the file. */
#include "core/base/options.h"
#include "job/everyday_prompts.h"
#include "job/greedy.h"
#include "job/home.h"
#include "job/learned_cache.h"
#include "job/learned_rows.h"
#include "job/phases.h"
#include "job/style.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert((int)ATTUNE_LEARNED_PROMPTS == (int)EVERYDAY_PROMPTS, "the public count is that of the questions");

enum { ROWS_DEFAULT = 128, ROWS_MAX = 1 << 20, ANSWER_TOKENS_MAX = 112 };

struct pair_of_answers {
    const char *prompt;
    char *base, *adapter;
    int base_ended, adapter_ended;
};
struct attune_learned {
    char home[HOME_PATH_MAX];
    attune_learned_options options;
    attune_adapter_info info;
    struct settings settings;
    attune_store *store;
    struct model *model;
    struct lora *lora;
    struct pool *pool;
    struct learned_rows *rows;
    const char *prompts[EVERYDAY_PROMPTS];
    struct pair_of_answers answers[EVERYDAY_PROMPTS];
    size_t n_prompts, n_answers; /* to ask, asked */
    int half;                    /* the next question has been answered by the base */
    double began, unit_rows, unit_answers;
    atomic_int cancelled;
    int from_cache;
    json_t *result;              /* NULL before the end */
};

/* ---- the result, read ---- */

static int not_yet(attune_error *err) {
    return error_set(err, ATTUNE_ERROR_STATE, NULL, "nothing is known yet: call attune_learned_step until it is done");
}

static double number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}
static int64_t whole(const json_t *object, const char *key) { return json_integer_value(json_object_get(object, key)); }
static const char *text(const json_t *object, const char *key) {
    const char *value = json_string_value(json_object_get(object, key));
    return value ? value : "";
}

int attune_learned_summary_get(const attune_learned *learned, attune_learned_summary *out, attune_error *err) {
    attune_learned_summary s;
    if (!learned || !learned->result) return not_yet(err);
    const json_t *from = json_object_get(learned->result, "summary");
    ATTUNE_INIT(s);
    s.adapter = learned->info.number;
    memcpy(s.adapter_sha256, learned->info.sha256, sizeof s.adapter_sha256);
    s.complete = json_is_true(json_object_get(from, "complete"));
    s.from_cache = learned->from_cache;
    s.rows_known = whole(from, "rows_known");
    s.rows = whole(from, "rows");
    s.prompts = whole(from, "prompts");
    s.max_tokens = whole(from, "max_tokens");
    s.loss_base = number(from, "loss_base");
    s.loss_adapter = number(from, "loss_adapter");
    s.gain = number(from, "gain");
    return options_write(out, &s, sizeof s, "attune_learned_summary", err);
}

int attune_learned_rows(const attune_learned *learned, attune_learned_row_callback callback, void *user,
                        attune_error *err) {
    size_t i;
    const json_t *o;
    if (!learned || !learned->result) return not_yet(err);
    json_array_foreach(json_object_get(learned->result, "rows"), i, o) {
        attune_learned_row row = {.size = sizeof row, .id = text(o, "id"), .kind = text(o, "kind"),
                                  .time_ms = whole(o, "time_ms"), .moved = number(o, "moved"),
                                  .weight = number(o, "weight"), .share = number(o, "share"),
                                  .loss_base = number(o, "loss_base"), .loss_adapter = number(o, "loss_adapter"),
                                  .tokens = whole(o, "tokens"), .prompt = text(o, "prompt"),
                                  .answer = text(o, "answer")};
        if (callback(&row, user)) break;
    }
    return ATTUNE_OK;
}

int attune_learned_styles(const attune_learned *learned, attune_learned_style_callback callback, void *user,
                          attune_error *err) {
    size_t i;
    const json_t *o;
    if (!learned || !learned->result) return not_yet(err);
    json_array_foreach(json_object_get(learned->result, "styles"), i, o) {
        attune_learned_style style = {.size = sizeof style, .name = text(o, "name"), .title = text(o, "title"),
                                      .unit = text(o, "unit"), .base = number(o, "base"),
                                      .adapter = number(o, "adapter"), .more = whole(o, "more"),
                                      .less = whole(o, "less"), .answers = whole(o, "answers"), .p = number(o, "p"),
                                      .verdict = text(o, "verdict")};
        if (callback(&style, user)) break;
    }
    return ATTUNE_OK;
}

int attune_learned_words(const attune_learned *learned, attune_learned_word_callback callback, void *user,
                         attune_error *err) {
    size_t i;
    const json_t *o;
    if (!learned || !learned->result) return not_yet(err);
    json_array_foreach(json_object_get(learned->result, "words"), i, o) {
        attune_learned_word word = {.size = sizeof word, .word = text(o, "word"), .base = whole(o, "base"),
                                    .adapter = whole(o, "adapter"), .base_answers = whole(o, "base_answers"),
                                    .adapter_answers = whole(o, "adapter_answers"), .z = number(o, "z")};
        if (callback(&word, user)) break;
    }
    return ATTUNE_OK;
}

int attune_learned_answers(const attune_learned *learned, attune_learned_answer_callback callback, void *user,
                           attune_error *err) {
    size_t i;
    const json_t *o;
    if (!learned || !learned->result) return not_yet(err);
    json_array_foreach(json_object_get(learned->result, "answers"), i, o) {
        attune_learned_answer answer = {.size = sizeof answer, .prompt = text(o, "prompt"), .base = text(o, "base"),
                                        .adapter = text(o, "adapter"),
                                        .base_ended = json_is_true(json_object_get(o, "base_ended")),
                                        .adapter_ended = json_is_true(json_object_get(o, "adapter_ended"))};
        if (callback(&answer, user)) break;
    }
    return ATTUNE_OK;
}

/* ---- opening ---- */

/* Somebody's file may stand in the cache: what is not of the shape that readers count on is not taken. */
static int is_sound(const json_t *kept) {
    static const char *const arrays[] = {"rows", "styles", "words", "answers"};
    size_t i;
    const json_t *o;
    for (size_t a = 0; a < sizeof arrays / sizeof *arrays; a++) {
        const json_t *array = json_object_get(kept, arrays[a]);
        if (!json_is_array(array)) return 0;
        json_array_foreach(array, i, o) if (!json_is_object(o)) return 0;
    }
    return json_is_object(json_object_get(kept, "summary"));
}

static int take_kept(attune_learned *l) {
    if (store_encryption_get(l->store) != STORE_PLAIN) return 0;
    json_t *kept = learned_cache_read(l->home, l->settings.base_sha256, l->info.sha256);
    if (kept && is_sound(kept) &&
        (l->options.kept_only || (whole(kept, "asked_rows") == l->options.rows &&
                                  whole(kept, "asked_prompts") == l->options.prompts))) {
        l->result = kept;
        l->from_cache = 1;
        return 1;
    }
    json_decref(kept);
    return 0;
}

static int choose_adapter(attune_learned *l, attune_error *err) {
    int number = l->options.adapter;
    int code = number ? ATTUNE_OK : store_current_read(l->home, &number, NULL, NULL, err);
    if (code != ATTUNE_OK) return code;
    if (number == 0)
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, l->home,
                         "no adapter is active, so nothing was learned yet: record or import, then attune train");
    ATTUNE_INIT(l->info);
    code = store_adapter_get(l->store, number, &l->info, err);
    if (code == ATTUNE_OK && strcmp(l->info.state, "revoked") == 0)
        code = error_set(err, ATTUNE_ERROR_STATE, l->home,
                         "adapter %d was revoked, as it learned from what was forgotten: nothing of it is left", number);
    return code;
}

static int open_store(attune_learned *l, attune_error *err) {
    attune_store_options options;
    ATTUNE_INIT(options);
    options.key = l->options.key;
    options.key_file = l->options.key_file;
    return store_open_with(l->home, &options, &l->store, err);
}

static void tell(const attune_learned *l, const char *phase) {
    size_t done = 2 * l->n_answers + (size_t)l->half, total = 2 * l->n_prompts;
    attune_progress now = {.size = sizeof now, .phase = phase, .done = (int64_t)done, .total = (int64_t)total};
    if (!l->options.on_progress) return;
    if (strcmp(phase, "rows") == 0) {
        now.done = (int64_t)learned_rows_done(l->rows);
        now.total = (int64_t)learned_rows_total(l->rows);
    }
    size_t rows = l->rows ? learned_rows_total(l->rows) - learned_rows_done(l->rows) : 0;
    now.seconds_left = (double)(total - done) * l->unit_answers + (double)rows * l->unit_rows;
    l->options.on_progress(&now, l->options.user);
}

static int open_parts(attune_learned *l, attune_error *err) {
    tell(l, "load");
    int code = home_model(l->home, &l->settings, FILE_MAP, &l->model, err);
    if (code == ATTUNE_OK)
        code = home_adapter_read(l->home, l->model, l->info.number, l->info.sha256, &l->lora, err);
    if (code == ATTUNE_OK) code = pool_create(l->options.threads, &l->pool, err);
    struct learned_rows_source source = {.store = l->store, .model = l->model, .lora = l->lora, .pool = l->pool,
                                         .adapter = l->info.number, .most = (size_t)l->options.rows,
                                         .max_tokens = l->settings.train.max_tokens,
                                         .micro_tokens = l->settings.train.micro_tokens};
    if (code == ATTUNE_OK) code = learned_rows_create(&source, &l->rows, err);
    for (int i = 0; code == ATTUNE_OK && i < l->options.prompts; i++)
        if (!learned_rows_asked(l->rows, everyday_prompts[i])) l->prompts[l->n_prompts++] = everyday_prompts[i];
    return code;
}

static int check_options(attune_learned_options *o, attune_error *err) {
    if (o->adapter < 0 || o->rows < 0 || o->rows > ROWS_MAX || o->prompts < 0 || o->prompts > EVERYDAY_PROMPTS ||
        !(o->time_s >= 0) || o->threads < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_learned_options",
                         "adapter, rows (up to %d), prompts (up to %d), time and threads are at least 0", ROWS_MAX,
                         EVERYDAY_PROMPTS);
    if (o->rows == 0) o->rows = ROWS_DEFAULT;
    if (o->prompts == 0) o->prompts = EVERYDAY_PROMPTS;
    return ATTUNE_OK;
}

int attune_learned_open(const char *home, const attune_learned_options *options, attune_learned **out,
                        attune_error *err) {
    if (!out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "looking at what was learned wants a place for it");
    attune_learned *l = calloc(1, sizeof *l);
    if (!l) return error_set_memory(err, "what was learned", sizeof *l);
    l->began = job_now();
    int code = options_read(&l->options, sizeof l->options, options, "attune_learned_options", err);
    if (code == ATTUNE_OK) code = check_options(&l->options, err);
    if (code == ATTUNE_OK) code = home_resolve(home, l->home, err);
    if (code == ATTUNE_OK) code = settings_read(l->home, &l->settings, err);
    if (code == ATTUNE_OK) code = open_store(l, err);
    if (code == ATTUNE_OK) code = choose_adapter(l, err);
    if (code == ATTUNE_OK && !take_kept(l))
        code = l->options.kept_only
                   ? error_set(err, ATTUNE_ERROR_NOT_FOUND, l->home,
                               "nothing is kept of adapter %d: attune learned finds it out", l->info.number)
                   : open_parts(l, err);
    l->options.key = NULL; /* borrowed for this call */
    l->options.key_file = NULL;
    if (code != ATTUNE_OK) {
        attune_learned_close(l);
        return code;
    }
    *out = l;
    return ATTUNE_OK;
}

void attune_learned_close(attune_learned *l) {
    if (!l) return;
    for (size_t i = 0; i < EVERYDAY_PROMPTS; i++) {
        free(l->answers[i].base);
        free(l->answers[i].adapter);
    }
    learned_rows_destroy(l->rows);
    pool_destroy(l->pool);
    lora_destroy(l->lora);
    model_close(l->model);
    attune_store_close(l->store);
    json_decref(l->result);
    free(l);
}

void attune_learned_cancel(attune_learned *l) {
    if (!l) return;
    atomic_store(&l->cancelled, 1);
    if (l->pool) pool_cancel(l->pool);
}

/* ---- working ---- */

/* Half of a question: the base's answer, then the adapter's. */
static int answer_unit(attune_learned *l, attune_error *err) {
    struct pair_of_answers *pair = &l->answers[l->n_answers];
    const struct lora *lora = l->half ? l->lora : NULL;
    char *said = NULL;
    size_t tokens = 0;
    double from = job_now();
    pair->prompt = l->prompts[l->n_answers];
    int code = greedy_answer(l->model, lora, l->pool, pair->prompt, ANSWER_TOKENS_MAX, &said, &tokens, err);
    if (code != ATTUNE_OK) return code;
    *(l->half ? &pair->adapter : &pair->base) = said;
    *(l->half ? &pair->adapter_ended : &pair->base_ended) = tokens < ANSWER_TOKENS_MAX;
    l->n_answers += (size_t)l->half;
    l->half = !l->half;
    l->unit_answers = job_now() - from;
    return ATTUNE_OK;
}

static int rows_unit(attune_learned *l, attune_error *err) {
    size_t before = learned_rows_done(l->rows);
    double from = job_now();
    int code = learned_rows_unit(l->rows, err);
    if (code < 0) return code;
    l->unit_rows = (job_now() - from) / (double)(learned_rows_done(l->rows) - before);
    return ATTUNE_OK;
}

static const char *const verdicts[] = {"too few", "alike", "different"};
static const char *const units[] = {"each", "share", "of_100"};

static json_t *real(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *styles_json(const attune_learned *l) {
    double base[EVERYDAY_PROMPTS][STYLE_FIGURES], adapter[EVERYDAY_PROMPTS][STYLE_FIGURES];
    struct style_difference found[STYLE_FIGURES];
    json_t *array = json_array();
    for (size_t i = 0; i < l->n_answers; i++) {
        style_measure(l->answers[i].base, l->answers[i].base_ended, base[i]);
        style_measure(l->answers[i].adapter, l->answers[i].adapter_ended, adapter[i]);
    }
    style_compare((const double(*)[STYLE_FIGURES])base, (const double(*)[STYLE_FIGURES])adapter, l->n_answers, found);
    for (int i = 0; i < STYLE_FIGURES; i++) {
        const struct style_difference *d = &found[i];
        json_array_append_new(
            array, json_pack("{s:s, s:s, s:s, s:o, s:o, s:I, s:I, s:I, s:o, s:s}", "name", style_names[i].name, "title",
                             style_names[i].title, "unit", units[style_names[i].unit], "base", real(d->base), "adapter",
                             real(d->adapter), "more", (json_int_t)d->more, "less", (json_int_t)d->less, "answers",
                             (json_int_t)d->n, "p", real(d->p), "verdict", verdicts[d->verdict]));
    }
    return array;
}

static int words_json(const attune_learned *l, json_t *result, attune_error *err) {
    const char *base[EVERYDAY_PROMPTS], *adapter[EVERYDAY_PROMPTS];
    struct tone_word *words = NULL;
    size_t n = 0;
    json_t *array = json_array();
    for (size_t i = 0; i < l->n_answers; i++) {
        base[i] = l->answers[i].base;
        adapter[i] = l->answers[i].adapter;
    }
    int code = tone_words(base, adapter, l->n_answers, &words, &n, err);
    for (size_t i = 0; i < n; i++)
        json_array_append_new(array, json_pack("{s:s, s:I, s:I, s:I, s:I, s:o}", "word", words[i].word, "base",
                                               (json_int_t)words[i].base, "adapter", (json_int_t)words[i].adapter,
                                               "base_answers", (json_int_t)words[i].base_answers, "adapter_answers",
                                               (json_int_t)words[i].adapter_answers, "z", real(words[i].z)));
    free(words);
    json_object_set_new(result, "words", array);
    return code;
}

static json_t *answers_json(const attune_learned *l) {
    json_t *array = json_array();
    for (size_t i = 0; i < l->n_answers; i++) {
        const struct pair_of_answers *a = &l->answers[i];
        json_array_append_new(array, json_pack("{s:s, s:s, s:s, s:b, s:b}", "prompt", a->prompt, "base", a->base,
                                               "adapter", a->adapter, "base_ended", a->base_ended, "adapter_ended",
                                               a->adapter_ended));
    }
    return array;
}

/* A result that cannot be kept is a result all the same. */
static void keep(const attune_learned *l) {
    char path[HOME_PATH_MAX + 32];
    if (store_encryption_get(l->store) != STORE_PLAIN) return;
    store_adapter_path(l->home, l->info.number, path, sizeof path);
    (void)learned_cache_keep(l->home, l->settings.base_sha256, l->info.sha256, path, l->result, NULL);
}

static int finish(attune_learned *l, attune_error *err) {
    int complete = l->n_answers == l->n_prompts && learned_rows_done(l->rows) == learned_rows_total(l->rows);
    json_t *summary = json_pack("{s:b, s:I, s:I}", "complete", complete, "prompts", (json_int_t)l->n_answers,
                                "max_tokens", (json_int_t)ANSWER_TOKENS_MAX);
    json_t *result = json_pack("{s:I, s:I}", "asked_rows", (json_int_t)l->options.rows, "asked_prompts",
                               (json_int_t)l->options.prompts);
    int code = summary && result ? learned_rows_result(l->rows, result, summary, err)
                                 : error_set_memory(err, "what was learned", 1 << 12);
    if (code == ATTUNE_OK) code = words_json(l, result, err);
    if (code == ATTUNE_OK) {
        json_object_set_new(result, "styles", styles_json(l));
        json_object_set_new(result, "answers", answers_json(l));
        json_object_set(result, "summary", summary);
        if (!is_sound(result)) code = error_set_memory(err, "what was learned", 1 << 16);
    }
    json_decref(summary);
    if (code != ATTUNE_OK) {
        json_decref(result);
        return code;
    }
    l->result = result;
    if (complete) keep(l);
    return ATTUNE_DONE;
}

/* Both kinds of work in step, so that a budget that ends early leaves some of each. */
static int next_is_answer(const attune_learned *l) {
    double answers = l->n_prompts ? (double)(2 * l->n_answers + (size_t)l->half) / (double)(2 * l->n_prompts) : 1;
    size_t total = learned_rows_total(l->rows);
    double rows = total ? (double)learned_rows_done(l->rows) / (double)total : 1;
    return answers < 1 && (answers <= rows || l->half);
}

int attune_learned_step(attune_learned *l, attune_error *err) {
    if (!l) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "nothing to look at");
    if (atomic_load(&l->cancelled)) return error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "stopped on request");
    if (l->result) return ATTUNE_DONE;
    int late = l->options.time_s > 0 && job_now() - l->began >= l->options.time_s;
    int answer = next_is_answer(l), rows = learned_rows_done(l->rows) < learned_rows_total(l->rows);
    if (late || (!answer && !rows)) return finish(l, err);
    int code = answer ? answer_unit(l, err) : rows_unit(l, err);
    if (atomic_load(&l->cancelled)) return error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "stopped on request");
    if (code != ATTUNE_OK) return code;
    tell(l, answer ? "answers" : "rows");
    return ATTUNE_CONTINUE;
}
