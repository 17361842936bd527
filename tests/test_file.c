/* Bytes of files, the cursor, publishing: what is on disk after every fault. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/file.h"

static char folder[64];

static const char *in_folder(const char *name) {
    static char paths[4][384];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/attune-test-file-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    unsetenv("ATTUNE_FAULT");
    unsetenv("ATTUNE_FAULT_LIST");
    DIR *dir = opendir(folder);
    if (!dir) return -1;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) remove(in_folder(entry->d_name));
    closedir(dir);
    return rmdir(folder);
}

static void put(const char *name, const void *data, size_t n) {
    FILE *file = fopen(in_folder(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

/* The file's content is this text; NULL: it is not there. */
static void assert_content(const char *name, const char *text) {
    struct file_bytes file;
    if (!text) {
        assert_int_equal(access(in_folder(name), F_OK), -1);
        return;
    }
    assert_int_equal(file_bytes_open(in_folder(name), FILE_READ, SIZE_MAX, &file, NULL), ATTUNE_OK);
    assert_int_equal(file.size, strlen(text));
    assert_memory_equal(file.data, text, file.size);
    file_bytes_close(&file);
}

/* Files in the folder, and how many of them are leftovers ".<name>.<pid>-<n>.tmp". */
static int count_files(int *leftovers) {
    int n = 0;
    *leftovers = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        size_t length = strlen(entry->d_name);
        n++;
        *leftovers += entry->d_name[0] == '.' && length > 4 && strcmp(entry->d_name + length - 4, ".tmp") == 0;
    }
    closedir(dir);
    return n;
}

static void assert_no_leftovers(void) {
    int leftovers;
    count_files(&leftovers);
    assert_int_equal(leftovers, 0);
}

/* ---- bytes ---- */

static void mapped_and_read_bytes_agree(void **state) {
    (void)state;
    char content[100000];
    for (size_t i = 0; i < sizeof content; i++) content[i] = (char)(i * 31 >> 3);
    put("bytes", content, sizeof content);
    for (int load = FILE_MAP; load <= FILE_READ; load++) {
        struct file_bytes file;
        assert_int_equal(file_bytes_open(in_folder("bytes"), (enum file_load)load, sizeof content, &file, NULL), 0);
        struct stat st;
        assert_int_equal(stat(in_folder("bytes"), &st), 0);
        assert_int_equal(file.size, sizeof content);
        assert_memory_equal(file.data, content, sizeof content);
        assert_int_equal((uintptr_t)file.data % 64, 0);
        assert_int_equal(file.inode, st.st_ino);
        assert_int_equal(file.device, st.st_dev);
        assert_int_equal(file.mtime_ns, (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec);
        assert_string_equal(file.path, in_folder("bytes"));
        file_bytes_close(&file);
        file_bytes_close(&file);
    }
}

static void empty_file_has_no_bytes(void **state) {
    (void)state;
    put("empty", "", 0);
    for (int load = FILE_MAP; load <= FILE_READ; load++) {
        struct file_bytes file;
        assert_int_equal(file_bytes_open(in_folder("empty"), (enum file_load)load, 0, &file, NULL), ATTUNE_OK);
        assert_int_equal(file.size, 0);
        assert_non_null(file.data);
        file_bytes_close(&file);
    }
    struct file_bytes never = {0};
    file_bytes_close(&never);
    file_bytes_close(NULL);
}

static void assert_refused(const char *path, size_t most, int code, const char *word) {
    attune_error err = {0};
    struct file_bytes file = {.size = 77};
    assert_int_equal(file_bytes_open(path, FILE_MAP, most, &file, &err), code);
    assert_int_equal(err.code, code);
    if (!strstr(err.message, word)) fail_msg("\"%s\" does not say \"%s\"", err.message, word);
    assert_string_equal(err.where, path);
    assert_int_equal(file.size, 77);
}

static void only_regular_files_open(void **state) {
    (void)state;
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    alarm(20); /* a FIFO that blocks ends the test */
    assert_refused(in_folder("fifo"), SIZE_MAX, ATTUNE_ERROR_FORMAT, "FIFO");
    alarm(0);
    assert_refused(folder, SIZE_MAX, ATTUNE_ERROR_FORMAT, "folder");
    assert_refused("/dev/zero", SIZE_MAX, ATTUNE_ERROR_FORMAT, "device");
    assert_refused(in_folder("missing"), SIZE_MAX, ATTUNE_ERROR_IO, "No such file");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, in_folder("socket"));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_refused(in_folder("socket"), SIZE_MAX, ATTUNE_ERROR_IO, "cannot open");
    close(fd);
}

