#include "job/learned_rows.h"

#include "job/style.h"
#include "trainer/batches.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXCERPT_BYTES = 400 };

struct looked_at {
    int64_t interaction, time_ms;
    char id[sizeof(attune_uuid)];
    const char *kind;
    double weight;
    size_t answer, rejected; /* of the examples; SIZE_MAX: none */
    int sign;                /* -1: to become less likely */
    char *prompt, *text;
};
struct learned_rows {
    struct learned_rows_source source;
    struct looked_at *items;
    size_t n, known;         /* known: interactions, drawn or not */
    int64_t *interactions;   /* (n_asked) of all examples */
    struct example_set examples;
    char **asked;            /* (n_asked) words of all questions, each sorted out of its marks */
    size_t n_asked;
    size_t *order, at;       /* (examples.n) of examples; how many are done */
    double *base, *adapter;  /* (examples.n) sums of nats */
    unsigned char *done;     /* (examples.n) */
    struct evaluator evaluator;
};

/* ---- reading ---- */

static const char *last_question(const struct store_row *row) {
    for (size_t i = row->n_messages; i-- > 0;)
        if (strcmp(row->messages[i].role, "user") == 0) return row->messages[i].content;
    return "";
}

/* Its words with one space between. */
static char *words_of(const char *text) {
    const char *end = text + strlen(text);
    size_t n = 0;
    char word[STYLE_WORD_MAX], *out = malloc(2 * strlen(text) + STYLE_WORD_MAX + 2);
    if (!out) return NULL;
    for (size_t size; (size = style_word(&text, end, word)) > 0; n += size + 1) {
        memcpy(out + n, word, size);
        out[n + size] = ' ';
    }
    out[n] = 0;
    return out;
}

static char *excerpt(const char *text) {
    size_t n = strlen(text);
    if (n > EXCERPT_BYTES)
        for (n = EXCERPT_BYTES; n > 0 && ((unsigned char)text[n] & 0xC0) == 0x80;) n--;
    return strndup(text, n);
}

static const char *kind_of(const struct store_row *row) {
    if (row->kind == STORE_EXAMPLE_PREFERENCE) return "pair";
    if (row->kind == STORE_EXAMPLE_THUMB) return row->label < 0 ? "disliked" : "liked";
    return row->edited ? "edit" : "answer";
}

struct adding {
    struct learned_rows *rows;
    int drawn;
};

static int add_example(struct learned_rows *rows, const struct store_row *row, const char *response, size_t *index,
                       attune_error *err) {
    int added = 0;
    int code = example_add(&rows->examples, rows->source.model, row->messages, row->n_messages, response,
                           row->content_hash, row->prompt_hash, rows->source.max_tokens, &added, err);
    if (code == ATTUNE_ERROR_UNSUPPORTED) code = ATTUNE_OK; /* training has left it out too */
    *index = code == ATTUNE_OK && added ? rows->examples.n - 1 : SIZE_MAX;
    return code;
}

static int add_drawn(struct learned_rows *rows, const struct store_row *row, attune_error *err) {
    /* answers to say are all alike to training, whatever their weight */
    struct looked_at item = {.interaction = row->interaction, .time_ms = row->time_ms, .kind = kind_of(row),
                             .weight = row->kind == STORE_EXAMPLE_SFT ? 1 : row->weight, .rejected = SIZE_MAX,
                             .sign = row->kind == STORE_EXAMPLE_THUMB && row->label < 0 ? -1 : 1};
    snprintf(item.id, sizeof item.id, "%s", row->uuid ? row->uuid : "");
    int code = add_example(rows, row, row->response, &item.answer, err);
    if (code != ATTUNE_OK || item.answer == SIZE_MAX) return code;
    if (row->rejected) code = add_example(rows, row, row->rejected, &item.rejected, err);
    if (code != ATTUNE_OK || (row->rejected && item.rejected == SIZE_MAX)) return code;
    item.prompt = excerpt(last_question(row));
    item.text = excerpt(row->response);
    rows->items[rows->n++] = item;
    return item.prompt && item.text ? ATTUNE_OK : error_set_memory(err, "rows of an adapter", EXCERPT_BYTES);
}

static int add_row(const struct store_row *row, void *user, attune_error *err) {
    struct adding *adding = user;
    struct learned_rows *rows = adding->rows;
    rows->interactions[rows->n_asked] = row->interaction;
    if (!(rows->asked[rows->n_asked] = words_of(last_question(row))))
        return error_set_memory(err, "questions of an adapter's rows", 1);
    rows->n_asked++;
    return adding->drawn ? add_drawn(rows, row, err) : ATTUNE_OK;
}

