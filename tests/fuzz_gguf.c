/* libFuzzer target: any bytes through the GGUF reader, then everything that it hands out is touched. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/gguf.h"

static volatile unsigned touched;

static void touch(const void *data, size_t n) {
    if (n) touched += ((const unsigned char *)data)[0] + ((const unsigned char *)data)[n - 1];
}

static void touch_pair(const struct gguf *gguf, const struct gguf_pair *pair) {
    char key[256], text[64];
    uint64_t u64;
    double f64;
    int boolean;
    struct gguf_string string;
    touch(pair->key.data, pair->key.size);
    if (pair->kind == GGUF_ARRAY && pair->element == GGUF_STRING)
        for (uint64_t i = 0; i < pair->count; i++) touch(pair->strings[i].data, pair->strings[i].size);
    if (pair->key.size >= sizeof key) return;
    memcpy(key, pair->key.data, pair->key.size);
    key[pair->key.size] = 0;
    if (gguf_find(gguf, key) != pair) abort();
    gguf_get_u64(gguf, key, &u64, NULL);
    gguf_get_f64(gguf, key, &f64, NULL);
    gguf_get_bool(gguf, key, &boolean, NULL);
    gguf_get_text(gguf, key, text, sizeof text, NULL);
    if (gguf_get_string(gguf, key, &string, NULL) == ATTUNE_OK) touch(string.data, string.size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gguf *gguf = NULL;
    attune_error err = {0};
    int code = gguf_parse(data, size, "fuzz", &gguf, &err);
    if (code != ATTUNE_OK) {
        if (gguf || code != err.code || !err.message[0]) abort();
        return 0;
    }
    for (size_t i = 0; i < gguf->n_pairs; i++) touch_pair(gguf, &gguf->pairs[i]);
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        const struct gguf_tensor *tensor = &gguf->tensors[i];
        if (gguf_tensor_find(gguf, tensor->name) != tensor) abort();
        touch(tensor->data, tensor->bytes);
    }
    gguf_close(gguf);
    return 0;
}
