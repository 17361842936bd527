/* attune_store_record and its kin: from the caller's structs into the queue, and on the recorder's thread from the
 * queue into rows. */
#include <stdlib.h>
#include <string.h>

#include "core/base/options.h"
#include "datastore/record.h"
#include "datastore/recorder.h"

enum { DEFAULT_ROWS = 8192, DEFAULT_BYTES = 16 << 20, DEFAULT_GROUP_MS = 100, DEFAULT_FULL_WAIT_MS = 100 };

/* What is queued: one block that holds the texts behind the structs that point to them. */
struct item {
    struct recorder_item head;
    attune_uuid uuid; /* of the interaction, also of the one that the feedback is on */
    int is_feedback;
    int64_t tried; /* its rowid in a transaction that was not committed, as far as is known; 0: none */
    attune_interaction interaction;
    attune_feedback feedback;
};

/* ---- copying ---- */

/* Where the next text goes; with `at` NULL it only counts. */
struct copier {
    char *at;
    size_t bytes;
};

static const char *copy_text(struct copier *copier, const char *text) {
    if (!text) return NULL;
    size_t n = strlen(text) + 1;
    copier->bytes += n;
    if (!copier->at) return text;
    char *to = memcpy(copier->at, text, n);
    copier->at += n;
    return to;
}

/* The list stands right behind the struct, where alignment is no question; texts come after it. */
static void copy_interaction(struct copier *copier, attune_message *list, attune_interaction *in) {
    const char **const texts[] = {&in->prompt, &in->response, &in->app,     &in->session,
                                  &in->source, &in->model,    &in->adapter, &in->template_hash};
    for (size_t i = 0; i < in->n_messages; i++) {
        attune_message copy = {copy_text(copier, in->messages[i].role), copy_text(copier, in->messages[i].content)};
        if (list) list[i] = copy;
    }
    if (list && in->messages) in->messages = list;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) *texts[i] = copy_text(copier, *texts[i]);
}

static int enqueue(attune_store *store, struct item *item, size_t bytes, attune_error *err) {
    item->head.bytes = bytes;
    int code = recorder_put(store->recorder, &item->head, err);
    if (code != ATTUNE_OK) free(item);
    return code;
}

int store_enqueue_interaction(attune_store *store, const attune_interaction *interaction, attune_uuid *id,
                              attune_error *err) {
    attune_interaction counted = *interaction;
    struct copier copier = {0};
    copy_interaction(&copier, NULL, &counted);
    size_t list = interaction->n_messages * sizeof(attune_message), bytes = sizeof(struct item) + list + copier.bytes;
    struct item *item = malloc(bytes);
    if (!item) return error_set_memory(err, "an interaction", bytes);
    memset(item, 0, sizeof *item);
    item->interaction = *interaction;
    attune_message *messages = (attune_message *)(item + 1);
    copier.at = (char *)messages + list;
    copy_interaction(&copier, messages, &item->interaction);
    if (!item->interaction.time_ms) item->interaction.time_ms = store_now_ms();
    store_uuid_make(item->interaction.time_ms, &item->uuid);
    attune_uuid made = item->uuid;
    int code = enqueue(store, item, bytes, err);
    if (code == ATTUNE_OK && id) *id = made;
    return code;
}

int store_enqueue_feedback(attune_store *store, const char *id, const attune_feedback *feedback, attune_error *err) {
    struct copier copier = {0};
    copy_text(&copier, feedback->text);
    size_t bytes = sizeof(struct item) + copier.bytes;
    struct item *item = malloc(bytes);
    if (!item) return error_set_memory(err, "a feedback", bytes);
    memset(item, 0, sizeof *item);
    item->is_feedback = 1;
    memcpy(item->uuid.text, id, sizeof item->uuid.text);
    item->feedback = *feedback;
    copier.at = (char *)(item + 1);
    item->feedback.text = copy_text(&copier, feedback->text);
    if (!item->feedback.time_ms) item->feedback.time_ms = store_now_ms();
    return enqueue(store, item, bytes, err);
}

