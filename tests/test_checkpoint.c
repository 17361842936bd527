#include "tests/tiny_training.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/model/gguf.h"

static char folder[64], path[128];

static int setup(void **state) {
    strcpy(folder, "/tmp/attune-checkpoint-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/checkpoint.gguf", folder);
    return tiny_setup(state);
}
static void empty_folder(void) {
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
}
static int teardown(void **state) {
    empty_folder();
    rmdir(folder);
    return tiny_teardown(state);
}
static int leftovers(void) {
    int n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) n += strstr(entry->d_name, ".tmp") != NULL;
    closedir(dir);
    return n;
}

static void read_back(struct trainer *trainer, const char *wanted) {
    char *text = NULL;
    OK(checkpoint_read(path, trainer, &text, &err));
    assert_string_equal(text, wanted);
    free(text);
}

static void test_round_trip(void **state) {
    const struct tiny *tiny = *state;
    static const char *const states[] = {"", "{}",
                                         "{\"text\":\"quotes \\\" and gr\303\274\303\237e\",\"n\":[1,2,null]}"};
    struct train_config config = tiny_config();
    struct trainer *trainer = tiny_trainer(tiny, &config), *other = tiny_trainer(tiny, &config);
    for (size_t s = 0; s < 3; s++) {
        if (s == 1) OK(trainer_keep(trainer, &err));
        if (s == 2) trainer_let_go(trainer);
        tiny_step(trainer, tiny, s);
        OK(checkpoint_write(trainer, states[s], path, &err));
        read_back(NULL, states[s]);
        read_back(other, states[s]);
        assert_same_state(trainer, other);
        assert_int_equal(other->has_kept, s == 1);
        if (s != 1) continue;
        assert_memory_equal(trainer->kept, other->kept, other->lora->n * sizeof(float));
        trainer_restore(other);
        assert_memory_equal(trainer->kept, other->lora->parameters, other->lora->n * sizeof(float));
        assert_memory_not_equal(trainer->lora->parameters, other->lora->parameters, other->lora->n * sizeof(float));
    }
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(leftovers(), 0);
    char *text = NULL;
    attune_error err = {0};
    assert_int_equal(checkpoint_read("/nonexistent/checkpoint.gguf", other, &text, &err), ATTUNE_ERROR_IO);
    assert_int_equal(checkpoint_write(trainer, "", "/nonexistent/checkpoint.gguf", &err), ATTUNE_ERROR_IO);
    assert_null(text);
    trainer_destroy(trainer);
    trainer_destroy(other);
}

/* Interrupted after any step, a step that was dropped included: the end is the same to the byte. */
static void test_going_on_is_as_never_stopped(void **state) {
    const struct tiny *tiny = *state;
    enum { STEPS = 6, BAD = 2 };
    struct train_config config = tiny_config();
    config.dropout = 0.2f;
    config.weight_decay = 0.01f;
    struct trainer *whole = tiny_trainer(tiny, &config);
    for (int stop = -1; stop < STEPS; stop++) {
        struct trainer *trainer = tiny_trainer(tiny, &config);
        for (int step = 0; step < STEPS; step++) {
            float was = trainer->lora->parameters[3];
            if (step == BAD) trainer->lora->parameters[3] = NAN;
            tiny_step(trainer, tiny, (size_t)step);
            if (step == BAD) trainer->lora->parameters[3] = was;
            if (step != stop) continue;
            OK(checkpoint_write(trainer, "{}", path, &err));
            trainer_destroy(trainer);
            trainer = tiny_trainer(tiny, &config);
            read_back(trainer, "{}");
        }
        assert_int_equal(trainer->dropped, 1);
        assert_int_equal(trainer->adamw.step, STEPS - 1);
        if (stop < 0) {
            trainer_destroy(whole);
            whole = trainer;
            continue;
        }
        assert_same_state(trainer, whole);
        trainer_destroy(trainer);
    }
    trainer_destroy(whole);
}

/* ---- what does not belong together ---- */

static int refused(struct trainer *trainer) {
    const struct trainer *t = trainer;
    size_t n = t->lora->n * sizeof(float), step = t->adamw.step, dropped = t->dropped;
    char *text = NULL, *before = malloc(3 * n);
    const float *vectors[] = {t->lora->parameters, t->adamw.m, t->adamw.v};
    attune_error err = {0};
    assert_non_null(before);
    for (size_t i = 0; i < 3; i++) memcpy(before + i * n, vectors[i], n);
    int code = checkpoint_read(path, trainer, &text, &err);
    if (code != ATTUNE_OK) {
        assert_null(text);
        assert_true(*err.message && err.code == code);
        for (size_t i = 0; i < 3; i++) assert_memory_equal(before + i * n, vectors[i], n);
        assert_true(t->adamw.step == step && t->dropped == dropped);
    }
    free(text);
    free(before);
    return code;
}

