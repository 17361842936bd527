/* Making catalogs: an entry is trained from a persona's rows and judged by prompts that it has not seen.
 *
 * An entry's file is named by a hash of all that it is made of, so what is there need not be made again, and tasks
 * that run at the same time on several machines meet in the folder alone. The index is written by one call, at the
 * end. */
#include "adapters/catalog.h"
#include "core/base/hash.h"
#include "core/base/options.h"
#include "core/base/random.h"
#include "job/run.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    JUDGE_EVERY = 8,   /* prompts: one of so many judges */
    JUDGE_MAX = 64,    /* rows */
    ROWS_MIN = 16,     /* of a persona */
    ENOUGH_ROWS = 256, /* for one pass */
    PASSES = 3,        /* over fewer */
    TOGETHER = 512     /* tokens that are judged at once, at least */
};

struct build {
    const char *path;
    attune_catalog_options options;
    struct settings settings;
    struct model *model;
    struct pool *pool;
    struct catalog_entry *entries; /* (n_personas); id "": of another task */
    attune_catalog_built built;
};

/* ---- a persona's rows ---- */

struct persona {
    const char *name;
    struct example_set set;
    size_t max, max_tokens, longest;
    const struct model *model;
    size_t *train, n_train, *judge, n_judge;
    char id[65];
};

static void persona_free(struct persona *p) {
    example_set_free(&p->set);
    free(p->train);
    free(p->judge);
}

static int take_row(const struct store_row *row, void *user, attune_error *err) {
    struct persona *p = user;
    int added;
    if (p->max > 0 && p->set.n >= p->max) return ATTUNE_DONE;
    int code = example_add(&p->set, p->model, row->messages, row->n_messages, row->response, row->content_hash,
                           row->prompt_hash, p->max_tokens, &added, err);
    if (code == ATTUNE_OK && added && p->set.items[p->set.n - 1].n > p->longest)
        p->longest = p->set.items[p->set.n - 1].n;
    return code;
}

static int compare_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* All rows of a prompt are on one side; which prompts judge, hangs on the rows alone. */
static int split(struct persona *p, attune_error *err) {
    size_t n = p->set.n, distinct = 0;
    const char **prompts = malloc((n + 1) * sizeof *prompts);
    p->train = malloc((n + 1) * sizeof *p->train);
    p->judge = malloc((n + 1) * sizeof *p->judge);
    if (!prompts || !p->train || !p->judge) {
        free(prompts);
        return error_set_memory(err, "a persona's rows", 3 * n * sizeof *prompts);
    }
    for (size_t i = 0; i < n; i++) prompts[i] = p->set.items[i].prompt_hash;
    qsort(prompts, n, sizeof *prompts, compare_text);
    for (size_t i = 0; i < n; i++)
        if (distinct == 0 || strcmp(prompts[distinct - 1], prompts[i]) != 0) prompts[distinct++] = prompts[i];
    for (size_t i = 0; i < n; i++) {
        const char *prompt = p->set.items[i].prompt_hash;
        const char **found = bsearch(&prompt, prompts, distinct, sizeof *prompts, compare_text);
        if ((size_t)(found - prompts) % JUDGE_EVERY != 0)
            p->train[p->n_train++] = i;
        else if (p->n_judge < JUDGE_MAX)
            p->judge[p->n_judge++] = i;
    }
    free(prompts);
    return ATTUNE_OK;
}

static void hash_rows(struct hash *hash, const struct example_set *set, const size_t *rows, size_t n) {
    hash_add_u64(hash, n);
    for (size_t i = 0; i < n; i++) hash_add_string(hash, set->items[rows[i]].hash);
}

static void name_task(const struct build *b, struct persona *p) {
    struct hash hash;
    char configuration[2048];
    settings_configuration(&b->settings, configuration, sizeof configuration);
    hash_start(&hash);
    hash_add_string(&hash, "attune catalog entry 1");
    hash_add_string(&hash, b->model->sha256);
    hash_add_string(&hash, configuration);
    hash_rows(&hash, &p->set, p->train, p->n_train);
    hash_rows(&hash, &p->set, p->judge, p->n_judge);
    hash_finish(&hash, p->id);
}

