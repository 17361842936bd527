/* The cache of merged weights over tiny_base.h: what is kept is what is mapped, and nothing else ever is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "adapters/merged_cache.h"
#include "tests/expect.h"
#include "tests/tiny_base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>

enum { ADAPTERS = 6 };

struct cache {
    struct tiny_base base;
    struct lora *lora;
    struct merged *merged;
    struct pool *pool;
    char folder[256], adapters[ADAPTERS][65];
    struct merged_key key;
};

/* ---- allocations that fail (not under a sanitizer, which has malloc itself) ---- */

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define SANITIZED
#endif

static _Thread_local long allocations, fail_at; /* fail_at: which one, from 1; 0: none */
#ifndef SANITIZED
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
static int fails(void) { return fail_at && ++allocations == fail_at; }
void *malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t each) { return fails() ? NULL : __libc_calloc(n, each); }
#endif

/* ---- helpers ---- */

static int setup(void **state) {
    struct cache *c = calloc(1, sizeof *c);
    unsetenv("ATTUNE_FAULT");
    OK(kernels_select(&err));
    tiny_base_make(&c->base, BLOCK_Q4_1, 64, ROPE_INTERLEAVED);
    c->lora = tiny_lora(&c->base.model, 4, 8, LORA_ALL_TARGETS & ~(1u << TARGET_UP));
    OK(pool_create(2, &c->pool, &err));
    OK(merge_create(&c->base.model, c->lora, MERGE_SAME, c->pool, NULL, &c->merged, &err));
    for (int i = 0; i < ADAPTERS; i++) snprintf(c->adapters[i], 65, "%064x", 0xb0 + i);
    for (int i = 0; i < ADAPTERS; i++) memset(c->adapters[i], '0' + i, 16);
    c->key = (struct merged_key){c->adapters[0], MERGE_SAME};
    tiny_folder(c->folder);
    *state = c;
    return 0;
}

static int teardown(void **state) {
    struct cache *c = *state;
    char command[300];
    unsetenv("ATTUNE_FAULT");
    merge_destroy(c->merged);
    lora_destroy(c->lora);
    pool_destroy(c->pool);
    tiny_base_free(&c->base);
    snprintf(command, sizeof command, "rm -rf %s", c->folder);
    if (system(command)) abort();
    free(c);
    return 0;
}

/* Names that begin and end so; the last one found into `name` (nullable). */
static int count(const struct cache *c, const char *start, const char *end, char *name) {
    DIR *dir = opendir(c->folder);
    int n = 0;
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        size_t length = strlen(entry->d_name), tail = strlen(end);
        if (strncmp(entry->d_name, start, strlen(start)) != 0 || length < tail ||
            strcmp(entry->d_name + length - tail, end) != 0 || strcmp(entry->d_name, ".") == 0 ||
            strcmp(entry->d_name, "..") == 0)
            continue;
        if (name) snprintf(name, 600, "%s/%s", c->folder, entry->d_name);
        n++;
    }
    closedir(dir);
    return n;
}

static void keep(const struct cache *c, const struct merged_key *key, uint64_t limit) {
    OK(merged_cache_keep(c->folder, key, &c->base.model, c->pool, c->merged, limit, &err));
}

/* The one entry of the folder. */
static void only_entry(const struct cache *c, char path[600]) { assert_int_equal(count(c, "merged-", ".gguf", path), 1); }

static void forget_verified(const struct cache *c) {
    char path[600];
    while (count(c, "merged-", ".verified", path)) assert_int_equal(unlink(path), 0);
}

static void expect_same(const struct cache *c, const struct merged *found) {
    const struct model *m = &c->base.model;
    for (size_t l = 0; l < m->L; l++) {
        assert_ptr_equal(found->layers[l].attn_norm, m->layers[l].attn_norm);
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct matrix *want = &c->merged->layers[l].linear[t], *got = &found->layers[l].linear[t];
            assert_int_equal(got->type, want->type);
            assert_int_equal(got->rows, want->rows);
            assert_int_equal(got->cols, want->cols);
            assert_int_equal(got->row_bytes, want->row_bytes);
            if (t == TARGET_UP) assert_ptr_equal(got->data, m->layers[l].linear[t].data);
            assert_memory_equal(got->data, want->data, want->rows * want->row_bytes);
        }
    }
}

