/* Engine: base + adapter, immutable, shared. What job/ and bench/ see beside the public functions. */
#ifndef INFERENCE_ENGINE_H
#define INFERENCE_ENGINE_H

#include "adapters/adapter_file.h"
#include "adapters/merge.h"

struct attune_engine {
    struct model *model;
    struct lora *lora;      /* NULL: the base alone, or merged: then its parameters are in `merged` */
    struct merged *merged;  /* NULL: mode none */
    enum merge_mode merge;  /* MERGE_NONE for the base alone */
    struct weights weights; /* to run with */
    struct pool *pool;
    char adapter_sha256[65];
    int adapter_number;     /* 0 base, -1 a file */
    char home[1024];        /* "" without one */
    char current[128];      /* CURRENT as it was at open, for attune_engine_is_stale */
    int64_t process;        /* that opened it: its threads are in no forked child */
};

/* The parts that a home adds are job's: this opens files. base_sha256 may be NULL (then it is not checked
 * against the adapter's record). adapter NULL: base. number as in attune_engine.adapter_number. */
int engine_create(const char *base, const char *base_sha256, const char *adapter, int number, enum merge_mode merge,
                  int threads, enum file_load load, attune_engine **out, attune_error *err);
/* ATTUNE_ERROR_STATE in a child that was forked after the engine was opened. */
int engine_check_process(const attune_engine *engine, attune_error *err);
/* Rank of the pairs that run beside the matrices; 0: none do. */
size_t engine_rank(const attune_engine *engine);

#endif