static int read_persona(const struct build *b, const char *path, struct persona *p, attune_error *err) {
    p->model = b->model;
    p->max = (size_t)b->options.max_examples;
    p->max_tokens = b->settings.train.max_tokens;
    int code = store_rows_from_file(path, take_row, p, err);
    if (code == ATTUNE_DONE) code = ATTUNE_OK;
    if (code == ATTUNE_OK) code = split(p, err);
    if (code != ATTUNE_OK) return code;
    if (p->n_train < ROWS_MIN || p->n_judge < 2)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, path,
                         "%zu rows to learn and %zu to judge by, of different prompts: at least %d and 2 are needed",
                         p->n_train, p->n_judge, ROWS_MIN);
    name_task(b, p);
    return ATTUNE_OK;
}

/* ---- training an entry ---- */

struct ranked {
    uint64_t rank;
    size_t row;
};
static int compare_rank(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

static void order_pass(const struct build *b, const struct persona *p, size_t pass, struct ranked *order) {
    uint64_t key = random_u64(b->settings.train.seed, pass);
    for (size_t i = 0; i < p->n_train; i++)
        order[i] = (struct ranked){random_u64(key, p->set.items[p->train[i]].key), p->train[i]};
    qsort(order, p->n_train, sizeof *order, compare_rank);
}

static void tell(const struct build *b, const struct persona *p, size_t step, size_t steps, double loss) {
    attune_progress progress;
    if (!b->options.on_progress) return;
    ATTUNE_INIT(progress);
    progress.phase = p->name;
    progress.done = progress.step = (int64_t)step;
    progress.total = progress.steps = (int64_t)steps;
    progress.loss = loss;
    b->options.on_progress(&progress, b->options.user);
}

static int train(const struct build *b, const struct persona *p, struct trainer *trainer, attune_error *err) {
    size_t batch = trainer->config.batch, passes = p->n_train < ENOUGH_ROWS ? PASSES : 1;
    size_t each = (p->n_train + batch - 1) / batch, steps = each * passes, tokens;
    double loss = 0;
    struct ranked *order = malloc(p->n_train * sizeof *order);
    size_t *rows = malloc(batch * sizeof *rows);
    int code = order && rows ? ATTUNE_OK : error_set_memory(err, "an order of rows", p->n_train * sizeof *order);
    for (size_t step = 0; step < steps && code == ATTUNE_OK; step++) {
        size_t n = 0, from = step % each * batch;
        if (from == 0) order_pass(b, p, step / each, order);
        while (n < batch && from + n < p->n_train) {
            rows[n] = order[from + n].row;
            n++;
        }
        tell(b, p, step, steps, loss);
        code = trainer_step(trainer, &p->set, rows, n, schedule_rate(&trainer->config, step, steps), &loss, &tokens,
                            err);
    }
    free(order);
    free(rows);
    return code;
}

/* Sums of nats of each row that judges. */
static int judge(const struct build *b, const struct persona *p, const struct lora *lora, double *nll,
                 attune_error *err) {
    struct evaluator evaluator = {0};
    struct weights weights = {b->model, b->model->layers, lora ? lora->pairs : NULL};
    struct evaluator_shape shape = {p->longest > TOGETHER ? p->longest : TOGETHER, b->settings.train.lora.rank, 1, 0};
    int code = evaluator_create(b->model, b->pool, &shape, 0, &evaluator, err);
    if (code == ATTUNE_OK)
        code = evaluator_run(&evaluator, &weights, NULL, &p->set, p->judge, p->n_judge, nll, err);
    evaluator_free(&evaluator);
    return code;
}

static int pass_gate(const struct persona *p, const double *before, const double *after, struct catalog_entry *e,
                     attune_error *err) {
    struct gate_verdict verdict;
    size_t tokens[JUDGE_MAX];
    for (size_t i = 0; i < p->n_judge; i++) tokens[i] = p->set.items[p->judge[i]].n_supervised;
    gate_judge(before, after, tokens, p->n_judge, &verdict);
    e->loss_before = verdict.before;
    e->loss_after = verdict.after;
    e->loss_interval = verdict.interval;
    if (verdict.publish) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_STATE, p->name,
                     "this entry is refused: %s. Give it more rows, or leave it out", verdict.reason);
}

