/* Files: whole-file bytes that were mapped or read, a cursor that never leaves them, and
 * publishing that is all or nothing. */
#ifndef CORE_BASE_FILE_H
#define CORE_BASE_FILE_H

#include "core/base/error.h"

/* ---- bytes of a file ---- */
enum file_load { FILE_MAP, FILE_READ };
struct file_bytes {
    const unsigned char *data; /* borrowed until file_bytes_close */
    size_t size;
    char path[512]; /* for messages */
    enum file_load load;
    int64_t device, inode, mtime_ns, ctime_ns; /* what was opened */
};
/* Regular files only (a FIFO or a device is refused without blocking), up to max_bytes. A symbolic link
 * is followed. FILE_READ refuses a file that changes meanwhile. With FILE_MAP, a file that another process
 * truncates later raises SIGBUS at the next touch of the lost pages, and no handler is installed: map only
 * files that nobody shortens (the base model), and read the others. */
int file_bytes_open(const char *path, enum file_load load, size_t max_bytes, struct file_bytes *out,
                    attune_error *err);
/* The same of a descriptor that is open for reading and stays the caller's; path is for messages. */
int file_bytes_from(int fd, const char *path, enum file_load load, size_t max_bytes, struct file_bytes *out,
                    attune_error *err);
/* Size and content are as they were when it was opened, as far as its time of modification tells. */
int file_bytes_unchanged(int fd, const struct file_bytes *file);
void file_bytes_close(struct file_bytes *file);

/* ---- a bounded cursor, little-endian ----
 * The first fault is kept in `err` with its byte; after it every read gives zero. */
struct cursor {
    const unsigned char *data;
    size_t size, at;
    const char *name; /* for messages, borrowed */
    int code;         /* ATTUNE_OK until the first fault */
    attune_error *err;
};
int cursor_fail(struct cursor *cursor, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* n bytes at the cursor, which moves past them; NULL (and a fault) when they are not there. */
const unsigned char *cursor_bytes(struct cursor *cursor, uint64_t n, const char *what);
uint8_t cursor_u8(struct cursor *cursor, const char *what);
uint16_t cursor_u16(struct cursor *cursor, const char *what);
uint32_t cursor_u32(struct cursor *cursor, const char *what);
uint64_t cursor_u64(struct cursor *cursor, const char *what);

/* ---- publishing ----
 * A temporary ".<name>.<pid>-<n>.tmp" in the target's folder, written, fsynced, then renamed to `path` and
 * the folder fsynced. After any failure the temporary is gone and every further call gives
 * ATTUNE_ERROR_STATE: a failed fsync is never retried. An error from the fsync of the folder (and a kill at
 * that moment) leaves the new file at `path`, whole, but perhaps not yet durable. Mode 0600.
 * `point` (1 to 31 bytes) names the fault points: "<point>.write.before", ".write.after",
 * ".fsync.before", ".fsync.after", ".rename.before", ".rename.after", ".folder.before", ".folder.after". */
struct file_writer {
    int fd, synced;
    char path[1024], temporary[1088];
    char point[32];
    uint64_t written;
    unsigned char *buffer;
    size_t buffered;
};
int file_writer_open(const char *path, const char *point, struct file_writer *out, attune_error *err);
int file_writer_add(struct file_writer *writer, const void *data, size_t n, attune_error *err);
/* Flush and fsync; writer->temporary can then be read back and verified. */
int file_writer_sync(struct file_writer *writer, attune_error *err);
/* Rename and fsync the folder; syncs first if that was not done. The writer is closed. */
int file_writer_publish(struct file_writer *writer, attune_error *err);
/* As publish, but an existing `path` is ATTUNE_ERROR_STATE and stays as it is: versions are immutable. */
int file_writer_publish_new(struct file_writer *writer, attune_error *err);
/* Remove the temporary. Fine after publish or on a zeroed writer. */
void file_writer_abandon(struct file_writer *writer);
/* Small files in one go. */
int file_write_atomic(const char *path, const char *point, const void *data, size_t n, attune_error *err);
int file_sync_folder(const char *folder, attune_error *err);
/* What writers of this process have written so far, published or not: flash wears by it. Any thread. */
uint64_t file_bytes_written(void);

#endif