static void expect_hit(const struct cache *c, const struct merged_key *key) {
    struct merged *found = NULL;
    OK(merged_cache_open(c->folder, key, &c->base.model, c->pool, &found, &err));
    assert_non_null(found->gguf);
    expect_same(c, found);
    merge_destroy(found);
}

static void expect_miss(const struct cache *c, const struct merged_key *key, const char *word) {
    struct merged *found = NULL;
    attune_error err = {0};
    int code = merged_cache_open(c->folder, key, &c->base.model, c->pool, &found, &err);
    if (code != ATTUNE_ERROR_NOT_FOUND || found) fail_msg("code %d: %s (%s)", code, err.message, err.where);
    if (!strstr(err.message, word)) fail_msg("no \"%s\" in: %s", word, err.message);
}

/* Times of files go on in steps of some milliseconds. */
static void tick(void) { nanosleep(&(struct timespec){.tv_nsec = 25000000}, NULL); }

/* ---- what is kept ---- */

static void kept_is_found(void **state) {
    struct cache *c = *state;
    char path[600];
    struct stat st;
    expect_miss(c, &c->key, "no merged weights");
    keep(c, &c->key, 0);
    only_entry(c, path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(count(c, ".", "", NULL), 0);
    assert_int_equal(count(c, "merged-", ".verified", NULL), 1);
    expect_hit(c, &c->key);
    forget_verified(c);
    expect_hit(c, &c->key);
    assert_int_equal(count(c, "merged-", ".verified", NULL), 1);
    /* without a pool too, and what was opened can be kept again */
    struct merged *found = NULL;
    forget_verified(c);
    OK(merged_cache_open(c->folder, &c->key, &c->base.model, NULL, &found, &err));
    struct merged_key other = {c->adapters[1], MERGE_SAME};
    OK(merged_cache_keep(c->folder, &other, &c->base.model, NULL, found, 0, &err));
    merge_destroy(found);
    expect_hit(c, &other);
    expect_hit(c, &c->key);
}

static void keys_differ(void **state) {
    struct cache *c = *state;
    struct merged_key other = c->key, none = c->key;
    keep(c, &c->key, 0);
    other.adapter_sha256 = c->adapters[1];
    expect_miss(c, &other, "no merged weights");
    other = c->key;
    other.mode = MERGE_Q8;
    expect_miss(c, &other, "no merged weights");
    other.mode = MERGE_CALIBRATED;
    expect_miss(c, &other, "no merged weights");
    c->base.model.sha256[3] = 'b';
    expect_miss(c, &c->key, "no merged weights");
    c->base.model.sha256[3] = 'a';
    expect_hit(c, &c->key);
    /* keys that name nothing */
    struct merged *found = NULL;
    none.mode = MERGE_NONE;
    assert_int_equal(merged_cache_open(c->folder, &none, &c->base.model, NULL, &found, NULL), ATTUNE_ERROR_ARGUMENT);
    none = (struct merged_key){"../../etc/passwd", MERGE_SAME};
    assert_int_equal(merged_cache_keep(c->folder, &none, &c->base.model, NULL, c->merged, 0, NULL),
                     ATTUNE_ERROR_ARGUMENT);
    *c->base.model.sha256 = 0;
    assert_int_equal(merged_cache_open(c->folder, &c->key, &c->base.model, NULL, &found, NULL), ATTUNE_ERROR_ARGUMENT);
}

/* ---- what is not believed ---- */

static unsigned char *copy_of(const char *path, size_t *n, size_t *header) {
    unsigned char *bytes = tiny_read(path, n);
    struct gguf *gguf = NULL;
    OK(gguf_parse(bytes, *n, path, &gguf, &err));
    *header = gguf->data_offset;
    gguf_close(gguf);
    return bytes;
}

/* Every bit of a byte pattern in the header, and bytes all over the data. */
static void flipped(void **state) {
    struct cache *c = *state;
    char path[600];
    size_t n, header;
    keep(c, &c->key, 0);
    only_entry(c, path);
    unsigned char *bytes = copy_of(path, &n, &header);
    size_t harmless = 0;
    for (size_t i = 0; i < n; i += i < header ? 1 : 23) {
        bytes[i] ^= (unsigned char)(1 << i % 8);
        forget_verified(c);
        tiny_write(path, bytes, n);
        bytes[i] ^= (unsigned char)(1 << i % 8);
        struct merged *found = NULL;
        int code = merged_cache_open(c->folder, &c->key, &c->base.model, c->pool, &found, NULL);
        if (code == ATTUNE_OK) {
            expect_same(c, found); /* padding, or GGUF 2 in place of 3 */
            merge_destroy(found);
            harmless++;
            continue;
        }
        if (code != ATTUNE_ERROR_NOT_FOUND) fail_msg("byte %zu: %d", i, code);
        assert_int_equal(access(path, F_OK), -1);
    }
    if (harmless > 64) fail_msg("%zu flips of %zu bytes did no harm", harmless, n);
    tiny_write(path, bytes, n);
    expect_hit(c, &c->key);
    free(bytes);
}

static void cut_or_longer(void **state) {
    struct cache *c = *state;
    char path[600];
    size_t n, header;
    keep(c, &c->key, 0);
    only_entry(c, path);
    unsigned char *bytes = copy_of(path, &n, &header);
    for (size_t i = 0; i < n; i += i < header ? 7 : 97) {
        forget_verified(c);
        tiny_write(path, bytes, i);
        expect_miss(c, &c->key, "removed");
        assert_int_equal(access(path, F_OK), -1);
    }
    forget_verified(c);
    tiny_write(path, bytes, n - 1);
    expect_miss(c, &c->key, "removed");
    unsigned char *longer = calloc(1, n + 32);
    memcpy(longer, bytes, n);
    tiny_write(path, longer, n + 32);
    expect_miss(c, &c->key, "removed");
    free(longer);
    free(bytes);
}

/* A whole, sound file under another one's name, and one of another version. */
static void foreign(void **state) {
    struct cache *c = *state;
    char first[600], second[600], base[600];
    struct merged_key other = {c->adapters[1], MERGE_SAME}, calibrated = {c->adapters[0], MERGE_CALIBRATED};
    keep(c, &c->key, 0);
    only_entry(c, first);
    keep(c, &other, 0);
    assert_int_equal(count(c, "merged-1111111111111111-", ".gguf", second), 1);
    assert_int_equal(rename(first, second), 0);
    expect_miss(c, &other, "removed");
    /* the same adapter in another mode, whose matrices have the same types */
    keep(c, &c->key, 0);
    only_entry(c, first);
    keep(c, &calibrated, 0);
    expect_hit(c, &calibrated);
    assert_int_equal(unlink(first), 0);
    only_entry(c, second);
    assert_int_equal(rename(second, first), 0);
    expect_miss(c, &c->key, "removed");
    /* another base with the same shapes */
    keep(c, &c->key, 0);
    only_entry(c, first);
    c->base.model.sha256[0] = 'b';
    keep(c, &c->key, 0);
    forget_verified(c);
    assert_int_equal(count(c, "merged-", ".gguf", NULL), 2);
    assert_int_equal(unlink(first), 0);
    only_entry(c, base);
    c->base.model.sha256[0] = 'a';
    assert_int_equal(rename(base, first), 0);
    expect_miss(c, &c->key, "removed");
    /* another version */
    size_t n, header;
    keep(c, &c->key, 0);
    only_entry(c, first);
    unsigned char *bytes = copy_of(first, &n, &header), *at = bytes;
    while (memcmp(at, "attune.merged.version", 21) != 0) at++;
    at[21 + 4]++;
    forget_verified(c);
    tiny_write(first, bytes, n);
    expect_miss(c, &c->key, "version");
    free(bytes);
}

static void not_a_file(void **state) {
    struct cache *c = *state;
    char path[600], aside[700];
    keep(c, &c->key, 0);
    only_entry(c, path);
    snprintf(aside, sizeof aside, "%s/aside", c->folder);
    assert_int_equal(rename(path, aside), 0);
    assert_int_equal(symlink(aside, path), 0);
    expect_miss(c, &c->key, "symbolic link");
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_miss(c, &c->key, "FIFO");
    assert_int_equal(mkdir(path, 0700), 0);
    expect_miss(c, &c->key, "folder");
    assert_int_not_equal(merged_cache_keep(c->folder, &c->key, &c->base.model, c->pool, c->merged, 0, NULL), ATTUNE_OK);
    assert_int_equal(count(c, ".", ".tmp", NULL), 0);
    assert_int_equal(rmdir(path), 0);
    expect_miss(c, &c->key, "no merged weights");
}

/* Verified once; then somebody writes into the very file, and its time tells. */
static void changed_in_place(void **state) {
    struct cache *c = *state;
    char path[600];
    size_t n, header;
    keep(c, &c->key, 0);
    expect_hit(c, &c->key);
    only_entry(c, path);
    unsigned char *bytes = copy_of(path, &n, &header);
    tick();
    int fd = open(path, O_WRONLY);
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    unsigned char wrong = bytes[header + 5] ^ 1;
    assert_int_equal(pwrite(fd, &wrong, 1, (off_t)(header + 5)), 1);
    /* the time of modification as it was: that of the last change is left */
    assert_int_equal(futimens(fd, (struct timespec[]){st.st_atim, st.st_mtim}), 0);
    close(fd);
    expect_miss(c, &c->key, "damaged");
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(count(c, "merged-", ".verified", NULL), 0);
    free(bytes);
}

/* The memory of another file, of another digest, or garbage does not make a damaged one good. */
static void wrong_memory(void **state) {
    struct cache *c = *state;
    char path[600], verified[600];
    size_t n, header, m;
    keep(c, &c->key, 0);
    only_entry(c, path);
    assert_int_equal(count(c, "merged-", ".verified", verified), 1);
    unsigned char *bytes = copy_of(path, &n, &header), *memory = tiny_read(verified, &m);
    tick();
    bytes[n - 1 - 32] ^= 1;
    tiny_write(path, bytes, n);
    expect_miss(c, &c->key, "damaged");
    tiny_write(path, bytes, n);
    tiny_write(verified, memory, m);
    expect_miss(c, &c->key, "damaged");
    tiny_write(path, bytes, n);
    tiny_write(verified, "", 0);
    expect_miss(c, &c->key, "damaged");
    free(bytes);
    free(memory);
}

/* ---- swapped while it is opened ---- */

struct swapper {
    const char *path, *good, *bad;
    atomic_int done;
};
static void *swap_files(void *argument) {
    struct swapper *s = argument;
    char link_name[700];
    snprintf(link_name, sizeof link_name, "%s.next", s->good);
    for (int i = 0; !atomic_load(&s->done); i++) {
        unlink(link_name);
        if (link(i & 1 ? s->good : s->bad, link_name) || rename(link_name, s->path)) abort();
    }
    return NULL;
}

/* Whatever was under the name when: what is mapped is what was verified. */
static void swapped_between_check_and_map(void **state) {
    struct cache *c = *state;
    char path[600], good[700], bad[700];
    size_t n, header, hits = 0;
    pthread_t thread;
    keep(c, &c->key, 0);
    only_entry(c, path);
    unsigned char *bytes = copy_of(path, &n, &header);
    snprintf(good, sizeof good, "%s/good", c->folder);
    snprintf(bad, sizeof bad, "%s/bad", c->folder);
    tiny_write(good, bytes, n);
    for (size_t i = header; i < n; i += 64) bytes[i] ^= 2;
    tiny_write(bad, bytes, n);
    struct swapper swapper = {.path = path, .good = good, .bad = bad};
    assert_int_equal(pthread_create(&thread, NULL, swap_files, &swapper), 0);
    for (int i = 0; i < 300; i++) {
        struct merged *found = NULL;
        int code = merged_cache_open(c->folder, &c->key, &c->base.model, c->pool, &found, NULL);
        if (code == ATTUNE_OK) {
            expect_same(c, found);
            merge_destroy(found);
            hits++;
        } else if (code != ATTUNE_ERROR_NOT_FOUND) {
            fail_msg("code %d", code);
        }
    }
    atomic_store(&swapper.done, 1);
    pthread_join(thread, NULL);
    assert_true(hits > 0);
    free(bytes);
}

/* ---- bounds ---- */

static int is_kept(const struct cache *c, int adapter) {
    char start[64];
    snprintf(start, sizeof start, "merged-%.16s-", c->adapters[adapter]);
    return count(c, start, ".gguf", NULL);
}

static void least_recently_used_go(void **state) {
    struct cache *c = *state;
    struct merged_key keys[ADAPTERS];
    char path[600];
    struct stat st;
    for (int i = 0; i < ADAPTERS; i++) keys[i] = (struct merged_key){c->adapters[i], MERGE_SAME};
    keep(c, &keys[0], 0);
    only_entry(c, path);
    assert_int_equal(stat(path, &st), 0);
    uint64_t three = 3 * (uint64_t)st.st_size;
    for (int i = 1; i < 3; i++) tick(), keep(c, &keys[i], three);
    assert_int_equal(count(c, "merged-", ".gguf", NULL), 3);
    tick();
    expect_hit(c, &keys[0]); /* now 1 is the oldest */
    tick();
    keep(c, &keys[3], three);
    assert_true(is_kept(c, 0) && !is_kept(c, 1) && is_kept(c, 2) && is_kept(c, 3));
    tick();
    forget_verified(c); /* then the time of writing counts: 0, 2, 3 */
    keep(c, &keys[4], three);
    assert_true(!is_kept(c, 0) && is_kept(c, 2) && is_kept(c, 3) && is_kept(c, 4));
    /* two stay whatever they take, and the new one is among them */
    tick();
    keep(c, &keys[5], 1);
    assert_true(!is_kept(c, 2) && !is_kept(c, 3) && is_kept(c, 4) && is_kept(c, 5));
    assert_int_equal(count(c, "merged-", ".verified", NULL), 2);
    /* whatever the clock says */
    char other[600];
    struct timespec ahead[2] = {{.tv_sec = INT32_MAX}, {.tv_sec = INT32_MAX}};
    forget_verified(c);
    for (int i = 4; i < 6; i++) {
        char start[64];
        snprintf(start, sizeof start, "merged-%.16s-", c->adapters[i]);
        assert_int_equal(count(c, start, ".gguf", other), 1);
        assert_int_equal(utimensat(AT_FDCWD, other, ahead, 0), 0);
    }
    keep(c, &keys[0], three - 1);
    assert_true(is_kept(c, 0));
    assert_int_equal(count(c, "merged-", ".gguf", NULL), 2);
    /* the default is far above */
    for (int i = 0; i < ADAPTERS; i++) keep(c, &keys[i], 0);
    assert_int_equal(count(c, "merged-", ".gguf", NULL), ADAPTERS);
}

static void removed_with_its_adapter(void **state) {
    struct cache *c = *state;
    struct merged_key other = {c->adapters[1], MERGE_SAME}, calibrated = {c->adapters[0], MERGE_CALIBRATED};
    char foreign_file[700], temporary[700];
    keep(c, &c->key, 0);
    keep(c, &calibrated, 0);
    keep(c, &other, 0);
    snprintf(foreign_file, sizeof foreign_file, "%s/tokens.gguf", c->folder);
    snprintf(temporary, sizeof temporary, "%s/.merged-%.16s-x.gguf.1-1.tmp", c->folder, c->adapters[0]);
    tiny_write(foreign_file, "x", 1);
    tiny_write(temporary, "x", 1);
    OK(merged_cache_remove(c->folder, c->adapters[0], &err));
    assert_int_equal(is_kept(c, 0), 0);
    assert_int_equal(access(temporary, F_OK), -1);
    assert_int_equal(count(c, "merged-", ".verified", NULL), 1);
    expect_hit(c, &other);
    assert_int_equal(access(foreign_file, F_OK), 0);
    OK(merged_cache_remove(c->folder, c->adapters[0], &err));
    OK(merged_cache_remove("/nowhere/at/all", c->adapters[0], &err));
    assert_int_equal(merged_cache_remove(c->folder, "", NULL), ATTUNE_ERROR_ARGUMENT);
}

/* A leftover of long ago goes with the next that is kept; one of now may be somebody's. */
static void leftovers_go(void **state) {
    struct cache *c = *state;
    char old[700], young[700];
    snprintf(old, sizeof old, "%s/.merged-a.gguf.1-1.tmp", c->folder);
    snprintf(young, sizeof young, "%s/.merged-b.gguf.1-1.tmp", c->folder);
    tiny_write(old, "x", 1);
    tiny_write(young, "x", 1);
    struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    assert_int_equal(utimensat(AT_FDCWD, old, times, 0), 0);
    keep(c, &c->key, 0);
    assert_int_equal(access(old, F_OK), -1);
    assert_int_equal(access(young, F_OK), 0);
}

/* ---- trouble ---- */

static void failing_disk(void **state) {
    struct cache *c = *state;
    static const char *const faults[] = {"merged.write.before:fail", "merged.write.after:fail",
                                         "merged.fsync.before:fail", "merged.rename.before:fail"};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        setenv("ATTUNE_FAULT", faults[i], 1);
        attune_error err = {0};
        assert_int_equal(merged_cache_keep(c->folder, &c->key, &c->base.model, c->pool, c->merged, 0, &err),
                         ATTUNE_ERROR_IO);
        unsetenv("ATTUNE_FAULT");
        assert_int_equal(count(c, ".", "", NULL) + count(c, "merged-", "", NULL), 0);
    }
    assert_int_equal(merged_cache_keep("/proc/self", &c->key, &c->base.model, c->pool, c->merged, 0, NULL),
                     ATTUNE_ERROR_IO);
    /* the memory of what was verified cannot be written: only that is missing */
    setenv("ATTUNE_FAULT", "cache.rename.before:fail", 1);
    keep(c, &c->key, 0);
    expect_hit(c, &c->key);
    unsetenv("ATTUNE_FAULT");
    assert_int_equal(count(c, "merged-", ".verified", NULL), 0);
    expect_hit(c, &c->key);
    assert_int_equal(count(c, "merged-", ".verified", NULL), 1);
}

