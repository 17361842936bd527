/* Adapter files: GGUF LoRA that llama.cpp loads unchanged, with attune.* keys beside.
 *
 * Read whole and verified, never mapped. No clock and no random id inside: the same run gives the
 * same bytes. */
#ifndef ADAPTERS_ADAPTER_FILE_H
#define ADAPTERS_ADAPTER_FILE_H

#include "adapters/lora.h"

struct adapter_record {
    char base_sha256[65]; /* "" in a file that was not written by attune */
    char run[65];
    char parent_sha256[65]; /* of the parent adapter's file, "" for none */
    char configuration[2048];
    char origin[16]; /* "trained" or "imported" */
};

/* Publishes as a new file (an existing path is an error); sha256 of the file. */
int adapter_write(const struct lora *lora, const struct model *model, const struct adapter_record *record,
                  const char *path, const char *point, char sha256[65], attune_error *err);
/* Checks everything (hostile-input list: other base, rank 0, shapes, unknown target, missing half, NaN,
 * infinities, huge alpha, truncation, trailing tensors). model->sha256 "" skips the check of the base. */
int adapter_read(const char *path, const struct model *model, struct lora **out, struct adapter_record *record,
                 char sha256[65], attune_error *err);
/* The same of a file that was read whole. */
int adapter_parse(const struct file_bytes *file, const struct model *model, struct lora **out,
                  struct adapter_record *record, char sha256[65], attune_error *err);

#endif
