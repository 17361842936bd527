/* Steps of training after the first take no memory: every allocation of ours, and every mapping, is counted
 * (-Wl,--wrap, see CMakeLists.txt). */
#include "tests/tiny_training.h"

#include <stdatomic.h>
#include <sys/mman.h>

static atomic_size_t taken;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t each);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
void *__real_mmap(void *p, size_t n, int protection, int flags, int fd, off_t offset);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t each);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);
void *__wrap_mmap(void *p, size_t n, int protection, int flags, int fd, off_t offset);

void *__wrap_malloc(size_t n) {
    taken++;
    return __real_malloc(n);
}
void *__wrap_calloc(size_t n, size_t each) {
    taken++;
    return __real_calloc(n, each);
}
void *__wrap_realloc(void *p, size_t n) {
    taken++;
    return __real_realloc(p, n);
}
void *__wrap_aligned_alloc(size_t alignment, size_t n) {
    taken++;
    return __real_aligned_alloc(alignment, n);
}
void *__wrap_mmap(void *p, size_t n, int protection, int flags, int fd, off_t offset) {
    taken++;
    return __real_mmap(p, n, protection, flags, fd, offset);
}

static void test_steps(void **state) {
    const struct tiny *tiny = *state;
    for (int dropout = 0; dropout < 2; dropout++)
        for (int kept = 0; kept < 2; kept++) {
            struct train_config config = tiny_config();
            config.dropout = 0.2f * (float)dropout;
            struct trainer *trainer = tiny_trainer(tiny, &config);
            if (!kept) trainer->activation_bytes = 0;
            taken = 0;
            tiny_step(trainer, tiny, 0);
            assert_true(taken > 0); /* the pass: else nothing is counted */
            taken = 0;
            for (size_t step = 1; step < 10; step++) tiny_step(trainer, tiny, step);
            assert_int_equal(taken, 0);
            trainer_destroy(trainer);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps)};
    return cmocka_run_group_tests(tests, tiny_setup, tiny_teardown);
}
