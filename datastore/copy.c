/* A copy of the store, made while others record. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/fault.h"
#include "core/base/file.h"
#include "datastore/handle.h"

static const char copying[] = "copy the store";

/* SQLite must meet a plain path, see connection.c. */
static int plain_path(const char *path, char out[1200], attune_error *err) {
    if (!path || !path[0]) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "copying the store wants a path");
    int n = snprintf(out, 1200, "%s%s", path[0] == '/' ? "" : "./", path);
    if (n < 0 || n >= 1200) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path of the copy is too long");
    return ATTUNE_OK;
}

/* SQLite fills an empty file that is there: so the texts never stand in one that others may read. */
static int make_empty(const char *path, attune_error *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 && errno == EEXIST)
        return error_set(err, ATTUNE_ERROR_STATE, path, "a file is there already: a copy is only made in a new one");
    if (fd < 0) return error_set_errno(err, path, "cannot create the file");
    int failed = fchmod(fd, 0600) != 0;
    if (close(fd) != 0 || failed) return error_set_errno(err, path, "cannot create the file");
    return ATTUNE_OK;
}

static int vacuum_into(attune_store *store, const char *path, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, "VACUUM INTO ?", copying, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, copying, err, "t", path);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, copying, err);
    sqlite3_finalize(statement);
    return code;
}

/* No connection of this process has the copy open. */
static int sync_file(const char *path, attune_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return error_set_errno(err, path, "cannot open the copy of the store");
    int failed = fault_fails("store.copy.fsync") || fsync(fd) != 0;
    int code = failed ? error_set_errno(err, path, "cannot sync the copy of the store") : ATTUNE_OK;
    close(fd);
    return code;
}

static int sync_folder_of(const char *path, attune_error *err) {
    char folder[1200];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    slash[slash == folder] = '\0';
    return file_sync_folder(folder, err);
}

int store_copy(attune_store *store, const char *path, attune_error *err) {
    char plain[1200];
    int code = plain_path(path, plain, err);
    if (code == ATTUNE_OK) code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    if (store->writing || store->reading)
        code = error_set(err, ATTUNE_ERROR_STATE, store->path, "a callback of the store cannot copy it");
    if (code == ATTUNE_OK) code = make_empty(plain, err);
    if (code != ATTUNE_OK) {
        store_leave(store);
        return code;
    }
    code = vacuum_into(store, plain, err);
    store_leave(store);
    if (code == ATTUNE_OK) code = sync_file(plain, err);
    if (code == ATTUNE_OK) code = sync_folder_of(plain, err);
    if (code != ATTUNE_OK) unlink(plain);
    return code;
}
