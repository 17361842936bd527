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

/* What a variant is to be. Texts are borrowed. */
struct variant_request {
    const char *adapter;  /* a file; NULL: the base */
    int number;           /* as variant.adapter_number */
    const char *sha256;   /* that the file must have; NULL or "": any */
    const char *current;  /* as variant.current; NULL: "" */
    const char *cache;    /* folder of merged weights; NULL: none */
    enum merge_mode merge; /* not auto */
    int automatic;        /* 1: where `merge` cannot be had, none will do */
    const struct merge_progress *progress; /* NULL: nobody looks */
    double from;          /* engine_now() when opening began */
};

struct attune_engine {
    struct model *model;
    struct pool *pool;
    enum precision precision;
    pthread_mutex_t lock;     /* of `variant`, the pointer */
    pthread_mutex_t swapping; /* held for a whole swap */
    struct variant *variant;  /* served now */
    char home[1024];          /* "" without one */
    char cache[1040];         /* folder of merged weights; "": none */
    /* as asked for at open, for swaps that do not say; "": nothing was said */
    char adapter[1088], merge[16];
    double drift_limit;
    char base_sha256[65];     /* of a base opened without an adapter, from the first swap to one on; under `swapping` */
    int64_t process;          /* that opened it: its threads are in no forked child */
};

/* Precision and drift limit, which no other part checks. */
int engine_options_check(const attune_engine_options *options, attune_error *err);
/* Seconds of a clock that goes on. */
double engine_now(void);
/* Serves `request` over the model, which is the engine's from the call on, whatever comes of it. */
int engine_create(struct model *model, const struct variant_request *request, const attune_engine_options *options,
                  attune_engine **out, attune_error *err);
/* The same engine serves `request` from now on. The caller holds `swapping`. */
int engine_replace(attune_engine *engine, const struct variant_request *request, attune_error *err);
/* attune_engine_swap for an engine without a home. */
int engine_swap_files(attune_engine *engine, const char *adapter, const char *merge, attune_error *err);
/* What is served now; let go of with engine_release. */
struct variant *engine_hold(const attune_engine *engine);
void engine_release(struct variant *variant);
/* ATTUNE_ERROR_STATE in a child that was forked after the engine was opened. */
int engine_check_process(const attune_engine *engine, attune_error *err);
/* Rank of the pairs that run beside the matrices; 0: none do. */
size_t variant_rank(const struct variant *variant);

#endif
