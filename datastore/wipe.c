/* Only bytes that the file format (sqlite.org/fileformat2.html, "B-tree Pages") calls unallocated or free change, and
 * only they are written: a page is the same to SQLite before, after and half way. Neither a reader at the same moment
 * nor a crash can see a difference, on the assumption that SQLite itself makes: a write harms no byte outside of its
 * range (sqlite.org/psow.html). It goes through SQLite's own handle, as opening the file a second time would drop POSIX
 * locks. */
#include "datastore/wipe.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "core/base/fault.h"
#include "datastore/schema.h"

enum {
    BLOCK_BYTES = 256 << 10,   /* read at once */
    PENDING_BYTE = 0x40000000, /* the page that holds it is never used: its locks are there */
    PAGES_MAX = 0x02000000     /* from here on the first byte of an overflow page can look like a b-tree page's */
};

static const char wiping[] = "wipe what was deleted";

struct file {
    sqlite3_file *file;
    size_t page_bytes, usable;
    int64_t pages;
};

/* ---- one page ---- */

struct page {
    const struct file *file;
    unsigned char *bytes;
    int64_t offset;  /* in the file */
    int rc, changed; /* rc: of SQLite, the first that was not SQLITE_OK */
};

static size_t two(const unsigned char *at) { return (size_t)at[0] << 8 | at[1]; }

/* n bytes at `from` within the page. */
static void zero(struct page *page, size_t from, size_t n) {
    size_t i = 0;
    while (i < n && !page->bytes[from + i]) i++;
    if (i == n || page->rc != SQLITE_OK) return;
    memset(page->bytes + from + i, 0, n - i);
    page->rc = page->file->file->pMethods->xWrite(page->file->file, page->bytes + from + i, (int)(n - i),
                                                  page->offset + (int64_t)(from + i));
    page->changed = 1;
}

/* Next one (2 bytes), size (2 bytes), ascending, each within the page. */
static void wipe_free_blocks(struct page *page) {
    size_t usable = page->file->usable;
    for (size_t at = two(page->bytes + 1); at && at + 4 <= usable;) {
        size_t next = two(page->bytes + at), n = two(page->bytes + at + 2);
        if (n < 4 || n > usable - at) return;
        zero(page, at + 4, n - 4);
        if (next <= at) return;
        at = next;
    }
}

/* Header: type, first free block (2), cells (2), start of the cells' content (2, 0: 65536), fragments, and in interior
 * pages the rightmost child (4); then 2 bytes a cell. What lies between them and the content is unallocated. */
static void wipe_page(struct page *page) {
    const unsigned char *bytes = page->bytes;
    int leaf = bytes[0] == 10 || bytes[0] == 13, interior = bytes[0] == 2 || bytes[0] == 5;
    if (!leaf && !interior) return; /* overflow and free pages begin with the number of another page, below 2^25 */
    size_t end = (leaf ? 8 : 12) + 2 * two(bytes + 3), content = two(bytes + 5);
    if (content == 0) content = 65536;
    if (end > content || content > page->file->usable) return;
    zero(page, end, content - end);
    wipe_free_blocks(page);
}

/* ---- the file ---- */

static int look(attune_store *store, struct file *out, attune_error *err) {
    unsigned char header[24];
    sqlite3_int64 size = 0;
    int rc = sqlite3_file_control(store->db, "main", SQLITE_FCNTL_FILE_POINTER, &out->file);
    if (rc == SQLITE_OK) rc = out->file->pMethods->xFileSize(out->file, &size);
    if (rc == SQLITE_OK) rc = out->file->pMethods->xRead(out->file, header, sizeof header, 0);
    if (rc != SQLITE_OK) return store_sql_error(store, rc, wiping, err);
    out->page_bytes = two(header + 16) == 1 ? 65536 : two(header + 16);
    if (out->page_bytes < 512 || out->page_bytes != (size_t)store->page_bytes)
        return error_set(err, ATTUNE_ERROR_FORMAT, store->path, "the header of the store is damaged: restore a backup");
    out->usable = out->page_bytes - header[20]; /* bytes at the end of each page that are not SQLite's */
    out->pages = size / (int64_t)out->page_bytes;
    if (out->pages >= PAGES_MAX)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, store->path,
                         "the store has %" PRId64 " pages: attune cannot wipe what was deleted in so large a file",
                         out->pages);
    return ATTUNE_OK;
}

