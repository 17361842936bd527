/* Engine: a base, and what it serves: the base with an adapter. What job/ and bench/ see beside the public functions. */
#ifndef INFERENCE_ENGINE_H
#define INFERENCE_ENGINE_H

#include "adapters/adapter_file.h"
#include "adapters/merge.h"

#include <pthread.h>
#include <stdatomic.h>

/* A base with one adapter in one merge mode. Immutable; counted: the engine holds the one that it serves now, every
 * session the one that it began with. */
struct variant {
    atomic_int holders;
    struct lora *lora;      /* NULL: the base alone, or merged */
    struct merged *merged;  /* NULL: mode none */
    enum merge_mode merge;  /* MERGE_NONE for the base alone */
    struct weights weights; /* to run with */
    char adapter_sha256[65];
    int adapter_number;     /* 0 base, -1 a file */
    char current[128];      /* CURRENT as it was, for attune_engine_is_stale; "" without a home */
    int from_cache;
    double seconds_merge, seconds_open;
};

struct attune_engine {
    struct model *model;
    struct pool *pool;
    enum precision precision;
    pthread_mutex_t lock;    /* of `variant`, the pointer */
    struct variant *variant; /* served now */
    char home[1024];         /* "" without one */
    int64_t process;         /* that opened it: its threads are in no forked child */
};

/* The parts that a home adds are job's: this opens files. base_sha256 may be NULL (then it is not checked
 * against the adapter's record). adapter NULL: base. number as in variant.adapter_number. */
int engine_create(const char *base, const char *base_sha256, const char *adapter, int number, enum merge_mode merge,
                  const attune_engine_options *options, attune_engine **out, attune_error *err);
/* What is served now; let go of with engine_release. */
struct variant *engine_hold(attune_engine *engine);
void engine_release(struct variant *variant);
/* ATTUNE_ERROR_STATE in a child that was forked after the engine was opened. */
int engine_check_process(const attune_engine *engine, attune_error *err);
/* Rank of the pairs that run beside the matrices; 0: none do. */
size_t variant_rank(const struct variant *variant);

#endif