static int by_number(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Hashes are as good as random: evenly spaced ones of the sorted are a fair draw, and the same one every time. */
static int read_rows(struct learned_rows *rows, attune_error *err) {
    char(*hashes)[65] = NULL;
    size_t n = 0, taken = 0, most = rows->source.most;
    int code = store_lineage_hashes(rows->source.store, rows->source.adapter, &hashes, &n, err);
    if (code != ATTUNE_OK) return code;
    rows->asked = calloc(n + 1, sizeof *rows->asked);
    rows->items = calloc(n + 1, sizeof *rows->items);
    rows->interactions = calloc(n + 1, sizeof *rows->interactions);
    if (!rows->asked || !rows->items || !rows->interactions)
        code = error_set_memory(err, "rows of an adapter", n * sizeof *rows->items);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        struct adding adding = {rows, n <= most || (i + 1) * most / n > taken};
        taken += (size_t)adding.drawn;
        code = store_example_get(rows->source.store, hashes[i], add_row, &adding, err);
        if (code == ATTUNE_ERROR_NOT_FOUND) code = ATTUNE_OK; /* forgotten, or not to be used any more */
    }
    free(hashes);
    if (rows->n_asked > 0) qsort(rows->interactions, rows->n_asked, sizeof *rows->interactions, by_number);
    for (size_t i = 0; i < rows->n_asked; i++)
        rows->known += i == 0 || rows->interactions[i] != rows->interactions[i - 1];
    return code;
}

static size_t longest(const struct learned_rows *rows) {
    size_t most = rows->source.micro_tokens;
    for (size_t i = 0; i < rows->examples.n; i++)
        if (rows->examples.items[i].n > most) most = rows->examples.items[i].n;
    return most;
}

static int prepare(struct learned_rows *rows, attune_error *err) {
    size_t n = rows->examples.n;
    struct evaluator_shape shape = {longest(rows), rows->source.lora->config.rank, 1, 0};
    rows->order = malloc((n + 1) * sizeof *rows->order);
    rows->base = calloc(n + 1, sizeof *rows->base);
    rows->adapter = calloc(n + 1, sizeof *rows->adapter);
    rows->done = calloc(n + 1, 1);
    if (!rows->order || !rows->base || !rows->adapter || !rows->done)
        return error_set_memory(err, "rows of an adapter", 4 * n * sizeof *rows->base);
    for (size_t i = 0; i < n; i++) rows->order[i] = i;
    batches_order(&rows->examples, rows->order, n, shape.micro_tokens);
    return n > 0 ? evaluator_create(rows->source.model, rows->source.pool, &shape, 0, &rows->evaluator, err)
                 : ATTUNE_OK;
}

int learned_rows_create(const struct learned_rows_source *source, struct learned_rows **out, attune_error *err) {
    struct learned_rows *rows = calloc(1, sizeof *rows);
    if (!rows) return error_set_memory(err, "rows of an adapter", sizeof *rows);
    rows->source = *source;
    int code = read_rows(rows, err);
    if (code == ATTUNE_OK) code = prepare(rows, err);
    if (code != ATTUNE_OK) {
        learned_rows_destroy(rows);
        return code;
    }
    *out = rows;
    return ATTUNE_OK;
}

void learned_rows_destroy(struct learned_rows *rows) {
    if (!rows) return;
    for (size_t i = 0; i < rows->n; i++) {
        free(rows->items[i].prompt);
        free(rows->items[i].text);
    }
    for (size_t i = 0; i < rows->n_asked; i++) free(rows->asked[i]);
    evaluator_free(&rows->evaluator);
    example_set_free(&rows->examples);
    free(rows->items);
    free(rows->asked);
    free(rows->interactions);
    free(rows->order);
    free(rows->base);
    free(rows->adapter);
    free(rows->done);
    free(rows);
}

int learned_rows_asked(const struct learned_rows *rows, const char *prompt) {
    char *words = words_of(prompt);
    int found = 0;
    for (size_t i = 0; words && i < rows->n_asked && !found; i++) found = strcmp(words, rows->asked[i]) == 0;
    free(words);
    return found;
}

/* ---- judging ---- */

size_t learned_rows_done(const struct learned_rows *rows) { return rows->at; }
size_t learned_rows_total(const struct learned_rows *rows) { return rows->examples.n; }

int learned_rows_unit(struct learned_rows *rows, attune_error *err) {
    const struct learned_rows_source *s = &rows->source;
    const struct weights base = {s->model, s->model->layers, NULL}, adapter = {s->model, s->model->layers, s->lora->pairs};
    const size_t *some = rows->order + rows->at;
    size_t left = rows->examples.n - rows->at;
    if (left == 0) return ATTUNE_DONE;
    size_t n = evaluator_rows(&rows->evaluator.shape, &rows->examples, some, left);
    double *nll = malloc(2 * n * sizeof *nll);
    if (!nll) return error_set_memory(err, "losses of rows", 2 * n * sizeof *nll);
    int code = evaluator_run(&rows->evaluator, &base, NULL, &rows->examples, some, n, nll, err);
    if (code == ATTUNE_OK)
        code = evaluator_run(&rows->evaluator, &adapter, NULL, &rows->examples, some, n, nll + n, err);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        rows->base[some[i]] = nll[i];
        rows->adapter[some[i]] = nll[n + i];
        rows->done[some[i]] = 1;
    }
    free(nll);
    if (code != ATTUNE_OK) return code;
    rows->at += n;
    return rows->at < rows->examples.n ? ATTUNE_CONTINUE : ATTUNE_DONE;
}