/* What the file says beside its parameters, so that another task or a later call can tell it. */
static int write_entry(const struct build *b, const struct persona *p, const struct lora *lora,
                       struct catalog_entry *e, attune_error *err) {
    char path[CATALOG_PATH_MAX];
    struct adapter_record record = {.origin = "trained"};
    struct stat st;
    memcpy(record.base_sha256, b->model->sha256, sizeof record.base_sha256);
    memcpy(record.run, p->id, sizeof record.run);
    snprintf(record.configuration, sizeof record.configuration,
             "{\"catalog\": {\"rows\": %lld, \"judged\": %lld, \"loss_before\": %.17g, \"loss_after\": %.17g, "
             "\"loss_interval\": %.17g}}",
             (long long)e->rows, (long long)e->judged, e->loss_before, e->loss_after, e->loss_interval);
    int code = catalog_entry_path(b->path, p->id, path, err);
    if (code == ATTUNE_OK) code = adapter_write(lora, b->model, &record, path, "catalog.entry", e->sha256, err);
    if (code == ATTUNE_OK && stat(path, &st) != 0) code = error_set_errno(err, path, "cannot examine the entry");
    if (code == ATTUNE_OK) e->bytes = (int64_t)st.st_size;
    return code;
}

static int make_entry(const struct build *b, const struct persona *p, struct catalog_entry *e, attune_error *err) {
    double before[JUDGE_MAX], after[JUDGE_MAX];
    struct trainer *trainer = NULL;
    struct train_config config = b->settings.train;
    if (config.micro_tokens < p->longest) config.micro_tokens = p->longest;
    e->rows = (int64_t)p->n_train;
    e->judged = (int64_t)p->n_judge;
    int code = judge(b, p, NULL, before, err);
    if (code == ATTUNE_OK) code = trainer_create(b->model, b->pool, &config, NULL, &trainer, err);
    if (code == ATTUNE_OK) code = train(b, p, trainer, err);
    if (code == ATTUNE_OK) trainer_release(trainer);
    if (code == ATTUNE_OK) code = judge(b, p, trainer->lora, after, err);
    if (code == ATTUNE_OK) code = pass_gate(p, before, after, e, err);
    if (code == ATTUNE_OK) code = write_entry(b, p, trainer->lora, e, err);
    trainer_destroy(trainer);
    return code;
}

static int take_figures(const char *configuration, struct catalog_entry *e) {
    json_int_t rows, judged;
    json_t *root = json_loads(configuration, JSON_REJECT_DUPLICATES, NULL);
    int whole = root && json_unpack(root, "{s:{s:I, s:I, s:F, s:F, s:F}}", "catalog", "rows", &rows, "judged", &judged,
                                    "loss_before", &e->loss_before, "loss_after", &e->loss_after, "loss_interval",
                                    &e->loss_interval) == 0;
    json_decref(root);
    e->rows = whole ? rows : 0;
    e->judged = whole ? judged : 0;
    return whole;
}

/* Whether the entry is there, whole; one that is not makes way. */
static int find_entry(const struct build *b, const struct persona *p, struct catalog_entry *e, int *found,
                      attune_error *err) {
    char path[CATALOG_PATH_MAX];
    struct adapter_record record;
    struct lora *lora = NULL;
    struct stat st;
    *found = 0;
    int code = catalog_entry_path(b->path, p->id, path, err);
    if (code != ATTUNE_OK || lstat(path, &st) != 0) return code;
    if (S_ISREG(st.st_mode) && adapter_read(path, b->model, &lora, &record, e->sha256, NULL) == ATTUNE_OK) {
        e->bytes = (int64_t)st.st_size;
        *found = strcmp(record.run, p->id) == 0 && take_figures(record.configuration, e);
    }
    lora_destroy(lora);
    if (!*found && unlink(path) != 0) code = error_set_errno(err, path, "cannot remove a damaged entry");
    return code;
}

