/* The home: making it, finding it, what it says of itself, and what it refuses. */
#define _GNU_SOURCE /* memmem */
#include "tests/home_fixture.h"

/* ---- bases ---- */

/* A copy of the tiny base in which the first `what` reads `as` (same length); what NULL: one weight differs. */
static const char *changed_base(const struct homes *f, const char *name, const char *what, const char *as) {
    size_t n;
    char *bytes = read_file(TINY_BASE, &n);
    if (what) {
        assert_int_equal(strlen(what), strlen(as));
        char *found = memmem(bytes, n, what, strlen(what));
        assert_non_null(found);
        memcpy(found, as, strlen(as));
    } else {
        bytes[n - 1] ^= 1;
    }
    const char *path = in_folder(f, name);
    write_file(path, bytes, n);
    free(bytes);
    return path;
}

/* A base of the folder's own, so that a test may change it. */
static void make_own_home(struct homes *f) {
    shell("cp %s %s", TINY_BASE, in_folder(f, "base.gguf"));
    make_home(f, in_folder(f, "base.gguf"), 1);
}
static void replace_base(const struct homes *f) {
    changed_base(f, "other.gguf", NULL, NULL);
    shell("mv %s/other.gguf %s/base.gguf", f->folder, f->folder);
}

/* ---- init ---- */

static int mode_of(const char *path) {
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    return (int)(st.st_mode & 0777);
}

static void test_init_makes_a_private_home(void **state) {
    struct homes *f = *state;
    mode_t before = umask(0);
    snprintf(f->home, sizeof f->home, "%s/deep/er/home", f->folder);
    OK(attune_home_init(f->home, TINY_BASE, NULL, &f->err));
    umask(before);
    static const char *const folders[] = {"", "adapters", "cache"};
    static const char *const files[] = {"attune.conf", "store.db", "store.lock", "CURRENT", "lock"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        assert_int_equal(mode_of(in_home(f, folders[i])), 0700);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) assert_int_equal(mode_of(in_home(f, files[i])), 0600);
    assert_int_equal(mode_of(in_folder(f, "deep")), 0700);
    size_t n;
    char *current = read_file(in_home(f, "CURRENT"), &n);
    assert_string_equal(current, "base\n");
    free(current);

    attune_status status = home_status(f);
    assert_string_equal(status.home, f->home);
    assert_string_equal(status.base_path, TINY_BASE);
    assert_string_equal(status.base_name, "tiny_llama");
    assert_string_equal(status.base_sha256, sha256_of(TINY_BASE));
    assert_int_equal(status.base_ok, 1);
    assert_int_equal(status.consent, 0);

    FAILS(attune_home_init(f->home, TINY_BASE, NULL, &f->err), ATTUNE_ERROR_STATE, "there already", f->home);
    assert_string_equal(home_status(f).base_sha256, status.base_sha256);
}

