/* How far each row that an adapter was trained on has moved, and so how much it has moved the adapter.
 *
 * Training makes the mean over rows of weight times the row's mean loss smaller. So the fall of a row's own loss from
 * the base to the adapter, times its weight, is its part of what training has reached; and it is exactly what the inner
 * product of the row's gradient with the adapter's movement adds up to along the way from one to the other (for a path
 * from the base, whichever A began with: B is zero there). No linearisation, and two forward passes a row. It says what
 * a row has in common with what was learned, not what the adapter would be without it. */
#ifndef JOB_LEARNED_ROWS_H
#define JOB_LEARNED_ROWS_H

#include "datastore/store.h"
#include "trainer/trainer.h"

#include <jansson.h>

struct learned_rows;
struct learned_rows_source {
    attune_store *store;
    const struct model *model;
    const struct lora *lora;
    struct pool *pool;
    int adapter;
    size_t most;                      /* rows to look at */
    size_t max_tokens, micro_tokens;
};
/* Reads the rows out of the store: those of the adapter's lineage that are still there. */
int learned_rows_create(const struct learned_rows_source *source, struct learned_rows **out, attune_error *err);
void learned_rows_destroy(struct learned_rows *rows);
/* Of all rows, the drawn or not: 1: its last question is this one, whatever case and marks it has. */
int learned_rows_asked(const struct learned_rows *rows, const char *prompt);
/* Rows whose losses are there, and rows in all: examples of both, which may be two for a row. */
size_t learned_rows_done(const struct learned_rows *rows);
size_t learned_rows_total(const struct learned_rows *rows);
/* The losses of some rows, under base and adapter. ATTUNE_CONTINUE, ATTUNE_DONE, or an error. */
int learned_rows_unit(struct learned_rows *rows, attune_error *err);
/* Of what is done: "rows" into result, and its figures into summary; one object for each interaction. */
int learned_rows_result(const struct learned_rows *rows, json_t *result, json_t *summary, attune_error *err);

#endif