/* ---- a build ---- */

static int name_entry(const char *path, struct catalog_entry *e, attune_error *err) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    if (n > 6 && strcmp(name + n - 6, ".jsonl") == 0) n -= 6;
    if (n >= sizeof e->name) return error_set(err, ATTUNE_ERROR_ARGUMENT, path, "the file's name is too long");
    memcpy(e->name, name, n);
    e->name[n] = 0;
    return catalog_entry_check(e, err);
}

/* Before anything is trained. */
static int name_entries(struct build *b, attune_error *err) {
    const attune_catalog_options *o = &b->options;
    b->entries = calloc(o->n_personas + 1, sizeof *b->entries);
    if (!b->entries) return error_set_memory(err, "a catalog", o->n_personas * sizeof *b->entries);
    for (size_t i = 0; i < o->n_personas; i++) {
        struct catalog_entry *e = &b->entries[i];
        snprintf(e->licence, sizeof e->licence, "%s", o->task ? "-" : o->licence);
        snprintf(e->origin, sizeof e->origin, "%s", o->task ? "-" : o->origin);
        int code = name_entry(o->personas[i], e, err);
        if (code != ATTUNE_OK) return code;
        for (size_t k = 0; k < i; k++)
            if (strcmp(b->entries[k].name, e->name) == 0)
                return error_set(err, ATTUNE_ERROR_ARGUMENT, o->personas[i], "two personas are named %s: rename one",
                                 e->name);
    }
    return ATTUNE_OK;
}

static int build_entry(struct build *b, size_t i, attune_error *err) {
    struct persona p = {.name = b->entries[i].name};
    int found = 0;
    int code = read_persona(b, b->options.personas[i], &p, err);
    if (code == ATTUNE_OK) memcpy(b->entries[i].id, p.id, sizeof p.id);
    if (code == ATTUNE_OK) code = find_entry(b, &p, &b->entries[i], &found, err);
    if (code == ATTUNE_OK && !found) code = make_entry(b, &p, &b->entries[i], err);
    if (code == ATTUNE_OK) *(found ? &b->built.found : &b->built.trained) += 1;
    persona_free(&p);
    return code;
}

static int index_is_there(const char *path) {
    char index[CATALOG_PATH_MAX];
    struct stat st;
    return snprintf(index, sizeof index, "%s/index.signed", path) < (int)sizeof index && lstat(index, &st) == 0;
}

/* The catalog as it is, which must be ours: what is signed again has to be what was signed before. */
static int open_own(const char *path, const struct secret_key *key, const struct model *model, struct catalog *out,
                    attune_error *err) {
    if (model && !index_is_there(path)) return catalog_new(path, model->sha256, out, err);
    int code = catalog_open(path, &key->public, out, err);
    if (code != ATTUNE_OK || !model) return code;
    code = catalog_check_base(out, model, err);
    if (code != ATTUNE_OK) catalog_free(out);
    return code;
}

/* That no entry names any more. */
static void remove_file(const struct catalog *catalog, const char *id) {
    char path[CATALOG_PATH_MAX];
    for (size_t i = 0; i < catalog->n; i++)
        if (strcmp(catalog->entries[i].id, id) == 0) return;
    if (catalog_entry_path(catalog->path, id, path, NULL) == ATTUNE_OK) unlink(path);
}

static int put_entries(struct build *b, struct catalog *catalog, const struct secret_key *key, attune_error *err) {
    size_t n = b->options.n_personas;
    char(*old)[65] = calloc(n + 1, sizeof *old);
    int code = old ? ATTUNE_OK : error_set_memory(err, "a catalog", n * sizeof *old);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        const struct catalog_entry *before = catalog_find(catalog, b->entries[i].name);
        if (before) memcpy(old[i], before->id, sizeof old[i]);
        code = catalog_put(catalog, &b->entries[i], err);
    }
    if (code == ATTUNE_OK) code = catalog_write(catalog, key, err);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++)
        if (old[i][0]) remove_file(catalog, old[i]);
    if (code == ATTUNE_OK) b->built.entries = (int64_t)catalog->n;
    free(old);
    return code;
}

