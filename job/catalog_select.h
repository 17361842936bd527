/* Which entries of a catalog resemble a person, by the rows of theirs. */
#ifndef JOB_CATALOG_SELECT_H
#define JOB_CATALOG_SELECT_H

#include "adapters/catalog.h"
#include "trainer/trainer.h"

struct catalog_question {
    const struct catalog *catalog;
    const struct model *model;
    struct pool *pool;
    const struct example_set *set; /* answers to say */
};

/* Sums of nats of rows[0..n) under an entry: nll(n); entry NULL: under the base. */
int catalog_losses(const struct catalog_question *question, const struct catalog_entry *entry, const size_t *rows,
                   size_t n, double *nll, attune_error *err);
/* The first-order estimate of what each entry takes from the loss of rows[0..n), a mean of rows in nats a token: minus
 * the inner product of the gradient at the base with the entry's BA: gain(catalog->n). From one backward pass for as
 * many entries as have LORA_RANK_MAX ranks together, since the gradient of a pair whose B is 0 and whose A are those of
 * the entries, one below the other, is G A^T. each 1: for each row by itself, gain(n, catalog->n). */
int catalog_gains(const struct catalog_question *question, const size_t *rows, size_t n, int each, double *gain,
                  attune_error *err);

#endif
