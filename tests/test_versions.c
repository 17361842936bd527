/* Adapters of a home by number: looking, choosing, going back, moving out and in, and engines over them. */
#include "adapters/adapter_file.h"
#include "job/home.h"
#include "tests/home_fixture.h"

/* Adapters 1 to n, each trained from the one before. */
static void make_versions(struct homes *f, int n) {
    make_home(f, TINY_BASE, 1);
    for (int i = 1; i <= n; i++) {
        import_rows(f, i == 1 ? 0 : 4 * (size_t)i - 2, i == 1 ? 6 : 4);
        if (i == 2) set_key(f, "learning_rate", "0.001"); /* little is left to learn: small steps */
        attune_job_report report = publish_run(f, i);
        assert_int_equal(report.examples, 2 + 4 * i);
    }
}

static int active(struct homes *f) {
    int number = home_status(f).active_adapter;
    /* the store says the same, and there is one active row at most */
    assert_int_equal(sql_number(f, "SELECT coalesce(max(number), 0) FROM adapter WHERE state = 'active'"), number);
    return number;
}

static void set_state(struct homes *f, int number, const char *adapter_state) {
    attune_store *store = NULL;
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(store_adapter_state_set(store, number, adapter_state, &f->err));
    attune_store_close(store);
}

/* ---- looking ---- */

struct listed {
    int n, stop_after;
    attune_adapter_info info[8];
};
static int list_one(const attune_adapter_info *info, void *user) {
    struct listed *listed = user;
    listed->info[listed->n++] = *info;
    return listed->n == listed->stop_after;
}

static void test_list_and_get(void **state) {
    struct homes *f = *state;
    struct listed listed = {0};
    attune_adapter_info info;
    make_versions(f, 3);
    OK(attune_adapter_list(f->home, list_one, &listed, &f->err));
    assert_int_equal(listed.n, 3);
    for (int i = 0; i < 3; i++) {
        attune_adapter_info *a = &listed.info[i];
        assert_int_equal(a->number, i + 1);
        assert_int_equal(a->parent, i);
        assert_int_equal(a->active, i == 2);
        assert_string_equal(a->state, i == 2 ? "active" : "retired");
        assert_string_equal(a->origin, "trained");
        assert_string_equal(a->sha256, sha256_of(adapter_path(f, i + 1)));
        assert_int_equal(a->examples, 6 + 4 * i);
        assert_int_equal(a->rank, 2);
        assert_true(a->alpha == 16 && a->loss_after < a->loss_before && a->created_ms > 1577836800000);
        info = adapter_info(f, i + 1);
        assert_memory_equal(&info, a, sizeof info);
    }
    assert_true(listed.info[0].created_ms <= listed.info[2].created_ms);
    listed = (struct listed){.stop_after = 2};
    OK(attune_adapter_list(f->home, list_one, &listed, &f->err));
    assert_int_equal(listed.n, 2);

    ATTUNE_INIT(info);
    FAILS(attune_adapter_get(f->home, 4, &info, &f->err), ATTUNE_ERROR_NOT_FOUND, "no adapter 4", "");
    FAILS(attune_adapter_get(f->home, 0, &info, &f->err), ATTUNE_ERROR_NOT_FOUND, "no adapter 0", "");
    FAILS(attune_adapter_get(f->home, -1, &info, &f->err), ATTUNE_ERROR_NOT_FOUND, "no adapter -1", "");
    FAILS(attune_adapter_list(in_folder(f, "none"), list_one, &listed, &f->err), ATTUNE_ERROR_NOT_FOUND, "attune init",
          "none");
    info.size = 0;
    FAILS(attune_adapter_get(f->home, 1, &info, &f->err), ATTUNE_ERROR_ARGUMENT, "ATTUNE_INIT", "attune_adapter_info");

    /* CURRENT rules over a store that is behind */
    size_t n;
    char text[128], *current = read_file(in_home(f, "CURRENT"), &n);
    snprintf(text, sizeof text, "1 %s\n", sha256_of(adapter_path(f, 1)));
    write_text(in_home(f, "CURRENT"), text);
    assert_string_equal(adapter_info(f, 1).state, "active");
    assert_string_equal(adapter_info(f, 3).state, "retired");
    assert_int_equal(adapter_info(f, 3).active, 0);
    write_text(in_home(f, "CURRENT"), current);
    free(current);
}