static int write_index(struct build *b, const struct secret_key *key, attune_error *err) {
    struct catalog catalog;
    int fd = -1, code = catalog_lock(b->path, &fd, err);
    if (code == ATTUNE_OK) {
        code = open_own(b->path, key, b->model, &catalog, err);
        if (code == ATTUNE_OK) {
            code = put_entries(b, &catalog, key, err);
            catalog_free(&catalog);
        }
        close(fd);
    }
    return code;
}

static int check_options(const attune_catalog_options *o, attune_error *err) {
    if (!o->base || !o->personas || o->n_personas == 0 || o->max_examples < 0 || o->task < 0 || o->tasks < o->task ||
        (o->task == 0 && o->tasks > 0) || o->n_personas > CATALOG_ENTRIES_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "a build wants a base, 1 to %d personas, and of tasks one of 1 to their number",
                         CATALOG_ENTRIES_MAX);
    if (o->task == 0 && (!o->licence || !o->origin || !o->secret_key))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "a catalog's index wants the entries' licence and origin, and a secret key to sign with");
    if (o->task == 0 && (strlen(o->licence) >= sizeof((struct catalog_entry *)0)->licence ||
                         strlen(o->origin) >= sizeof((struct catalog_entry *)0)->origin))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the licence or the origin is too long: 127 and 255 bytes");
    return ATTUNE_OK;
}

static int open_model(const char *base, struct model **out, attune_error *err) {
    char sha256[65];
    struct model *model = NULL;
    if (!base) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a catalog belongs to a base model: give it");
    int code = model_open(base, FILE_MAP, &model, err);
    if (code != ATTUNE_OK) return code;
    hash_bytes(model->gguf->file.data, model->gguf->file.size, sha256);
    model_set_hash(model, sha256);
    *out = model;
    return ATTUNE_OK;
}

static int make_folder(const char *path, attune_error *err) {
    if (mkdir(path, 0755) == 0 || errno == EEXIST) return ATTUNE_OK;
    return error_set_errno(err, path, "cannot make the catalog's folder");
}

static int run_build(struct build *b, attune_error *err) {
    const attune_catalog_options *o = &b->options;
    int code = kernels_select(err);
    if (code == ATTUNE_OK) code = open_model(o->base, &b->model, err);
    if (code == ATTUNE_OK && !b->model->chat) {
        if (err) *err = b->model->chat_error;
        code = b->model->chat_error.code;
    }
    if (code == ATTUNE_OK) code = pool_create(o->threads, &b->pool, err);
    if (code == ATTUNE_OK) code = make_folder(b->path, err);
    for (size_t i = 0; i < o->n_personas && code == ATTUNE_OK; i++)
        if (o->task == 0 || i % (size_t)o->tasks == (size_t)o->task - 1) code = build_entry(b, i, err);
    return code;
}

int attune_catalog_build(const char *path, const attune_catalog_options *options, attune_catalog_built *built,
                         attune_error *err) {
    struct build b = {.path = path};
    struct secret_key key = {.secret = {0}};
    if (!path) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a catalog wants a folder");
    int code = options_read(&b.options, sizeof b.options, options, "attune_catalog_options", err);
    if (code == ATTUNE_OK) code = check_options(&b.options, err);
    if (code == ATTUNE_OK) code = name_entries(&b, err);
    settings_default(&b.settings);
    if (b.options.seed) b.settings.train.seed = b.options.seed;
    /* before hours are spent */
    if (code == ATTUNE_OK && b.options.task == 0) code = secret_key_read(b.options.secret_key, &key, err);
    if (code == ATTUNE_OK) code = run_build(&b, err);
    if (code == ATTUNE_OK && b.options.task == 0) code = write_index(&b, &key, err);
    secret_key_wipe(&key);
    pool_destroy(b.pool);
    model_close(b.model);
    free(b.entries);
    return code == ATTUNE_OK ? options_write(built, &b.built, sizeof b.built, "attune_catalog_built", err) : code;
}

