/* libFuzzer: any bytes as a file of JSON Lines. The reader finds the lines that the bytes hold; a line is taken or
 * refused; what is taken is written, read again as the same row, and written again as the same bytes. The bytes as one
 * JSON text: jansson alone takes the same ones, and where its allocations fail, none is damaged or called bad. */
#define _GNU_SOURCE
#include <jansson.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "datastore/json_text.h"
#include "tests/jsonl_rows.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition) {
    if (!condition) abort();
}

static void check_again(const attune_row *row, const char *text, size_t n) {
    struct jsonl_row line;
    attune_message single;
    char *again;
    size_t n_again;
    require(jsonl_row_parse(text, n - 1, "again", &line, NULL) == ATTUNE_OK && line.has_tier);
    attune_row other = row_of_line(&line, &single);
    require(!difference(row, &other));
    require(jsonl_write_row(&other, &again, &n_again, NULL) == ATTUNE_OK);
    require(n_again == n && memcmp(again, text, n) == 0);
    free(again);
    jsonl_row_free(&line);
}

static void check_pairs(const attune_row *row) {
    struct jsonl_row line;
    char *text;
    size_t n;
    require(jsonl_write_chat(row->messages, row->n_messages, row->response, &text, &n, NULL) == ATTUNE_OK);
    require(jsonl_row_parse(text, n - 1, "chat", &line, NULL) == ATTUNE_OK);
    require(strcmp(line.interaction.response, row->response) == 0);
    jsonl_row_free(&line);
    free(text);
    require(jsonl_write_preference(row->messages, row->n_messages, row->response, "x", &text, &n, NULL) == ATTUNE_OK);
    json_t *json = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    require(json_array_size(json_object_get(json, "prompt")) == row->n_messages);
    json_decref(json);
    free(text);
}

static void check_row(const char *text, size_t n) {
    struct jsonl_row line;
    attune_message single;
    attune_error err = {0};
    char *written;
    size_t n_written;
    if (jsonl_row_parse(text, n, "fuzz", &line, &err) != ATTUNE_OK) {
        require(err.code == ATTUNE_ERROR_FORMAT && err.message[0]);
        return;
    }
    attune_row row = row_of_line(&line, &single);
    int code = jsonl_write_row(&row, &written, &n_written, &err);
    require(code == ATTUNE_OK || code == ATTUNE_ERROR_ARGUMENT);
    if (code == ATTUNE_OK) {
        check_again(&row, written, n_written);
        check_pairs(&row);
        free(written);
    }
    jsonl_row_free(&line);
}

static size_t allocations, failing, failing_to; /* the numbers of those of jansson that fail, [failing, failing_to) */

static void *allocate(size_t n) {
    allocations++;
    return allocations >= failing && allocations < failing_to ? NULL : malloc(n);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    json_set_alloc_funcs(allocate, free);
    return 0;
}

/* A good text is read as it is, or memory is said to lack; a bad one may also be called bad. */
static void check_failing(const char *text, size_t n, json_t *good, size_t from, size_t to) {
    json_t *json = NULL;
    attune_error err = {0};
    allocations = 0;
    failing = from;
    failing_to = to;
    int code = json_text_parse(text, n, "fuzz", &json, &err);
    failing = failing_to = 0;
    require(code == ATTUNE_OK ? json_equal(json, good) : code == ATTUNE_ERROR_MEMORY || !good);
    json_decref(json);
}

/* What jansson takes by itself is taken, but for what nests deeper and the NUL that it overlooks behind a number. What
 * is written is read again. */
static void check_text(const char *text, size_t n) {
    json_t *json = NULL, *other = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL), *again;
    attune_error err = {0};
    char *written;
    size_t n_written;
    allocations = 0;
    int code = json_text_parse(text, n, "fuzz", &json, &err);
    size_t all = allocations, few = all < 64 ? all : 64;
    require(code == ATTUNE_OK ? json_equal(json, other) : code == ATTUNE_ERROR_FORMAT);
    require(code == ATTUNE_OK || !other || strstr(err.message, "nested") || memchr(text, 0, n));
    for (size_t i = 1; i <= few; i++) {
        size_t nth = few < all ? i * all / few : i;
        check_failing(text, n, json, nth, nth + 1);
        if (i % 8 == 1) check_failing(text, n, json, nth, SIZE_MAX);
    }
    if (code == ATTUNE_OK) {
        require(json_text_write(json, "", &written, &n_written, NULL) == ATTUNE_OK);
        require(json_text_parse(written, n_written, "again", &again, NULL) == ATTUNE_OK && json_equal(json, again));
        json_decref(again);
        free(written);
    }
    json_decref(json);
    json_decref(other);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct jsonl lines = {.path = "fuzz"};
    char *text;
    size_t n, seen = 0, feeds = 0;
    int code;
    check_text((const char *)data, size);
    lines.fd = memfd_create("fuzz", MFD_CLOEXEC);
    require(lines.fd > STDIN_FILENO && write(lines.fd, data, size) == (ssize_t)size);
    require(lseek(lines.fd, 0, SEEK_SET) == 0);
    while ((code = jsonl_next(&lines, &text, &n, NULL)) == ATTUNE_CONTINUE) {
        require(n > 0 && !text[n] && !memchr(text, '\n', n));
        require(lines.line > seen);
        seen = lines.line;
        check_row(text, n);
    }
    require(code == ATTUNE_DONE);
    for (size_t i = 0; i < size; i++) feeds += data[i] == '\n';
    require(lines.line == feeds + (size > 0 && data[size - 1] != '\n'));
    jsonl_close(&lines);
    return 0;
}
