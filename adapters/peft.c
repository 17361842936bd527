/* In adapter_model.safetensors, for layer N and each target:
 *
 *   base_model.model.model.layers.N.<module>.lora_A.weight  (R, in)
 *   base_model.model.model.layers.N.<module>.lora_B.weight  (out, R)
 *
 * where PEFT in memory has "lora_A.default.weight"; some tools write that, and it is read too. */
#include "adapters/peft.h"

#include "adapters/safetensors.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_SIZE = 1024, CONFIG_MAX = 256 << 10, CONFIG_VALUES_MAX = 65536, CONFIG_DEPTH_MAX = 32, NAME_SIZE = 96 };

#define CONFIG_FILE "adapter_config.json"
#define TENSORS_FILE "adapter_model.safetensors"
static const char prefix[] = "base_model.model.model.layers.";

/* In the order of enum target. */
static const char *const modules[TARGET_COUNT] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                  "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                  "mlp.down_proj"};

static int join(char out[PATH_SIZE], const char *folder, const char *file, attune_error *err) {
    int n = snprintf(out, PATH_SIZE, "%s/%s", folder, file);
    if (n > 0 && n < PATH_SIZE) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path of a PEFT folder is too long");
}

/* ---- rows of q and k ---- */

static int is_permuted(const struct model *model, size_t target) {
    return model->rope.style == ROPE_INTERLEAVED && (target == TARGET_Q || target == TARGET_K);
}

/* Of each head's D rows, GGUF has at 2 i + j what Hugging Face has at j * D/2 + i, j in {0, 1}.
 * to, from (rows, R). */
static void rows_permute(float *to, const float *from, size_t rows, size_t D, size_t R, int to_gguf) {
    for (size_t head = 0; head < rows; head += D) {
        for (size_t i = 0; i < D / 2; i++) {
            for (size_t j = 0; j < 2; j++) {
                size_t gguf = head + 2 * i + j, hf = head + j * (D / 2) + i;
                memcpy(to + (to_gguf ? gguf : hf) * R, from + (to_gguf ? hf : gguf) * R, R * sizeof *to);
            }
        }
    }
}

/* Room for B of the larger of q and k. */
static size_t permuted_floats(const struct lora *lora, const struct model *model) {
    size_t rows = 0;
    for (size_t l = 0; l < model->L; l++)
        for (size_t t = TARGET_Q; t <= TARGET_K; t++)
            if (rows < model->layers[l].linear[t].rows) rows = model->layers[l].linear[t].rows;
    return rows * lora->config.rank;
}

/* ---- export ---- */

/* lora_alpha is an int in PEFT's own configurations; other numbers are read as well. */
static json_t *number(double value) {
    return value == floor(value) ? json_integer((json_int_t)value) : json_real(value);
}

static char *config_text(const struct lora *lora) {
    json_t *targets = json_array();
    for (size_t t = 0; t < TARGET_COUNT; t++)
        if (lora->config.targets >> t & 1) json_array_append_new(targets, json_string(strchr(modules[t], '.') + 1));
    int count = __builtin_popcount(lora->config.targets);
    json_t *config = json_pack("{s:s, s:s, s:I, s:o, s:o, s:s, s:f, s:b, s:b, s:b, s:b, s:b, s:n, s:n, s:n,"
                               " s:{}, s:{}}",
                               "peft_type", "LORA", "task_type", "CAUSAL_LM", "r", (json_int_t)lora->config.rank,
                               "lora_alpha", number((double)lora->config.alpha), "target_modules", targets, "bias",
                               "none", "lora_dropout", 0.0, "inference_mode", 1, "init_lora_weights", 1,
                               "fan_in_fan_out", 0, "use_rslora", 0, "use_dora", 0, "base_model_name_or_path",
                               "modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern");
    char *text = NULL;
    if (config && json_array_size(json_object_get(config, "target_modules")) == (size_t)count)
        text = json_dumps(config, JSON_INDENT(2) | JSON_SORT_KEYS);
    json_decref(config);
    return text;
}

static int write_config(const struct lora *lora, const char *path, attune_error *err) {
    struct file_writer writer = {0};
    char *text = config_text(lora);
    if (!text) return error_set_memory(err, CONFIG_FILE, CONFIG_MAX);
    int code = file_writer_open(path, "peft.config", &writer, err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, text, strlen(text), err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, "\n", 1, err);
    if (code == ATTUNE_OK) code = file_writer_publish_new(&writer, err);
    file_writer_abandon(&writer);
    free(text);
    return code;
}

static void tensor_describe(struct safetensors_tensor *tensor, char name[NAME_SIZE], size_t layer, size_t target,
                            char half, size_t rows, size_t cols, const float *data) {
    snprintf(name, NAME_SIZE, "%s%zu.%s.lora_%c.weight", prefix, layer, modules[target], half);
    *tensor = (struct safetensors_tensor){
        .name = name, .n_dims = 2, .shape = {rows, cols}, .data = (const unsigned char *)data};
}