static void test_init_refuses_bases(void **state) {
    struct homes *f = *state;
    write_text(in_folder(f, "text.gguf"), "once upon a time");
    changed_base(f, "foreign.gguf", "llama", "lemur");
    changed_base(f, "silent.gguf", "tokenizer.chat_template", "tokenizer.chat_tomplate");
    size_t n;
    char *bytes = read_file(TINY_BASE, &n);
    write_file(in_folder(f, "short.gguf"), bytes, n - 100);
    free(bytes);
    FAILS(attune_home_init(f->home, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "needs a base", "");
    FAILS(attune_home_init(f->home, in_folder(f, "none.gguf"), NULL, &f->err), ATTUNE_ERROR_IO, "No such file",
          "none.gguf");
    FAILS(attune_home_init(f->home, f->folder, NULL, &f->err), ATTUNE_ERROR_FORMAT, "folder", f->folder);
    FAILS(attune_home_init(f->home, in_folder(f, "text.gguf"), NULL, &f->err), ATTUNE_ERROR_FORMAT, "GGUF",
          "text.gguf");
    FAILS(attune_home_init(f->home, in_folder(f, "short.gguf"), NULL, &f->err), ATTUNE_ERROR_FORMAT, "", "short.gguf");
    FAILS(attune_home_init(f->home, in_folder(f, "foreign.gguf"), NULL, &f->err), ATTUNE_ERROR_UNSUPPORTED, "lemur",
          "foreign.gguf");
    FAILS(attune_home_init(f->home, in_folder(f, "silent.gguf"), NULL, &f->err), ATTUNE_ERROR_UNSUPPORTED,
          "chat template", "chat_template");
    FAILS(attune_home_init(f->home, in_folder(f, "line\nbreak.gguf"), NULL, &f->err), ATTUNE_ERROR_IO, "", "");
    shell("cp %s '%s/blank.gguf '", TINY_BASE, f->folder);
    FAILS(attune_home_init(f->home, in_folder(f, "blank.gguf "), NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "path",
          "blank");
    assert_false(exists(f->home));
    /* the home cannot be made where a file is */
    snprintf(f->home, sizeof f->home, "%s/text.gguf/home", f->folder);
    FAILS(attune_home_init(f->home, TINY_BASE, NULL, &f->err), ATTUNE_ERROR_IO, "", "text.gguf");
}

/* In a child, as a fault may kill it. The code that init gave, or -99 when it was killed. */
static int init_with_fault(struct homes *f, const char *fault) {
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        attune_home_options options;
        ATTUNE_INIT(options);
        options.consent = 1;
        setenv("ATTUNE_FAULT", fault, 1);
        _exit(-attune_home_init(f->home, TINY_BASE, &options, NULL));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) return WTERMSIG(status) == SIGKILL ? -99 : -98;
    return -WEXITSTATUS(status);
}

/* At whatever point it ends: there is no home and init can be repeated, or there is a whole one. */
static void test_init_can_be_repeated(void **state) {
    struct homes *f = *state;
    static const char *const passes[] = {"write.before",  "write.after",  "fsync.before",  "fsync.after",
                                         "rename.before", "rename.after", "folder.before", "folder.after"};
    char fault[64];
    for (int which = 0; which < 36; which++) {
        const char *how = which & 1 ? "kill" : "fail";
        int settings = which < 16;
        if (which < 32)
            snprintf(fault, sizeof fault, "%s.%s:%s", settings ? "settings" : "current", passes[which / 2 % 8], how);
        else
            snprintf(fault, sizeof fault, "store.%s:kill",
                     (const char *[]){"create.before", "create.after", "commit.before", "commit.after"}[which - 32]);
        int code = init_with_fault(f, fault);
        if (code != (strstr(fault, "kill") ? -99 : ATTUNE_ERROR_IO)) fail_msg("%s: init gave %d", fault, code);
        attune_status status;
        ATTUNE_INIT(status);
        memset(&f->err, 0, sizeof f->err);
        code = attune_home_status(f->home, &status, &f->err);
        int in_place = settings && which / 2 % 8 >= 5; /* attune.conf came last, and it is there */
        if (code != (in_place ? ATTUNE_OK : ATTUNE_ERROR_NOT_FOUND)) fail_msg("%s: status gave %d", fault, code);
        if (in_place)
            FAILS(attune_home_init(f->home, TINY_BASE, NULL, &f->err), ATTUNE_ERROR_STATE, "there already", f->home);
        else
            OK(attune_home_init(f->home, TINY_BASE, NULL, &f->err));
        status = home_status(f);
        assert_int_equal(status.base_ok, 1);
        assert_int_equal(status.consent, in_place);
        OK(attune_home_check(f->home, NULL, NULL, NULL, &f->err));
        shell("rm -rf %s", f->home);
    }
}

/* ---- which home ---- */

static void expect_path(const char *home, const char *wanted) {
    char path[256];
    memset(path, 'x', sizeof path);
    assert_int_equal(attune_home_path(home, path, sizeof path), strlen(wanted));
    assert_string_equal(path, wanted);
}

static void test_which_home(void **state) {
    struct homes *f = *state;
    const char *user = getenv("HOME");
    char kept[256], path[16];
    snprintf(kept, sizeof kept, "%s", user ? user : "/root");
    setenv("ATTUNE_HOME", "/env/home", 1);
    setenv("XDG_DATA_HOME", "/xdg", 1);
    setenv("HOME", "/people/nana", 1);
    expect_path("argument/home", "argument/home");
    expect_path(NULL, "/env/home");
    setenv("ATTUNE_HOME", "", 1);
    expect_path(NULL, "/xdg/attune");
    setenv("XDG_DATA_HOME", "relative", 1);
    expect_path(NULL, "/people/nana/.local/share/attune");
    unsetenv("XDG_DATA_HOME");
    expect_path(NULL, "/people/nana/.local/share/attune");
    assert_int_equal(attune_home_path(NULL, path, sizeof path), strlen("/people/nana/.local/share/attune"));
    assert_string_equal(path, "");
    assert_int_equal(attune_home_path(NULL, NULL, 0), strlen("/people/nana/.local/share/attune"));
    unsetenv("HOME");
    assert_int_equal(attune_home_path(NULL, path, sizeof path), 0);
    assert_int_equal(attune_home_path("", path, sizeof path), 0);
    FAILS(attune_home_status(NULL, NULL, &f->err), ATTUNE_ERROR_NOT_FOUND, "ATTUNE_HOME", "");
    FAILS(attune_home_init(NULL, TINY_BASE, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "ATTUNE_HOME", "");

    attune_status status;
    ATTUNE_INIT(status);
    setenv("XDG_DATA_HOME", f->folder, 1);
    FAILS(attune_home_status(NULL, &status, &f->err), ATTUNE_ERROR_NOT_FOUND, "attune init", f->folder);
    OK(attune_home_init(NULL, TINY_BASE, NULL, &f->err));
    OK(attune_home_status(NULL, &status, &f->err));
    assert_string_equal(status.home, in_folder(f, "attune"));
    unsetenv("XDG_DATA_HOME");
    setenv("HOME", kept, 1);
    char *far = malloc(3001);
    memset(far, 'a', 3000);
    far[3000] = 0;
    FAILS(attune_home_status(far, &status, &f->err), ATTUNE_ERROR_ARGUMENT, "too long", "");
    free(far);
}

/* ---- status ---- */

static void test_status_counts(void **state) {
    struct homes *f = *state;
    make_home(f, TINY_BASE, 1);
    attune_status s = home_status(f);
    assert_int_equal(s.interactions + s.consented + s.feedback + s.examples_new, 0);
    assert_int_equal(s.active_adapter, 0);
    assert_int_equal(s.n_adapters, 0);
    assert_int_equal(s.run_started_ms, 0);
    assert_string_equal(s.run_state, "");
    assert_true(isnan(s.run_loss_before) && isnan(s.run_loss_after));

    import_rows(f, 0, 8);
    attune_store *store = NULL;
    attune_interaction row;
    attune_feedback thumb;
    attune_uuid id;
    ATTUNE_INIT(row);
    row.prompt = "what is that?";
    row.response = "a gull";
    row.consent = ATTUNE_CONSENT_NOT_GIVEN;
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_record(store, &row, NULL, &f->err));
    row.consent = ATTUNE_CONSENT_HOME;
    row.response = "a bad answer";
    OK(attune_store_record(store, &row, &id, &f->err));
    ATTUNE_INIT(thumb);
    thumb.kind = ATTUNE_FEEDBACK_THUMB;
    thumb.value = -1;
    OK(attune_store_feedback(store, id.text, &thumb, &f->err));
    attune_store_close(store);
    s = home_status(f);
    assert_int_equal(s.interactions, 10);
    assert_int_equal(s.consented, 9);
    assert_int_equal(s.feedback, 1);
    assert_int_equal(s.examples_new, 8); /* neither the thumb that went down nor what has no consent */

    attune_job_report report = publish_run(f, 1);
    s = home_status(f);
    assert_int_equal(s.examples_new, 0);
    assert_int_equal(s.active_adapter, 1);
    assert_int_equal(s.n_adapters, 1);
    assert_string_equal(s.run_state, "published");
    assert_string_equal(s.run_reason, report.reason);
    assert_true(s.run_loss_before == report.loss_before && s.run_loss_after == report.loss_after);
    assert_int_equal(s.run_examples, report.examples);
    assert_int_equal(s.run_steps, report.steps);
    assert_int_equal(s.run_steps_done, report.steps_done);
    assert_true(s.run_started_ms > 1577836800000 && s.run_seconds > 0 && s.run_tokens_per_s > 0);

    /* the base is looked at, but a status does not need it */
    set_key(f, "base", in_folder(f, "gone.gguf"));
    s = home_status(f);
    assert_int_equal(s.base_ok, 0);
    assert_string_equal(s.base_name, "");
    assert_int_equal(s.active_adapter, 1);
}

/* ---- CURRENT ---- */

static void test_damaged_current(void **state) {
    struct homes *f = *state;
    make_home(f, TINY_BASE, 1);
    import_rows(f, 0, 8);
    publish_run(f, 1);
    size_t n;
    char *good = read_file(in_home(f, "CURRENT"), &n), text[400], zeros[65] = "", long_one[300];
    assert_int_equal(n, 67);
    memset(zeros, '0', 64);
    memset(long_one, 'b', 299);
    long_one[299] = 0;
    const char *damaged[] = {"",
                             "\n",
                             "base",
                             "base\n\n",
                             "2",
                             "1 \n",
                             "1 abcdef\n",
                             "-1 @\n",
                             "0 @\n",
                             "1 @",
                             "1 @\nmore",
                             "1 @ \n",
                             "99999999999 @\n",
                             "\x01\x02\x03\n",
                             long_one,
                             "1 G@\n"};
    attune_engine *engine = NULL;
    attune_job *job = NULL;
    attune_status status;
    ATTUNE_INIT(status);
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        const char *at = strchr(damaged[i], '@');
        if (at) snprintf(text, sizeof text, "%.*s%.64s%s", (int)(at - damaged[i]), damaged[i], good + 2, at + 1);
        write_text(in_home(f, "CURRENT"), at ? text : damaged[i]);
        FAILS(attune_home_status(f->home, &status, &f->err), ATTUNE_ERROR_FORMAT, "attune adapters use", "CURRENT");
        FAILS(attune_engine_open(f->home, NULL, &engine, &f->err), ATTUNE_ERROR_FORMAT, "attune adapters use",
              "CURRENT");
        FAILS(attune_job_open(f->home, NULL, &job, &f->err), ATTUNE_ERROR_FORMAT, "attune adapters use", "CURRENT");
        FAILS(attune_home_check(f->home, NULL, NULL, NULL, &f->err), ATTUNE_ERROR_FORMAT, "1 defect", f->home);
        OK(attune_adapter_use(f->home, i & 1, &f->err));
        assert_int_equal(home_status(f).active_adapter, i & 1);
        OK(attune_home_check(f->home, NULL, NULL, NULL, &f->err));
    }
    write_file(in_home(f, "CURRENT"), "base\n\0\0", 7);
    FAILS(attune_home_status(f->home, &status, &f->err), ATTUNE_ERROR_FORMAT, "attune adapters use", "CURRENT");
    OK(attune_adapter_use(f->home, 1, &f->err));
    char *again = read_file(in_home(f, "CURRENT"), &n);
    assert_string_equal(again, good);
    free(again);

    /* well-formed, but an adapter that nobody knows */
    snprintf(text, sizeof text, "7 %s\n", zeros);
    write_text(in_home(f, "CURRENT"), text);
    FAILS(attune_job_open(f->home, NULL, &job, &f->err), ATTUNE_ERROR_FORMAT, "attune adapters use", f->home);
    FAILS(attune_engine_open(f->home, NULL, &engine, &f->err), ATTUNE_ERROR_NOT_FOUND, "adapter 7", "7.gguf");
    FAILS(attune_home_check(f->home, NULL, NULL, NULL, &f->err), ATTUNE_ERROR_FORMAT, "1 defect", f->home);
    OK(attune_adapter_use(f->home, 1, &f->err));
    /* the right number, but of another file */
    snprintf(text, sizeof text, "1 %s\n", zeros);
    write_text(in_home(f, "CURRENT"), text);
    FAILS(attune_engine_open(f->home, NULL, &engine, &f->err), ATTUNE_ERROR_FORMAT, "published", "1.gguf");
    FAILS(attune_job_open(f->home, NULL, &job, &f->err), ATTUNE_ERROR_FORMAT, "attune adapters use", f->home);
    FAILS(attune_home_check(f->home, NULL, NULL, NULL, &f->err), ATTUNE_ERROR_FORMAT, "1 defect", f->home);
    OK(attune_adapter_use(f->home, 1, &f->err));
    /* none: the base; the store follows at the next job */
    unlink(in_home(f, "CURRENT"));
    assert_int_equal(home_status(f).active_adapter, 0);
    OK(attune_job_open(f->home, NULL, &job, &f->err));
    attune_job_close(job);
    assert_string_equal(sql_text(f, "SELECT state FROM adapter"), "retired");
    free(good);
}

