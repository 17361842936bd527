/* Backing a home up while it is used, and making one again from the copy: whole or not at all, at whatever point it is
 * cut off, and whatever was done to the copy. */
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>

#include "tests/home_fixture.h"

/* Training takes most of the time of these tests: one home is made, and each of them has a copy. */
static char made[sizeof ((struct homes *)NULL)->folder];

static int remove_made(void **state) {
    (void)state;
    if (*made) shell("rm -rf %s", made);
    return 0;
}

/* Two adapters, the second active; rows that are new since. */
static void make_used_home(struct homes *f) {
    if (*made) {
        shell("cp -a %s/home %s", made, f->home);
        return;
    }
    make_home(f, TINY_BASE, 1);
    import_rows(f, 0, 6);
    publish_run(f, 1);
    import_rows(f, 6, 4);
    set_key(f, "learning_rate", "0.001");
    publish_run(f, 2);
    import_rows(f, 10, 3);
    strcpy(made, "/tmp/attune-home-XXXXXX");
    assert_non_null(mkdtemp(made));
    shell("cp -a %s %s/home", f->home, made);
}

static const char *in_backup(const struct homes *f, const char *name) {
    char below[128];
    snprintf(below, sizeof below, "backup/%s", name);
    return in_folder(f, below);
}
static void back_up(struct homes *f) { OK(attune_home_backup(f->home, in_folder(f, "backup"), &f->err)); }

static int entries_of(const char *folder) {
    int n = 0;
    DIR *dir = opendir(folder);
    if (!dir) return -1;
    for (struct dirent *entry; (entry = readdir(dir));)
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(dir);
    return n;
}

static int mode_of(const char *path) {
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    return (int)(st.st_mode & 0777);
}

static int contains(const char *path, const char *text) {
    size_t n;
    char *bytes = read_file(path, &n);
    int found = strstr(bytes, text) != NULL;
    free(bytes);
    return found;
}

/* As homes: the one of f, and the restored one. */
static struct homes restored_home(const struct homes *f) {
    struct homes other = *f;
    snprintf(other.home, sizeof other.home, "%s/restored", f->folder);
    return other;
}

static void expect_same_home(struct homes *f, struct homes *r) {
    attune_status a = home_status(f), b = home_status(r);
    assert_string_equal(a.base_sha256, b.base_sha256);
    assert_int_equal(b.base_ok, 1);
    assert_int_equal(a.consent, b.consent);
    assert_int_equal(a.interactions, b.interactions);
    assert_int_equal(a.consented, b.consented);
    assert_int_equal(a.feedback, b.feedback);
    assert_int_equal(a.active_adapter, b.active_adapter);
    assert_int_equal(a.n_adapters, b.n_adapters);
    assert_string_equal(a.run_state, b.run_state);
    for (int i = 1; i <= a.n_adapters; i++)
        if (strcmp(adapter_info(f, i).state, "revoked") != 0)
            assert_true(same_files(adapter_path(f, i), adapter_path(r, i)));
    OK(attune_home_check(r->home, NULL, NULL, NULL, &f->err));
    assert_int_equal(mode_of(r->home), 0700);
    static const char *const files[] = {"attune.conf", "store.db", "CURRENT"};
    for (size_t i = 0; i < 3; i++) assert_int_equal(mode_of(in_home(r, files[i])), 0600);
}

/* No home, and nothing beside it. */
static void expect_no_home(const struct homes *f, const char *what) {
    if (exists(in_folder(f, "restored"))) fail_msg("%s: there is a home", what);
    if (exists(in_folder(f, ".restored.restore"))) fail_msg("%s: half a home stays", what);
}

/* ---- there and back ---- */