static void too_large_file_is_refused(void **state) {
    (void)state;
    put("five", "12345", 5);
    assert_refused(in_folder("five"), 4, ATTUNE_ERROR_FORMAT, "5 bytes, at most 4");
    int fd = open(in_folder("sparse"), O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    if (ftruncate(fd, (off_t)1 << 40) == 0)
        assert_refused(in_folder("sparse"), 1 << 20, ATTUNE_ERROR_FORMAT, "at most");
    close(fd);
}

static void opened_files_do_not_leak_descriptors(void **state) {
    (void)state;
    put("five", "12345", 5);
    int before = dup(0);
    close(before);
    struct file_bytes file;
    file_bytes_open(in_folder("five"), FILE_MAP, 5, &file, NULL);
    file_bytes_close(&file);
    file_bytes_open(in_folder("five"), FILE_READ, 4, &file, NULL);
    file_bytes_open(folder, FILE_READ, 4, &file, NULL);
    int after = dup(0);
    close(after);
    assert_int_equal(before, after);
}

/* ---- cursor ---- */

static void cursor_reads_little_endian(void **state) {
    (void)state;
    const unsigned char bytes[] = {0xfe, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0x8e, 'a', 'b'};
    struct cursor c = {.data = bytes, .size = sizeof bytes, .name = "x"};
    assert_int_equal(cursor_u8(&c, "a"), 0xfe);
    assert_int_equal(cursor_u16(&c, "b"), 0x0201);
    assert_int_equal(cursor_u32(&c, "c"), 0x06050403);
    assert_true(cursor_u64(&c, "d") == 0x8e0d0c0b0a090807u);
    assert_ptr_equal(cursor_bytes(&c, 2, "e"), bytes + 15);
    assert_non_null(cursor_bytes(&c, 0, "nothing"));
    assert_int_equal(c.code, ATTUNE_OK);
}

static void cursor_stops_at_the_end(void **state) {
    (void)state;
    const unsigned char bytes[] = {1, 2, 3};
    static const uint64_t lengths[] = {4, UINT64_MAX, (uint64_t)1 << 63, SIZE_MAX - 2};
    for (size_t i = 0; i < 4; i++) {
        attune_error err = {0};
        struct cursor c = {.data = bytes, .size = 3, .name = "file", .err = &err};
        if (i > 0) assert_int_equal(cursor_u8(&c, "first"), 1);
        assert_null(cursor_bytes(&c, lengths[i], "the middle"));
        assert_int_equal(c.code, ATTUNE_ERROR_FORMAT);
        assert_string_equal(err.where, i > 0 ? "file:byte 1" : "file:byte 0");
        assert_non_null(strstr(err.message, "the middle"));
        /* the first fault stays, and nothing more is read */
        assert_int_equal(cursor_u8(&c, "later"), 0);
        assert_int_equal(cursor_fail(&c, ATTUNE_ERROR_IO, "another"), ATTUNE_ERROR_FORMAT);
        assert_non_null(strstr(err.message, "the middle"));
    }
}

static void cursor_keeps_the_byte_of_a_long_path(void **state) {
    (void)state;
    char name[600];
    memset(name, 'd', sizeof name);
    memcpy(name + sizeof name - 6, "/leaf", 6);
    attune_error err = {0};
    struct cursor c = {.data = (const unsigned char *)"", .size = 0, .name = name, .err = &err};
    cursor_u8(&c, "it");
    assert_non_null(strstr(err.where, "/leaf:byte 0"));
}

/* ---- publishing ---- */

/* Stands in for the C library's: a file system without RENAME_NOREPLACE. */
static int without_noreplace;
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags);
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    if (without_noreplace) {
        errno = EINVAL;
        return -1;
    }
    return (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
}