/* ---- the base ---- */

static void test_replaced_base(void **state) {
    struct homes *f = *state;
    attune_engine *engine = NULL;
    attune_job *job = NULL;
    uint64_t bytes;
    int number;
    make_own_home(f);
    import_rows(f, 0, 8);
    publish_run(f, 1);
    OK(attune_adapter_export(f->home, 1, "gguf", in_folder(f, "out.gguf"), &f->err));
    replace_base(f);
    FAILS(attune_job_open(f->home, NULL, &job, &f->err), ATTUNE_ERROR_MISMATCH, "another base model", "base.gguf");
    FAILS(attune_job_memory(f->home, NULL, &bytes, &f->err), ATTUNE_ERROR_MISMATCH, "another base model", "base.gguf");
    FAILS(attune_engine_open(f->home, NULL, &engine, &f->err), ATTUNE_ERROR_MISMATCH, "another base model",
          "base.gguf");
    FAILS(attune_adapter_use(f->home, 1, &f->err), ATTUNE_ERROR_MISMATCH, "another base model", "base.gguf");
    FAILS(attune_adapter_export(f->home, 1, "peft", in_folder(f, "peft"), &f->err), ATTUNE_ERROR_MISMATCH,
          "another base model", "base.gguf");
    FAILS(attune_adapter_import(f->home, in_folder(f, "out.gguf"), &number, &f->err), ATTUNE_ERROR_MISMATCH,
          "another base model", "base.gguf");
    assert_int_equal(home_status(f).base_ok, 0);
    assert_false(exists(in_folder(f, "peft")));
    unlink(in_folder(f, "base.gguf"));
    FAILS(attune_job_open(f->home, NULL, &job, &f->err), ATTUNE_ERROR_IO, "No such file", "base.gguf");
    FAILS(attune_engine_open(f->home, NULL, &engine, &f->err), ATTUNE_ERROR_IO, "No such file", "base.gguf");
    shell("cp %s %s", TINY_BASE, in_folder(f, "base.gguf"));
    OK(attune_engine_open(f->home, NULL, &engine, &f->err));
    attune_engine_close(engine);
}