static void test_there_and_back(void **state) {
    struct homes *f = *state;
    make_used_home(f);
    shell("printf '# my own remark\\n' >>%s", in_home(f, "attune.conf"));
    back_up(f);
    assert_int_equal(mode_of(in_folder(f, "backup")), 0700);
    assert_int_equal(entries_of(in_folder(f, "backup")), 5); /* attune.conf store.db CURRENT adapters manifest.json */
    assert_int_equal(entries_of(in_backup(f, "adapters")), 2);
    static const char *const files[] = {"attune.conf", "store.db", "CURRENT", "adapters/1.gguf", "manifest.json"};
    for (size_t i = 0; i < 5; i++) assert_int_equal(mode_of(in_backup(f, files[i])), 0600);
    assert_true(contains(in_backup(f, "manifest.json"), sha256_of(in_backup(f, "store.db"))));
    assert_true(contains(in_backup(f, "manifest.json"), "\"format\": 1"));

    struct homes r = restored_home(f);
    OK(attune_home_restore(in_folder(f, "backup"), r.home, NULL, &f->err));
    expect_same_home(f, &r);
    assert_true(same_files(in_home(f, "attune.conf"), in_home(&r, "attune.conf")));
    assert_false(exists(in_folder(f, ".restored.restore")));
    /* it lives on: the same night gives the same adapter */
    publish_run(f, 3);
    publish_run(&r, 3);
    assert_true(same_files(adapter_path(f, 3), adapter_path(&r, 3)));
    /* into a folder that is empty, and with slashes behind */
    shell("rm -rf %s && mkdir %s", r.home, r.home);
    OK(attune_home_restore(in_folder(f, "backup//"), in_folder(f, "restored/"), NULL, &f->err));
    assert_int_equal(home_status(&r).active_adapter, 2);
    /* into folders that do not exist yet */
    OK(attune_home_restore(in_folder(f, "backup"), in_folder(f, "deep/er/home"), NULL, &f->err));
    /* a fresh home, without adapters */
    struct homes fresh = *f;
    snprintf(fresh.home, sizeof fresh.home, "%s/fresh", f->folder);
    make_home(&fresh, TINY_BASE, 0);
    OK(attune_home_backup(fresh.home, in_folder(f, "empty"), &f->err));
    OK(attune_home_restore(in_folder(f, "empty"), in_folder(f, "again"), NULL, &f->err));
}

static void test_another_base_path(void **state) {
    struct homes *f = *state;
    make_used_home(f);
    shell("printf '# my own remark\\n' >>%s", in_home(f, "attune.conf"));
    back_up(f);
    shell("cp %s %s/moved.gguf", TINY_BASE, f->folder);
    shell("cp %s %s/other.gguf", TINY_BASE, f->folder);
    flip_byte(in_folder(f, "other.gguf"), -1);
    struct homes r = restored_home(f);
    FAILS(attune_home_restore(in_folder(f, "backup"), r.home, in_folder(f, "other.gguf"), &f->err),
          ATTUNE_ERROR_MISMATCH, "another base", "other.gguf");
    expect_no_home(f, "another base");
    FAILS(attune_home_restore(in_folder(f, "backup"), r.home, in_folder(f, "none.gguf"), &f->err), ATTUNE_ERROR_IO,
          "No such file", "none.gguf");
    expect_no_home(f, "no base");
    OK(attune_home_restore(in_folder(f, "backup"), r.home, in_folder(f, "moved.gguf"), &f->err));
    expect_same_home(f, &r);
    assert_string_equal(home_status(&r).base_path, in_folder(f, "moved.gguf"));
    assert_true(contains(in_home(&r, "attune.conf"), "# my own remark"));
    assert_true(contains(in_home(&r, "attune.conf"), "learning_rate = 0.001"));
}

static void test_encrypted(void **state) {
    struct homes *f = *state;
    attune_home_options options;
    ATTUNE_INIT(options);
    options.consent = 1;
    options.key_file = in_folder(f, "key");
    OK(attune_home_init(f->home, TINY_BASE, &options, &f->err));
    quick_settings(f);
    import_rows(f, 0, 6);
    publish_run(f, 1);
    size_t n;
    char *key = read_file(in_folder(f, "key"), &n);
    shell("mv %s/key %s/away", f->folder, f->folder);
    back_up(f); /* the key is not needed */
    struct homes r = restored_home(f);
    OK(attune_home_restore(in_folder(f, "backup"), r.home, NULL, &f->err));
    key[64] = 0;
    shell("! grep -rqi %s %s %s", key, in_folder(f, "backup"), r.home);
    free(key);
    attune_store *store = NULL;
    GIVES(attune_store_open(r.home, NULL, &store, &f->err), ATTUNE_ERROR_MISMATCH);
    shell("mv %s/away %s/key", f->folder, f->folder);
    import_rows(&r, 6, 4);
    /* what comes of it hangs on the store's own salt: the order of the rows is by hashes that are keyed */
    attune_job_options job = job_options();
    GIVES(run_job(&r, &job, NULL), ATTUNE_DONE);
    assert_string_not_equal(home_status(&r).run_state, "failed");
}