static int publish_text(const char *name, const char *text, int new_only, attune_error *err) {
    struct file_writer writer = {0};
    int code = file_writer_open(in_folder(name), "test", &writer, err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, text, strlen(text), err);
    if (code == ATTUNE_OK)
        code = new_only ? file_writer_publish_new(&writer, err) : file_writer_publish(&writer, err);
    file_writer_abandon(&writer);
    return code;
}

static void publish_makes_and_replaces(void **state) {
    (void)state;
    mode_t mask = umask(0);
    assert_int_equal(publish_text("a", "one", 0, NULL), ATTUNE_OK);
    umask(mask);
    assert_content("a", "one");
    struct stat st;
    assert_int_equal(stat(in_folder("a"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(file_write_atomic(in_folder("a"), "test", "second", 6, NULL), ATTUNE_OK);
    assert_content("a", "second");
    assert_int_equal(file_write_atomic(in_folder("a"), "test", NULL, 0, NULL), ATTUNE_OK);
    assert_content("a", "");
    assert_no_leftovers();
}

static void publish_new_never_replaces(void **state) {
    (void)state;
    for (without_noreplace = 0; without_noreplace < 2; without_noreplace++) {
        const char *name = without_noreplace ? "linked" : "renamed";
        attune_error err = {0};
        assert_int_equal(publish_text(name, "one", 1, &err), ATTUNE_OK);
        assert_content(name, "one");
        assert_int_equal(publish_text(name, "two", 1, &err), ATTUNE_ERROR_STATE);
        assert_non_null(strstr(err.message, "exists already"));
        assert_content(name, "one");
        struct stat st;
        assert_int_equal(stat(in_folder(name), &st), 0);
        assert_int_equal(st.st_nlink, 1);
        assert_no_leftovers();
    }
    without_noreplace = 0;
}

static void big_files_are_written_whole(void **state) {
    (void)state;
    enum { SIZE = 3000001 };
    unsigned char *data = malloc(SIZE);
    assert_non_null(data);
    for (size_t i = 0; i < SIZE; i++) data[i] = (unsigned char)(i * 2654435761u >> 24);
    struct file_writer writer;
    assert_int_equal(file_writer_open(in_folder("big"), "test", &writer, NULL), ATTUNE_OK);
    for (size_t at = 0, n = 1; at < SIZE; at += n, n = n * 3 + 1) {
        if (n > SIZE - at) n = SIZE - at;
        assert_int_equal(file_writer_add(&writer, data + at, n, NULL), ATTUNE_OK);
    }
    assert_int_equal(writer.written, SIZE);
    assert_int_equal(file_writer_publish(&writer, NULL), ATTUNE_OK);
    struct file_bytes file;
    assert_int_equal(file_bytes_open(in_folder("big"), FILE_MAP, SIZE_MAX, &file, NULL), ATTUNE_OK);
    assert_int_equal(file.size, SIZE);
    assert_memory_equal(file.data, data, SIZE);
    file_bytes_close(&file);
    free(data);
}

static void synced_temporary_can_be_read_back(void **state) {
    (void)state;
    struct file_writer writer;
    assert_int_equal(file_writer_open(in_folder("a"), "test", &writer, NULL), ATTUNE_OK);
    assert_int_equal(file_writer_add(&writer, "abc", 3, NULL), ATTUNE_OK);
    assert_int_equal(file_writer_sync(&writer, NULL), ATTUNE_OK);
    struct file_bytes file;
    assert_int_equal(file_bytes_open(writer.temporary, FILE_READ, 3, &file, NULL), ATTUNE_OK);
    assert_memory_equal(file.data, "abc", 3);
    file_bytes_close(&file);
    assert_content("a", NULL);
    /* what comes after the sync is published too */
    assert_int_equal(file_writer_add(&writer, "de", 2, NULL), ATTUNE_OK);
    assert_int_equal(file_writer_publish(&writer, NULL), ATTUNE_OK);
    assert_content("a", "abcde");
    assert_int_equal(file_writer_add(&writer, "x", 1, NULL), ATTUNE_ERROR_STATE);
}

static void abandoned_writer_leaves_nothing(void **state) {
    (void)state;
    struct file_writer writer = {0};
    file_writer_abandon(&writer);
    assert_int_equal(fcntl(0, F_GETFD) >= 0, 1); /* a zeroed writer does not own descriptor 0 */
    assert_int_equal(file_writer_open(in_folder("a"), "test", &writer, NULL), ATTUNE_OK);
    file_writer_abandon(&writer);
    file_writer_abandon(&writer);
    int leftovers;
    assert_int_equal(count_files(&leftovers), 0);
}

static void bad_targets_are_refused(void **state) {
    (void)state;
    static char lengthy[1100];
    memset(lengthy, 'x', sizeof lengthy - 1);
    const char *const paths[] = {"", "/tmp/", "/tmp/..", ".", lengthy};
    struct file_writer writer;
    attune_error err;
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(file_writer_open(paths[i], "test", &writer, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(file_writer_open(in_folder("a"), "", &writer, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(file_writer_open(in_folder("a"), "a.point.that.has.thirty.two.byte", &writer, &err),
                     ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(file_writer_open(in_folder("none/a"), "test", &writer, &err), ATTUNE_ERROR_IO);
    assert_int_equal(mkdir(in_folder("sub"), 0700), 0);
    assert_int_equal(publish_text("sub", "x", 0, &err), ATTUNE_ERROR_IO);
    assert_no_leftovers();
}

static void folders_sync(void **state) {
    (void)state;
    attune_error err;
    assert_int_equal(file_sync_folder(folder, &err), ATTUNE_OK);
    assert_int_equal(file_sync_folder(in_folder("none"), &err), ATTUNE_ERROR_IO);
}

/* Every fault point in the order in which a publication passes it. Up to the rename the old file
 * rules, from then on the new one. */
static const struct {
    const char *name;
    int renamed;
} points[] = {{"write.before", 0},  {"write.after", 0},  {"fsync.before", 0},  {"fsync.after", 0},
              {"rename.before", 0}, {"rename.after", 1}, {"folder.before", 1}, {"folder.after", 1}};
enum { POINTS = sizeof points / sizeof *points };

static void each_failing_call_is_reported(void **state) {
    (void)state;
    for (int new_only = 0; new_only < 2; new_only++) {
        for (size_t i = 0; i < POINTS; i++) {
            const char *name = new_only ? "new" : "old";
            remove(in_folder(name));
            if (!new_only) put(name, "before", 6);
            char fault[64];
            snprintf(fault, sizeof fault, "test.%s:fail", points[i].name);
            setenv("ATTUNE_FAULT", fault, 1);
            attune_error err = {0};
            int code = publish_text(name, "after", new_only, &err);
            unsetenv("ATTUNE_FAULT");
            assert_int_equal(code, ATTUNE_ERROR_IO);
            assert_non_null(strstr(err.message, strerror(EIO)));
            assert_string_equal(err.where, in_folder(name));
            assert_content(name, points[i].renamed ? "after" : new_only ? NULL : "before");
            assert_no_leftovers();
        }
    }
}

static void a_kill_leaves_the_old_or_the_new_file(void **state) {
    (void)state;
    for (size_t i = 0; i < POINTS; i++) {
        put("kept", "before", 6);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            char fault[64];
            snprintf(fault, sizeof fault, "test.%s:kill", points[i].name);
            setenv("ATTUNE_FAULT", fault, 1);
            publish_text("kept", "after", 0, NULL);
            _exit(0);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        assert_content("kept", points[i].renamed ? "after" : "before");
        int leftovers, files = count_files(&leftovers);
        assert_int_equal(leftovers, (int)i + 1 < 5 ? (int)i + 1 : 5); /* each recognisable */
        assert_int_equal(files, leftovers + 1);
    }
}

static void points_are_passed_in_order(void **state) {
    (void)state;
    setenv("ATTUNE_FAULT_LIST", in_folder("list"), 1);
    assert_int_equal(publish_text("a", "text", 0, NULL), ATTUNE_OK);
    unsetenv("ATTUNE_FAULT_LIST");
    char expected[512] = "";
    for (size_t i = 0; i < POINTS; i++) sprintf(expected + strlen(expected), "test.%s\n", points[i].name);
    assert_content("list", expected);
}

static void a_failed_fsync_is_never_retried(void **state) {
    (void)state;
    struct file_writer writer;
    attune_error err;
    assert_int_equal(file_writer_open(in_folder("a"), "test", &writer, NULL), ATTUNE_OK);
    assert_int_equal(file_writer_add(&writer, "abc", 3, NULL), ATTUNE_OK);
    setenv("ATTUNE_FAULT_LIST", in_folder("list"), 1);
    setenv("ATTUNE_FAULT", "test.fsync.after:fail", 1);
    assert_int_equal(file_writer_sync(&writer, &err), ATTUNE_ERROR_IO);
    unsetenv("ATTUNE_FAULT"); /* from here on every call would succeed */
    assert_int_equal(access(writer.temporary[0] ? writer.temporary : "/nonexistent", F_OK), -1);
    assert_int_equal(file_writer_sync(&writer, &err), ATTUNE_ERROR_STATE);
    assert_int_equal(file_writer_publish(&writer, &err), ATTUNE_ERROR_STATE);
    assert_int_equal(file_writer_publish_new(&writer, &err), ATTUNE_ERROR_STATE);
    unsetenv("ATTUNE_FAULT_LIST");
    assert_content("list", "test.write.before\ntest.write.after\ntest.fsync.before\ntest.fsync.after\n");
    assert_content("a", NULL);
    assert_no_leftovers();
}

static void full_disk_is_an_error(void **state) {
    (void)state;
    struct file_writer writer;
    attune_error err = {0};
    assert_int_equal(file_writer_open(in_folder("a"), "test", &writer, NULL), ATTUNE_OK);
    close(writer.fd);
    writer.fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_true(writer.fd >= 0);
    assert_int_equal(file_writer_add(&writer, "abc", 3, &err), ATTUNE_OK);
    assert_int_equal(file_writer_publish(&writer, &err), ATTUNE_ERROR_IO);
    assert_non_null(strstr(err.message, strerror(ENOSPC)));
    int leftovers;
    assert_int_equal(count_files(&leftovers), 0);
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(mapped_and_read_bytes_agree),
        IN_FOLDER(empty_file_has_no_bytes),
        IN_FOLDER(only_regular_files_open),
        IN_FOLDER(too_large_file_is_refused),
        IN_FOLDER(opened_files_do_not_leak_descriptors),
        cmocka_unit_test(cursor_reads_little_endian),
        cmocka_unit_test(cursor_stops_at_the_end),
        cmocka_unit_test(cursor_keeps_the_byte_of_a_long_path),
        IN_FOLDER(publish_makes_and_replaces),
        IN_FOLDER(publish_new_never_replaces),
        IN_FOLDER(big_files_are_written_whole),
        IN_FOLDER(synced_temporary_can_be_read_back),
        IN_FOLDER(abandoned_writer_leaves_nothing),
        IN_FOLDER(bad_targets_are_refused),
        IN_FOLDER(folders_sync),
        IN_FOLDER(each_failing_call_is_reported),
        IN_FOLDER(a_kill_leaves_the_old_or_the_new_file),
        IN_FOLDER(points_are_passed_in_order),
        IN_FOLDER(a_failed_fsync_is_never_retried),
        IN_FOLDER(full_disk_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