static void test_another_configuration(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config(), others[17];
    struct trainer *trainer = tiny_trainer(tiny, &config);
    size_t k = 0;
    tiny_step(trainer, tiny, 0);
    OK(checkpoint_write(trainer, "{}", path, &err));
    for (size_t i = 0; i < 17; i++) others[i] = config;
    others[k++].lora.rank = 5;
    others[k++].lora.alpha = nextafterf(8, 9);
    others[k++].lora.targets = LORA_ALL_TARGETS - 1;
    others[k++].dropout = 0.1f;
    others[k++].learning_rate = nextafterf(config.learning_rate, 1);
    others[k++].schedule = SCHEDULE_CONSTANT;
    others[k++].warmup = 0;
    others[k++].beta1 = 0.8f;
    others[k++].beta2 = 0.99f;
    others[k++].epsilon = 1e-7f;
    others[k++].weight_decay = 0.1f;
    others[k++].clip = 2;
    others[k++].batch = 5;
    others[k++].max_tokens = 255;
    others[k++].micro_tokens = 257;
    others[k++].seed = 2;
    others[k++].seed = config.seed + (1ull << 32);
    assert_int_equal(k, 17);
    for (size_t i = 0; i < k; i++) {
        struct trainer *other = tiny_trainer(tiny, &others[i]);
        if (refused(other) != ATTUNE_ERROR_MISMATCH) fail_msg("configuration %zu was not refused", i);
        trainer_destroy(other);
    }
    struct tiny elsewhere = *tiny;
    elsewhere.model = tiny_model();
    model_set_hash(elsewhere.model, "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff");
    struct trainer *other = tiny_trainer(&elsewhere, &config);
    assert_int_equal(refused(other), ATTUNE_ERROR_MISMATCH);
    trainer_destroy(other);
    model_close(elsewhere.model);
    trainer_destroy(trainer);
}

/* ---- damage ---- */

static unsigned char *bytes_of(size_t *n) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    *n = (size_t)st.st_size;
    unsigned char *bytes = malloc(*n);
    assert_non_null(bytes);
    assert_int_equal(read(fd, bytes, *n), *n);
    close(fd);
    return bytes;
}
static void put_bytes(const unsigned char *bytes, size_t n) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, n), n);
    close(fd);
}

/* A checkpoint of a few hundred floats. */
static struct trainer *small(const struct tiny *tiny) {
    struct train_config config = tiny_config();
    config.lora = (struct lora_config){1, 8, 1 << TARGET_K};
    struct trainer *trainer = tiny_trainer(tiny, &config);
    tiny_step(trainer, tiny, 0);
    return trainer;
}

static void test_truncation_at_every_byte(void **state) {
    const struct tiny *tiny = *state;
    struct trainer *trainer = small(tiny);
    size_t n;
    OK(checkpoint_write(trainer, "{\"phase\":2}", path, &err));
    unsigned char *bytes = bytes_of(&n);
    tiny_step(trainer, tiny, 1); /* so that what is read would be seen */
    for (size_t cut = n; cut-- > 0;) {
        assert_int_equal(truncate(path, (off_t)cut), 0);
        if (refused(trainer) == ATTUNE_OK) fail_msg("%zu bytes of %zu were taken", cut, n);
    }
    put_bytes(bytes, n);
    assert_int_equal(refused(trainer), ATTUNE_OK);
    assert_int_equal(trainer->adamw.step, 1);
    free(bytes);
    trainer_destroy(trainer);
}

/* Any byte turned over: taken or refused, never half. */
static void test_every_byte_turned(void **state) {
    const struct tiny *tiny = *state;
    struct trainer *trainer = small(tiny);
    size_t n, taken = 0;
    OK(checkpoint_write(trainer, "{\"phase\":2}", path, &err));
    unsigned char *bytes = bytes_of(&n);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    for (size_t i = 0; i < n; i++) {
        unsigned char turned = bytes[i] ^ 0xff;
        assert_int_equal(pwrite(fd, &turned, 1, (off_t)i), 1);
        taken += refused(trainer) == ATTUNE_OK;
        assert_int_equal(pwrite(fd, bytes + i, 1, (off_t)i), 1);
    }
    assert_true(taken < n);
    close(fd);
    free(bytes);
    trainer_destroy(trainer);
}

static void test_values_that_are_not_finite(void **state) {
    const struct tiny *tiny = *state;
    static const char *const names[] = {"parameters", "moment.first", "moment.second"};
    static const float values[] = {NAN, INFINITY, -INFINITY};
    struct trainer *trainer = small(tiny);
    size_t n;
    OK(checkpoint_write(trainer, "{}", path, &err));
    unsigned char *bytes = bytes_of(&n);
    tiny_step(trainer, tiny, 1);
    for (size_t k = 0; k < 3; k++)
        for (size_t v = 0; v < 3; v++) {
            struct gguf *gguf = NULL;
            put_bytes(bytes, n);
            OK(gguf_open(path, FILE_READ, &gguf, &err));
            const struct gguf_tensor *tensor = gguf_tensor_find(gguf, names[k]);
            assert_non_null(tensor);
            size_t at = (size_t)(tensor->data - gguf->file.data) + tensor->bytes - 4;
            gguf_close(gguf);
            unsigned char was[4];
            memcpy(was, bytes + at, 4);
            memcpy(bytes + at, &values[v], 4);
            put_bytes(bytes, n);
            memcpy(bytes + at, was, 4);
            assert_int_equal(refused(trainer), ATTUNE_ERROR_FORMAT);
        }
    free(bytes);
    trainer_destroy(trainer);
}