/* ---- what is left out ---- */

static void test_what_is_left_out(void **state) {
    struct homes *f = *state;
    attune_job_options options = job_options();
    attune_job *job = NULL;
    make_used_home(f);
    import_rows(f, 13, 4);
    OK(attune_job_open(f->home, &options, &job, &f->err));
    for (int i = 0; i < 4; i++) GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    attune_job_cancel(job);
    GIVES(attune_job_step(job, &f->err), ATTUNE_PAUSED);
    assert_true(exists(in_home(f, "checkpoint.gguf")));
    back_up(f); /* beside a job that has the home's lock */
    attune_job_close(job);
    assert_false(exists(in_backup(f, "checkpoint.gguf")));
    assert_false(exists(in_backup(f, "cache")));
    shell("test -z \"$(find %s -name '*.tmp')\"", f->folder);
    /* the run goes on from its plan, to the same end */
    struct homes r = restored_home(f);
    OK(attune_home_restore(in_folder(f, "backup"), r.home, NULL, &f->err));
    publish_run(f, 3);
    publish_run(&r, 3);
    assert_true(same_files(adapter_path(f, 3), adapter_path(&r, 3)));

    /* what is revoked is not copied; what is damaged and does not serve is named */
    shell("rm -rf %s %s", in_folder(f, "backup"), r.home);
    sql(f, "UPDATE adapter SET state = 'revoked' WHERE number = 2");
    flip_byte(adapter_path(f, 1), -1);
    back_up(f);
    assert_false(exists(in_backup(f, "adapters/1.gguf")) || exists(in_backup(f, "adapters/2.gguf")));
    assert_true(contains(in_backup(f, "manifest.json"), "1\n ]"));
    OK(attune_home_restore(in_folder(f, "backup"), r.home, NULL, &f->err));
    assert_int_equal(home_status(&r).active_adapter, 3);
    shell("rm -rf %s", in_folder(f, "backup"));
    unlink(adapter_path(f, 1));
    back_up(f);
    shell("rm -rf %s", in_folder(f, "backup"));
    /* the active one has to be whole */
    flip_byte(adapter_path(f, 3), -1);
    FAILS(attune_home_backup(f->home, in_folder(f, "backup"), &f->err), ATTUNE_ERROR_FORMAT, "published", "3.gguf");
    assert_false(exists(in_folder(f, "backup")));
    unlink(adapter_path(f, 3));
    FAILS(attune_home_backup(f->home, in_folder(f, "backup"), &f->err), ATTUNE_ERROR_IO, "No such file", "3.gguf");
    sql(f, "UPDATE adapter SET state = 'revoked' WHERE number = 3");
    FAILS(attune_home_backup(f->home, in_folder(f, "backup"), &f->err), ATTUNE_ERROR_FORMAT, "adapters use", f->home);
    assert_false(exists(in_folder(f, "backup")));
}

/* ---- in use ---- */

/* A process that chooses one adapter after the other and records, until it is told to stop. */
static pid_t start_busy(struct homes *f) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child > 0) return child;
    attune_store *store = NULL;
    attune_interaction row;
    ATTUNE_INIT(row);
    row.prompt = "who sings on the pier?";
    row.response = "the old man";
    if (attune_store_open(f->home, NULL, &store, NULL) != ATTUNE_OK) _exit(1);
    for (int i = 0;; i++) {
        if (attune_store_record(store, &row, NULL, NULL) != ATTUNE_OK) _exit(1);
        if (i % 200 == 0 && attune_adapter_use(f->home, i / 200 % 3, NULL) != ATTUNE_OK) _exit(1);
        usleep(2000);
    }
}