/* ---- on the recorder's thread ---- */

/* What takes time and no lock, done before others are made to wait. */
static int prepare(attune_store *store, struct recorder_item *const *items, size_t n, struct store_prepared *out,
                   size_t *bad, attune_error *err) {
    for (size_t i = 0; i < n; i++) {
        const struct item *item = (const struct item *)items[i];
        if (item->is_feedback) continue;
        int code = store_prepare_interaction(&item->interaction, item->uuid.text, &out[i], err);
        if (code != ATTUNE_OK) {
            if (code != ATTUNE_ERROR_MEMORY) *bad = i;
            return code;
        }
        out[i].private_findings = store_private_findings(store, item->interaction.response);
        for (size_t k = 0; k < out[i].n; k++)
            out[i].private_findings += store_private_findings(store, out[i].list[k].content);
    }
    return ATTUNE_OK;
}

/* An edit that holds what the app calls private keeps its interaction out, like the interaction's own texts. */
static int note_private_edit(attune_store *store, const attune_feedback *feedback, int64_t row, attune_error *err) {
    int64_t found = store_private_findings(store, feedback->text);
    if (found == 0) return ATTUNE_OK;
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, "UPDATE interaction SET private_findings = private_findings + ?1 WHERE id = ?2",
                             "record the feedback", &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, "record the feedback", err, "ii", found, row);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, "record the feedback", err);
    sqlite3_finalize(statement);
    return code;
}

/* Feedback on nothing is passed over, and told by the next flush: the rows beside it need not wait. */
struct losses {
    int64_t n;
    attune_error first;
};

/* A commit that fails in its sync leaves its frames in the log. The next commit writes over them; but where the log is
 * recovered before that, as the store was suspended, they count. *is: the item that was tried has come to be there. */
static int has_come(attune_store *store, const struct item *item, int64_t row, int *is, attune_error *err) {
    static const char doing[] = "look for what was recorded";
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1,
                             "SELECT 1 FROM feedback WHERE id = ? AND interaction = ? AND time_ms = ? AND kind = ? "
                             "AND value = ?",
                             doing, &statement, err);
    if (code == ATTUNE_OK)
        code = store_bind(store, statement, doing, err, "iiiii", item->tried, row, item->feedback.time_ms,
                          (int64_t)item->feedback.kind, item->feedback.value);
    if (code == ATTUNE_OK) code = store_step(store, statement, doing, err);
    *is = code == ATTUNE_CONTINUE;
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int write_interaction(attune_store *store, struct item *item, const struct store_prepared *prepared,
                             attune_error *err) {
    attune_error why = {0};
    int64_t row = 0;
    int code = item->tried ? store_find_interaction(store, item->uuid.text, &row, &why) : ATTUNE_ERROR_NOT_FOUND;
    if (code == ATTUNE_ERROR_NOT_FOUND) return store_write_interaction(store, prepared, &item->tried, err);
    if (code != ATTUNE_OK && err) *err = why;
    return code;
}

static int write_feedback(attune_store *store, struct item *item, struct losses *losses, attune_error *err) {
    int64_t row = 0;
    int is = 0;
    attune_error why = {0};
    int code = store_find_interaction(store, item->uuid.text, &row, &why);
    if (code == ATTUNE_ERROR_NOT_FOUND) {
        if (losses->n++ == 0) losses->first = why;
        return ATTUNE_OK;
    }
    if (code != ATTUNE_OK && err) *err = why;
    if (code == ATTUNE_OK && item->tried) code = has_come(store, item, row, &is, err);
    if (code != ATTUNE_OK || is) return code;
    code = store_write_feedback(store, row, item->uuid.text, &item->feedback, item->feedback.time_ms, err);
    if (code == ATTUNE_OK) item->tried = sqlite3_last_insert_rowid(store->db);
    return code == ATTUNE_OK ? note_private_edit(store, &item->feedback, row, err) : code;
}