static void test_remembered_hash(void **state) {
    struct homes *f = *state;
    size_t n;
    make_own_home(f);
    const char *cache = in_home(f, "cache/base.sha256");
    assert_int_equal(home_status(f).base_ok, 1);
    char *remembered = read_file(cache, &n);
    assert_memory_equal(remembered, sha256_of(TINY_BASE), 64);

    /* it is what is asked: a digest of zeros under the right stamp is caught by hashing again, never believed */
    char *wrong = strdup(remembered);
    memset(wrong, '0', 64);
    write_file(cache, wrong, n);
    assert_int_equal(home_status(f).base_ok, 1);
    char *again = read_file(cache, &n);
    assert_string_equal(again, remembered);
    free(again);
    const char *damaged[] = {"", "\n", "nonsense\n", "0123456789abcdef"};
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        write_text(cache, damaged[i]);
        assert_int_equal(home_status(f).base_ok, 1);
        again = read_file(cache, &n);
        assert_string_equal(again, remembered);
        free(again);
    }
    shell("rm -rf %s", in_home(f, "cache"));
    assert_int_equal(home_status(f).base_ok, 1); /* without the folder it is hashed each time */
    shell("mkdir -m 700 %s", in_home(f, "cache"));

    /* stale: what it remembers is of the file before */
    write_file(cache, remembered, strlen(remembered));
    replace_base(f);
    assert_int_equal(home_status(f).base_ok, 0);
    /* changed in place, with size and mtime as they were: ctime tells */
    shell("cp -p %s/base.gguf %s/stamp; cat %s >%s/base.gguf", f->folder, f->folder, TINY_BASE, f->folder);
    assert_int_equal(home_status(f).base_ok, 1);
    shell("cp -p %s/base.gguf %s/stamp", f->folder, f->folder);
    flip_byte(in_folder(f, "base.gguf"), -1);
    shell("touch -r %s/stamp %s/base.gguf", f->folder, f->folder);
    assert_int_equal(home_status(f).base_ok, 0);
    free(wrong);
    free(remembered);
}

