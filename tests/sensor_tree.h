/* Trees of files as the kernel shows them, in a folder of the test's own. */
#ifndef TESTS_SENSOR_TREE_H
#define TESTS_SENSOR_TREE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char tree_root[64];

static inline int tree_setup(void **state) {
    (void)state;
    strcpy(tree_root, "/tmp/attune-tree-XXXXXX");
    return mkdtemp(tree_root) ? 0 : -1;
}
static inline int tree_teardown(void **state) {
    char command[256];
    (void)state;
    snprintf(command, sizeof command, "chmod -R u+rwx %s; rm -rf %s", tree_root, tree_root);
    return system(command);
}
static inline const char *in_tree(const char *name) {
    static _Thread_local char path[4][1024];
    static _Thread_local unsigned next;
    char *out = path[next++ % 4];
    snprintf(out, sizeof path[0], "%s/%s", tree_root, name);
    return out;
}
/* The folders that lead to `name`. */
static inline void tree_folders(const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s", in_tree(name));
    for (char *slash = path + strlen(tree_root) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        mkdir(path, 0700);
    }
}
static inline void tree_remove(const char *name) {
    char command[1200];
    snprintf(command, sizeof command, "rm -rf '%s'", in_tree(name));
    assert_int_equal(system(command), 0);
}
static inline void tree_bytes(const char *name, const void *bytes, size_t n) {
    tree_folders(name);
    FILE *f = fopen(in_tree(name), "wb");
    if (!f) fail_msg("cannot write %s", in_tree(name));
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}
static inline void tree_text(const char *name, const char *text) { tree_bytes(name, text, strlen(text)); }

/* What stands in place of a number that is hoped for. */
enum { TREE_HOSTILE = 18 };
static inline const char *tree_hostile(const char *name, int which) {
    static const struct {
        const char *what, *bytes;
        size_t n;
    } contents[] = {{"empty", "", 0},
                    {"a line feed", "\n", 1},
                    {"letters", "xyzzy\n", 6},
                    {"binary", "\x7f\x45\x4c\x46\x02\x01\xff\xfe", 8},
                    {"not UTF-8", "\xc3\x28\xa0\xa1\n", 5},
                    {"a NUL behind a value", "1\0\0", 3},
                    {"below every range", "-9223372036854775809\n", 21},
                    {"huge", "99999999999999999999999999999999999999999999\n", 45},
                    {"hexadecimal", "0x1\n", 4},
                    {"a fraction", "1.0\n", 4},
                    {"a trailing blank", "1 \n", 3},
                    {"a leading blank", " 1\n", 3},
                    {"a sign", "+1\n", 3}};
    static const char *const special[] = {"a FIFO", "a folder", "a dangling link", "a link to itself", "a device"};
    const char *path;
    tree_remove(name);
    if (which < 13) {
        tree_bytes(name, contents[which].bytes, contents[which].n);
        return contents[which].what;
    }
    tree_folders(name);
    path = in_tree(name);
    switch (which) {
    case 13: assert_int_equal(mkfifo(path, 0600), 0); break;
    case 14: assert_int_equal(mkdir(path, 0700), 0); break;
    case 15: assert_int_equal(symlink("nowhere/at/all", path), 0); break;
    case 16: assert_int_equal(symlink(path, path), 0); break;
    default: assert_int_equal(symlink("/dev/zero", path), 0);
    }
    return special[which - 13];
}

#endif