static void folder_is_made_again(void **state) {
    struct cache *c = *state;
    assert_int_equal(rmdir(c->folder), 0);
    expect_miss(c, &c->key, "no merged weights");
    keep(c, &c->key, 0);
    expect_hit(c, &c->key);
}

/* A process that is killed at any point of writing leaves nothing that is taken for weights and is not. */
static void killed_while_keeping(void **state) {
    struct cache *c = *state;
    static const char *const points[] = {"merged.write.before", "merged.write.after",   "merged.fsync.before",
                                         "merged.fsync.after",  "merged.rename.before", "merged.rename.after",
                                         "merged.folder.after", "cache.write.after",    "cache.rename.before"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        char fault[64];
        int status;
        snprintf(fault, sizeof fault, "%s:kill", points[i]);
        pid_t child = fork();
        if (child == 0) {
            setenv("ATTUNE_FAULT", fault, 1);
            merged_cache_keep(c->folder, &c->key, &c->base.model, NULL, c->merged, 0, NULL);
            _exit(1);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        struct merged *found = NULL;
        int code = merged_cache_open(c->folder, &c->key, &c->base.model, c->pool, &found, NULL);
        if (code == ATTUNE_OK) {
            expect_same(c, found);
            merge_destroy(found);
        } else {
            assert_int_equal(code, ATTUNE_ERROR_NOT_FOUND);
        }
        keep(c, &c->key, 0);
        expect_hit(c, &c->key);
        OK(merged_cache_remove(c->folder, c->adapters[0], &err));
    }
}

static void many_processes(void **state) {
    struct cache *c = *state;
    enum { CHILDREN = 4 };
    pid_t child[CHILDREN];
    for (int i = 0; i < CHILDREN; i++) {
        if ((child[i] = fork()) != 0) continue;
        for (int round = 0; round < 20; round++) {
            struct merged *found = NULL;
            if (merged_cache_keep(c->folder, &c->key, &c->base.model, NULL, c->merged, 0, NULL)) _exit(2);
            int code = merged_cache_open(c->folder, &c->key, &c->base.model, NULL, &found, NULL);
            if (code != ATTUNE_OK) _exit(3);
            if (memcmp(found->layers[1].linear[0].data, c->merged->layers[1].linear[0].data,
                       found->layers[1].linear[0].rows * found->layers[1].linear[0].row_bytes))
                _exit(4);
            merge_destroy(found);
        }
        _exit(0);
    }
    for (int i = 0; i < CHILDREN; i++) {
        int status;
        assert_int_equal(waitpid(child[i], &status, 0), child[i]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
    assert_int_equal(count(c, ".", ".tmp", NULL), 0);
    expect_hit(c, &c->key);
}

/* An entry that goes away while it is mapped stays where it is mapped. */
static void removed_while_mapped(void **state) {
    struct cache *c = *state;
    struct merged *found = NULL;
    keep(c, &c->key, 0);
    OK(merged_cache_open(c->folder, &c->key, &c->base.model, c->pool, &found, &err));
    OK(merged_cache_remove(c->folder, c->adapters[0], &err));
    expect_same(c, found);
    merge_destroy(found);
}

static void no_memory(void **state) {
    struct cache *c = *state;
#ifdef SANITIZED
    skip();
#endif
    char path[600];
    keep(c, &c->key, 0);
    only_entry(c, path);
    int done = 0;
    for (long n = 1; !done; n++) {
        struct merged *found = NULL;
        allocations = 0;
        fail_at = n;
        int code = merged_cache_open(c->folder, &c->key, &c->base.model, NULL, &found, NULL);
        done = allocations < n;
        fail_at = 0;
        if (code == ATTUNE_OK) merge_destroy(found);
        else assert_int_equal(code, ATTUNE_ERROR_MEMORY);
        assert_int_equal(access(path, F_OK), 0); /* a machine without memory does not cost the cache */
    }
    done = 0;
    for (long n = 1; !done; n++) {
        allocations = 0;
        fail_at = n;
        int code = merged_cache_keep(c->folder, &c->key, &c->base.model, NULL, c->merged, 0, NULL);
        done = allocations < n;
        fail_at = 0;
        if (code != ATTUNE_OK) assert_int_equal(code, ATTUNE_ERROR_MEMORY);
        assert_int_equal(count(c, ".", ".tmp", NULL), 0);
    }
    expect_hit(c, &c->key);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(kept_is_found),
        TEST(keys_differ),
        TEST(flipped),
        TEST(cut_or_longer),
        TEST(foreign),
        TEST(not_a_file),
        TEST(changed_in_place),
        TEST(wrong_memory),
        TEST(swapped_between_check_and_map),
        TEST(least_recently_used_go),
        TEST(removed_with_its_adapter),
        TEST(leftovers_go),
        TEST(failing_disk),
        TEST(folder_is_made_again),
        TEST(killed_while_keeping),
        TEST(many_processes),
        TEST(removed_while_mapped),
        TEST(no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
