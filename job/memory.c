/* The peak is that of one of three moments, training, judging, and measuring the drift of merging: none's activations
 * live beside another's. What is left under the ceiling goes to activations, where it saves time. */
#include "job/memory.h"

#include "job/looks.h"

/* ---- what is there in any case ---- */

/* Chosen so that whole runs of a 135M base peak a little below what is told (docs/benchmarks.md): code and
 * data of the libraries, the heap, a connection to the store without its cache; of each thread the stack and a heap;
 * of each token of the vocabulary the tokenizer's tables. */
static const uint64_t PROCESS = 12 << 20, EACH_THREAD = 256 << 10, EACH_TOKEN = 72;
/* SQLite's cache: of each row what is read of it, up to the most that a connection keeps (datastore/connection.c). */
static const uint64_t STORE_CACHE_ROW = 8 << 10, STORE_CACHE = 8000 << 10;

/* The plan's examples; a conversation is taken to be half as long as it may be. */
static uint64_t examples_bytes(const struct memory_needs *needs) {
    uint64_t tokens = needs->rows * needs->settings->train.max_tokens / 2;
    return tokens * (sizeof(int32_t) + sizeof(uint8_t)) + needs->rows * (sizeof(struct example) + 128);
}

static uint64_t cache_bytes(const struct memory_needs *needs) {
    uint64_t bytes = needs->rows * STORE_CACHE_ROW;
    return bytes < STORE_CACHE ? bytes : STORE_CACHE;
}

static uint64_t lora_bytes(const struct model *model, const struct lora_config *config) {
    return lora_count(model, config->rank, config->targets) * sizeof(float);
}

/* A training that is looked at more than once keeps what the last look saw. */
static uint64_t kept_bytes(const struct memory_needs *needs) {
    double epochs = needs->settings->epochs;
    int once = epochs > 0 && looks_expected(epochs) == 1;
    return once ? 0 : trainer_kept_bytes(needs->model, &needs->settings->train);
}

static uint64_t always_bytes(const struct memory_needs *needs) {
    const struct model *model = needs->model;
    uint64_t adapters = (needs->opponent ? lora_bytes(model, needs->opponent) : 0) +
                        (needs->parent_apart ? lora_bytes(model, &needs->settings->train.lora) : 0);
    return model->gguf->file.size + PROCESS + EACH_THREAD * (uint64_t)needs->threads + EACH_TOKEN * model->V +
           cache_bytes(needs) + examples_bytes(needs) + adapters + kept_bytes(needs) +
           trainer_state_bytes(model, &needs->settings->train);
}

/* ---- the moments ---- */

struct evaluator_shape memory_evaluator_shape(const struct train_config *config, enum merge_mode merge,
                                              const struct lora_config *opponent) {
    size_t rank = config->lora.rank;
    return (struct evaluator_shape){
        .micro_tokens = config->micro_tokens,
        .rank_max = opponent && opponent->rank > rank ? opponent->rank : rank,
        .together = merge == MERGE_NONE ? 1 : JUDGED_TOGETHER,
    };
}

/* Of a layer merged; opponent and candidate are not merged at the same time. */
static uint64_t merging_bytes(const struct memory_needs *needs) {
    const struct settings *s = needs->settings;
    uint32_t targets = s->train.lora.targets | (needs->opponent ? needs->opponent->targets : 0);
    return layer_merge_bytes(needs->model, needs->threads, targets, settings_judged(s));
}

struct evaluator_shape memory_drift_shape(const struct train_config *config, const struct lora_config *opponent) {
    struct evaluator_shape shape = memory_evaluator_shape(config, MERGE_F16, opponent);
    shape.drift = 1;
    return shape;
}

static uint64_t train_bytes(const struct memory_needs *needs, size_t bytes, size_t *kept) {
    struct pass_shape shape = trainer_pass_shape(needs->model, needs->threads, &needs->settings->train, bytes);
    *kept = shape.kept;
    return training_pass_bytes(needs->model, needs->threads, &shape);
}

static uint64_t judge_bytes(const struct memory_needs *needs, size_t bytes) {
    const struct settings *s = needs->settings;
    struct evaluator_shape shape = memory_evaluator_shape(&s->train, settings_judged(s), needs->opponent);
    shape.drift = 1; /* the reference set is judged with both, base and candidate */
    return evaluator_bytes(needs->model, needs->threads, &shape, bytes);
}

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* Of a layer merged in the mode that takes the most: each is measured. */
static uint64_t drift_merging_bytes(const struct memory_needs *needs) {
    const struct settings *s = needs->settings;
    uint32_t targets = s->train.lora.targets | (needs->opponent ? needs->opponent->targets : 0);
    uint64_t f16 = layer_merge_bytes(needs->model, needs->threads, targets, MERGE_F16);
    return larger(f16, layer_merge_bytes(needs->model, needs->threads, targets, MERGE_SAME));
}

static uint64_t drift_bytes(const struct memory_needs *needs, size_t bytes) {
    struct evaluator_shape shape = memory_drift_shape(&needs->settings->train, needs->opponent);
    return evaluator_bytes(needs->model, needs->threads, &shape, bytes);
}

/* It is optional: it takes what the other moments take, more where that is too little and allowed, or nothing. */
static void plan_drift(const struct memory_needs *needs, uint64_t always, uint64_t left, struct memory_plan *out) {
    uint64_t merging = drift_merging_bytes(needs), least = drift_bytes(needs, 0);
    uint64_t room = out->peak - always > merging ? out->peak - always - merging : 0;
    out->drift_bytes = 0;
    if (out->peak - always < least + merging && left < least + merging) return;
    out->drift_bytes = larger(room, least);
    out->peak = larger(out->peak, always + drift_bytes(needs, out->drift_bytes) + merging);
}

static uint64_t left_of(uint64_t ceiling, uint64_t taken) { return ceiling > taken ? ceiling - taken : 0; }

void memory_plan_make(const struct memory_needs *needs, uint64_t ceiling, struct memory_plan *out) {
    uint64_t always = always_bytes(needs), merging = merging_bytes(needs), left = left_of(ceiling, always);
    size_t kept;
    out->least = always + larger(train_bytes(needs, 0, &kept), judge_bytes(needs, 0) + merging);
    out->train_bytes = left;
    out->judge_bytes = left_of(left, merging);
    out->peak = always + larger(train_bytes(needs, out->train_bytes, &out->kept),
                                judge_bytes(needs, out->judge_bytes) + merging);
    plan_drift(needs, always, left, out);
    out->drift_room = out->peak - always;
}

int memory_count_rows(attune_store *store, uint64_t *rows, attune_error *err) {
    int64_t interactions, consented, feedback, fresh;
    int code = store_counts(store, &interactions, &consented, &feedback, &fresh, err);
    if (code != ATTUNE_OK) return code;
    *rows = consented < PLAN_NEWEST ? (uint64_t)consented : PLAN_NEWEST;
    return ATTUNE_OK;
}