/* ---- one entry more, or less ---- */

static int copy_adapter(const char *from, const struct model *model, const char *catalog, struct catalog_entry *e,
                        attune_error *err) {
    char path[CATALOG_PATH_MAX];
    struct file_bytes file = {0};
    struct lora *lora = NULL;
    struct file_writer writer = {0};
    int code = file_bytes_open(from, FILE_READ, lora_file_max(model), &file, err);
    if (code != ATTUNE_OK) return code;
    code = adapter_parse(&file, model, &lora, NULL, e->sha256, err);
    lora_destroy(lora);
    e->bytes = (int64_t)file.size;
    memcpy(e->id, e->sha256, sizeof e->id);
    if (code == ATTUNE_OK) code = catalog_entry_path(catalog, e->id, path, err);
    if (code == ATTUNE_OK) code = file_writer_open(path, "catalog.entry", &writer, err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, file.data, file.size, err);
    if (code == ATTUNE_OK) code = file_writer_publish(&writer, err); /* named by its bytes: what is there is the same */
    file_writer_abandon(&writer);
    file_bytes_close(&file);
    return code;
}

static int describe_entry(const char *name, const attune_catalog_options *o, struct catalog_entry *e,
                          attune_error *err) {
    *e = (struct catalog_entry){.rows = o->rows, .loss_before = NAN, .loss_after = NAN, .loss_interval = NAN};
    if (!name || !o->licence || !o->origin || !o->secret_key || o->rows < 0 || strlen(name) >= sizeof e->name ||
        strlen(o->licence) >= sizeof e->licence || strlen(o->origin) >= sizeof e->origin)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "an entry wants a name, a licence and an origin (up to 64, 127 and 255 bytes), rows of at least "
                         "0, and a secret key to sign with");
    strcpy(e->name, name);
    strcpy(e->licence, o->licence);
    strcpy(e->origin, o->origin);
    return catalog_entry_check(e, err);
}

static int add_locked(const char *path, const char *adapter, const struct model *model, struct catalog_entry *e,
                      const struct secret_key *key, attune_error *err) {
    struct catalog catalog;
    int code = open_own(path, key, model, &catalog, err);
    if (code != ATTUNE_OK) return code;
    if (catalog_find(&catalog, e->name))
        code = error_set(err, ATTUNE_ERROR_STATE, path, "the catalog has an entry %s already; remove it first", e->name);
    if (code == ATTUNE_OK) code = copy_adapter(adapter, model, path, e, err);
    if (code == ATTUNE_OK) code = catalog_put(&catalog, e, err);
    if (code == ATTUNE_OK) code = catalog_write(&catalog, key, err);
    catalog_free(&catalog);
    return code;
}

int attune_catalog_add(const char *path, const char *name, const char *adapter, const attune_catalog_options *options,
                       attune_error *err) {
    attune_catalog_options o;
    struct catalog_entry entry;
    struct secret_key key = {.secret = {0}};
    struct model *model = NULL;
    int fd = -1, code = options_read(&o, sizeof o, options, "attune_catalog_options", err);
    if (code == ATTUNE_OK && (!path || !adapter))
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a catalog's folder and an adapter are needed");
    if (code == ATTUNE_OK) code = describe_entry(name, &o, &entry, err);
    if (code == ATTUNE_OK) code = secret_key_read(o.secret_key, &key, err);
    if (code == ATTUNE_OK) code = open_model(o.base, &model, err);
    if (code == ATTUNE_OK) code = make_folder(path, err);
    if (code == ATTUNE_OK) code = catalog_lock(path, &fd, err);
    if (code == ATTUNE_OK) {
        code = add_locked(path, adapter, model, &entry, &key, err);
        close(fd);
    }
    secret_key_wipe(&key);
    model_close(model);
    return code;
}