static void test_while_in_use(void **state) {
    struct homes *f = *state;
    make_used_home(f);
    struct homes r = restored_home(f);
    int64_t before = 0;
    int seen[3] = {0}, status;
    fflush(NULL);
    pid_t busy = start_busy(f);
    for (int i = 0; i < 12; i++) {
        int code = attune_home_backup(f->home, in_folder(f, "backup"), &f->err);
        if (code == ATTUNE_ERROR_BUSY) continue; /* it was chosen anew all the time */
        if (code != ATTUNE_OK) fail_msg("%d: %s (%s)", code, f->err.message, f->err.where);
        OK(attune_home_restore(in_folder(f, "backup"), r.home, NULL, &f->err));
        attune_status s = home_status(&r);
        seen[s.active_adapter]++;
        assert_true(s.interactions >= before);
        before = s.interactions;
        OK(attune_home_check(r.home, NULL, NULL, NULL, &f->err));
        assert_int_equal(waitpid(busy, &status, WNOHANG), 0); /* nothing of it disturbs who is at work */
        shell("rm -rf %s %s", in_folder(f, "backup"), r.home);
    }
    kill(busy, SIGKILL);
    assert_int_equal(waitpid(busy, &status, 0), busy);
    assert_true(WIFSIGNALED(status));
    assert_true(before > 13);
    assert_true(seen[0] + seen[1] + seen[2] > 4);
}

/* Backs up in a child that waits at each fault point (it lists them into a pipe that has to be opened to be read),
 * calls `meanwhile` as soon as the first adapter has been copied, and lets it go on. The child's code. */
static int back_up_slowly(struct homes *f, void (*meanwhile)(struct homes *f)) {
    int status = 0, done = 0;
    char name[256], pipe_path[256];
    snprintf(pipe_path, sizeof pipe_path, "%s/pipe", f->folder);
    unlink(pipe_path);
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("ATTUNE_FAULT_LIST", pipe_path, 1);
        signal(SIGPIPE, SIG_IGN); /* the other end may close before a name is written */
        _exit(-attune_home_backup(f->home, in_folder(f, "backup"), NULL));
    }
    while (waitpid(child, &status, WNOHANG) == 0) {
        int end = open(pipe_path, O_RDONLY | O_NONBLOCK);
        struct pollfd wait = {end, POLLIN, 0};
        if (poll(&wait, 1, 100) > 0 && read(end, name, sizeof name) < 0) fail_msg("cannot read the pipe");
        close(end); /* now it cannot pass more than the point where it is */
        if (!done && exists(in_backup(f, "adapters/1.gguf"))) {
            meanwhile(f);
            done = 1;
        }
    }
    assert_int_equal(done, 1);
    assert_true(WIFEXITED(status));
    return -WEXITSTATUS(status);
}
static void import_one(struct homes *f) {
    int number = 0;
    OK(attune_adapter_import(f->home, adapter_path(f, 1), &number, &f->err));
    assert_int_equal(number, 3);
    OK(attune_adapter_use(f->home, 3, &f->err));
}
static void forget_all(struct homes *f) {
    attune_store *store = NULL;
    attune_filter all;
    ATTUNE_INIT(all);
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_forget(store, &all, NULL, &f->err));
    attune_store_close(store);
}

/* What changes while the files are copied is in the copy, or it is not: never half of it. */
static void test_changes_meanwhile(void **state) {
    struct homes *f = *state;
    make_used_home(f);
    struct homes r = restored_home(f);
    assert_int_equal(back_up_slowly(f, import_one), ATTUNE_OK);
    OK(attune_home_restore(in_folder(f, "backup"), r.home, NULL, &f->err));
    expect_same_home(f, &r);
    assert_int_equal(home_status(&r).active_adapter, 3);
    shell("rm -rf %s %s", in_folder(f, "backup"), r.home);
    OK(attune_adapter_use(f->home, 2, &f->err));
    assert_int_equal(back_up_slowly(f, forget_all), ATTUNE_OK);
    assert_false(exists(in_backup(f, "adapters/1.gguf")) || exists(in_backup(f, "adapters/2.gguf")));
    OK(attune_home_restore(in_folder(f, "backup"), r.home, NULL, &f->err));
    expect_same_home(f, &r);
    assert_int_equal(home_status(&r).interactions, 0);
    assert_int_equal(home_status(&r).active_adapter, 0);
}