static int write_one(attune_store *store, struct item *item, const struct store_prepared *prepared,
                     struct losses *losses, attune_error *err) {
    return item->is_feedback ? write_feedback(store, item, losses, err) : write_interaction(store, item, prepared, err);
}

static int is_items_fault(int code) { return code == ATTUNE_ERROR_ARGUMENT || code == ATTUNE_ERROR_INTERNAL; }

static int write_all(attune_store *store, struct recorder_item *const *items, size_t n,
                     const struct store_prepared *prepared, struct losses *losses, size_t *bad, attune_error *err) {
    int code = store_begin(store, err);
    if (code != ATTUNE_OK) return code;
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        code = write_one(store, (struct item *)items[i], &prepared[i], losses, err);
        if (is_items_fault(code)) *bad = i;
    }
    return store_end(store, code, err);
}

/* The recorder's connection: a copy of the handle without a queue. */
static int open_writer(attune_store *store, attune_error *err) {
    attune_store *writer = NULL;
    if (store->writer) return ATTUNE_OK;
    int code = store_allocate(store->home, store->busy_ms, &writer, err);
    if (code != ATTUNE_OK) return code;
    writer->encrypted = store->encrypted;
    writer->seal = store->seal;
    writer->find_private = store->find_private;
    writer->find_private_user = store->find_private_user;
    writer->unsure = store->writer_unsure;
    code = store_open_connection(writer, err);
    if (code == ATTUNE_OK && store->normal)
        code = store_exec(writer, "PRAGMA synchronous = NORMAL", "open the store", err);
    if (code == ATTUNE_OK)
        store->writer = writer;
    else
        store_destroy(writer);
    return code;
}

static void note_losses(attune_store *store, const struct losses *losses) {
    pthread_mutex_lock(&store->telling);
    store->lost_feedback += losses->n;
    if (store->loss.code == ATTUNE_OK) store->loss = losses->first;
    pthread_mutex_unlock(&store->telling);
}

static int write_group(void *user, struct recorder_item *const *items, size_t n, int durable, size_t *bad,
                       attune_error *err) {
    attune_store *store = user;
    struct store_prepared *prepared = NULL;
    struct losses losses = {0};
    int code = open_writer(store, err);
    if (code == ATTUNE_OK) code = store_enter(store->writer, err);
    if (code != ATTUNE_OK) return code;
    if (n > 0) {
        prepared = calloc(n, sizeof *prepared);
        code = prepared ? prepare(store, items, n, prepared, bad, err)
                        : error_set_memory(err, "a group of rows", n * sizeof *prepared);
        if (code == ATTUNE_OK) code = write_all(store->writer, items, n, prepared, &losses, bad, err);
        for (size_t i = 0; prepared && i < n; i++) store_prepared_free(&prepared[i]);
        free(prepared);
    }
    if (code == ATTUNE_OK && durable && store->normal) code = store_sync_log(store->writer, err);
    store_leave(store->writer);
    if (code == ATTUNE_OK && losses.n) note_losses(store, &losses);
    return code;
}

static void release_writer(void *user) {
    attune_store *store = user;
    if (store->writer) store->writer_unsure = store->writer->unsure;
    store_destroy(store->writer);
    store->writer = NULL;
}

/* ---- starting and ending ---- */

static int check_options(const attune_store_options *o, attune_error *err) {
    if (o->queue_rows < 0 || o->queue_bytes < 0 || o->group_ms < 0 || o->group_ms > 60000 || o->full_wait_ms < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "the sizes and times of the queue must not be negative, and group_ms at most 60000");
    if (o->when_full != ATTUNE_FULL_DROP && o->when_full != ATTUNE_FULL_WAIT)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "when_full is %d: see enum attune_when_full", o->when_full);
    if (o->durability != ATTUNE_DURABILITY_FULL && o->durability != ATTUNE_DURABILITY_NORMAL)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "durability is %d: see enum attune_durability",
                         o->durability);
    return ATTUNE_OK;
}

