/* Fault points, each in a child of its own: the environment and the count of passes are the process's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/fault.h"

/* Passes `name` four times in a child under ATTUNE_FAULT; bit i of the answer: pass i failed, with EIO. A child that
 * was killed: minus the signal. */
static int passes(const char *fault, const char *name) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int answer = 0;
        if (fault)
            setenv("ATTUNE_FAULT", fault, 1);
        else
            unsetenv("ATTUNE_FAULT");
        for (int i = 0; i < 4; i++) {
            errno = 0;
            if (fault_fails(name)) answer |= errno == EIO ? 1 << i : 64;
        }
        _exit(answer);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void test_points(void **state) {
    (void)state;
    assert_int_equal(passes(NULL, "a.b"), 0);
    assert_int_equal(passes("", "a.b"), 0);
    assert_int_equal(passes("a.b:fail", "a.b"), 15);
    assert_int_equal(passes("a.b:3:fail", "a.b"), 4);
    assert_int_equal(passes("a.b:1:fail", "a.b"), 1);
    assert_int_equal(passes("a.b:5:fail", "a.b"), 0);
    assert_int_equal(passes("a.b:kill", "a.b"), -SIGKILL);
    assert_int_equal(passes("a.b:4:kill", "a.b"), -SIGKILL);
    assert_int_equal(passes("a.b:5:kill", "a.b"), 0);
    assert_int_equal(passes("a.b.c:fail", "a.b"), 0);
    assert_int_equal(passes("a.b.fail", "a.b"), 0);
    assert_int_equal(passes("a.b:fail", "a.b.c"), 0);
    assert_int_equal(passes("a.b:fail", "a.c"), 0);
    assert_int_equal(passes("a.b:nonsense", "a.b"), 0);
}

static void test_list(void **state) {
    (void)state;
    char path[] = "/tmp/attune-fault-XXXXXX", text[64] = "";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    setenv("ATTUNE_FAULT_LIST", path, 1);
    assert_int_equal(passes("second:fail", "first"), 0);
    assert_int_equal(passes("second:1:fail", "second"), 1);
    unsetenv("ATTUNE_FAULT_LIST");
    assert_true(read(fd, text, sizeof text - 1) > 0);
    assert_string_equal(text, "first\nfirst\nfirst\nfirst\nsecond\nsecond\nsecond\nsecond\n");
    close(fd);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_points), cmocka_unit_test(test_list)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
