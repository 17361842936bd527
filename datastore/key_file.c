/* What job/ may know of a store's key: seal.h stays within this room. */
#include "datastore/handle.h"

int store_key_file(const char *path, unsigned char key[ATTUNE_KEY_BYTES], attune_error *err) {
    attune_error why;
    int code = key_file_read(path, key, &why);
    if (code == ATTUNE_ERROR_NOT_FOUND) return key_file_make(path, key, err);
    if (code != ATTUNE_OK && err) *err = why;
    return code;
}

enum store_encryption store_encryption_get(const attune_store *store) {
    if (!store->encrypted) return STORE_PLAIN;
    return store->seal.on ? STORE_UNLOCKED : STORE_SEALED;
}
