/* Examples as a night asks for them, out of the table that derive.c fills. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datastore/derive.h"

static const int64_t DAY_MS = 86400000;
static const char reading[] = "read the examples";

/* ---- counting how many of a source, or of a group, were taken ---- */

struct tally {
    struct count {
        uint64_t key;
        int64_t n;
    } * slots;
    size_t mask, used;
};
struct tallies {
    struct tally sources, days, groups;
};

static int tally_grow(struct tally *tally, attune_error *err) {
    size_t slots = tally->slots ? (tally->mask + 1) * 2 : 256;
    struct tally grown = {calloc(slots, sizeof *grown.slots), slots - 1, tally->used};
    if (!grown.slots) return error_set_memory(err, "a count of examples", slots * sizeof *grown.slots);
    for (size_t i = 0; tally->slots && i <= tally->mask; i++) {
        size_t at = tally->slots[i].key & grown.mask;
        while (grown.slots[at].n) at = (at + 1) & grown.mask;
        if (tally->slots[i].n) grown.slots[at] = tally->slots[i];
    }
    free(tally->slots);
    *tally = grown;
    return ATTUNE_OK;
}

/* *full: `cap` of this key were counted before; else one more is. */
static int tally_take(struct tally *tally, uint64_t key, int64_t cap, int *full, attune_error *err) {
    *full = 0;
    if (cap == 0) return ATTUNE_OK;
    if (!tally->slots || tally->used * 2 > tally->mask) {
        int code = tally_grow(tally, err);
        if (code != ATTUNE_OK) return code;
    }
    size_t at = key & tally->mask;
    while (tally->slots[at].n && tally->slots[at].key != key) at = (at + 1) & tally->mask;
    struct count *count = &tally->slots[at];
    tally->used += count->n == 0;
    count->key = key;
    *full = count->n >= cap;
    count->n += !*full;
    return ATTUNE_OK;
}

/* FNV-1a, 64 bits: of labels, whose collisions cost a cap that is a little too strict. */
static uint64_t label_key(uint64_t key, const char *text) {
    do key = (key ^ (unsigned char)*text) * 0x100000001b3u;
    while (*text++);
    return key;
}

static uint64_t mixed(int64_t id) { return (uint64_t)id * 0x9e3779b97f4a7c15u >> 7; }

/* ---- the list ---- */

struct chosen {
    int64_t interaction, time_ms, edit, rejected, prompt_key;
    double weight;
    int kind, label;
    char content_hash[HASH_HEX_SIZE];
};
struct list {
    struct chosen *items;
    size_t n, room;
};

#define EXAMPLE_COLUMNS                                                                                                \
    "e.interaction, e.time_ms, e.chosen, e.rejected, l.prompt_key, e.weight, e.kind, e.label, "                        \
    "lower(hex(e.content_hash))"
#define EXAMPLE_TABLES                                                                                                 \
    "FROM example e JOIN digest d ON d.interaction = e.interaction JOIN digest l ON l.interaction = d.leader "

static void read_chosen(sqlite3_stmt *row, struct chosen *out) {
    out->interaction = sqlite3_column_int64(row, 0);
    out->time_ms = sqlite3_column_int64(row, 1);
    out->edit = sqlite3_column_int64(row, 2);
    out->rejected = sqlite3_column_int64(row, 3);
    out->prompt_key = sqlite3_column_int64(row, 4);
    out->weight = sqlite3_column_double(row, 5);
    out->kind = sqlite3_column_int(row, 6);
    out->label = sqlite3_column_int(row, 7);
    store_column_text(row, 8, out->content_hash, sizeof out->content_hash);
}

static int list_add(struct list *list, const struct chosen *item, attune_error *err) {
    if (list->n == list->room) {
        size_t room = list->room ? list->room * 2 : 256;
        struct chosen *more = realloc(list->items, room * sizeof *more);
        if (!more) return error_set_memory(err, "the list of examples", room * sizeof *more);
        list->items = more;
        list->room = room;
    }
    list->items[list->n++] = *item;
    return ATTUNE_OK;
}

/* Of one app and source, and of one day of it. */
static uint64_t day_key(uint64_t source, int64_t time_ms) {
    return source ^ mixed(time_ms / DAY_MS - (time_ms % DAY_MS < 0) + 1);
}

/* One row of the walk from the newest on: taken unless its group, day or source has had its share. */
static int consider(struct list *list, sqlite3_stmt *row, const struct store_example_query *q, struct tallies *tallies,
                    attune_error *err) {
    struct chosen item;
    int full = 0;
    const char *app = (const char *)sqlite3_column_text(row, 10), *source = (const char *)sqlite3_column_text(row, 11);
    uint64_t key = label_key(label_key(0xcbf29ce484222325u, app ? app : ""), source ? source : "");
    read_chosen(row, &item);
    int code = tally_take(&tallies->groups, mixed(sqlite3_column_int64(row, 9)), q->group_cap, &full, err);
    if (code == ATTUNE_OK && !full)
        code = tally_take(&tallies->days, day_key(key, item.time_ms), q->day_cap, &full, err);
    if (code == ATTUNE_OK && !full) code = tally_take(&tallies->sources, key, q->source_cap, &full, err);
    return code == ATTUNE_OK && !full ? list_add(list, &item, err) : code;
}