/* ---- cut off ---- */

/* In a child, as a fault may kill it. The code, or -99 when it was killed. */
static int with_fault(const char *fault, const char *list, int (*call)(struct homes *f), struct homes *f) {
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (fault) setenv("ATTUNE_FAULT", fault, 1);
        if (list) setenv("ATTUNE_FAULT_LIST", list, 1);
        _exit(-call(f));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) return WTERMSIG(status) == SIGKILL ? -99 : -98;
    return -WEXITSTATUS(status);
}
static int do_backup(struct homes *f) { return attune_home_backup(f->home, in_folder(f, "backup"), NULL); }
static int do_restore(struct homes *f) {
    return attune_home_restore(in_folder(f, "backup"), in_folder(f, "restored"), NULL, NULL);
}

/* Every fault point that the call passes, each with the number of its passes: "name count". */
static char *points_of(struct homes *f, int (*call)(struct homes *f)) {
    size_t n;
    unlink(in_folder(f, "points"));
    assert_int_equal(with_fault(NULL, in_folder(f, "points"), call, f), ATTUNE_OK);
    shell("sort %s/points | uniq -c | awk '{ print $2, $1 }' >%s/counted", f->folder, f->folder);
    return read_file(in_folder(f, "counted"), &n);
}

static void test_backups_that_are_cut_short(void **state) {
    struct homes *f = *state;
    char name[64], fault[96];
    int passes, killed = 0, whole = 0;
    make_used_home(f);
    struct homes r = restored_home(f);
    char *points = points_of(f, do_backup);
    shell("rm -rf %s", in_folder(f, "backup"));
    for (char *line = points; sscanf(line, "%63s %d", name, &passes) == 2; line = strchr(line, '\n') + 1)
        for (int pass = 1; pass <= passes; pass += passes > 2 ? passes - 1 : 1) { /* the first and the last */
            snprintf(fault, sizeof fault, "%s:%d:kill", name, pass);
            assert_int_equal(with_fault(fault, NULL, do_backup, f), -99);
            killed++;
            int complete = exists(in_backup(f, "manifest.json"));
            int code = attune_home_restore(in_folder(f, "backup"), r.home, NULL, &f->err);
            if (code != (complete ? ATTUNE_OK : ATTUNE_ERROR_FORMAT)) fail_msg("killed at %s: %d", fault, code);
            if (complete)
                expect_same_home(f, &r);
            else
                expect_no_home(f, fault);
            whole += complete;
            shell("rm -rf %s %s", in_folder(f, "backup"), r.home);
            /* where a call fails instead, the folder goes, or the backup is whole */
            snprintf(fault, sizeof fault, "%s:%d:fail", name, pass);
            code = with_fault(fault, NULL, do_backup, f);
            if ((code != ATTUNE_OK) == exists(in_folder(f, "backup"))) fail_msg("failed at %s: %d", fault, code);
            shell("rm -rf %s", in_folder(f, "backup"));
        }
    free(points);
    assert_true(killed > 10 && whole > 0 && whole < 10);
}

static void test_restores_that_are_cut_short(void **state) {
    struct homes *f = *state;
    char name[64], fault[96];
    int passes, whole = 0, killed = 0;
    make_used_home(f);
    back_up(f);
    struct homes r = restored_home(f);
    char *points = points_of(f, do_restore);
    shell("rm -rf %s", r.home);
    for (char *line = points; sscanf(line, "%63s %d", name, &passes) == 2; line = strchr(line, '\n') + 1)
        for (int pass = 1; pass <= passes; pass += passes > 2 ? passes - 1 : 1) { /* the first and the last */
            snprintf(fault, sizeof fault, "%s:%d:kill", name, pass);
            assert_int_equal(with_fault(fault, NULL, do_restore, f), -99);
            killed++;
            if (exists(r.home)) {
                whole++;
                expect_same_home(f, &r);
                shell("rm -rf %s", r.home);
            } else { /* what stays beside it goes with the next one */
                OK(attune_home_restore(in_folder(f, "backup"), r.home, NULL, &f->err));
                expect_same_home(f, &r);
                assert_false(exists(in_folder(f, ".restored.restore")));
                shell("rm -rf %s", r.home);
            }
            snprintf(fault, sizeof fault, "%s:%d:fail", name, pass);
            if (with_fault(fault, NULL, do_restore, f) != ATTUNE_OK) expect_no_home(f, fault);
            shell("rm -rf %s", r.home);
        }
    free(points);
    assert_true(killed > 10 && whole > 0 && whole < 10);
}