/* ---- attune.conf ---- */

static void expect_conf(struct homes *f, const char *text, size_t n, const char *word, const char *place) {
    attune_status status;
    attune_engine *engine = NULL;
    attune_job *job = NULL;
    ATTUNE_INIT(status);
    write_file(in_home(f, "attune.conf"), text, n);
    FAILS(attune_home_status(f->home, &status, &f->err), ATTUNE_ERROR_FORMAT, word, place);
    FAILS(attune_job_open(f->home, NULL, &job, &f->err), ATTUNE_ERROR_FORMAT, word, place);
    FAILS(attune_engine_open(f->home, NULL, &engine, &f->err), ATTUNE_ERROR_FORMAT, word, place);
    FAILS(attune_home_check(f->home, NULL, NULL, NULL, &f->err), ATTUNE_ERROR_FORMAT, "1 defect", f->home);
}

static void test_hostile_settings(void **state) {
    struct homes *f = *state;
    size_t n;
    make_home(f, TINY_BASE, 1);
    char *good = read_file(in_home(f, "attune.conf"), &n), *big = malloc(10 << 20);
    memcpy(big, good, n);
    snprintf(big + n, 100, "colour = blue\n");
    expect_conf(f, big, strlen(big), "colour", "attune.conf:line ");
    snprintf(big + n, 100, "rank = 3\n");
    expect_conf(f, big, strlen(big), "rank is set twice", "attune.conf:line ");
    snprintf(big + n, 100, "no equals sign\n");
    expect_conf(f, big, strlen(big), "key = value", "attune.conf:line ");
    memcpy(big + n, "# a\0b\n", 6);
    expect_conf(f, big, n + 6, "NUL", "attune.conf:line ");
    memset(big + n, '#', (10 << 20) - n);
    expect_conf(f, big, 10 << 20, "bytes", "attune.conf");
    expect_conf(f, big, n + 5000, "too long", "attune.conf:line ");
    expect_conf(f, "", 0, "base", "attune.conf");
    char *value = strstr(good, "learning_rate = 0.01");
    assert_non_null(value);
    memcpy(value, "learning_rate = nan!", 20);
    expect_conf(f, good, n, "learning_rate", "attune.conf:line ");
    memcpy(value, "learning_rate = nan ", 20);
    expect_conf(f, good, n, "learning_rate", "attune.conf:line ");
    memcpy(value, "learning_rate = -0.1", 20);
    expect_conf(f, good, n, "number from 0 to 1", "attune.conf:line ");
    memcpy(value, "learning_rate = 0.01", 20);
    write_file(in_home(f, "attune.conf"), good, n);
    assert_int_equal(home_status(f).base_ok, 1);
    free(big);
    free(good);
}

