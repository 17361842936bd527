#define _GNU_SOURCE
#include "core/base/file.h"

#include "core/base/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    DATA_ALIGNMENT = 64,    /* of bytes that were read: as good as a mapping for vector loads */
    READ_MAX = 1 << 30,     /* of one read(): Linux stops at 2^31 - 4096 */
    BUFFER_SIZE = 1 << 16,
    WRITE_MAX = 1 << 20,    /* of one write(): a big tensor passes several fault points */
    NAME_ATTEMPTS = 100
};

static int64_t nanoseconds(struct timespec t) { return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }

/* ---- bytes of a file ---- */

/* The last `most` bytes of a path: the tail says more than the head. */
static const char *tail(const char *path, size_t most) {
    size_t n = strlen(path);
    return n > most ? path + n - most : path;
}
/* As much of a path as an error's `where` holds. */
static const char *place(const char *path) { return tail(path, sizeof((attune_error *)0)->where - 1); }

static const char *kind_of(mode_t mode) {
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
    return "not a regular file";
}

static int same_file(const struct file_bytes *file, const struct stat *st) {
    return (uint64_t)st->st_size == file->size && nanoseconds(st->st_mtim) == file->mtime_ns;
}

static int read_whole(int fd, const char *path, struct file_bytes *file, attune_error *err) {
    void *memory;
    if (posix_memalign(&memory, DATA_ALIGNMENT, file->size)) return error_set_memory(err, "a file's bytes", file->size);
    unsigned char *data = memory;
    int code = ATTUNE_OK;
    for (size_t at = 0; at < file->size && code == ATTUNE_OK;) {
        size_t wanted = file->size - at < READ_MAX ? file->size - at : READ_MAX;
        ssize_t n = read(fd, data + at, wanted);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            code = error_set_errno(err, place(path), "cannot read the file");
        else if (n == 0)
            code = error_set(err, ATTUNE_ERROR_IO, place(path),
                             "the file became shorter while it was read (%zu of %zu bytes)", at, file->size);
        else
            at += (size_t)n;
    }
    struct stat st;
    if (code == ATTUNE_OK && (fstat(fd, &st) || !same_file(file, &st)))
        code = error_set(err, ATTUNE_ERROR_IO, place(path), "the file was changed while it was read: try again");
    if (code == ATTUNE_OK)
        file->data = data;
    else
        free(data);
    return code;
}

static int map_whole(int fd, const char *path, struct file_bytes *file, attune_error *err) {
    void *data = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) return error_set_errno(err, place(path), "cannot map the file's %zu bytes", file->size);
    file->data = data;
    return ATTUNE_OK;
}

int file_bytes_from(int fd, const char *path, enum file_load load, size_t max_bytes, struct file_bytes *out,
                    attune_error *err) {
    struct file_bytes file = {.load = load};
    const char *known = tail(path, sizeof file.path - 1);
    memcpy(file.path, known, strlen(known) + 1);
    struct stat st;
    if (fstat(fd, &st)) return error_set_errno(err, place(path), "cannot examine the file");
    if (!S_ISREG(st.st_mode))
        return error_set(err, ATTUNE_ERROR_FORMAT, place(path), "this is %s: a regular file is needed",
                         kind_of(st.st_mode));
    if ((uint64_t)st.st_size > max_bytes || (uint64_t)st.st_size > PTRDIFF_MAX)
        return error_set(err, ATTUNE_ERROR_FORMAT, place(path),
                         "the file has %lld bytes, at most %zu are accepted here", (long long)st.st_size, max_bytes);
    file.size = (size_t)st.st_size;
    file.device = (int64_t)st.st_dev;
    file.inode = (int64_t)st.st_ino;
    file.mtime_ns = nanoseconds(st.st_mtim);
    file.ctime_ns = nanoseconds(st.st_ctim);
    int code = ATTUNE_OK;
    if (file.size == 0)
        file.data = (const unsigned char *)"";
    else if (load == FILE_MAP)
        code = map_whole(fd, path, &file, err);
    else
        code = read_whole(fd, path, &file, err);
    if (code == ATTUNE_OK) *out = file;
    return code;
}

int file_bytes_open(const char *path, enum file_load load, size_t max_bytes, struct file_bytes *out,
                    attune_error *err) {
    /* O_NONBLOCK: opening a FIFO nobody writes to must return, for fstat to refuse it */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) return error_set_errno(err, place(path), "cannot open the file");
    int code = file_bytes_from(fd, path, load, max_bytes, out, err);
    close(fd);
    return code;
}

int file_bytes_unchanged(int fd, const struct file_bytes *file) {
    struct stat st;
    return fstat(fd, &st) == 0 && same_file(file, &st);
}

void file_bytes_close(struct file_bytes *file) {
    if (!file) return;
    if (file->size > 0 && file->data) {
        if (file->load == FILE_MAP)
            munmap((void *)(uintptr_t)file->data, file->size);
        else
            free((void *)(uintptr_t)file->data);
    }
    file->data = NULL;
    file->size = 0;
}

/* ---- cursor ---- */