static int write_tensors(const struct lora *lora, const struct model *model, const char *path, attune_error *err) {
    size_t most = lora->L * TARGET_COUNT * 2, n = 0, each = permuted_floats(lora, model), n_permuted = 0;
    struct safetensors_tensor *tensors = calloc(most, sizeof *tensors);
    char(*names)[NAME_SIZE] = calloc(most, sizeof *names);
    float *permuted = calloc(lora->L * 2 * each, sizeof *permuted);
    int code;
    if (!tensors || !names || !permuted) {
        code = error_set_memory(err, TENSORS_FILE, most * (sizeof *tensors + sizeof *names) + lora->L * 8 * each);
        goto out;
    }
    for (size_t l = 0; l < lora->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct low_rank *pair = &lora->pairs[l].target[t];
            if (pair->rank == 0) continue;
            const struct matrix *w = &model->layers[l].linear[t];
            const float *b = pair->b;
            if (is_permuted(model, t)) {
                float *to = permuted + each * n_permuted++;
                rows_permute(to, pair->b, w->rows, model->D, pair->rank, 0);
                b = to;
            }
            tensor_describe(&tensors[n], names[n], l, t, 'A', pair->rank, w->cols, pair->a);
            n++;
            tensor_describe(&tensors[n], names[n], l, t, 'B', w->rows, pair->rank, b);
            n++;
        }
    }
    code = safetensors_write_f32(tensors, n, path, "peft.tensors", err);
out:
    free(tensors);
    free(names);
    free(permuted);
    return code;
}

static int refuse_existing(const char *path, attune_error *err) {
    struct stat st;
    if (lstat(path, &st) != 0 && errno == ENOENT) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_STATE, path, "this file exists already: export into another folder");
}

int peft_export(const struct lora *lora, const struct model *model, const char *folder, attune_error *err) {
    char config[PATH_SIZE], tensors[PATH_SIZE];
    int code = join(config, folder, CONFIG_FILE, err), made = 0;
    if (code == ATTUNE_OK) code = join(tensors, folder, TENSORS_FILE, err);
    if (code == ATTUNE_OK) code = lora_check_finite(lora, model, NULL, err);
    if (code != ATTUNE_OK) return code;
    made = mkdir(folder, 0700) == 0;
    if (!made && errno != EEXIST) return error_set_errno(err, folder, "cannot make the folder");
    if ((code = refuse_existing(config, err)) != ATTUNE_OK) return code;
    if ((code = refuse_existing(tensors, err)) != ATTUNE_OK) return code;
    if ((code = write_tensors(lora, model, tensors, err)) == ATTUNE_OK) {
        code = write_config(lora, config, err);
        if (code == ATTUNE_ERROR_IO) unlink(config);
        if (code != ATTUNE_OK) unlink(tensors);
    } else if (code == ATTUNE_ERROR_IO) {
        unlink(tensors); /* in place, but not durable; ATTUNE_ERROR_STATE: somebody else's */
    }
    if (code != ATTUNE_OK && made) rmdir(folder);
    return code;
}

/* ---- import: the configuration ---- */

/* null, false, 0, "", [] and {} */
static int is_empty(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_STRING: return json_string_length(value) == 0;
    case JSON_ARRAY: return json_array_size(value) == 0;
    case JSON_OBJECT: return json_object_size(value) == 0;
    case JSON_INTEGER:
    case JSON_REAL: return json_number_value(value) == 0;
    case JSON_TRUE: return 0;
    default: return 1;
    }
}

/* Settings that say nothing about the sum W + scale B A: how it was trained, or what the tensors' names tell. */
static const char *const harmless[] = {
    "task_type",         "auto_mapping",     "peft_version",  "base_model_name_or_path", "revision",
    "inference_mode",    "target_modules",   "lora_dropout",  "exclude_modules",         "megatron_core",
    "qalora_group_size", "runtime_config",   "eva_config",    "velora_config",           "ensure_weight_tying",
    "layers_pattern",    "peft_type",        "r",             "lora_alpha",              "bias",
    "use_rslora",        "init_lora_weights"};

static int refuse(const char *path, const char *key, const json_t *value, attune_error *err) {
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    error_set(err, ATTUNE_ERROR_UNSUPPORTED, path,
              "%.64s is %.100s: attune supports plain LoRA; train or convert the adapter without it", key,
              text ? text : "not empty");
    free(text);
    return ATTUNE_ERROR_UNSUPPORTED;
}

