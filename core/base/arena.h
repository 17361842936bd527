/* One allocation per long-lived object, whose size can be asked for first.
 *
 * Two passes over the same code: an arena without memory only counts, so `size` is what the
 * second pass needs. Blocks are 64-byte aligned and zeroed. Not thread-safe. */
#ifndef CORE_BASE_ARENA_H
#define CORE_BASE_ARENA_H

#include "core/base/error.h"

struct arena {
    char *memory; /* NULL: counting */
    size_t size, used;
    int overflow; /* a count wrapped: arena_commit refuses */
};

/* count elements of `each` bytes; NULL while counting. */
void *arena_take(struct arena *arena, size_t count, size_t each);
/* After the counting pass: allocate what was counted, ready for the second pass. */
int arena_commit(struct arena *arena, const char *what, attune_error *err);
void arena_free(struct arena *arena);

#define ARENA_TAKE(arena, type, count) ((type *)arena_take((arena), (count), sizeof(type)))

#endif