int cursor_fail(struct cursor *cursor, int code, const char *format, ...) {
    if (cursor->code != ATTUNE_OK) return cursor->code;
    cursor->code = code;
    if (!cursor->err) return code;
    char text[sizeof cursor->err->message], where[sizeof cursor->err->where];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    /* a long path loses its head, never the byte after it */
    snprintf(where, sizeof where, "%s:byte %zu", tail(cursor->name, sizeof where - 32), cursor->at);
    return error_set(cursor->err, code, where, "%s", text);
}

const unsigned char *cursor_bytes(struct cursor *cursor, uint64_t n, const char *what) {
    if (cursor->code != ATTUNE_OK) return NULL;
    size_t left = cursor->size - cursor->at;
    if (n > left) {
        cursor_fail(cursor, ATTUNE_ERROR_FORMAT, "the file ends inside %s: %llu bytes wanted, %zu left", what,
                    (unsigned long long)n, left);
        return NULL;
    }
    const unsigned char *p = cursor->data + cursor->at;
    cursor->at += (size_t)n;
    return p;
}

static uint64_t little_endian(struct cursor *cursor, unsigned bytes, const char *what) {
    const unsigned char *p = cursor_bytes(cursor, bytes, what);
    uint64_t value = 0;
    for (unsigned i = 0; p && i < bytes; i++) value |= (uint64_t)p[i] << (8 * i);
    return value;
}

uint8_t cursor_u8(struct cursor *cursor, const char *what) { return (uint8_t)little_endian(cursor, 1, what); }
uint16_t cursor_u16(struct cursor *cursor, const char *what) { return (uint16_t)little_endian(cursor, 2, what); }
uint32_t cursor_u32(struct cursor *cursor, const char *what) { return (uint32_t)little_endian(cursor, 4, what); }
uint64_t cursor_u64(struct cursor *cursor, const char *what) { return little_endian(cursor, 8, what); }

/* ---- publishing ---- */

/* Passes "<point>.<call>.<when>"; non-zero: the call counts as failed, errno is set. */
static int passes_fault(const char *point, const char *call, const char *when) {
#ifdef ATTUNE_TESTING
    char name[64];
    snprintf(name, sizeof name, "%s.%s.%s", point, call, when);
    return fault_fails(name);
#else
    (void)point, (void)call, (void)when;
    return 0;
#endif
}

/* Where the last component of path begins. */
static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* A writer that is open owns its buffer; one that failed, published or was never opened has none. */
static int closed(const struct file_writer *writer, attune_error *err) {
    if (writer->buffer) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_STATE, place(writer->path),
                     "this file is not being written: it failed before, or is finished");
}

static int check_target(const char *path, const char *point, attune_error *err) {
    const struct file_writer *w = NULL;
    const char *name = base_name(path);
    if (strlen(path) >= sizeof w->path)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path of a file to write has %zu bytes, at most %zu fit",
                         strlen(path), sizeof w->path - 1);
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, place(path), "the path does not name a file");
    if (!point || !*point || strlen(point) >= sizeof w->point)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, place(path), "the name of a fault point has 1 to %zu bytes",
                         sizeof w->point - 1);
    return ATTUNE_OK;
}

