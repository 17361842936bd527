#include "datastore/home_files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"

enum { PATH_BYTES = 1200 };

static int path_of(const char *home, const char *name, char out[PATH_BYTES], attune_error *err) {
    int n = snprintf(out, PATH_BYTES, "%s/%s", home, name);
    if (n < 0 || n >= PATH_BYTES)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path of the home is too long (%zu bytes)",
                         strlen(home));
    return ATTUNE_OK;
}

void store_adapter_path(const char *home, int number, char *out, size_t out_size) {
    snprintf(out, out_size, "%s/adapters/%d.gguf", home, number);
}

/* ---- CURRENT ---- */

static int current_damaged(const char *path, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_FORMAT, path,
                     "damaged; choose the active adapter again with: attune adapters use N (or base)");
}

/* "<number> <64 hexadecimal digits>\n", and nothing else. */
static int parse(const char *text, int *number, char sha256[65]) {
    int n = 0;
    char digits[65] = "", again[128];
    if (strcmp(text, "base\n") == 0) return 1;
    if (sscanf(text, "%9d %64[0-9a-f]", &n, digits) != 2 || n < 1 || strlen(digits) != 64) return 0;
    snprintf(again, sizeof again, "%d %s\n", n, digits);
    if (strcmp(text, again) != 0) return 0;
    *number = n;
    memcpy(sha256, digits, sizeof digits);
    return 1;
}

int store_current_read(const char *home, int *number, char sha256[65], char text[128], attune_error *err) {
    char path[PATH_BYTES], content[128] = "base\n", digits[65] = "";
    struct file_bytes file;
    struct stat st;
    int n = 0;
    int code = path_of(home, "CURRENT", path, err);
    if (code != ATTUNE_OK) return code;
    if (stat(path, &st) == 0) {
        if ((uint64_t)st.st_size >= sizeof content) return current_damaged(path, err);
        code = file_bytes_open(path, FILE_READ, sizeof content - 1, &file, err);
        if (code != ATTUNE_OK) return code;
        size_t size = file.size;
        memcpy(content, file.data, size);
        content[size] = '\0';
        file_bytes_close(&file);
        if (strlen(content) != size) return current_damaged(path, err);
    } else if (errno != ENOENT) {
        return error_set_errno(err, path, "cannot read which adapter is active");
    }
    if (!parse(content, &n, digits)) return current_damaged(path, err);
    *number = n;
    if (sha256) memcpy(sha256, digits, sizeof digits);
    if (text) memcpy(text, content, sizeof content);
    return ATTUNE_OK;
}

int store_current_write(const char *home, int number, const char *sha256, attune_error *err) {
    char path[PATH_BYTES], text[128] = "base\n";
    if (number > 0) snprintf(text, sizeof text, "%d %s\n", number, sha256);
    int code = path_of(home, "CURRENT", path, err);
    return code == ATTUNE_OK ? file_write_atomic(path, "current", text, strlen(text), err) : code;
}

/* ---- cache/ ---- */

/* Every entry but the one that is named; the first failure is reported after all were tried. */
static int remove_all_but(DIR *dir, const char *folder, const char *kept, attune_error *err) {
    int code = ATTUNE_OK;
    for (struct dirent *entry; (entry = readdir(dir));) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strcmp(name, kept) == 0) continue;
        if (unlinkat(dirfd(dir), name, 0) == 0 || errno == ENOENT) continue;
        if (code == ATTUNE_OK) code = error_set_errno(err, folder, "cannot remove a file of the cache");
    }
    return code;
}

int store_caches_remove(const char *home, attune_error *err) {
    char folder[PATH_BYTES];
    int code = path_of(home, "cache", folder, err);
    if (code != ATTUNE_OK) return code;
    DIR *dir = opendir(folder);
    if (!dir && errno == ENOENT) return ATTUNE_OK;
    if (!dir) return error_set_errno(err, folder, "cannot read the cache");
    code = remove_all_but(dir, folder, "base.sha256", err);
    closedir(dir);
    int synced = file_sync_folder(folder, code == ATTUNE_OK ? err : NULL);
    return code == ATTUNE_OK ? synced : code;
}
