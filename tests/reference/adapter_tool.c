/* Adapter files for the reference scripts:
 *
 *   adapter_tool make BASE OUT.gguf RANK ALPHA SEED    A as lora_init's, B random too
 *   adapter_tool export BASE ADAPTER.gguf FOLDER       to PEFT
 *   adapter_tool import BASE FOLDER OUT.gguf           from PEFT */
#include "adapters/adapter_file.h"
#include "adapters/peft.h"
#include "core/base/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int make(const struct model *model, char **argv, attune_error *err) {
    struct lora_config config = {(size_t)atoi(argv[4]), (float)atof(argv[5]), LORA_ALL_TARGETS};
    struct adapter_record record = {.origin = "imported"};
    struct lora *lora = NULL;
    uint64_t seed = (uint64_t)atoll(argv[6]);
    int code = lora_create(model, &config, &lora, err);
    if (code != ATTUNE_OK) return code;
    lora_init(lora, model, seed);
    for (size_t i = 0; i < lora->n; i++)
        if (lora->parameters[i] == 0) lora->parameters[i] = 0.1f * random_uniform(seed, i) - 0.05f;
    code = adapter_write(lora, model, &record, argv[3], "tool", NULL, err);
    lora_destroy(lora);
    return code;
}

static int convert(const struct model *model, int to_peft, char **argv, attune_error *err) {
    struct adapter_record record = {.origin = "imported"};
    struct lora *lora = NULL;
    int code = to_peft ? adapter_read(argv[3], model, &lora, NULL, NULL, err) : peft_import(argv[3], model, &lora, err);
    if (code == ATTUNE_OK)
        code = to_peft ? peft_export(lora, model, argv[4], err)
                       : adapter_write(lora, model, &record, argv[4], "tool", NULL, err);
    lora_destroy(lora);
    return code;
}

int main(int argc, char **argv) {
    attune_error err = {0};
    struct model *model = NULL;
    int is_make = argc == 7 && strcmp(argv[1], "make") == 0, to_peft = argc == 5 && strcmp(argv[1], "export") == 0;
    if (!is_make && !to_peft && !(argc == 5 && strcmp(argv[1], "import") == 0)) {
        fprintf(stderr, "usage: adapter_tool make|export|import BASE ...\n");
        return 2;
    }
    int code = model_open(argv[2], FILE_MAP, &model, &err);
    if (code == ATTUNE_OK) code = is_make ? make(model, argv, &err) : convert(model, to_peft, argv, &err);
    if (code != ATTUNE_OK) fprintf(stderr, "%s: %s\n", err.where, err.message);
    model_close(model);
    return code != ATTUNE_OK;
}