/* Makes ".<name>.<pid>-<n>.tmp" beside the target. A number that a dead process left is passed over. */
static int make_temporary(struct file_writer *writer, attune_error *err) {
    static atomic_uint serial;
    const char *name = base_name(writer->path);
    for (int attempt = 0; attempt < NAME_ATTEMPTS; attempt++) {
        snprintf(writer->temporary, sizeof writer->temporary, "%.*s.%s.%ld-%u.tmp", (int)(name - writer->path),
                 writer->path, name, (long)getpid(), atomic_fetch_add(&serial, 1u));
        writer->fd = open(writer->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (writer->fd >= 0) return ATTUNE_OK;
        if (errno != EEXIST) break;
    }
    return error_set_errno(err, place(writer->path), "cannot make a temporary file beside this one");
}

int file_writer_open(const char *path, const char *point, struct file_writer *out, attune_error *err) {
    int code = check_target(path, point, err);
    if (code != ATTUNE_OK) return code;
    struct file_writer writer = {.fd = -1};
    memcpy(writer.path, path, strlen(path) + 1);
    memcpy(writer.point, point, strlen(point) + 1);
    writer.buffer = malloc(BUFFER_SIZE);
    if (!writer.buffer) return error_set_memory(err, "writing a file", BUFFER_SIZE);
    code = make_temporary(&writer, err);
    if (code == ATTUNE_OK)
        *out = writer;
    else
        free(writer.buffer);
    return code;
}

static atomic_uint_fast64_t bytes_written;
uint64_t file_bytes_written(void) { return atomic_load_explicit(&bytes_written, memory_order_relaxed); }

/* write() until all is written; reports through errno. */
static int write_all(struct file_writer *writer, const unsigned char *data, size_t n) {
    while (n > 0) {
        if (passes_fault(writer->point, "write", "before")) return -1;
        ssize_t written = write(writer->fd, data, n < WRITE_MAX ? n : WRITE_MAX);
        if (written < 0 && errno == EINTR) continue;
        if (written == 0) errno = EIO;
        if (written <= 0 || passes_fault(writer->point, "write", "after")) return -1;
        data += written;
        n -= (size_t)written;
        atomic_fetch_add_explicit(&bytes_written, (uint_fast64_t)written, memory_order_relaxed);
    }
    return 0;
}

/* The temporary is of no use any more: the message first (errno), then its removal. */
static int fail(struct file_writer *writer, const char *doing, attune_error *err) {
    int code = error_set_errno(err, place(writer->path), "cannot %s the file", doing);
    file_writer_abandon(writer);
    return code;
}

static int flush(struct file_writer *writer, attune_error *err) {
    if (write_all(writer, writer->buffer, writer->buffered)) return fail(writer, "write", err);
    writer->buffered = 0;
    return ATTUNE_OK;
}

int file_writer_add(struct file_writer *writer, const void *data, size_t n, attune_error *err) {
    int code = closed(writer, err);
    if (code != ATTUNE_OK || n == 0) return code;
    writer->synced = 0;
    if (n > BUFFER_SIZE - writer->buffered && (code = flush(writer, err)) != ATTUNE_OK) return code;
    if (n >= BUFFER_SIZE) {
        if (write_all(writer, data, n)) return fail(writer, "write", err);
    } else {
        memcpy(writer->buffer + writer->buffered, data, n);
        writer->buffered += n;
    }
    writer->written += n;
    return ATTUNE_OK;
}

int file_writer_sync(struct file_writer *writer, attune_error *err) {
    int code = closed(writer, err);
    if (code != ATTUNE_OK || writer->synced) return code;
    if ((code = flush(writer, err)) != ATTUNE_OK) return code;
    /* never tried again: the kernel may have dropped the dirty pages with the report */
    if (passes_fault(writer->point, "fsync", "before") || fsync(writer->fd) ||
        passes_fault(writer->point, "fsync", "after"))
        return fail(writer, "fsync", err);
    writer->synced = 1;
    return ATTUNE_OK;
}

static void release(struct file_writer *writer) {
    if (writer->fd >= 0) close(writer->fd);
    free(writer->buffer);
    writer->fd = -1;
    writer->buffer = NULL;
    writer->buffered = 0;
    writer->temporary[0] = 0;
}

/* Rename that refuses an existing target, on every file system that has hard links at least. */
static int rename_new(const char *from, const char *to) {
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS) return -1;
    if (link(from, to)) return -1;
    unlink(from); /* what stays otherwise is a second name that is recognised as a leftover */
    return 0;
}

/* Makes the folder's entries durable. */
static int sync_folder(const char *folder) {
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    int failed = fsync(fd);
    /* some network file systems have no such call for folders: they order renames themselves */
    if (failed && errno == EINVAL) failed = 0;
    int saved = errno;
    close(fd);
    errno = saved;
    return failed;
}

static int sync_folder_of(const char *path) {
    char folder[sizeof ((struct file_writer *)0)->path];
    size_t n = (size_t)(base_name(path) - path);
    if (n == 0) return sync_folder(".");
    memcpy(folder, path, n); /* with its slash: "/" stays "/" */
    folder[n] = 0;
    return sync_folder(folder);
}

static int publish(struct file_writer *writer, int new_only, attune_error *err) {
    int code = file_writer_sync(writer, err);
    if (code != ATTUNE_OK) return code;
    if (passes_fault(writer->point, "rename", "before") ||
        (new_only ? rename_new(writer->temporary, writer->path) : rename(writer->temporary, writer->path))) {
        if (!new_only || errno != EEXIST) return fail(writer, "publish", err);
        code = error_set(err, ATTUNE_ERROR_STATE, place(writer->path),
                         "a file of this name exists already, and versions are never replaced");
        file_writer_abandon(writer);
        return code;
    }
    if (passes_fault(writer->point, "rename", "after") || passes_fault(writer->point, "folder", "before") ||
        sync_folder_of(writer->path) || passes_fault(writer->point, "folder", "after"))
        code = error_set_errno(err, place(writer->path),
                               "the file is in place, but its folder cannot be made durable (fsync)");
    release(writer);
    return code;
}

int file_writer_publish(struct file_writer *writer, attune_error *err) { return publish(writer, 0, err); }
int file_writer_publish_new(struct file_writer *writer, attune_error *err) { return publish(writer, 1, err); }

void file_writer_abandon(struct file_writer *writer) {
    if (!writer || !writer->buffer) return;
    unlink(writer->temporary);
    release(writer);
}

int file_write_atomic(const char *path, const char *point, const void *data, size_t n, attune_error *err) {
    struct file_writer writer = {0};
    int code = file_writer_open(path, point, &writer, err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, data, n, err);
    if (code == ATTUNE_OK) code = file_writer_publish(&writer, err);
    file_writer_abandon(&writer);
    return code;
}

int file_sync_folder(const char *folder, attune_error *err) {
    if (sync_folder(folder)) return error_set_errno(err, place(folder), "cannot make the folder durable (fsync)");
    return ATTUNE_OK;
}