static int text_is(const json_t *value, const char *text) {
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

/* Initializations that leave the base as it is; the others train against changed base weights. */
static int init_leaves_base(const json_t *value) {
    return !value || json_is_boolean(value) || json_is_null(value) || text_is(value, "gaussian") ||
           text_is(value, "eva") || text_is(value, "orthogonal");
}

static int check_settings(const json_t *config, const char *path, attune_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)config, key, value) {
        size_t i = 0, n = sizeof harmless / sizeof *harmless;
        while (i < n && strcmp(key, harmless[i]) != 0) i++;
        if (i == n && !is_empty(value)) return refuse(path, key, value, err);
    }
    const json_t *type = json_object_get(config, "peft_type"), *bias = json_object_get(config, "bias");
    const json_t *init = json_object_get(config, "init_lora_weights");
    if (!type)
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "no peft_type: not the configuration of a PEFT adapter");
    if (!text_is(type, "LORA")) return refuse(path, "peft_type", type, err);
    if (bias && !json_is_null(bias) && !text_is(bias, "none")) return refuse(path, "bias", bias, err);
    if (!init_leaves_base(init)) return refuse(path, "init_lora_weights", init, err);
    return ATTUNE_OK;
}

static int read_numbers(const json_t *config, const char *path, size_t *rank, float *alpha, attune_error *err) {
    const json_t *r = json_object_get(config, "r"), *a = json_object_get(config, "lora_alpha");
    const json_t *rslora = json_object_get(config, "use_rslora");
    if (!json_is_integer(r) || json_integer_value(r) < 1 || json_integer_value(r) > LORA_RANK_MAX)
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "r must be a whole number of 1 to %d", LORA_RANK_MAX);
    if (!json_is_number(a) || json_number_value(a) == 0 || fabs(json_number_value(a)) > LORA_ALPHA_MAX)
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "lora_alpha must be a number, not 0 and at most %d in size",
                         LORA_ALPHA_MAX);
    if (rslora && !json_is_boolean(rslora) && !json_is_null(rslora))
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "use_rslora must be true or false");
    *rank = (size_t)json_integer_value(r);
    /* alpha' / R = alpha / sqrt(R) */
    *alpha = (float)(json_is_true(rslora) ? json_number_value(a) * sqrt((double)*rank) : json_number_value(a));
    return ATTUNE_OK;
}

static int read_config(const char *path, size_t *rank, float *alpha, attune_error *err) {
    struct file_bytes file = {0};
    json_t *config = NULL;
    json_error_t json_error;
    int code = file_bytes_open(path, FILE_READ, CONFIG_MAX, &file, err);
    if (code != ATTUNE_OK) return code;
    code = json_text_check((const char *)file.data, file.size, CONFIG_VALUES_MAX, CONFIG_DEPTH_MAX, path, err);
    if (code != ATTUNE_OK) goto out;
    config = json_loadb((const char *)file.data, file.size, JSON_REJECT_DUPLICATES, &json_error);
    if (!config && (json_error_code(&json_error) == json_error_out_of_memory || !json_error.text[0]))
        code = error_set_memory(err, CONFIG_FILE, file.size);
    else if (!config)
        code = error_set(err, ATTUNE_ERROR_FORMAT, path, "not valid JSON: line %d, %s", json_error.line,
                         json_error.text);
    else if (!json_is_object(config))
        code = error_set(err, ATTUNE_ERROR_FORMAT, path, "not a JSON object");
    else if ((code = check_settings(config, path, err)) == ATTUNE_OK)
        code = read_numbers(config, path, rank, alpha, err);
out:
    json_decref(config);
    file_bytes_close(&file);
    return code;
}

/* ---- import: the tensors ---- */

/* Past `text` if it comes next. */
static int skip(const char **at, const char *text) {
    size_t n = strlen(text);
    if (strncmp(*at, text, n) != 0) return 0;
    *at += n;
    return 1;
}

static int parse_name(const char *name, size_t *layer, enum target *target, int *half) {
    const char *at = name;
    size_t n = 0, digits = 0, t = 0;
    if (!skip(&at, prefix)) return 0;
    if (at[0] == '0' && isdigit((unsigned char)at[1])) return 0;
    for (; isdigit((unsigned char)*at) && digits < 9; at++, digits++) n = n * 10 + (size_t)(*at - '0');
    if (digits == 0 || !skip(&at, ".")) return 0;
    while (t < TARGET_COUNT && !skip(&at, modules[t])) t++;
    if (t == TARGET_COUNT) return 0;
    if (skip(&at, ".lora_A")) *half = LORA_HALF_A;
    else if (skip(&at, ".lora_B")) *half = LORA_HALF_B;
    else return 0;
    skip(&at, ".default");
    *layer = n;
    *target = (enum target)t;
    return strcmp(at, ".weight") == 0;
}

