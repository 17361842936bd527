/* What training sees of a file of rows, a JSON object a line: {"ids": [...], "supervised": [0, 1, ...]}. For
 * comparisons: a peer that is given these learns from the same tokens.
 *
 *   example_tokens BASE ROWS.jsonl MAX_TOKENS */
#include "datastore/store.h"
#include "trainer/trainer.h"

#include <stdio.h>
#include <stdlib.h>

struct reading {
    const struct model *model;
    struct example_set set;
    size_t max_tokens;
};

static int take(const struct store_row *row, void *user, attune_error *err) {
    struct reading *r = user;
    int added;
    return example_add(&r->set, r->model, row->messages, row->n_messages, row->response, row->content_hash,
                       row->prompt_hash, r->max_tokens, &added, err);
}

static void print(const struct example *e) {
    printf("{\"ids\": [");
    for (size_t i = 0; i < e->n; i++) printf("%s%d", i ? ", " : "", (int)e->ids[i]);
    printf("], \"supervised\": [");
    for (size_t i = 0; i < e->n; i++) printf("%s%d", i ? ", " : "", e->supervised[i] != 0);
    printf("]}\n");
}

int main(int argc, char **argv) {
    struct reading reading = {0};
    struct model *model = NULL;
    attune_error err = {0};
    if (argc != 4) {
        fprintf(stderr, "usage: example_tokens BASE ROWS.jsonl MAX_TOKENS\n");
        return 2;
    }
    reading.max_tokens = strtoul(argv[3], NULL, 10);
    int code = model_open(argv[1], FILE_MAP, &model, &err);
    if (code == ATTUNE_OK && !model->chat) {
        err = model->chat_error;
        code = err.code;
    }
    reading.model = model;
    if (code == ATTUNE_OK) code = store_rows_from_file(argv[2], take, &reading, &err);
    for (size_t i = 0; i < reading.set.n && code == ATTUNE_OK; i++) print(&reading.set.items[i]);
    if (code != ATTUNE_OK) fprintf(stderr, "example_tokens: %s (%s)\n", err.message, err.where);
    example_set_free(&reading.set);
    model_close(model);
    return code == ATTUNE_OK && fflush(stdout) == 0 ? 0 : 1;
}
