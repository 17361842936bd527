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

/* Nor do pairs and thumbs. */
static void test_preferences(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    struct trainer *trainer = tiny_trainer(tiny, &config);
    struct example_set set = {0};
    attune_message messages[] = {{"user", "the boats?"}};
    static const char hash[] = "00000000000000ff000000000000000000000000000000000000000000000000";
    int added;
    OK(example_add(&set, tiny->model, messages, 1, "gone", hash, "1", 256, &added, &err));
    OK(example_add_preference(&set, tiny->model, messages, 1, "gone", "here", hash, "1", 256, &added, &err));
    OK(example_add_thumb(&set, tiny->model, messages, 1, "here", -1, hash, "1", 256, &added, &err));
    assert_int_equal(set.n, 4);
    static const size_t rows[] = {1, 0, 3, 1};
    size_t tokens;
    double loss;
    for (size_t step = 0; step < 10; step++) {
        OK(trainer_step(trainer, &set, rows, 4, 1e-3f, &loss, &tokens, &err));
        if (step == 0) taken = 0;
    }
    assert_int_equal(taken, 0);
    assert_int_equal(trainer->adamw.step, 10);
    trainer_destroy(trainer);
    example_set_free(&set);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps), cmocka_unit_test(test_preferences)};
    return cmocka_run_group_tests(tests, tiny_setup, tiny_teardown);
}
