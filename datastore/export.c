/* What is kept, as JSON Lines. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/fault.h"
#include "core/base/file.h"
#include "core/base/options.h"
#include "datastore/jsonl.h"
#include "datastore/query.h"

/* ---- where lines go ---- */

enum { BUFFER_BYTES = 64 << 10 };

struct output {
    int64_t lines;
    struct file_writer file;
    char *buffer; /* BUFFER_BYTES on their way to standard output; NULL: to the file */
    size_t buffered;
};

/* A reader that has gone raises SIGPIPE, whose default would end the host: it is kept off this thread, and taken back
 * before it is let in again, unless one was pending before. Returns what write does. */
static ssize_t write_quietly(int fd, const char *bytes, size_t n) {
    sigset_t pipe_signal, before, pending;
    const struct timespec now = {0, 0};
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    sigemptyset(&pending);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
    ssize_t written = fault_fails("export.write") ? -1 : write(fd, bytes, n);
    int saved = errno;
    if (written < 0 && saved == EPIPE && !sigismember(&pending, SIGPIPE))
        while (sigtimedwait(&pipe_signal, NULL, &now) < 0 && errno == EINTR) {
        }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = saved;
    return written;
}

static int write_stdout(const char *bytes, size_t n, attune_error *err) {
    while (n > 0) {
        ssize_t written = write_quietly(STDOUT_FILENO, bytes, n);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return error_set_errno(err, "standard output", "cannot write the export");
        bytes += written;
        n -= (size_t)written;
    }
    return ATTUNE_OK;
}

static int output_flush(struct output *output, attune_error *err) {
    size_t n = output->buffered;
    output->buffered = 0;
    return write_stdout(output->buffer, n, err);
}

static int output_line(struct output *output, const char *bytes, size_t n, attune_error *err) {
    int code = ATTUNE_OK;
    if (!output->buffer) {
        code = file_writer_add(&output->file, bytes, n, err);
    } else {
        if (n > BUFFER_BYTES - output->buffered) code = output_flush(output, err);
        if (code == ATTUNE_OK && n > BUFFER_BYTES) code = write_stdout(bytes, n, err);
        if (code == ATTUNE_OK && n <= BUFFER_BYTES) {
            memcpy(output->buffer + output->buffered, bytes, n);
            output->buffered += n;
        }
    }
    output->lines += code == ATTUNE_OK;
    return code;
}

static int output_open(const char *path, struct output *output, attune_error *err) {
    struct stat info;
    if (strcmp(path, "-") == 0) {
        output->buffer = malloc(BUFFER_BYTES);
        if (!output->buffer) return error_set_memory(err, "an export", BUFFER_BYTES);
        fflush(stdout); /* what the host has printed stands before it */
        return ATTUNE_OK;
    }
    if (lstat(path, &info) == 0)
        return error_set(err, ATTUNE_ERROR_STATE, path, "there is such a file already: export to a new one");
    return file_writer_open(path, "export", &output->file, err);
}

static int output_finish(struct output *output, attune_error *err) {
    return output->buffer ? ATTUNE_OK : file_writer_publish_new(&output->file, err);
}

static void output_close(struct output *output) {
    free(output->buffer);
    file_writer_abandon(&output->file);
}

/* ---- lines ---- */

static int write_row(struct output *output, const attune_row *row, attune_error *err) {
    char *text = NULL;
    size_t n = 0;
    int code = jsonl_write_row(row, &text, &n, err);
    if (code == ATTUNE_OK) code = output_line(output, text, n, err);
    free(text);
    return code;
}

static int write_rows(attune_store *store, const attune_filter *filter, struct output *output, attune_error *err) {
    attune_filter all;
    attune_row row;
    attune_cursor *cursor = NULL;
    ATTUNE_INIT(all);
    ATTUNE_INIT(row);
    all.oldest_first = 1;
    int code = attune_store_query(store, filter ? filter : &all, &cursor, err);
    while (code == ATTUNE_OK && (code = attune_cursor_next(cursor, &row, err)) == ATTUNE_CONTINUE)
        code = write_row(output, &row, err);
    attune_cursor_close(cursor);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int write_example(const struct store_row *row, void *user, attune_error *err) {
    struct output *output = user;
    char *text = NULL;
    size_t n = 0;
    int code =
        row->kind == STORE_EXAMPLE_PREFERENCE
            ? jsonl_write_preference(row->messages, row->n_messages, row->response, row->rejected, &text, &n, err)
            : jsonl_write_chat(row->messages, row->n_messages, row->response, &text, &n, err);
    if (code == ATTUNE_OK) code = output_line(output, text, n, err);
    free(text);
    return code;
}

static int write_lines(attune_store *store, const attune_export_options *options, struct output *output,
                       attune_error *err) {
    struct store_example_query query = {.kind = options->format == ATTUNE_EXPORT_PREFERENCE ? STORE_EXAMPLE_PREFERENCE
                                                                                            : STORE_EXAMPLE_SFT};
    return options->format == ATTUNE_EXPORT_ROWS ? write_rows(store, options->filter, output, err)
                                                 : store_examples(store, &query, write_example, output, err);
}

/* ---- the call ---- */

static int take_options(attune_export_options *out, const attune_export_options *options, attune_error *err) {
    static const char type[] = "attune_export_options";
    int code = options_read(out, sizeof *out, options, type, err);
    if (code != ATTUNE_OK) return code;
    if (out->format < ATTUNE_EXPORT_ROWS || out->format > ATTUNE_EXPORT_PREFERENCE)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, type, "format is %d: see enum attune_export_format", out->format);
    if (out->filter && out->format != ATTUNE_EXPORT_ROWS)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, type, "a filter chooses rows: this format exports all examples");
    return ATTUNE_OK;
}

/* Before the file is in its place: no export is without its entry. */
static int note_export(attune_store *store, int format, const struct output *output, attune_error *err) {
    static const char *const names[] = {"rows", "chat", "preference"};
    char detail[120];
    snprintf(detail, sizeof detail, "%s, %" PRId64 " lines, to %s", names[format], output->lines,
             output->buffer ? "standard output" : "a file");
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, store_audit(store, "export", detail, err), err);
    store_leave(store);
    return code;
}

int attune_store_export(attune_store *store, const char *path, const attune_export_options *options, int64_t *n,
                        attune_error *err) {
    attune_export_options taken;
    struct output output = {.file = {.fd = -1}};
    if (!path) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path is NULL");
    int code = take_options(&taken, options, err);
    if (code == ATTUNE_OK) code = store_flush_queue(store, err);
    if (code == ATTUNE_OK) code = store_need_key(store, err);
    if (code == ATTUNE_OK) code = output_open(path, &output, err);
    if (code != ATTUNE_OK) return code;
    code = write_lines(store, &taken, &output, err);
    if (code == ATTUNE_OK && output.buffer) code = output_flush(&output, err);
    if (code == ATTUNE_OK)
        code = note_export(store, taken.format, &output, err);
    else if (output.buffer && output.lines > 0) /* some of them may have left */
        note_export(store, taken.format, &output, NULL);
    if (code == ATTUNE_OK) code = output_finish(&output, err);
    output_close(&output);
    if (code == ATTUNE_OK && n) *n = output.lines;
    return code;
}