/* ---- the result ---- */

struct figures {
    const struct looked_at *item;
    double base, adapter, moved, gain; /* gain: weight times moved, of all rows of its interaction */
    double own;                        /* its own part of gain */
    size_t tokens;
};

static int is_done(const struct learned_rows *rows, const struct looked_at *item) {
    return rows->done[item->answer] && (item->rejected == SIZE_MAX || rows->done[item->rejected]);
}

static double mean(const struct learned_rows *rows, const double *sums, size_t example) {
    return sums[example] / (double)rows->examples.items[example].n_supervised;
}

static struct figures figures_of(const struct learned_rows *rows, const struct looked_at *item) {
    struct figures f = {.item = item, .base = mean(rows, rows->base, item->answer),
                        .adapter = mean(rows, rows->adapter, item->answer),
                        .tokens = rows->examples.items[item->answer].n_supervised};
    f.moved = item->sign * (f.base - f.adapter);
    if (item->rejected != SIZE_MAX)
        f.moved -= mean(rows, rows->base, item->rejected) - mean(rows, rows->adapter, item->rejected);
    f.own = f.gain = item->weight * f.moved;
    return f;
}

static int by_interaction(const void *a, const void *b) {
    const struct figures *x = a, *y = b;
    if (x->item->interaction != y->item->interaction) return x->item->interaction < y->item->interaction ? -1 : 1;
    return x->own > y->own ? -1 : x->own < y->own;
}
static int by_gain(const void *a, const void *b) {
    const struct figures *x = a, *y = b;
    if (x->gain != y->gain) return x->gain > y->gain ? -1 : 1;
    return x->item->interaction < y->item->interaction ? -1 : 1;
}

/* What one interaction has given (an edit, a pair, a thumb) is one row: it shows the part that moved most. */
static size_t join(struct figures *f, size_t n) {
    size_t kept = 0;
    if (n > 0) qsort(f, n, sizeof *f, by_interaction);
    for (size_t i = 0; i < n; i++) {
        if (kept > 0 && f[kept - 1].item->interaction == f[i].item->interaction) f[kept - 1].gain += f[i].gain;
        else f[kept++] = f[i];
    }
    if (kept > 0) qsort(f, kept, sizeof *f, by_gain);
    return kept;
}

static json_t *real(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *row_json(const struct figures *f, double gain) {
    const struct looked_at *item = f->item;
    return json_pack("{s:s, s:s, s:I, s:o, s:o, s:o, s:o, s:o, s:I, s:s, s:s}", "id", item->id, "kind", item->kind,
                     "time_ms", (json_int_t)item->time_ms, "moved", real(f->moved), "weight", real(item->weight),
                     "share", real(f->gain > 0 && gain > 0 ? f->gain / gain : 0), "loss_base", real(f->base),
                     "loss_adapter", real(f->adapter), "tokens", (json_int_t)f->tokens, "prompt", item->prompt,
                     "answer", item->text);
}

int learned_rows_result(const struct learned_rows *rows, json_t *result, json_t *summary, attune_error *err) {
    struct figures *f = malloc((rows->n + 1) * sizeof *f);
    json_t *array = json_array();
    double gain = 0, base = 0, adapter = 0;
    size_t n = 0, says = 0;
    if (!f || !array) goto memory;
    for (size_t i = 0; i < rows->n; i++) {
        if (!is_done(rows, &rows->items[i])) continue;
        f[n] = figures_of(rows, &rows->items[i]);
        int say = rows->items[i].rejected == SIZE_MAX && strcmp(rows->items[i].kind, "disliked") != 0;
        base += say ? f[n].base : 0;
        adapter += say ? f[n].adapter : 0;
        says += (size_t)say;
        n++;
    }
    n = join(f, n);
    for (size_t i = 0; i < n; i++) gain += f[i].gain > 0 ? f[i].gain : 0;
    for (size_t i = 0; i < n; i++)
        if (json_array_append_new(array, row_json(&f[i], gain)) != 0) goto memory;
    free(f);
    f = NULL;
    if (json_object_set_new(result, "rows", array) != 0) {
        array = NULL;
        goto memory;
    }
    json_t *mine = json_pack("{s:I, s:I, s:o, s:o, s:o}", "rows_known", (json_int_t)rows->known, "rows", (json_int_t)n,
                             "loss_base", real(says ? base / (double)says : NAN), "loss_adapter",
                             real(says ? adapter / (double)says : NAN), "gain", real(gain));
    int failed = !mine || json_object_update(summary, mine) != 0;
    json_decref(mine);
    return failed ? error_set_memory(err, "what was learned", 1 << 12) : ATTUNE_OK;
memory:
    free(f);
    json_decref(array);
    return error_set_memory(err, "what was learned", rows->n * EXCERPT_BYTES);
}