/* ---- the lock ---- */

static void test_lock(void **state) {
    struct homes *f = *state;
    attune_job *job = NULL;
    attune_engine *engine = NULL;
    attune_store *store = NULL;
    int number = -5;
    make_home(f, TINY_BASE, 1);
    import_rows(f, 0, 8);
    publish_run(f, 1);
    struct lock_holder holder = hold_lock(f);
    FAILS(attune_job_open(f->home, NULL, &job, &f->err), ATTUNE_ERROR_BUSY, "another attune process", f->home);
    assert_null(job);
    FAILS(attune_adapter_use(f->home, 0, &f->err), ATTUNE_ERROR_BUSY, "another attune process", f->home);
    FAILS(attune_adapter_rollback(f->home, &number, &f->err), ATTUNE_ERROR_BUSY, "another attune process", f->home);
    FAILS(attune_adapter_import(f->home, adapter_path(f, 1), &number, &f->err), ATTUNE_ERROR_BUSY,
          "another attune process", f->home);
    FAILS(attune_home_init(f->home, TINY_BASE, NULL, &f->err), ATTUNE_ERROR_BUSY, "another attune process", f->home);
    assert_int_equal(number, -5);
    /* who only looks, answers or records does not wait */
    assert_int_equal(home_status(f).active_adapter, 1);
    OK(attune_engine_open(f->home, NULL, &engine, &f->err));
    attune_engine_close(engine);
    OK(attune_home_check(f->home, NULL, NULL, NULL, &f->err));
    OK(attune_adapter_export(f->home, 1, "gguf", in_folder(f, "out.gguf"), &f->err));
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_import(store, persona_rows(f, 8, 1), NULL, NULL, &f->err));
    attune_store_close(store);
    release_lock(holder);
    OK(attune_adapter_use(f->home, 0, &f->err));
    OK(attune_job_open(f->home, NULL, &job, &f->err));
    attune_job *second = NULL;
    FAILS(attune_job_open(f->home, NULL, &second, &f->err), ATTUNE_ERROR_BUSY, "", f->home);
    attune_job_close(job);
}

/* ---- doctor ---- */

struct findings {
    int defects, warnings;
    char text[4096]; /* "level subject: message\n" of all but the fine ones */
};
static void note(int level, const char *subject, const char *message, void *user) {
    struct findings *found = user;
    if (level == 0 || strcmp(subject, "power") == 0) return; /* the machine's own */
    if (level == 2) found->defects++;
    if (level == 1) found->warnings++;
    size_t n = strlen(found->text);
    snprintf(found->text + n, sizeof found->text - n, "%d %s: %s\n", level, subject, message);
}

