#include "core/base/arena.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64 };

void *arena_take(struct arena *arena, size_t count, size_t each) {
    size_t bytes, end;
    if (!checked_mul(count, each, &bytes) || !checked_add(bytes, ALIGNMENT - 1, &bytes)) {
        arena->overflow = 1;
        return NULL;
    }
    bytes &= ~(size_t)(ALIGNMENT - 1);
    if (!checked_add(arena->used, bytes, &end)) {
        arena->overflow = 1;
        return NULL;
    }
    char *p = arena->memory ? arena->memory + arena->used : NULL;
    assert(!arena->memory || end <= arena->size);
    arena->used = end;
    return p;
}

int arena_commit(struct arena *arena, const char *what, attune_error *err) {
    if (arena->overflow) return error_set(err, ATTUNE_ERROR_MEMORY, NULL, "sizes overflow for %s", what);
    size_t size = arena->used ? arena->used : ALIGNMENT;
    /* mmap: zeroed, and resident only where it is touched */
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return error_set_memory(err, what, size);
    arena->memory = p;
    arena->size = size;
    arena->used = 0;
    return ATTUNE_OK;
}

void arena_free(struct arena *arena) {
    if (arena->memory) munmap(arena->memory, arena->size);
    *arena = (struct arena){0};
}