/* Pages from..from + n of the file, which `block` holds. */
static int wipe_block(attune_store *store, const struct file *file, unsigned char *block, int64_t from, int64_t n,
                      int64_t *wiped, attune_error *err) {
    int64_t pending = PENDING_BYTE / (int64_t)file->page_bytes;
    for (int64_t at = from; at < from + n; at++) {
        struct page page = {.file = file,
                            .bytes = block + (size_t)(at - from) * file->page_bytes,
                            .offset = at * (int64_t)file->page_bytes};
        if (at == 0 || at == pending) continue; /* the first one holds the schema, and is in use */
        wipe_page(&page);
        if (page.rc != SQLITE_OK) return store_sql_error(store, page.rc, wiping, err);
        *wiped += page.changed;
    }
    return ATTUNE_OK;
}

int store_wipe_pages(attune_store *store, int64_t *page, int64_t until_ms, int64_t *wiped, attune_error *err) {
    struct file file = {0};
    int64_t at = *page, before = *wiped;
    int code = look(store, &file, err);
    if (code != ATTUNE_OK) return code;
    int64_t step = BLOCK_BYTES / (int64_t)file.page_bytes;
    unsigned char *block = malloc(BLOCK_BYTES);
    if (!block) return error_set_memory(err, "pages of the store", BLOCK_BYTES);
    do {
        int64_t n = file.pages - at < step ? file.pages - at : step;
        if (n <= 0) break;
        int rc = file.file->pMethods->xRead(file.file, block, (int)(n * (int64_t)file.page_bytes),
                                            at * (int64_t)file.page_bytes);
        code = rc == SQLITE_OK ? wipe_block(store, &file, block, at, n, wiped, err)
                               : store_sql_error(store, rc, wiping, err);
        at += n;
    } while (code == ATTUNE_OK && store_clock_ms() < until_ms);
    free(block);
    if (code == ATTUNE_OK && *wiped > before) {
        fault_point("scrub.wiped.before");
        int rc = file.file->pMethods->xSync(file.file, SQLITE_SYNC_NORMAL);
        if (rc != SQLITE_OK) code = store_sql_error(store, rc, wiping, err);
    }
    *page = at >= file.pages ? 0 : at;
    return code;
}

/* ---- alone ---- */

static int in_the_way(int rc) { return (rc & 0xff) == SQLITE_BUSY || (rc & 0xff) == SQLITE_LOCKED; }

int store_begin_alone(attune_store *store, attune_error *err) {
    int version;
    if (store->writing || store->reading)
        return error_set(err, ATTUNE_ERROR_STATE, store->path, "a callback of the store cannot wipe it");
    if (flock(store->lock_fd, LOCK_EX | LOCK_NB) != 0) return ATTUNE_CONTINUE;
    sqlite3_busy_handler(store->db, NULL, NULL);
    int rc = sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    if (rc == SQLITE_OK) {
        store->wal_pages = 0;
        sqlite3_db_release_memory(store->db);
        rc = sqlite3_exec(store->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    }
    int code = rc == SQLITE_OK || in_the_way(rc) ? ATTUNE_OK : store_sql_error(store, rc, wiping, err);
    store_watch(store);
    if (code != ATTUNE_OK || rc != SQLITE_OK) {
        store_unlock(store);
        return code == ATTUNE_OK ? ATTUNE_CONTINUE : code;
    }
    store->writing = 1;
    code = store_schema_version(store, &version, err);
    if (code != ATTUNE_OK) store_rollback(store);
    return code;
}