/* defects -1: at least one */
static void expect_findings(struct homes *f, int defects, int warnings, const char *line, const char *word) {
    struct findings found = {0};
    GIVES(attune_home_check(f->home, NULL, note, &found, &f->err), defects ? ATTUNE_ERROR_FORMAT : ATTUNE_OK);
    if ((defects < 0 ? found.defects == 0 : found.defects != defects) || found.warnings != warnings ||
        (line && !strstr(found.text, line)) || (word && !strstr(found.text, word)))
        fail_msg("wanted %d defects, %d warnings, '%s' and '%s', found: %s", defects, warnings, line, word, found.text);
}

static void test_doctor_adapters(void **state) {
    struct homes *f = *state;
    make_home(f, TINY_BASE, 1);
    import_rows(f, 0, 8);
    publish_run(f, 1);
    expect_findings(f, 0, 0, NULL, NULL);
    size_t n;
    char *good = read_file(adapter_path(f, 1), &n);
    char path[256];
    snprintf(path, sizeof path, "%s", adapter_path(f, 1));
    for (size_t keep = 0; keep < n; keep += 1 + n / 7) {
        write_file(path, good, keep);
        expect_findings(f, 1, 0, "2 adapter 1: ", "1.gguf");
    }
    for (long at = 10; at < (long)n; at += 1 + (long)n / 9) { /* names, alpha, parameters: anywhere */
        write_file(path, good, n);
        flip_byte(path, at);
        expect_findings(f, 1, 0, "2 adapter 1: ", NULL);
    }
    unlink(path);
    expect_findings(f, 1, 0, "2 adapter 1: ", "No such file");
    write_file(path, good, n);
    expect_findings(f, 0, 0, NULL, NULL);
    free(good);
    sql(f, "UPDATE adapter SET state = 'revoked'"); /* its file may be gone */
    OK(attune_adapter_use(f->home, 0, &f->err));
    unlink(path);
    expect_findings(f, 0, 0, NULL, NULL);
}

static void test_doctor_home(void **state) {
    struct homes *f = *state;
    make_own_home(f);
    import_rows(f, 0, 8);
    expect_findings(f, 0, 0, NULL, NULL);
    assert_int_equal(chmod(f->home, 0755), 0);
    expect_findings(f, 0, 1, "1 home: ", "chmod 700");
    assert_int_equal(chmod(f->home, 0700), 0);
    sql(f, "UPDATE interaction SET consent = 0");
    expect_findings(f, 0, 1, "1 consent: ", NULL);
    sql(f, "UPDATE interaction SET consent = 1");
    replace_base(f);
    expect_findings(f, 1, 0, "2 base: ", "another");
    unlink(in_folder(f, "base.gguf"));
    expect_findings(f, 1, 0, "2 base: ", "base.gguf");
    changed_base(f, "base.gguf", "tokenizer.chat_template", "tokenizer.chat_tomplate");
    expect_findings(f, 2, 0, "2 chat template: ", "2 base: ");
    shell("cp %s %s", TINY_BASE, in_folder(f, "base.gguf"));
    expect_findings(f, 0, 0, NULL, NULL);
    size_t n;
    char *good = read_file(in_home(f, "store.db"), &n);
    write_text(in_home(f, "store.db"),
               "this is no database, it is a text that someone has put here, long enough for a header of "
               "one hundred bytes to be read");
    expect_findings(f, 1, 0, "2 store: ", "store.db");
    unlink(in_home(f, "store.db"));
    expect_findings(f, 1, 0, "2 store: ", "store.db");
    char *bad = malloc(n);
    memcpy(bad, good, n);
    for (size_t page = 1; page < n / 4096; page++) memset(bad + 4096 * page, 0xa5, 64); /* headers of pages */
    write_file(in_home(f, "store.db"), bad, n);
    expect_findings(f, -1, 0, "2 store: ", NULL);
    write_file(in_home(f, "store.db"), good, n);
    expect_findings(f, 0, 0, NULL, NULL);
    free(bad);
    free(good);
    FAILS(attune_home_check(in_folder(f, "nowhere"), NULL, NULL, NULL, &f->err), ATTUNE_ERROR_NOT_FOUND, "attune init",
          "nowhere");
    /* a base alone */
    OK(attune_home_check(NULL, TINY_BASE, NULL, NULL, &f->err));
    struct findings found = {0};
    FAILS(attune_home_check(NULL, in_home(f, "store.db"), note, &found, &f->err), ATTUNE_ERROR_FORMAT, "1 defect",
          "store.db");
    assert_non_null(strstr(found.text, "2 base: "));
}

/* ---- the key of an encrypted home ---- */

