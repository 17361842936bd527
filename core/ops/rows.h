/* Running an operation row by row: in chunks over the pool, or at once when there are few rows. */
#ifndef CORE_OPS_ROWS_H
#define CORE_OPS_ROWS_H

#include "core/ops/ops.h"

enum { ROWS_CHUNK = 16, ROWS_INLINE = 4 };

struct rows {
    void (*body)(const void *argument, size_t first, size_t last);
    const void *argument;
    size_t n, chunk;
};

static inline void rows_task(void *argument, size_t i, int worker) {
    const struct rows *rows = (const struct rows *)argument;
    (void)worker;
    size_t first = i * rows->chunk, last = first + rows->chunk;
    rows->body(rows->argument, first, last < rows->n ? last : rows->n);
}

/* body must treat each row by itself: where chunks begin may not matter. */
static inline void rows_run(const struct ops *ops, size_t n, void (*body)(const void *, size_t, size_t),
                            const void *argument) {
    if (n <= ROWS_INLINE) {
        body(argument, 0, n);
        return;
    }
    struct rows rows = {body, argument, n, ROWS_CHUNK};
    pool_run(ops->pool, (n + ROWS_CHUNK - 1) / ROWS_CHUNK, rows_task, &rows);
}

#endif