static void test_another_kind_of_file(void **state) {
    const struct tiny *tiny = *state;
    struct trainer *trainer = small(tiny);
    char *text = NULL;
    attune_error err = {0};
    int code = checkpoint_read(ATTUNE_TEST_ROOT "/tests/golden/tiny_llama.gguf", trainer, &text, &err);
    assert_true(code < 0);
    assert_null(text);
    put_bytes((const unsigned char *)"not a GGUF file at all", 22);
    assert_int_equal(refused(trainer), ATTUNE_ERROR_FORMAT);
    trainer_destroy(trainer);
}

/* ---- faults while writing ---- */

static int write_under(const struct trainer *trainer, const char *point, const char *what) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char fault[128];
        attune_error err = {0};
        snprintf(fault, sizeof fault, "%s:%s", point, what);
        setenv("ATTUNE_FAULT", fault, 1);
        int code = checkpoint_write(trainer, "new", path, &err);
        _exit(code == ATTUNE_OK ? 0 : code == ATTUNE_ERROR_IO && *err.message ? 1 : 2);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? -1 : WEXITSTATUS(status);
}

static void test_faults(void **state) {
    const struct tiny *tiny = *state;
    static const struct {
        const char *point;
        int old; /* the old one stays for sure */
    } points[] = {
        {"checkpoint.write.before", 1}, {"checkpoint.write.after", 1},   {"checkpoint.fsync.before", 1},
        {"checkpoint.fsync.after", 1},  {"checkpoint.rename.before", 1}, {"checkpoint.rename.after", 0},
        {"checkpoint.folder.before", 0}, {"checkpoint.folder.after", 0},
    };
    struct train_config config = tiny_config();
    struct trainer *old = tiny_trainer(tiny, &config), *new = tiny_trainer(tiny, &config);
    struct trainer *found = tiny_trainer(tiny, &config);
    tiny_step(old, tiny, 0);
    tiny_step(new, tiny, 1);
    for (size_t p = 0; p < sizeof points / sizeof *points; p++)
        for (int kill = 0; kill < 2; kill++) {
            empty_folder();
            OK(checkpoint_write(old, "old", path, &err));
            int answer = write_under(new, points[p].point, kill ? "kill" : "fail");
            if (kill ? answer != -1 : answer != 1 && (points[p].old || answer != 0))
                fail_msg("%s: the writer gave %d", points[p].point, answer);
            if (!kill) assert_int_equal(leftovers(), 0);
            char *text = NULL;
            OK(checkpoint_read(path, found, &text, &err));
            if (points[p].old) assert_string_equal(text, "old");
            assert_same_state(found, strcmp(text, "old") == 0 ? old : new);
            free(text);
            OK(checkpoint_write(new, "later", path, &err)); /* and the next one gets through */
            read_back(found, "later");
            assert_same_state(found, new);
        }
    trainer_destroy(old);
    trainer_destroy(new);
    trainer_destroy(found);
}

/* Written, but not in place until the caller says so; abandoned, it was never there. */
static void test_prepared(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    struct trainer *old = tiny_trainer(tiny, &config), *new = tiny_trainer(tiny, &config);
    struct trainer *found = tiny_trainer(tiny, &config);
    struct file_writer file = {0};
    tiny_step(old, tiny, 0);
    tiny_step(new, tiny, 1);
    empty_folder();
    OK(checkpoint_prepare(new, "new", path, &file, &err));
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(leftovers(), 1);
    file_writer_abandon(&file);
    assert_int_equal(leftovers(), 0);
    OK(checkpoint_write(old, "old", path, &err));
    OK(checkpoint_prepare(new, "new", path, &file, &err));
    read_back(found, "old");
    assert_same_state(found, old);
    OK(file_writer_publish(&file, &err));
    read_back(found, "new");
    assert_same_state(found, new);
    assert_int_equal(leftovers(), 0);
    /* a failure hands out nothing */
    file = (struct file_writer){.fd = 77};
    setenv("ATTUNE_FAULT", "checkpoint.fsync.before:fail", 1);
    assert_int_equal(checkpoint_prepare(new, "later", path, &file, NULL), ATTUNE_ERROR_IO);
    unsetenv("ATTUNE_FAULT");
    assert_int_equal(file.fd, 77);
    assert_int_equal(leftovers(), 0);
    read_back(found, "new");
    trainer_destroy(old);
    trainer_destroy(new);
    trainer_destroy(found);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_going_on_is_as_never_stopped),
        cmocka_unit_test(test_another_configuration),
        cmocka_unit_test(test_truncation_at_every_byte),
        cmocka_unit_test(test_every_byte_turned),
        cmocka_unit_test(test_values_that_are_not_finite),
        cmocka_unit_test(test_another_kind_of_file),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_prepared),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