static int remove_locked(const char *path, const char *name, const struct secret_key *key, attune_error *err) {
    struct catalog catalog;
    char id[65] = "";
    int code = open_own(path, key, NULL, &catalog, err);
    if (code != ATTUNE_OK) return code;
    const struct catalog_entry *entry = catalog_find(&catalog, name);
    if (entry) memcpy(id, entry->id, sizeof id);
    code = catalog_drop(&catalog, name, err);
    if (code == ATTUNE_OK) code = catalog_write(&catalog, key, err);
    if (code == ATTUNE_OK) remove_file(&catalog, id);
    catalog_free(&catalog);
    return code;
}

int attune_catalog_remove(const char *path, const char *name, const char *secret_key, attune_error *err) {
    struct secret_key key;
    int fd = -1;
    if (!path || !name) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a catalog's folder and a name are needed");
    int code = secret_key_read(secret_key, &key, err);
    if (code != ATTUNE_OK) return code;
    code = catalog_lock(path, &fd, err);
    if (code == ATTUNE_OK) {
        code = remove_locked(path, name, &key, err);
        close(fd);
    }
    secret_key_wipe(&key);
    return code;
}

/* ---- looking ---- */

int attune_catalog_key(const char *path, char public_key[ATTUNE_PUBLIC_KEY_SIZE], attune_error *err) {
    struct public_key key;
    _Static_assert((int)ATTUNE_PUBLIC_KEY_SIZE == (int)SIGNATURE_PUBLIC_SIZE, "a key's line fits");
    int code = secret_key_make(path, &key, err);
    if (code == ATTUNE_OK && public_key) public_key_text(&key, public_key);
    return code;
}

static int open_trusted(const char *path, const char *public_key, struct catalog *out, attune_error *err) {
    struct public_key key;
    if (!path) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a catalog wants a folder");
    int code = public_key_read(public_key, &key, err);
    return code == ATTUNE_OK ? catalog_open(path, &key, out, err) : code;
}

static int tell_info(const struct catalog *catalog, attune_catalog_info *out, attune_error *err) {
    attune_catalog_info info;
    ATTUNE_INIT(info);
    memcpy(info.base_sha256, catalog->base_sha256, sizeof info.base_sha256);
    info.serial = catalog->serial;
    info.entries = (int64_t)catalog->n;
    return options_write(out, &info, sizeof info, "attune_catalog_info", err);
}

int attune_catalog_list(const char *path, const char *public_key, attune_catalog_info *info,
                        attune_catalog_callback callback, void *user, attune_error *err) {
    struct catalog catalog;
    int code = open_trusted(path, public_key, &catalog, err);
    if (code != ATTUNE_OK) return code;
    code = tell_info(&catalog, info, err);
    for (size_t i = 0; i < catalog.n && code == ATTUNE_OK && callback; i++) {
        const struct catalog_entry *e = &catalog.entries[i];
        char file[CATALOG_FILE_SIZE];
        catalog_entry_file(e->id, file);
        attune_catalog_entry told = {sizeof told, e->name, e->licence, e->origin, e->sha256, e->bytes, e->rows,
                                     e->judged, e->loss_before, e->loss_after, e->loss_interval, file};
        if (callback(&told, user)) break;
    }
    catalog_free(&catalog);
    return code;
}

int attune_catalog_verify(const char *path, const char *public_key, const char *base, attune_catalog_info *info,
                          attune_error *err) {
    struct catalog catalog;
    struct model *model = NULL;
    int code = open_trusted(path, public_key, &catalog, err);
    if (code != ATTUNE_OK) return code;
    code = open_model(base, &model, err);
    if (code == ATTUNE_OK) code = catalog_check_base(&catalog, model, err);
    for (size_t i = 0; i < catalog.n && code == ATTUNE_OK; i++) {
        struct lora *lora = NULL;
        code = catalog_adapter(&catalog, &catalog.entries[i], model, &lora, err);
        lora_destroy(lora);
    }
    if (code == ATTUNE_OK) code = tell_info(&catalog, info, err);
    model_close(model);
    catalog_free(&catalog);
    return code;
}