static void test_key_file(void **state) {
    struct homes *f = *state;
    attune_home_options options;
    attune_store *store = NULL;
    attune_error e;
    char folder[256];
    ATTUNE_INIT(options);
    options.consent = 1;
    options.key_file = in_folder(f, "keys/../key");
    FAILS(attune_home_init(f->home, TINY_BASE, &options, &f->err), ATTUNE_ERROR_IO, "", "key");
    shell("mkdir %s/keys", f->folder);
    OK(attune_home_init(f->home, TINY_BASE, &options, &f->err));
    assert_int_equal(mode_of(in_folder(f, "key")), 0600);
    assert_string_equal(sql_text(f, "SELECT value FROM setting WHERE key = 'key_file'"), in_folder(f, "key"));
    import_rows(f, 0, 8); /* finds the key by itself, wherever it is called from */
    assert_int_equal(home_status(f).interactions, 8);
    assert_non_null(getcwd(folder, sizeof folder));
    assert_int_equal(chdir("/"), 0);
    import_rows(f, 8, 2);
    assert_int_equal(chdir(folder), 0);

    /* a second home with the same key, named from here */
    char first[96];
    strcpy(first, f->home);
    snprintf(f->home, sizeof f->home, "%s/second", f->folder);
    assert_int_equal(chdir(f->folder), 0);
    options.key_file = "key";
    size_t n, m;
    char *key = read_file("key", &n);
    OK(attune_home_init(f->home, TINY_BASE, &options, &f->err));
    assert_int_equal(chdir(folder), 0);
    char *again = read_file(in_folder(f, "key"), &m);
    assert_string_equal(key, again);
    assert_string_equal(sql_text(f, "SELECT value FROM setting WHERE key = 'key_file'"), in_folder(f, "key"));
    free(key);
    free(again);

    /* without the key there is looking, and no more */
    strcpy(f->home, first);
    shell("mv %s/key %s/elsewhere", f->folder, f->folder);
    assert_int_equal(home_status(f).interactions, 10);
    OK(attune_home_check(f->home, NULL, NULL, NULL, &f->err));
    assert_int_equal(attune_store_open(f->home, NULL, &store, &e), ATTUNE_ERROR_MISMATCH);
    attune_job *job = NULL;
    attune_job_options with = job_options();
    FAILS(attune_job_open(f->home, &with, &job, &f->err), ATTUNE_ERROR_MISMATCH, "key", "store.db");
    with.key_file = in_folder(f, "elsewhere");
    OK(attune_job_open(f->home, &with, &job, &f->err));
    attune_job_close(job);
    shell("mv %s/elsewhere %s/key", f->folder, f->folder);
    publish_run(f, 1);
}

static void test_keys_that_are_refused(void **state) {
    struct homes *f = *state;
    static const unsigned char key[ATTUNE_KEY_BYTES] = {1};
    attune_home_options options;
    ATTUNE_INIT(options);
    options.key = key;
    options.key_file = in_folder(f, "key");
    FAILS(attune_home_init(f->home, TINY_BASE, &options, &f->err), ATTUNE_ERROR_ARGUMENT, "not both", "");
    assert_false(exists(in_folder(f, "key")));
    options.key = NULL;
    write_text(in_folder(f, "key"), "this is no key");
    assert_int_equal(chmod(in_folder(f, "key"), 0600), 0);
    FAILS(attune_home_init(f->home, TINY_BASE, &options, &f->err), ATTUNE_ERROR_FORMAT, "64", "key");
    assert_int_equal(chmod(in_folder(f, "key"), 0644), 0);
    FAILS(attune_home_init(f->home, TINY_BASE, &options, &f->err), ATTUNE_ERROR_STATE, "chmod 600", "key");
    assert_false(exists(in_home(f, "attune.conf")));
    /* no home was made by that, and one can be */
    unlink(in_folder(f, "key"));
    OK(attune_home_init(f->home, TINY_BASE, &options, &f->err));
    FAILS(attune_home_init(f->home, TINY_BASE, &options, &f->err), ATTUNE_ERROR_STATE, "there already", f->home);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_init_makes_a_private_home),
        TEST(test_init_refuses_bases),
        TEST(test_init_can_be_repeated),
        TEST(test_which_home),
        TEST(test_status_counts),
        TEST(test_damaged_current),
        TEST(test_replaced_base),
        TEST(test_remembered_hash),
        TEST(test_hostile_settings),
        TEST(test_lock),
        TEST(test_doctor_adapters),
        TEST(test_doctor_home),
        TEST(test_key_file),
        TEST(test_keys_that_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