/* ---- choosing ---- */

static void test_use(void **state) {
    struct homes *f = *state;
    make_versions(f, 2);
    OK(attune_adapter_use(f->home, 1, &f->err));
    assert_int_equal(active(f), 1);
    assert_string_equal(adapter_info(f, 2).state, "retired");
    OK(attune_adapter_use(f->home, 1, &f->err));
    assert_int_equal(active(f), 1);
    OK(attune_adapter_use(f->home, 0, &f->err));
    assert_int_equal(active(f), 0);
    size_t n;
    char *current = read_file(in_home(f, "CURRENT"), &n);
    assert_string_equal(current, "base\n");
    free(current);
    FAILS(attune_adapter_use(f->home, -1, &f->err), ATTUNE_ERROR_ARGUMENT, "numbered from 1", "");
    FAILS(attune_adapter_use(f->home, 3, &f->err), ATTUNE_ERROR_NOT_FOUND, "no adapter 3", "");
    set_state(f, 1, "revoked");
    FAILS(attune_adapter_use(f->home, 1, &f->err), ATTUNE_ERROR_STATE, "revoked", "");
    FAILS(attune_adapter_export(f->home, 1, "gguf", in_folder(f, "out.gguf"), &f->err), ATTUNE_ERROR_STATE, "revoked",
          "");
    flip_byte(adapter_path(f, 2), -1);
    FAILS(attune_adapter_use(f->home, 2, &f->err), ATTUNE_ERROR_FORMAT, "not the one that was published", "2.gguf");
    FAILS(attune_adapter_export(f->home, 2, "gguf", in_folder(f, "out.gguf"), &f->err), ATTUNE_ERROR_FORMAT,
          "not the one that was published", "2.gguf");
    unlink(adapter_path(f, 2));
    FAILS(attune_adapter_use(f->home, 2, &f->err), ATTUNE_ERROR_NOT_FOUND, "adapter 2 was removed", "");
    assert_string_equal(adapter_info(f, 2).state, "removed");
    assert_int_equal(active(f), 0);
    assert_false(exists(in_folder(f, "out.gguf")));
}

static void test_rollback(void **state) {
    struct homes *f = *state;
    int now = -1;
    make_versions(f, 4);
    for (int wanted = 3; wanted >= 0; wanted--) {
        OK(attune_adapter_rollback(f->home, &now, &f->err));
        assert_int_equal(now, wanted);
        assert_int_equal(active(f), wanted);
    }
    FAILS(attune_adapter_rollback(f->home, &now, &f->err), ATTUNE_ERROR_STATE, "nothing to roll back", "");

    /* over those that may not be used any more */
    OK(attune_adapter_use(f->home, 4, &f->err));
    set_state(f, 3, "revoked");
    set_state(f, 2, "revoked");
    OK(attune_adapter_rollback(f->home, &now, &f->err));
    assert_int_equal(now, 1);
    assert_string_equal(adapter_info(f, 3).state, "revoked");
    OK(attune_adapter_use(f->home, 4, &f->err));
    set_state(f, 1, "revoked");
    OK(attune_adapter_rollback(f->home, NULL, &f->err));
    assert_int_equal(active(f), 0);

    /* a parent that is damaged is not stepped over in silence */
    OK(attune_adapter_use(f->home, 4, &f->err));
    sql(f, "UPDATE adapter SET state = 'retired' WHERE number = 3"); /* attune itself has no way back */
    flip_byte(adapter_path(f, 3), -1);
    now = -1;
    FAILS(attune_adapter_rollback(f->home, &now, &f->err), ATTUNE_ERROR_FORMAT, "use another adapter", "3.gguf");
    assert_int_equal(now, -1);
    assert_int_equal(active(f), 4);
    /* parents in a ring: refused, not walked for ever */
    set_state(f, 3, "revoked");
    sql(f, "UPDATE adapter SET parent = 3 WHERE number = 2");
    FAILS(attune_adapter_rollback(f->home, &now, &f->err), ATTUNE_ERROR_FORMAT, "younger", "");
    assert_int_equal(active(f), 4);
}

