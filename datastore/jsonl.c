#include "datastore/jsonl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK ((size_t)64 << 10)

static void set_where(struct jsonl *lines) {
    const char *path = lines->path;
    size_t n = strlen(path), room = sizeof lines->where - 40;
    snprintf(lines->where, sizeof lines->where, "%s:line %zu", n > room ? path + n - room : path, lines->line);
}

int jsonl_open(const char *path, struct jsonl *out, attune_error *err) {
    memset(out, 0, sizeof *out);
    out->fd = -1;
    if (!path) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path is NULL");
    out->path = path;
    if (strcmp(path, "-") == 0) {
        out->path = "standard input";
        out->fd = STDIN_FILENO;
        return ATTUNE_OK;
    }
    out->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* without it, a FIFO would wait for a writer */
    if (out->fd < 0)
        return errno == ENOENT ? error_set(err, ATTUNE_ERROR_NOT_FOUND, path, "there is no such file")
                               : error_set_errno(err, path, "cannot open the file");
    struct stat info;
    if (fstat(out->fd, &info) == 0 && S_ISREG(info.st_mode)) return ATTUNE_OK;
    jsonl_close(out);
    return error_set(err, ATTUNE_ERROR_ARGUMENT, path,
                     "not a regular file: a pipe is read from standard input, with '-'");
}

void jsonl_close(struct jsonl *lines) {
    if (lines->fd > STDIN_FILENO) close(lines->fd);
    free(lines->buffer);
    memset(lines, 0, sizeof *lines);
    lines->fd = -1;
}

/* More bytes behind those in the buffer; one byte stays free for the NUL. */
static int fill(struct jsonl *lines, attune_error *err) {
    if (lines->from > 0) {
        memmove(lines->buffer, lines->buffer + lines->from, lines->to - lines->from);
        lines->to -= lines->from;
        lines->from = 0;
    }
    if (lines->capacity - lines->to < CHUNK) {
        size_t capacity = lines->capacity ? lines->capacity * 2 : 2 * CHUNK;
        if (capacity > STORE_TEXT_MAX + 2 * CHUNK) capacity = STORE_TEXT_MAX + 2 * CHUNK;
        char *buffer = realloc(lines->buffer, capacity);
        if (!buffer) return error_set_memory(err, "a line", capacity);
        lines->buffer = buffer;
        lines->capacity = capacity;
    }
    for (;;) {
        ssize_t n = read(lines->fd, lines->buffer + lines->to, CHUNK - 1);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return error_set_errno(err, lines->path, "cannot read %s", lines->path);
        if (n == 0) lines->at_end = 1;
        lines->to += (size_t)n;
        return ATTUNE_OK;
    }
}

/* Behind the line that was refused, holding no more of it than a chunk. */
static int skip_rest(struct jsonl *lines, attune_error *err) {
    for (;;) {
        char *feed =
            lines->to > lines->from ? memchr(lines->buffer + lines->from, '\n', lines->to - lines->from) : NULL;
        lines->from = feed ? (size_t)(feed - lines->buffer) + 1 : lines->to;
        if (feed || lines->at_end) {
            lines->skipping = 0;
            return ATTUNE_OK;
        }
        int code = fill(lines, err);
        if (code != ATTUNE_OK) return code;
    }
}

static int refuse_line(struct jsonl *lines, attune_error *err) {
    lines->skipping = 1;
    lines->line++;
    set_where(lines);
    return error_set(err, ATTUNE_ERROR_FORMAT, lines->where, "the line is longer than %zu MiB", STORE_TEXT_MAX >> 20);
}

/* Up to the next line feed or the end of the file: [from, *end). ATTUNE_DONE when nothing is left. */
static int find_end(struct jsonl *lines, size_t *end, attune_error *err) {
    size_t looked = lines->from;
    for (;;) {
        char *feed = lines->to > looked ? memchr(lines->buffer + looked, '\n', lines->to - looked) : NULL;
        *end = feed ? (size_t)(feed - lines->buffer) : lines->to;
        if (*end - lines->from > STORE_TEXT_MAX) return refuse_line(lines, err);
        if (feed) return ATTUNE_CONTINUE;
        if (lines->at_end) return lines->to > lines->from ? ATTUNE_CONTINUE : ATTUNE_DONE;
        size_t seen = lines->to - lines->from;
        int code = fill(lines, err);
        if (code != ATTUNE_OK) return code;
        looked = lines->from + seen;
    }
}

static int is_blank(const char *text, size_t n) {
    while (n > 0 && (text[n - 1] == ' ' || text[n - 1] == '\t' || text[n - 1] == '\r')) n--;
    return n == 0;
}

int jsonl_next(struct jsonl *lines, char **text, size_t *length, attune_error *err) {
    int code = lines->skipping ? skip_rest(lines, err) : ATTUNE_OK;
    if (code != ATTUNE_OK) return code;
    for (;;) {
        size_t end = 0;
        code = find_end(lines, &end, err);
        if (code != ATTUNE_CONTINUE) return code;
        char *start = lines->buffer + lines->from;
        size_t n = end - lines->from;
        lines->from = end < lines->to ? end + 1 : end;
        lines->line++;
        set_where(lines);
        if (lines->line == 1 && n >= 3 && memcmp(start, "\xef\xbb\xbf", 3) == 0) start += 3, n -= 3;
        if (n > 0 && start[n - 1] == '\r') n--;
        if (is_blank(start, n)) continue;
        start[n] = '\0';
        *text = start;
        *length = n;
        return ATTUNE_CONTINUE;
    }
}
