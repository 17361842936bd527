/* libFuzzer target: any bytes as a safetensors file. What is accepted covers the file without holes. */
#include "adapters/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct safetensors *file = NULL;
    attune_error err = {0};
    int code = safetensors_parse(data, size, "fuzz", &file, &err);
    if (code != ATTUNE_OK) {
        if (file || err.code != code || !err.message[0]) abort();
        return 0;
    }
    const unsigned char *end = data + size;
    size_t sum = 0;
    for (size_t i = 0; i < file->n; i++) {
        const struct safetensors_tensor *tensor = &file->tensors[i];
        if (tensor->data < data || tensor->bytes > (size_t)(end - tensor->data)) abort();
        if (!tensor->name || !tensor->dtype) abort();
        for (size_t b = 0; b < tensor->bytes; b++) sum += tensor->data[b];
    }
    if (file->n > 0 && file->tensors[file->n - 1].data + file->tensors[file->n - 1].bytes != end) abort();
    safetensors_close(file);
    volatile size_t used = sum; /* the reads stay */
    (void)used;
    return 0;
}