int store_recording_start(attune_store *store, const attune_store_options *o, attune_error *err) {
    int code = check_options(o, err);
    struct recorder_options options = {
        .rows = o->queue_rows ? o->queue_rows : DEFAULT_ROWS,
        .bytes = o->queue_bytes ? o->queue_bytes : DEFAULT_BYTES,
        .group_ms = o->group_ms ? o->group_ms : DEFAULT_GROUP_MS,
        .full_wait_ms = o->full_wait_ms ? o->full_wait_ms : DEFAULT_FULL_WAIT_MS,
        .wait_when_full = o->when_full == ATTUNE_FULL_WAIT,
        .durable = o->durability == ATTUNE_DURABILITY_FULL,
        .write = write_group,
        .release = release_writer,
        .user = store,
    };
    return code == ATTUNE_OK ? recorder_create(&options, &store->recorder, err) : code;
}

void store_recording_end(attune_store *store) {
    if (store->recorder) recorder_close(store->recorder, store->busy_ms);
    store->recorder = NULL;
}

/* ---- the public calls ---- */

int attune_store_record(attune_store *store, const attune_interaction *interaction, attune_uuid *id,
                        attune_error *err) {
    attune_interaction taken;
    if (!interaction) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the interaction is NULL");
    int code = store_mine(store, err);
    if (code == ATTUNE_OK) code = options_read(&taken, sizeof taken, interaction, "attune_interaction", err);
    if (code == ATTUNE_OK) code = store_check_interaction(&taken, NULL, err);
    if (code == ATTUNE_OK) code = store_need_key(store, err);
    return code == ATTUNE_OK ? store_enqueue_interaction(store, &taken, id, err) : code;
}

int attune_store_feedback(attune_store *store, const char *id, const attune_feedback *feedback, attune_error *err) {
    attune_feedback taken;
    if (!id || !feedback) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the %s is NULL", id ? "feedback" : "id");
    int code = store_mine(store, err);
    if (code == ATTUNE_OK) code = options_read(&taken, sizeof taken, feedback, "attune_feedback", err);
    if (code == ATTUNE_OK) code = store_check_feedback(&taken, NULL, err);
    if (code == ATTUNE_OK) code = store_need_key(store, err);
    if (code == ATTUNE_OK && strlen(id) != sizeof(attune_uuid) - 1)
        code = error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path, "no interaction has the id '%.40s'", id);
    return code == ATTUNE_OK ? store_enqueue_feedback(store, id, &taken, err) : code;
}

/* Once: feedback that named no interaction since the last flush. */
static int tell_losses(attune_store *store, attune_error *err) {
    pthread_mutex_lock(&store->telling);
    int code = store->loss.code;
    if (code != ATTUNE_OK && err) *err = store->loss;
    store->loss.code = ATTUNE_OK;
    pthread_mutex_unlock(&store->telling);
    return code;
}

int store_flush_queue(attune_store *store, attune_error *err) {
    int code = store_mine(store, err);
    return code == ATTUNE_OK ? recorder_flush(store->recorder, err) : code;
}

int attune_store_flush(attune_store *store, attune_error *err) {
    int code = store_flush_queue(store, err);
    return code == ATTUNE_OK ? tell_losses(store, err) : code;
}

int attune_store_suspend(attune_store *store, attune_error *err) {
    int code = store_mine(store, err);
    if (code != ATTUNE_OK) return code;
    pthread_mutex_lock(&store->mutex);
    if (store->db) {
        code = recorder_flush(store->recorder, err);
        recorder_suspend(store->recorder);
        store_checkpoint(store);
        store_disconnect(store);
    }
    pthread_mutex_unlock(&store->mutex);
    return code;
}

int attune_store_resume(attune_store *store, attune_error *err) {
    int code = store_mine(store, err);
    if (code != ATTUNE_OK) return code;
    pthread_mutex_lock(&store->mutex);
    if (!store->db) {
        code = store_open_connection(store, err);
        if (code == ATTUNE_OK) recorder_resume(store->recorder);
    }
    pthread_mutex_unlock(&store->mutex);
    return code;
}
