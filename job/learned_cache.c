#include "job/learned_cache.h"

#include "core/base/fault.h"
#include "job/home.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FORMAT_VERSION = 1, BYTES_MAX = 8 << 20, ADAPTER_DIGITS = 16 };

static int name_of(const char *adapter_sha256, char out[64]) {
    if (strlen(adapter_sha256) != 64) return 0;
    snprintf(out, 64, "learned-%.*s.json", ADAPTER_DIGITS, adapter_sha256);
    return 1;
}

static int path_of(const char *home, const char *adapter_sha256, char out[HOME_PATH_MAX]) {
    char name[64], below[80];
    if (!name_of(adapter_sha256, name)) return 0;
    snprintf(below, sizeof below, "cache/%s", name);
    return home_file(home, below, out, NULL) == ATTUNE_OK;
}

static int says(const json_t *object, const char *key, const char *wanted) {
    const char *text = json_string_value(json_object_get(object, key));
    return text && strcmp(text, wanted) == 0;
}

json_t *learned_cache_read(const char *home, const char *base_sha256, const char *adapter_sha256) {
    char path[HOME_PATH_MAX];
    struct file_bytes file;
    if (!path_of(home, adapter_sha256, path)) return NULL;
    if (file_bytes_open(path, FILE_READ, BYTES_MAX, &file, NULL) != ATTUNE_OK) return NULL;
    json_t *kept = json_loadb((const char *)file.data, file.size, JSON_REJECT_DUPLICATES, NULL);
    file_bytes_close(&file);
    if (json_integer_value(json_object_get(kept, "version")) == FORMAT_VERSION && says(kept, "attune", ATTUNE_VERSION) &&
        says(kept, "base", base_sha256) && says(kept, "adapter", adapter_sha256))
        return kept;
    json_decref(kept);
    return NULL;
}

int learned_cache_keep(const char *home, const char *base_sha256, const char *adapter_sha256, const char *adapter,
                       const json_t *result, attune_error *err) {
    char path[HOME_PATH_MAX], folder[HOME_PATH_MAX];
    struct stat st;
    if (!path_of(home, adapter_sha256, path))
        return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "an adapter without a hash");
    int code = home_file(home, "cache", folder, err);
    if (code != ATTUNE_OK) return code;
    (void)!mkdir(folder, 0700); /* it may be deleted at any time */
    json_t *all = json_pack("{s:i, s:s, s:s, s:s}", "version", FORMAT_VERSION, "attune", ATTUNE_VERSION, "base", base_sha256, "adapter",
                            adapter_sha256);
    char *text = NULL;
    if (all && json_object_update(all, (json_t *)result) == 0) text = json_dumps(all, JSON_COMPACT);
    json_decref(all);
    if (!text) return error_set_memory(err, "what was learned", 1 << 16);
    code = file_write_atomic(path, "learned", text, strlen(text), err);
    free(text);
    fault_point("learned.kept");
    if (stat(adapter, &st) != 0) learned_cache_remove(home, adapter_sha256);
    return code;
}

void learned_cache_remove(const char *home, const char *adapter_sha256) {
    char name[64], folder[HOME_PATH_MAX];
    if (!name_of(adapter_sha256, name) || home_file(home, "cache", folder, NULL) != ATTUNE_OK) return;
    DIR *dir = opendir(folder);
    if (!dir) return;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strncmp(entry->d_name + (entry->d_name[0] == '.'), name, strlen(name)) == 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
}
