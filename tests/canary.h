/* Looks for byte strings in every file of a home, in a process of its own: closing store.db in this one would drop
 * SQLite's locks on it. */
#ifndef TESTS_CANARY_H
#define TESTS_CANARY_H

#include "tests/store_fixture.h"

enum { NEEDLES = 1 << 17, NEEDLE_SLOTS = NEEDLES * 4 };

struct needles {
    size_t n;
    struct needle {
        const unsigned char *bytes; /* at least 8, owned */
        size_t length;
        const char *what; /* borrowed */
    } at[NEEDLES];
    uint32_t slots[NEEDLE_SLOTS]; /* by the first eight bytes; number + 1 of a needle, 0 free */
};

static inline uint64_t first_eight(const unsigned char *bytes) {
    uint64_t value;
    memcpy(&value, bytes, 8);
    return value;
}
static inline size_t slot_of(uint64_t value) { return (size_t)((value * 0x9e3779b97f4a7c15u) >> 40) % NEEDLE_SLOTS; }

static inline struct needles *needles_new(void) {
    struct needles *needles = calloc(1, sizeof *needles);
    assert_non_null(needles);
    return needles;
}
static inline void needles_add(struct needles *needles, const char *what, const void *bytes, size_t length) {
    unsigned char *copy = malloc(length);
    assert_true(length >= 8 && needles->n < NEEDLES && copy);
    memcpy(copy, bytes, length);
    size_t slot = slot_of(first_eight(copy));
    while (needles->slots[slot]) slot = (slot + 1) % NEEDLE_SLOTS;
    needles->at[needles->n++] = (struct needle){copy, length, what};
    needles->slots[slot] = (uint32_t)needles->n;
}
static inline void needles_add_text(struct needles *needles, const char *what, const char *text) {
    needles_add(needles, what, text, strlen(text));
}
static inline void needles_free(struct needles *needles) {
    for (size_t i = 0; i < needles->n; i++) free((void *)needles->at[i].bytes);
    free(needles);
}

/* ---- in the child ---- */

static inline void needles_in_bytes(const struct needles *needles, const unsigned char *bytes, size_t n,
                                    unsigned char *found) {
    for (size_t i = 0; i + 8 <= n; i++) {
        uint64_t value = first_eight(bytes + i);
        for (size_t slot = slot_of(value); needles->slots[slot]; slot = (slot + 1) % NEEDLE_SLOTS) {
            uint32_t at = needles->slots[slot] - 1;
            const struct needle *needle = &needles->at[at];
            if (needle->length <= n - i && memcmp(needle->bytes, bytes + i, needle->length) == 0) found[at] = 1;
        }
    }
}

static inline void needles_in_folder(const struct needles *needles, const char *folder, unsigned char *found) {
    DIR *directory = opendir(folder);
    if (!directory) _exit(2);
    for (struct dirent *entry; (entry = readdir(directory));) {
        char path[1024];
        struct stat info;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, entry->d_name) >= sizeof path) _exit(2);
        if (lstat(path, &info) != 0) _exit(2);
        if (S_ISDIR(info.st_mode)) {
            needles_in_folder(needles, path, found);
            continue;
        }
        int fd = open(path, O_RDONLY);
        unsigned char *bytes = malloc((size_t)info.st_size + 1);
        size_t n = 0;
        for (ssize_t got; (got = read(fd, bytes + n, (size_t)info.st_size - n)) > 0;) n += (size_t)got;
        close(fd);
        needles_in_bytes(needles, bytes, n, found);
        free(bytes);
    }
    closedir(directory);
}

/* How many of the needles are in the files of the home; found (nullable) gets a 1 for each of those. */
static inline size_t needles_find(const struct needles *needles, const char *home, unsigned char *found) {
    int ends[2], status;
    size_t n = 0;
    unsigned char *got = calloc(needles->n + 1, 1);
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        needles_in_folder(needles, home, got);
        for (size_t at = 0; at < needles->n;) {
            ssize_t wrote = write(ends[1], got + at, needles->n - at);
            if (wrote <= 0) _exit(3);
            at += (size_t)wrote;
        }
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t more; n < needles->n && (more = read(ends[0], got + n, needles->n - n)) > 0;) n += (size_t)more;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0 && n == needles->n);
    size_t hits = 0;
    for (size_t i = 0; i < needles->n; i++) hits += got[i];
    if (found) memcpy(found, got, needles->n);
    free(got);
    return hits;
}

static inline void assert_all_found(const struct needles *needles, const char *home) {
    unsigned char *found = calloc(needles->n + 1, 1);
    needles_find(needles, home, found);
    for (size_t i = 0; i < needles->n; i++)
        if (!found[i]) fail_msg("%s is not there to begin with", needles->at[i].what);
    free(found);
}

static inline void assert_none_found(const struct needles *needles, const char *home) {
    unsigned char *found = calloc(needles->n + 1, 1);
    size_t n = needles_find(needles, home, found);
    for (size_t i = 0; i < needles->n; i++)
        if (found[i]) fail_msg("%zu of %zu are still there, as %s (number %zu)", n, needles->n, needles->at[i].what, i);
    free(found);
}

#endif