/* From the newest to the oldest. The oldest of several with the same content stands for all of them. */
static int select_examples(attune_store *store, const struct store_example_query *q, struct list *list,
                           attune_error *err) {
    struct tallies tallies = {0};
    sqlite3_stmt *statement = NULL;
    char sql[900];
    snprintf(sql, sizeof sql,
             "SELECT " EXAMPLE_COLUMNS ", d.leader, i.app, i.source " EXAMPLE_TABLES
             "JOIN interaction i ON i.id = e.interaction WHERE e.kind = ?1 %s AND NOT EXISTS "
             "(SELECT 1 FROM example o INDEXED BY example_content WHERE o.content_hash = e.content_hash AND "
             "o.kind = e.kind AND "
             "(o.time_ms, o.interaction, o.id) < (e.time_ms, e.interaction, e.id)) "
             "ORDER BY e.time_ms DESC, e.interaction DESC, e.id DESC",
             q->only_new ? "AND e.run IS NULL" : "");
    int code = store_prepare(store, -1, sql, reading, &statement, err);
    if (code == ATTUNE_OK)
        code = store_bind(store, statement, reading, err, "i", (int64_t)(q->kind ? q->kind : STORE_EXAMPLE_SFT));
    while (code == ATTUNE_OK && (!q->newest || (int64_t)list->n < q->newest) &&
           (code = store_step(store, statement, reading, err)) == ATTUNE_CONTINUE)
        code = consider(list, statement, q, &tallies, err);
    sqlite3_finalize(statement);
    free(tallies.sources.slots);
    free(tallies.days.slots);
    free(tallies.groups.slots);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* ---- handing out ---- */

static int rejected_text(attune_store *store, const struct chosen *item, const struct store_loaded *own,
                         struct store_loaded *other, const char **out, attune_error *err) {
    if (!item->rejected) return ATTUNE_OK;
    if (item->rejected != item->interaction) {
        int code = store_load_interaction(store, item->rejected, other, err);
        if (code != ATTUNE_OK) return code;
        own = other;
    }
    *out = own->response;
    return ATTUNE_OK;
}

static int hand_out(attune_store *store, const struct chosen *item, store_row_callback callback, void *user,
                    attune_error *err) {
    struct store_loaded loaded = {0}, other = {0};
    char *edit = NULL, prompt_hash[17];
    struct store_row row = {.kind = item->kind, .label = item->label, .weight = item->weight};
    int code = store_load_interaction(store, item->interaction, &loaded, err);
    if (code == ATTUNE_OK && item->edit)
        code = store_load_feedback_text(store, item->edit, loaded.uuid.text, &edit, err);
    if (code == ATTUNE_OK) code = rejected_text(store, item, &loaded, &other, &row.rejected, err);
    if (code == ATTUNE_ERROR_NOT_FOUND)
        code = error_set(err, ATTUNE_ERROR_INTERNAL, store->path, "an example has lost its interaction");
    if (code == ATTUNE_OK) {
        snprintf(prompt_hash, sizeof prompt_hash, "%016" PRIx64, (uint64_t)item->prompt_key);
        row.messages = loaded.messages.list;
        row.n_messages = loaded.messages.n;
        row.response = edit ? edit : loaded.response;
        row.content_hash = item->content_hash;
        row.prompt_hash = prompt_hash;
        row.time_ms = item->time_ms;
        row.interaction = item->interaction;
        row.other = item->rejected;
        row.uuid = loaded.uuid.text;
        row.edited = edit != NULL;
        code = callback(&row, user, err);
    }
    free(edit);
    store_loaded_free(&loaded);
    store_loaded_free(&other);
    return code;
}

int store_examples(attune_store *store, const struct store_example_query *query, store_row_callback callback,
                   void *user, attune_error *err) {
    static const struct store_example_query all = {0};
    struct list list = {0};
    if (!query) query = &all;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_need_key(store, err);
    if (code == ATTUNE_OK) code = store_derive_pending(store, 0, err);
    if (code == ATTUNE_OK) code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = select_examples(store, query, &list, err);
        for (size_t i = list.n; code == ATTUNE_OK && i-- > 0;)
            code = hand_out(store, &list.items[i], callback, user, err);
        store_read_end(store);
    }
    free(list.items);
    store_leave(store);
    return code;
}

static int find_example(attune_store *store, const char *content_hash, struct chosen *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1,
                             "SELECT " EXAMPLE_COLUMNS " " EXAMPLE_TABLES "WHERE e.content_hash = ? "
                             "ORDER BY e.time_ms, e.interaction, e.id LIMIT 1",
                             reading, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, reading, err, "h", content_hash);
    if (code == ATTUNE_OK) code = store_step(store, statement, reading, err);
    if (code == ATTUNE_CONTINUE) read_chosen(statement, out);
    sqlite3_finalize(statement);
    if (code == ATTUNE_DONE)
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path,
                         "the example is gone, or may not be trained on any more");
    return code == ATTUNE_CONTINUE ? ATTUNE_OK : code;
}

int store_example_get(attune_store *store, const char *content_hash, store_row_callback callback, void *user,
                      attune_error *err) {
    struct chosen item;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_need_key(store, err);
    if (code == ATTUNE_OK) code = store_derive_pending(store, 0, err);
    if (code == ATTUNE_OK) code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = find_example(store, content_hash, &item, err);
        if (code == ATTUNE_OK) code = hand_out(store, &item, callback, user, err);
        store_read_end(store);
    }
    store_leave(store);
    return code;
}