static int find_type(const char *dtype, enum block_type *type) {
    if (strcmp(dtype, "F32") == 0) *type = BLOCK_F32;
    else if (strcmp(dtype, "F16") == 0) *type = BLOCK_F16;
    else if (strcmp(dtype, "BF16") == 0) *type = BLOCK_BF16;
    else return 0;
    return 1;
}

static int collect(const struct safetensors *file, const struct model *model, const char *path,
                   struct lora_half *halves, attune_error *err) {
    for (size_t i = 0; i < file->n; i++) {
        const struct safetensors_tensor *tensor = &file->tensors[i];
        size_t layer;
        enum target target;
        enum block_type type;
        int half;
        if (!parse_name(tensor->name, &layer, &target, &half))
            return error_set(err, ATTUNE_ERROR_UNSUPPORTED, path,
                             "tensor %.120s: attune adapts q, k, v, o, gate, up and down_proj of a causal language "
                             "model's layers, nothing else",
                             tensor->name);
        if (layer >= model->L)
            return error_set(err, ATTUNE_ERROR_MISMATCH, path,
                             "tensor %.120s: the base has %zu layers; the adapter was made for another model",
                             tensor->name, model->L);
        if (tensor->n_dims != 2)
            return error_set(err, ATTUNE_ERROR_FORMAT, path, "tensor %.120s is not a matrix", tensor->name);
        if (!find_type(tensor->dtype, &type))
            return error_set(err, ATTUNE_ERROR_UNSUPPORTED, path,
                             "tensor %.120s is %s; adapters in F32, F16 and BF16 are supported", tensor->name,
                             tensor->dtype);
        struct lora_half *to = &halves[lora_half_index(layer, target, half)];
        if (to->name)
            return error_set(err, ATTUNE_ERROR_FORMAT, path, "%.120s and %.120s are the same tensor", to->name,
                             tensor->name);
        *to = (struct lora_half){tensor->name, tensor->data, type, tensor->shape[0], tensor->shape[1]};
    }
    return ATTUNE_OK;
}

static int permute_all(struct lora *lora, const struct model *model, attune_error *err) {
    size_t floats = permuted_floats(lora, model);
    float *copy = malloc(floats * sizeof *copy);
    if (!copy) return error_set_memory(err, "an adapter's rows", floats * sizeof *copy);
    for (size_t l = 0; l < lora->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            size_t a, b;
            if (!is_permuted(model, t) || !lora_pair_offset(lora, model, l, t, &a, &b)) continue;
            size_t rows = model->layers[l].linear[t].rows;
            memcpy(copy, lora->parameters + b, rows * lora->config.rank * sizeof *copy);
            rows_permute(lora->parameters + b, copy, rows, model->D, lora->config.rank, 1);
        }
    }
    free(copy);
    return ATTUNE_OK;
}

static int read_tensors(const char *path, const struct model *model, size_t rank, float alpha, struct lora **out,
                        attune_error *err) {
    struct safetensors *file = NULL;
    struct lora_half *halves = NULL;
    struct lora *lora = NULL;
    size_t n_halves = model->L * TARGET_COUNT * LORA_HALF_COUNT;
    int code = safetensors_open(path, lora_file_max(model), &file, err);
    if (code != ATTUNE_OK) return code;
    if (!(halves = calloc(n_halves, sizeof *halves))) {
        code = error_set_memory(err, "an adapter's list of tensors", n_halves * sizeof *halves);
        goto out;
    }
    if ((code = collect(file, model, path, halves, err)) != ATTUNE_OK) goto out;
    if ((code = lora_assemble(model, alpha, halves, path, &lora, err)) != ATTUNE_OK) goto out;
    if (lora->config.rank != rank)
        code = error_set(err, ATTUNE_ERROR_MISMATCH, path, "the tensors have rank %zu, " CONFIG_FILE " says r = %zu",
                         lora->config.rank, rank);
    else code = permute_all(lora, model, err);
out:
    if (code == ATTUNE_OK) *out = lora;
    else lora_destroy(lora);
    free(halves);
    safetensors_close(file);
    return code;
}

int peft_import(const char *folder, const struct model *model, struct lora **out, attune_error *err) {
    char path[PATH_SIZE], pickle[PATH_SIZE];
    struct stat st;
    size_t rank = 0;
    float alpha = 0;
    int code = join(path, folder, CONFIG_FILE, err);
    if (code == ATTUNE_OK) code = read_config(path, &rank, &alpha, err);
    if (code == ATTUNE_OK) code = join(path, folder, TENSORS_FILE, err);
    if (code == ATTUNE_OK) code = join(pickle, folder, "adapter_model.bin", err);
    if (code != ATTUNE_OK) return code;
    if (stat(path, &st) != 0 && errno == ENOENT && stat(pickle, &st) == 0)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, pickle,
                         "a pickle can run code and is not read: save the adapter again with safe_serialization=True");
    return read_tensors(path, model, rank, alpha, out, err);
}