/* ---- what forgetting, or a process that died, has left ---- */

static void reconcile(struct homes *f) {
    attune_job *job = NULL;
    OK(attune_job_open(f->home, NULL, &job, &f->err));
    attune_job_close(job);
}

static void name_current(struct homes *f, int number) {
    char text[128], sha256[65];
    char query[80];
    snprintf(query, sizeof query, "SELECT sha256 FROM adapter WHERE number = %d", number);
    snprintf(sha256, sizeof sha256, "%s", sql_text(f, query));
    snprintf(text, sizeof text, "%d %s\n", number, sha256);
    write_text(in_home(f, "CURRENT"), text);
}

static void test_revoked_files_go(void **state) {
    struct homes *f = *state;
    make_versions(f, 4);
    set_state(f, 3, "revoked");
    set_state(f, 4, "revoked");
    name_current(f, 4); /* as before the revoking */
    assert_true(exists(adapter_path(f, 3)));
    reconcile(f);
    assert_int_equal(active(f), 2);
    assert_string_equal(adapter_info(f, 4).state, "revoked");
    assert_true(exists(adapter_path(f, 1)) && exists(adapter_path(f, 2)));
    assert_false(exists(adapter_path(f, 3)) || exists(adapter_path(f, 4)));
    OK(attune_home_check(f->home, NULL, NULL, NULL, &f->err));
    /* over several, down to the base */
    set_state(f, 1, "revoked");
    set_state(f, 2, "revoked");
    name_current(f, 2);
    reconcile(f);
    assert_int_equal(active(f), 0);
    /* parents in a ring, or nobody's: the base */
    sql(f, "UPDATE adapter SET parent = 4 WHERE number = 3");
    name_current(f, 4);
    reconcile(f);
    assert_int_equal(active(f), 0);
    sql(f, "UPDATE adapter SET parent = 2 WHERE number = 3; DELETE FROM adapter WHERE number = 2");
    name_current(f, 4);
    reconcile(f);
    assert_int_equal(active(f), 0);
    int number;
    import_rows(f, 30, 4);
    publish_run(f, 5);
    OK(attune_adapter_import(f->home, adapter_path(f, 5), &number, &f->err));
    assert_int_equal(number, 6);
}

/* Nobody who chooses an adapter can be overtaken by its revoking: it is refused, and CURRENT is as it was. */
static void test_revoked_are_not_chosen(void **state) {
    struct homes *f = *state;
    attune_store *store = NULL;
    make_versions(f, 2);
    set_state(f, 1, "revoked");
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    /* past the look that `use` takes before */
    FAILS(home_activate(f->home, store, NULL, 1, sha256_of(adapter_path(f, 1)), &f->err), ATTUNE_ERROR_STATE, "revoked",
          "");
    assert_int_equal(active(f), 2);
    OK(home_activate(f->home, store, NULL, 0, "", &f->err));
    assert_int_equal(active(f), 0);
    attune_store_close(store);
}

/* A run failed while its adapter was being published, and the process died before it cleaned up. */
static void test_remains_of_a_failed_run(void **state) {
    struct homes *f = *state;
    make_versions(f, 2);
    shell("cp %s %s/two.gguf", adapter_path(f, 2), f->folder);
    /* the file alone; one of another run is none of our business */
    sql(f, "UPDATE run SET state = 'failed', adapter = 0 WHERE number = 2; DELETE FROM adapter WHERE number = 2");
    name_current(f, 1);
    shell("cp %s %s", adapter_path(f, 1), adapter_path(f, 3));
    reconcile(f);
    assert_true(exists(adapter_path(f, 3)));
    unlink(adapter_path(f, 3));
    assert_true(exists(adapter_path(f, 2)));
    reconcile(f);
    assert_false(exists(adapter_path(f, 2)));
    assert_int_equal(active(f), 1);
    /* with its row */
    shell("cp %s/two.gguf %s", f->folder, adapter_path(f, 2));
    char statement[400], run[65];
    snprintf(run, sizeof run, "%s", sql_text(f, "SELECT id FROM run WHERE number = 2"));
    snprintf(statement, sizeof statement,
             "INSERT INTO adapter (number, parent, state, origin, sha256, run, run_id, created_ms, bytes, examples, "
             "rank) VALUES (2, 1, 'candidate', 'trained', '%s', 2, '%s', 1, 1, 1, 2)",
             sha256_of(adapter_path(f, 2)), run);
    sql(f, statement);
    reconcile(f);
    assert_false(exists(adapter_path(f, 2)));
    assert_string_equal(adapter_info(f, 2).state, "revoked");
    assert_int_equal(active(f), 1);
    assert_true(exists(adapter_path(f, 1)));
    /* a run that stands keeps what it has written: it goes on from there */
    shell("cp %s/two.gguf %s", f->folder, adapter_path(f, 2));
    sql(f, "UPDATE run SET state = 'unfinished' WHERE number = 2; DELETE FROM adapter WHERE number = 2");
    reconcile(f);
    assert_true(exists(adapter_path(f, 2)));
    publish_run(f, 2);
    assert_true(same_files(in_folder(f, "two.gguf"), adapter_path(f, 2)));
}