/* ---- refused ---- */

static void test_places_that_are_taken(void **state) {
    struct homes *f = *state;
    make_home(f, TINY_BASE, 1);
    FAILS(attune_home_backup(f->home, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "new folder", "");
    FAILS(attune_home_backup(f->home, "", &f->err), ATTUNE_ERROR_ARGUMENT, "path", "");
    FAILS(attune_home_backup(f->home, "..", &f->err), ATTUNE_ERROR_ARGUMENT, "name", "..");
    FAILS(attune_home_backup(in_folder(f, "none"), in_folder(f, "backup"), &f->err), ATTUNE_ERROR_NOT_FOUND,
          "attune init", "none");
    FAILS(attune_home_backup(f->home, in_folder(f, "no/where"), &f->err), ATTUNE_ERROR_IO, "No such file", "where");
    shell("mkdir %s", in_folder(f, "backup"));
    FAILS(attune_home_backup(f->home, in_folder(f, "backup"), &f->err), ATTUNE_ERROR_STATE, "there already", "backup");
    assert_int_equal(entries_of(in_folder(f, "backup")), 0);
    shell("rmdir %s", in_folder(f, "backup"));
    back_up(f);

    FAILS(attune_home_restore(NULL, in_folder(f, "restored"), NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "backup", "");
    FAILS(attune_home_restore(in_folder(f, "backup"), in_folder(f, ".."), NULL, &f->err), ATTUNE_ERROR_ARGUMENT,
          "name", "..");
    FAILS(attune_home_restore(in_folder(f, "backup"), f->home, NULL, &f->err), ATTUNE_ERROR_STATE, "there already",
          f->home);
    assert_int_equal(home_status(f).base_ok, 1);
    shell("mkdir %s && echo precious >%s/mine", in_folder(f, "restored"), in_folder(f, "restored"));
    FAILS(attune_home_restore(in_folder(f, "backup"), in_folder(f, "restored"), NULL, &f->err), ATTUNE_ERROR_STATE,
          "there already", "restored");
    assert_int_equal(entries_of(in_folder(f, "restored")), 1);
    FAILS(attune_home_restore(in_folder(f, "backup"), in_folder(f, "restored/mine"), NULL, &f->err),
          ATTUNE_ERROR_STATE, "there already", "mine");
    assert_true(contains(in_folder(f, "restored/mine"), "precious"));
    shell("rm -rf %s", in_folder(f, "restored"));
    FAILS(attune_home_restore(in_folder(f, "home"), in_folder(f, "restored"), NULL, &f->err), ATTUNE_ERROR_FORMAT,
          "no manifest", "manifest.json");
    FAILS(attune_home_restore(in_folder(f, "none"), in_folder(f, "restored"), NULL, &f->err), ATTUNE_ERROR_FORMAT,
          "no manifest", "manifest.json");
    expect_no_home(f, "refused");
    /* another one is at it */
    shell("mkdir -m 700 %s", in_folder(f, ".restored.restore"));
    int lock = open(in_folder(f, ".restored.restore/lock"), O_RDWR | O_CREAT, 0600);
    assert_int_equal(flock(lock, LOCK_EX), 0);
    FAILS(attune_home_restore(in_folder(f, "backup"), in_folder(f, "restored"), NULL, &f->err), ATTUNE_ERROR_BUSY,
          "another attune process", ".restored.restore");
    assert_true(exists(in_folder(f, ".restored.restore/lock")));
    close(lock);
    OK(attune_home_restore(in_folder(f, "backup"), in_folder(f, "restored"), NULL, &f->err));
}

static void restore_fails(struct homes *f, int code, const char *word, const char *place) {
    FAILS(attune_home_restore(in_folder(f, "backup"), in_folder(f, "restored"), NULL, &f->err), code, word, place);
    expect_no_home(f, place);
}

static void test_damaged_backups(void **state) {
    struct homes *f = *state;
    static const char *const files[] = {"attune.conf", "store.db", "CURRENT", "adapters/1.gguf", "adapters/2.gguf"};
    make_used_home(f);
    back_up(f);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[256];
        size_t n;
        snprintf(path, sizeof path, "%s", in_backup(f, files[i]));
        char *good = read_file(path, &n);
        for (size_t at = 0; at < n; at += 1 + n / 5) {
            flip_byte(path, (long)at);
            restore_fails(f, ATTUNE_ERROR_FORMAT, "not as it was backed up", files[i]);
            write_file(path, good, n);
        }
        write_file(path, good, n - 1);
        restore_fails(f, ATTUNE_ERROR_FORMAT, "not as it was backed up", files[i]);
        unlink(path);
        restore_fails(f, ATTUNE_ERROR_IO, "No such file", files[i]);
        shell("ln -s /dev/zero %s", path);
        restore_fails(f, ATTUNE_ERROR_IO, "", files[i]);
        unlink(path);
        shell("mkfifo %s", path);
        restore_fails(f, ATTUNE_ERROR_FORMAT, "regular file", files[i]);
        unlink(path);
        write_file(path, good, n);
        free(good);
    }
    OK(attune_home_restore(in_folder(f, "backup"), in_folder(f, "restored"), NULL, &f->err));
}

/* Replaces `what` in the manifest. */
static void change_manifest(struct homes *f, const char *good, const char *what, const char *as) {
    const char *found = strstr(good, what);
    assert_non_null(found);
    char *text = malloc(strlen(good) + strlen(as) + 1);
    assert_non_null(text);
    sprintf(text, "%.*s%s%s", (int)(found - good), good, as, found + strlen(what));
    write_text(in_backup(f, "manifest.json"), text);
    free(text);
}

static void test_hostile_manifests(void **state) {
    struct homes *f = *state;
    make_used_home(f);
    back_up(f);
    size_t n;
    char *good = read_file(in_backup(f, "manifest.json"), &n);
    for (size_t keep = 0; keep + 2 < n; keep += 5) {
        write_file(in_backup(f, "manifest.json"), good, keep);
        restore_fails(f, ATTUNE_ERROR_FORMAT, "manifest", "manifest.json");
    }
    static const struct {
        const char *what, *as;
        int code;
        const char *word;
    } changes[] = {
        {"\"format\": 1", "\"format\": 2", ATTUNE_ERROR_UNSUPPORTED, "newer attune"},
        {"\"format\": 1", "\"format\": 0", ATTUNE_ERROR_FORMAT, "damaged"},
        {"\"format\": 1", "\"format\": \"1\"", ATTUNE_ERROR_FORMAT, "damaged"},
        {"attune backup", "a backup", ATTUNE_ERROR_FORMAT, "damaged"},
        {"adapters/1.gguf", "../1.gguf", ATTUNE_ERROR_FORMAT, "damaged"},
        {"adapters/1.gguf", "adapters/../../1.gguf", ATTUNE_ERROR_FORMAT, "damaged"},
        {"adapters/1.gguf", "adapters/01.gguf", ATTUNE_ERROR_FORMAT, "damaged"},
        {"adapters/1.gguf", "adapters/-1.gguf", ATTUNE_ERROR_FORMAT, "damaged"},
        {"adapters/1.gguf", "adapters/1.gguf/x", ATTUNE_ERROR_FORMAT, "damaged"},
        {"adapters/1.gguf", "/etc/passwd", ATTUNE_ERROR_FORMAT, "damaged"},
        {"adapters/1.gguf", "lock", ATTUNE_ERROR_FORMAT, "damaged"},
        {"adapters/1.gguf", "adapters/2.gguf", ATTUNE_ERROR_FORMAT, "damaged"}, /* twice */
        {"\"CURRENT\"", "\"current\"", ATTUNE_ERROR_FORMAT, "damaged"},
        {"\"sha256\"", "\"sha-256\"", ATTUNE_ERROR_FORMAT, "damaged"},
        {"\"files\"", "\"file\"", ATTUNE_ERROR_FORMAT, "does not name"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        change_manifest(f, good, changes[i].what, changes[i].as);
        restore_fails(f, changes[i].code, changes[i].word, "manifest.json");
    }
    write_text(in_backup(f, "manifest.json"), "[]");
    restore_fails(f, ATTUNE_ERROR_FORMAT, "damaged", "manifest.json");
    unlink(in_backup(f, "manifest.json"));
    shell("mkfifo %s", in_backup(f, "manifest.json"));
    restore_fails(f, ATTUNE_ERROR_FORMAT, "FIFO", "manifest.json");
    unlink(in_backup(f, "manifest.json"));
    write_text(in_backup(f, "manifest.json"), good);
    OK(attune_home_restore(in_folder(f, "backup"), in_folder(f, "restored"), NULL, &f->err));
    free(good);
}

/* Files that are as the manifest says, and not fit for a home all the same. */
static void put_in_backup(struct homes *f, const char *good, const char *name, const void *bytes, size_t n) {
    char before[65];
    snprintf(before, sizeof before, "%s", sha256_of(in_backup(f, name)));
    write_file(in_backup(f, name), bytes, n);
    change_manifest(f, good, before, sha256_of(in_backup(f, name)));
}

static void test_backups_that_do_not_fit(void **state) {
    struct homes *f = *state;
    make_used_home(f);
    back_up(f);
    size_t m, n;
    char *manifest = read_file(in_backup(f, "manifest.json"), &m), text[128];
    shell("cp -a %s %s/kept", in_folder(f, "backup"), f->folder);
    char *store = read_file(in_backup(f, "store.db"), &n), *bad = malloc(n);
    memcpy(bad, store, n);
    for (size_t page = 1; page < n / 4096; page++) memset(bad + 4096 * page, 0xa5, 64);
    put_in_backup(f, manifest, "store.db", bad, n);
    restore_fails(f, ATTUNE_ERROR_FORMAT, "", "store.db");
    shell("rm -rf %s && cp -a %s/kept %s", in_folder(f, "backup"), f->folder, in_folder(f, "backup"));
    /* one that opens, and is not what attune has written */
    struct homes b = *f;
    snprintf(b.home, sizeof b.home, "%s/backup", f->folder);
    char before[65];
    snprintf(before, sizeof before, "%s", sha256_of(in_backup(f, "store.db")));
    sql(&b, "UPDATE audit SET detail = 'something else' WHERE id = 1");
    change_manifest(f, manifest, before, sha256_of(in_backup(f, "store.db")));
    restore_fails(f, ATTUNE_ERROR_FORMAT, "audit", "store.db");
    shell("rm -rf %s && cp -a %s/kept %s", in_folder(f, "backup"), f->folder, in_folder(f, "backup"));
    put_in_backup(f, manifest, "CURRENT", "2\n", 2);
    restore_fails(f, ATTUNE_ERROR_FORMAT, "damaged", "CURRENT");
    shell("rm -rf %s && cp -a %s/kept %s", in_folder(f, "backup"), f->folder, in_folder(f, "backup"));
    snprintf(text, sizeof text, "7 %064d\n", 0);
    put_in_backup(f, manifest, "CURRENT", text, strlen(text));
    restore_fails(f, ATTUNE_ERROR_FORMAT, "does not know", "");
    shell("rm -rf %s && cp -a %s/kept %s", in_folder(f, "backup"), f->folder, in_folder(f, "backup"));
    put_in_backup(f, manifest, "attune.conf", "rank = 3\n", 9);
    restore_fails(f, ATTUNE_ERROR_FORMAT, "base", "attune.conf");
    free(manifest);
    free(store);
    free(bad);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_there_and_back),
        TEST(test_another_base_path),
        TEST(test_encrypted),
        TEST(test_what_is_left_out),
        TEST(test_while_in_use),
        TEST(test_changes_meanwhile),
        TEST(test_backups_that_are_cut_short),
        TEST(test_restores_that_are_cut_short),
        TEST(test_places_that_are_taken),
        TEST(test_damaged_backups),
        TEST(test_hostile_manifests),
        TEST(test_backups_that_do_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, remove_made);
}
