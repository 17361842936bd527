/* A catalog: a folder of adapters to start from, with a signed index (docs/formats.md, Catalogs).
 *
 * Owns the index, its signature, and reading what it names. Refuses to know how entries are made. Nothing that a
 * catalog says becomes a path but 64 hexadecimal digits. */
#ifndef ADAPTERS_CATALOG_H
#define ADAPTERS_CATALOG_H

#include "adapters/adapter_file.h"
#include "adapters/signature.h"

enum { CATALOG_ENTRIES_MAX = 1024, CATALOG_NAME_SIZE = 65, CATALOG_PATH_MAX = 1024 };

struct catalog_entry {
    char name[CATALOG_NAME_SIZE]; /* a-z, 0-9, '-', '_', '.'; begins with a letter or a digit */
    char id[65];                  /* the file is <id>.gguf: of what it was made of, or of its bytes */
    char sha256[65];
    int64_t bytes;
    int64_t rows, judged; /* that it has learned; that judged it, 0: none did */
    double loss_before, loss_after, loss_interval; /* nats a token over those; NaN where none judged */
    char licence[128], origin[256];
};
struct catalog {
    char path[CATALOG_PATH_MAX];
    char base_sha256[65];
    int64_t serial; /* one more with every change */
    struct catalog_entry *entries;
    size_t n;
};

/* The index alone: signed with key, whole, every entry possible. */
int catalog_open(const char *path, const struct public_key *key, struct catalog *out, attune_error *err);
/* One without entries, for base_sha256; nothing is written. */
int catalog_new(const char *path, const char *base_sha256, struct catalog *out, attune_error *err);
void catalog_free(struct catalog *catalog);
/* ATTUNE_ERROR_MISMATCH: made for another base than model, whose hash is known. */
int catalog_check_base(const struct catalog *catalog, const struct model *model, attune_error *err);
/* NULL: none. */
struct catalog_entry *catalog_find(const struct catalog *catalog, const char *name);
/* The entry's adapter: a regular file in the folder itself, of the recorded size and hash, and fit for model. */
int catalog_adapter(const struct catalog *catalog, const struct catalog_entry *entry, const struct model *model,
                    struct lora **out, attune_error *err);
/* ATTUNE_ERROR_ARGUMENT says what is wrong with a name, a licence or an origin. */
int catalog_entry_check(const struct catalog_entry *entry, attune_error *err);

/* ---- for who makes one ---- */

/* Held by who changes the index, until *fd is closed; ATTUNE_ERROR_BUSY. */
int catalog_lock(const char *path, int *fd, attune_error *err);
/* Adds it, or takes the place of the one with its name. */
int catalog_put(struct catalog *catalog, const struct catalog_entry *entry, attune_error *err);
/* ATTUNE_ERROR_NOT_FOUND. */
int catalog_drop(struct catalog *catalog, const char *name, attune_error *err);
/* The index, signed, in place of the one that is there; serial is one more then. */
int catalog_write(struct catalog *catalog, const struct secret_key *key, attune_error *err);
int catalog_entry_path(const char *catalog, const char *id, char out[CATALOG_PATH_MAX], attune_error *err);
enum { CATALOG_FILE_SIZE = 80 };
void catalog_entry_file(const char *id, char out[CATALOG_FILE_SIZE]);

#endif