/* ---- out ---- */

static void test_export(void **state) {
    struct homes *f = *state;
    make_versions(f, 1);
    const char *out = in_folder(f, "mine.gguf");
    OK(attune_adapter_export(f->home, 1, "gguf", out, &f->err));
    assert_true(same_files(out, adapter_path(f, 1)));
    write_text(out, "precious");
    FAILS(attune_adapter_export(f->home, 1, "gguf", out, &f->err), ATTUNE_ERROR_STATE, "exists already", "mine.gguf");
    size_t n;
    char *kept = read_file(out, &n);
    assert_string_equal(kept, "precious");
    free(kept);
    OK(attune_adapter_export(f->home, 1, "peft", in_folder(f, "peft"), &f->err));
    assert_true(exists(in_folder(f, "peft/adapter_config.json")));
    assert_true(exists(in_folder(f, "peft/adapter_model.safetensors")));
    FAILS(attune_adapter_export(f->home, 1, "peft", in_folder(f, "peft"), &f->err), ATTUNE_ERROR_STATE,
          "exists already", "peft/adapter_");
    FAILS(attune_adapter_export(f->home, 1, "onnx", out, &f->err), ATTUNE_ERROR_ARGUMENT, "onnx", "");
    FAILS(attune_adapter_export(f->home, 1, NULL, out, &f->err), ATTUNE_ERROR_ARGUMENT, "gguf or peft", "");
    FAILS(attune_adapter_export(f->home, 1, "gguf", NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "path", "");
    FAILS(attune_adapter_export(f->home, 0, "gguf", out, &f->err), ATTUNE_ERROR_ARGUMENT, "base", "");
    FAILS(attune_adapter_export(f->home, 2, "gguf", out, &f->err), ATTUNE_ERROR_NOT_FOUND, "no adapter 2", "");
    FAILS(attune_adapter_export(f->home, 1, "gguf", in_folder(f, "no/where.gguf"), &f->err), ATTUNE_ERROR_IO,
          "No such file", "where.gguf");
    shell("test -z \"$(find %s -name '*.tmp')\"", f->folder);
}

/* ---- in ---- */

static struct lora *parameters_of(struct homes *f, int number) {
    struct model *model = NULL;
    struct lora *lora = NULL;
    OK(model_open(TINY_BASE, FILE_READ, &model, &f->err));
    OK(adapter_read(adapter_path(f, number), model, &lora, NULL, NULL, &f->err));
    model_close(model);
    return lora;
}

static void test_round_trip(void **state) {
    struct homes *f = *state;
    int number = 0;
    make_versions(f, 1);
    OK(attune_adapter_export(f->home, 1, "gguf", in_folder(f, "out.gguf"), &f->err));
    OK(attune_adapter_export(f->home, 1, "peft", in_folder(f, "peft"), &f->err));
    OK(attune_adapter_import(f->home, in_folder(f, "out.gguf"), &number, &f->err));
    assert_int_equal(number, 2);
    OK(attune_adapter_import(f->home, in_folder(f, "peft"), &number, &f->err));
    assert_int_equal(number, 3);
    OK(attune_adapter_import(f->home, in_folder(f, "peft/"), NULL, &f->err));
    struct lora *first = parameters_of(f, 1);
    for (int i = 2; i <= 4; i++) {
        struct lora *again = parameters_of(f, i);
        assert_int_equal(again->n, first->n);
        assert_memory_equal(again->parameters, first->parameters, first->n * sizeof(float));
        assert_memory_equal(&again->config, &first->config, sizeof first->config);
        lora_destroy(again);
        attune_adapter_info info = adapter_info(f, i);
        assert_string_equal(info.state, "candidate");
        assert_string_equal(info.origin, "imported");
        assert_string_equal(info.sha256, sha256_of(adapter_path(f, i)));
        assert_string_equal(info.run, i == 2 ? adapter_info(f, 1).run : "");
        assert_true(info.parent == 0 && info.rank == 2 && info.alpha == 16);
        assert_true(isnan(info.loss_before) && isnan(info.loss_after) && info.bytes > 0);
    }
    lora_destroy(first);
    assert_int_equal(active(f), 1);
    /* one that was imported serves, and training goes on from it */
    OK(attune_adapter_use(f->home, 3, &f->err));
    assert_int_equal(active(f), 3);
    import_rows(f, 6, 4);
    publish_run(f, 5);
    assert_int_equal(adapter_info(f, 5).parent, 3);
    OK(attune_home_check(f->home, NULL, NULL, NULL, &f->err));
    /* an imported copy of a run's adapter does not stand for that run */
    OK(attune_adapter_use(f->home, 0, &f->err));
    assert_int_equal(sql_number(f, "SELECT count(*) FROM adapter WHERE run IS NOT NULL"), 2);
}

static void test_import_of_another_base(void **state) {
    struct homes *f = *state;
    struct homes other = *f;
    int number = -1;
    size_t n;
    char *bytes = read_file(TINY_BASE, &n), ours[13], theirs[13];
    bytes[n - 1] ^= 1;
    write_file(in_folder(f, "other.gguf"), bytes, n);
    free(bytes);
    make_versions(f, 1);
    snprintf(other.home, sizeof other.home, "%s/other", f->folder);
    make_home(&other, in_folder(f, "other.gguf"), 1);
    import_rows(&other, 0, 6);
    publish_run(&other, 1);
    snprintf(ours, sizeof ours, "%.12s", home_status(f).base_sha256);
    snprintf(theirs, sizeof theirs, "%.12s", home_status(&other).base_sha256);
    OK(attune_adapter_export(other.home, 1, "gguf", in_folder(f, "theirs.gguf"), &f->err));
    FAILS(attune_adapter_import(f->home, in_folder(f, "theirs.gguf"), &number, &f->err), ATTUNE_ERROR_MISMATCH, ours,
          "theirs.gguf");
    assert_non_null(strstr(f->err.message, theirs));
    assert_int_equal(number, -1);
    assert_int_equal(home_status(f).n_adapters, 1);
    /* nor is it served */
    attune_engine_options options;
    attune_engine *engine = NULL;
    ATTUNE_INIT(options);
    options.adapter = in_folder(f, "theirs.gguf");
    FAILS(attune_engine_open(f->home, &options, &engine, &f->err), ATTUNE_ERROR_MISMATCH, theirs, "theirs.gguf");
    FAILS(attune_engine_open_files(TINY_BASE, options.adapter, NULL, &engine, &f->err), ATTUNE_ERROR_MISMATCH, theirs,
          "theirs.gguf");
    assert_null(engine);
}

static void test_import_of_garbage(void **state) {
    struct homes *f = *state;
    int number = -1;
    size_t n;
    make_versions(f, 1);
    char *good = read_file(adapter_path(f, 1), &n);
    const char *path = in_folder(f, "in.gguf");
    FAILS(attune_adapter_import(f->home, NULL, &number, &f->err), ATTUNE_ERROR_ARGUMENT, "file or folder", "");
    FAILS(attune_adapter_import(f->home, path, &number, &f->err), ATTUNE_ERROR_IO, "No such file", "in.gguf");
    write_text(path, "");
    FAILS(attune_adapter_import(f->home, path, &number, &f->err), ATTUNE_ERROR_FORMAT, "", "in.gguf");
    write_text(path, "once upon a time there was no adapter");
    FAILS(attune_adapter_import(f->home, path, &number, &f->err), ATTUNE_ERROR_FORMAT, "GGUF", "in.gguf");
    for (size_t keep = 1; keep < n; keep += n / 11) {
        write_file(path, good, keep);
        GIVES(attune_adapter_import(f->home, path, &number, &f->err), ATTUNE_ERROR_FORMAT);
    }
    char *bytes = malloc(n);
    memcpy(bytes, good, n);
    memset(bytes + n - 4, 0xff, 4); /* NaN */
    write_file(path, bytes, n);
    FAILS(attune_adapter_import(f->home, path, &number, &f->err), ATTUNE_ERROR_FORMAT, "finite", "in.gguf");
    FAILS(attune_adapter_import(f->home, TINY_BASE, &number, &f->err), ATTUNE_ERROR_FORMAT, "adapter",
          "tiny_llama.gguf");
    FAILS(attune_adapter_import(f->home, f->folder, &number, &f->err), ATTUNE_ERROR_IO, "No such file",
          "adapter_config.json");
    shell("mkfifo %s/fifo", f->folder);
    FAILS(attune_adapter_import(f->home, in_folder(f, "fifo"), &number, &f->err), ATTUNE_ERROR_FORMAT, "FIFO", "fifo");
    assert_int_equal(number, -1);
    assert_int_equal(home_status(f).n_adapters, 1);
    assert_false(exists(adapter_path(f, 2)));
    shell("test -z \"$(find %s -name '*.tmp')\"", f->folder);
    write_file(path, good, n);
    OK(attune_adapter_import(f->home, path, &number, &f->err));
    assert_int_equal(number, 2);
    free(bytes);
    free(good);
}

static void test_numbers_only_grow(void **state) {
    struct homes *f = *state;
    int number = 0;
    make_versions(f, 2);
    shell("cp %s %s/copy.gguf", adapter_path(f, 1), f->folder);
    OK(attune_adapter_use(f->home, 1, &f->err));
    unlink(adapter_path(f, 2)); /* the row knows of it */
    OK(attune_adapter_import(f->home, in_folder(f, "copy.gguf"), &number, &f->err));
    assert_int_equal(number, 3);
    sql(f, "DELETE FROM adapter WHERE number = 3"); /* the file does */
    OK(attune_adapter_import(f->home, in_folder(f, "copy.gguf"), &number, &f->err));
    assert_int_equal(number, 4);
    shell("cp %s/copy.gguf %s", f->folder, adapter_path(f, 41));
    write_text(in_home(f, "adapters/99.gguf.bak"), "not an adapter's name");
    import_rows(f, 20, 4);
    publish_run(f, 42);
    assert_int_equal(active(f), 42);
}

/* ---- engines ---- */

static attune_engine *open_engine(struct homes *f, const char *adapter) {
    attune_engine_options options;
    attune_engine *engine = NULL;
    ATTUNE_INIT(options);
    options.adapter = adapter;
    options.threads = 1;
    OK(attune_engine_open(f->home, &options, &engine, &f->err));
    return engine;
}

static void test_stale(void **state) {
    struct homes *f = *state;
    attune_engine *files = NULL;
    make_versions(f, 1);
    attune_engine *first = open_engine(f, NULL), *base = open_engine(f, "base");
    OK(attune_engine_open_files(TINY_BASE, adapter_path(f, 1), NULL, &files, &f->err));
    assert_int_equal(attune_engine_is_stale(first), 0);
    assert_int_equal(attune_engine_is_stale(base), 0);
    OK(attune_adapter_use(f->home, 0, &f->err));
    assert_int_equal(attune_engine_is_stale(first), 1);
    assert_int_equal(attune_engine_is_stale(base), 1); /* the home has another active adapter by now */
    OK(attune_adapter_use(f->home, 1, &f->err));
    assert_int_equal(attune_engine_is_stale(first), 0);
    import_rows(f, 6, 4);
    publish_run(f, 2);
    assert_int_equal(attune_engine_is_stale(first), 1);
    attune_engine *second = open_engine(f, "active");
    assert_int_equal(attune_engine_is_stale(second), 0);
    OK(attune_adapter_rollback(f->home, NULL, &f->err));
    assert_int_equal(attune_engine_is_stale(second), 1);
    assert_int_equal(attune_engine_is_stale(first), 0);
    assert_int_equal(attune_engine_is_stale(files), 0);
    assert_int_equal(attune_engine_is_stale(NULL), 0);
    attune_engine_close(files);
    attune_engine_close(second);
    attune_engine_close(base);
    attune_engine_close(first);
}

static void expect_engine(struct homes *f, const char *adapter, int number, const char *sha256) {
    attune_engine *engine = open_engine(f, adapter);
    attune_engine_info info;
    ATTUNE_INIT(info);
    OK(attune_engine_info_get(engine, &info, &f->err));
    assert_int_equal(info.adapter, number);
    assert_string_equal(info.adapter_sha256, sha256);
    assert_string_equal(info.base_sha256, home_status(f).base_sha256);
    assert_string_equal(info.merge, "none");
    attune_engine_close(engine);
}

static void refuse_engine(struct homes *f, const char *adapter, const char *merge, int code, const char *word,
                          const char *place) {
    attune_engine_options options;
    attune_engine *engine = NULL;
    ATTUNE_INIT(options);
    options.adapter = adapter;
    options.merge = merge;
    FAILS(attune_engine_open(f->home, &options, &engine, &f->err), code, word, place);
    assert_null(engine);
}

static void test_selectors(void **state) {
    struct homes *f = *state;
    char first[65], second[65];
    make_versions(f, 2);
    strcpy(first, sha256_of(adapter_path(f, 1)));
    strcpy(second, sha256_of(adapter_path(f, 2)));
    expect_engine(f, NULL, 2, second);
    expect_engine(f, "active", 2, second);
    expect_engine(f, "base", 0, "");
    expect_engine(f, "0", 0, "");
    expect_engine(f, "1", 1, first);
    expect_engine(f, "2", 2, second);
    expect_engine(f, adapter_path(f, 1), -1, first);
    OK(attune_adapter_use(f->home, 0, &f->err));
    expect_engine(f, "active", 0, "");
    OK(attune_adapter_use(f->home, 2, &f->err));

    refuse_engine(f, "3", NULL, ATTUNE_ERROR_NOT_FOUND, "adapter 3", "3.gguf");
    refuse_engine(f, "-1", NULL, ATTUNE_ERROR_NOT_FOUND, "no adapter -1", "");
    refuse_engine(f, "99999999999999999999", NULL, ATTUNE_ERROR_NOT_FOUND, "no adapter", "");
    refuse_engine(f, "", NULL, ATTUNE_ERROR_IO, "", "");
    refuse_engine(f, in_folder(f, "none.gguf"), NULL, ATTUNE_ERROR_IO, "No such file", "none.gguf");
    refuse_engine(f, TINY_BASE, NULL, ATTUNE_ERROR_FORMAT, "adapter", "tiny_llama.gguf");
    refuse_engine(f, NULL, "f64", ATTUNE_ERROR_ARGUMENT, "f64", "");
    char far[2000];
    memset(far, 'a', sizeof far);
    far[sizeof far - 1] = 0;
    refuse_engine(f, far, NULL, ATTUNE_ERROR_ARGUMENT, "too long", "");
    /* what was published is what is served */
    flip_byte(adapter_path(f, 2), -1);
    refuse_engine(f, NULL, NULL, ATTUNE_ERROR_FORMAT, "not the one that was published", "2.gguf");
    refuse_engine(f, "2", NULL, ATTUNE_ERROR_FORMAT, "not the one that was published", "2.gguf");
    expect_engine(f, "1", 1, first);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_list_and_get),
        TEST(test_use),
        TEST(test_rollback),
        TEST(test_revoked_files_go),
        TEST(test_revoked_are_not_chosen),
        TEST(test_remains_of_a_failed_run),
        TEST(test_export),
        TEST(test_round_trip),
        TEST(test_import_of_another_base),
        TEST(test_import_of_garbage),
        TEST(test_numbers_only_grow),
        TEST(test_stale),
        TEST(test_selectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
