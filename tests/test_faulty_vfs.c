/* The shim itself, with plain SQLite databases. Heap faults need the linker flags that faulty_vfs.h names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/faulty_vfs.h"

enum { ROWS = 24 };

struct dirs {
    char from[64], to[64];
};

static void empty(const char *folder) {
    DIR *directory = opendir(folder);
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.') unlink(path);
    }
    if (directory) closedir(directory);
}

static int setup(void **state) {
    struct dirs *d = calloc(1, sizeof *d);
    strcpy(d->from, "/tmp/faulty-from-XXXXXX");
    strcpy(d->to, "/tmp/faulty-to-XXXXXX");
    *state = d;
    return mkdtemp(d->from) && mkdtemp(d->to) ? 0 : -1;
}

static int teardown(void **state) {
    struct dirs *d = *state;
    faulty_clear();
    faulty_volatile_names(0);
    faulty_forget();
    empty(d->from);
    empty(d->to);
    int rc = rmdir(d->from) || rmdir(d->to);
    free(d);
    return rc;
}

static const char *in(const char *folder, const char *name) {
    static _Thread_local char paths[4][128];
    static _Thread_local unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* Size, or -1 when there is no such file; at most `room` bytes. */
static long slurp(const char *path, unsigned char *bytes, size_t room) {
    FILE *file = fopen(path, "rb");
    if (!file) return -1;
    size_t n = fread(bytes, 1, room, file);
    fclose(file);
    return (long)n;
}

/* ---- files, without SQLite ---- */

struct raw {
    sqlite3_vfs *vfs;
    sqlite3_file *file;
    char path[128]; /* a VFS may look at it until the file is closed */
};

static void raw_open(struct raw *raw, const char *folder, const char *name, int kind) {
    raw->vfs = sqlite3_vfs_find(NULL);
    raw->file = calloc(1, (size_t)raw->vfs->szOsFile);
    snprintf(raw->path, sizeof raw->path, "%s/%s", folder, name);
    int rc = raw->vfs->xOpen(raw->vfs, raw->path, raw->file, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | kind, NULL);
    assert_int_equal(rc, SQLITE_OK);
}

static int raw_write(struct raw *raw, char fill, size_t n, size_t offset) {
    char bytes[32768];
    assert_true(n <= sizeof bytes);
    memset(bytes, fill, n);
    return raw->file->pMethods->xWrite(raw->file, bytes, (int)n, (sqlite3_int64)offset);
}

static int raw_sync(struct raw *raw) { return raw->file->pMethods->xSync(raw->file, SQLITE_SYNC_NORMAL); }

static void raw_close(struct raw *raw) {
    raw->file->pMethods->xClose(raw->file);
    free(raw->file);
}

enum { WHOLE = 24576, VERSIONS = 5 };

/* The file after each of its unsynced events, and its sizes: 'a's, over them 'b's, over these 'c's, cut, 'd's. */
struct versions {
    unsigned char bytes[VERSIONS][WHOLE];
    long size[VERSIONS];
};

static void make_versions(struct versions *v, struct raw *raw) {
    static const struct {
        char fill;
        size_t n, offset;
        long size;
    } events[VERSIONS] = {{'a', 16384, 0, 16384},
                          {'b', 5000, 3000, 16384},
                          {'c', 1000, 6000, 16384},
                          {0, 0, 14000, 14000},
                          {'d', 4096, 20000, 24096}};
    memset(v, 0, sizeof *v);
    for (int i = 0; i < VERSIONS; i++) {
        if (i > 0) memcpy(v->bytes[i], v->bytes[i - 1], WHOLE);
        v->size[i] = events[i].size;
        if (events[i].fill) {
            memset(v->bytes[i] + events[i].offset, events[i].fill, events[i].n);
            assert_int_equal(raw_write(raw, events[i].fill, events[i].n, events[i].offset), SQLITE_OK);
        } else {
            memset(v->bytes[i] + events[i].offset, 0, WHOLE - events[i].offset);
            assert_int_equal(raw->file->pMethods->xTruncate(raw->file, (sqlite3_int64)events[i].offset), SQLITE_OK);
        }
        if (i == 0) assert_int_equal(raw_sync(raw), SQLITE_OK);
    }
}

/* Whether each sector is one that the file once held there, or never arrived. */
static int plausible(const struct versions *v, const unsigned char *bytes, long size) {
    static const unsigned char zeros[512];
    for (long at = 0; at < size; at += 512) {
        size_t n = size - at < 512 ? (size_t)(size - at) : 512;
        int found = memcmp(bytes + at, zeros, n) == 0 && at >= 13824; /* what was synced before that can only stay */
        for (int i = 0; i < VERSIONS && !found; i++) found = memcmp(bytes + at, v->bytes[i] + at, n) == 0;
        if (!found) return 0;
    }
    return 1;
}

static void test_sectors(void **state) {
    struct dirs *d = *state;
    static struct versions v;
    static unsigned char bytes[WHOLE + 1];
    int sizes[VERSIONS] = {0}, torn = 0, reordered = 0, kept = 0, lost = 0;
    struct raw raw;
    raw_open(&raw, d->from, "f", SQLITE_OPEN_MAIN_DB);
    make_versions(&v, &raw);
    for (uint64_t seed = 0; seed < 600; seed++) {
        assert_int_equal(faulty_power_cut(d->from, d->to, seed), 0);
        long size = slurp(in(d->to, "f"), bytes, sizeof bytes);
        int known = 0;
        for (int i = 0; i < VERSIONS; i++)
            if (size == v.size[i]) sizes[i]++, known = 1;
        assert_true(known);
        assert_true(plausible(&v, bytes, size));
        if (seed <= 1) {
            int version = seed ? VERSIONS - 1 : 0;
            assert_int_equal(size, v.size[version]);
            assert_memory_equal(bytes, v.bytes[version], size);
        }
        int first = bytes[3584] == 'b', second = bytes[4096] == 'b', last = size > 22000 && bytes[22000] == 'd';
        torn += first != second;
        reordered += last && !first;
        kept += first;
        lost += !first;
    }
    assert_true(sizes[0] > 50 && sizes[3] > 10 && sizes[4] > 50);
    assert_true(torn > 50 && reordered > 20 && kept > 100 && lost > 100);
    /* Once synced, every seed gives the one state. */
    assert_int_equal(raw_sync(&raw), SQLITE_OK);
    for (uint64_t seed = 0; seed < 50; seed++) {
        assert_int_equal(faulty_power_cut(d->from, d->to, seed), 0);
        assert_int_equal(slurp(in(d->to, "f"), bytes, sizeof bytes), v.size[VERSIONS - 1]);
        assert_memory_equal(bytes, v.bytes[VERSIONS - 1], v.size[VERSIONS - 1]);
    }
    raw_close(&raw);
}

/* In how many of seeds 2 .. 201 the file survives; bit 8 and 9 on top: with seeds 0 and 1. */
static int survives(const struct dirs *d, const char *name) {
    int n = 0;
    for (uint64_t seed = 0; seed < 202; seed++) {
        assert_int_equal(faulty_power_cut(d->from, d->to, seed), 0);
        int there = access(in(d->to, name), F_OK) == 0;
        n += seed <= 1 ? there << (8 + seed) : there;
    }
    return n;
}

static void test_names(void **state) {
    struct dirs *d = *state;
    const int with_0 = 256, with_1 = 512, always = 256 + 512 + 200;
    struct raw file;
    raw_open(&file, d->from, "f", SQLITE_OPEN_MAIN_DB);
    assert_int_equal(raw_write(&file, 'x', 100, 0), SQLITE_OK);
    assert_int_equal(raw_sync(&file), SQLITE_OK);
    assert_int_equal(survives(d, "f"), always);
    faulty_volatile_names(1);
    int n = survives(d, "f");
    assert_true(n > with_1 + 20 && n < with_1 + 180);

    struct raw wal;
    raw_open(&wal, d->from, "f-wal", SQLITE_OPEN_WAL);
    n = survives(d, "f-wal");
    assert_true(n > with_1 + 20 && n < with_1 + 180);
    assert_int_equal(raw_sync(&wal), SQLITE_OK); /* and with it the folder */
    assert_int_equal(survives(d, "f"), always);
    assert_int_equal(survives(d, "f-wal"), always);
    raw_close(&wal);

    assert_int_equal(file.vfs->xDelete(file.vfs, in(d->from, "f-wal"), 0), SQLITE_OK);
    n = survives(d, "f-wal");
    assert_true(n > with_0 + 20 && n < with_0 + 180);
    faulty_volatile_names(0);
    assert_int_equal(survives(d, "f-wal"), 0);
    faulty_volatile_names(1);
    faulty_folder_synced(d->from);
    assert_int_equal(survives(d, "f-wal"), 0);

    raw_close(&file);

    /* Deleted and made again: the old one, the new one, or none. */
    int old = 0, new = 0, none = 0;
    assert_int_equal(file.vfs->xDelete(file.vfs, in(d->from, "f"), 0), SQLITE_OK);
    raw_open(&file, d->from, "f", SQLITE_OPEN_MAIN_DB);
    assert_int_equal(raw_write(&file, 'y', 200, 0), SQLITE_OK);
    assert_int_equal(raw_sync(&file), SQLITE_OK);
    for (uint64_t seed = 2; seed < 202; seed++) {
        unsigned char bytes[300];
        assert_int_equal(faulty_power_cut(d->from, d->to, seed), 0);
        long size = slurp(in(d->to, "f"), bytes, sizeof bytes);
        old += size == 100 && bytes[0] == 'x';
        new += size == 200 && bytes[0] == 'y';
        none += size == -1;
    }
    assert_true(old > 20 && new > 20 && none > 20 && old + new + none == 200);
    assert_int_equal(file.vfs->xDelete(file.vfs, in(d->from, "f"), 1), SQLITE_OK);
    assert_int_equal(survives(d, "f"), 0);
    raw_close(&file);
}

/* A file that changed behind the shim's back is taken as it then is. */
static void test_outside(void **state) {
    struct dirs *d = *state;
    unsigned char bytes[64];
    struct raw raw;
    raw_open(&raw, d->from, "f", SQLITE_OPEN_MAIN_DB);
    assert_int_equal(raw_write(&raw, 'x', 4, 0), SQLITE_OK);
    raw_close(&raw);
    raw_open(&raw, d->from, "f", SQLITE_OPEN_MAIN_DB);
    raw_close(&raw);
    assert_int_equal(faulty_power_cut(d->from, d->to, 0), 0);
    assert_int_equal(slurp(in(d->to, "f"), bytes, sizeof bytes), 0); /* closed is not synced */
    FILE *file = fopen(in(d->from, "f"), "wb");
    assert_true(fputs("other", file) > 0 && fclose(file) == 0);
    raw_open(&raw, d->from, "f", SQLITE_OPEN_MAIN_DB);
    raw_close(&raw);
    assert_int_equal(faulty_power_cut(d->from, d->to, 0), 0);
    assert_int_equal(slurp(in(d->to, "f"), bytes, sizeof bytes), 5);
    assert_memory_equal(bytes, "other", 5);
}

static void test_half_and_lost(void **state) {
    struct dirs *d = *state;
    unsigned char bytes[8192];
    int lost = 0;
    struct raw raw;
    raw_open(&raw, d->from, "f", SQLITE_OPEN_MAIN_DB);
    faulty_set(FAULTY_WRITE, 1, FAULTY_HALF, SQLITE_FULL);
    assert_int_equal(raw_write(&raw, 'x', 1000, 0), SQLITE_FULL);
    assert_int_equal(faulty_power_cut(d->from, d->to, 1), 0);
    assert_int_equal(slurp(in(d->to, "f"), bytes, sizeof bytes), 500);
    faulty_set(FAULTY_WRITE, 1, 0, SQLITE_IOERR_WRITE);
    assert_int_equal(raw_write(&raw, 'x', 1000, 0), SQLITE_IOERR_WRITE);
    assert_int_equal(faulty_power_cut(d->from, d->to, 1), 0);
    assert_int_equal(slurp(in(d->to, "f"), bytes, sizeof bytes), 500);
    /* A plain failed sync leaves the writes for the next one; a lossy one does not. */
    for (uint64_t n = 1; n <= 40; n++) {
        int lossy = n > 1;
        faulty_set(FAULTY_SYNC | FAULTY_READ, n, lossy ? FAULTY_LOST : 0, SQLITE_IOERR_FSYNC);
        assert_int_equal(raw_write(&raw, (char)('a' + n % 26), sizeof bytes, 0), SQLITE_OK);
        /* What is lost hangs on the count: some reads make it another one. */
        for (uint64_t i = 1; i < n; i++) assert_int_equal(raw.file->pMethods->xRead(raw.file, bytes, 1, 0), SQLITE_OK);
        assert_int_equal(raw_sync(&raw), SQLITE_IOERR_FSYNC);
        assert_int_equal(faulty_fired(), 1);
        assert_int_equal(raw_sync(&raw), SQLITE_OK);
        assert_int_equal(faulty_power_cut(d->from, d->to, 7), 0);
        assert_int_equal(slurp(in(d->to, "f"), bytes, sizeof bytes), sizeof bytes);
        int whole = 1;
        for (size_t i = 0; i < sizeof bytes; i++) whole &= bytes[i] == (unsigned char)('a' + n % 26);
        assert_true(whole || lossy);
        lost += !whole;
    }
    assert_true(lost > 10);
    raw_close(&raw);
}

/* ---- databases ---- */

static int run(sqlite3 *db, const char *sql) { return sqlite3_exec(db, sql, NULL, NULL, NULL); }

static int open_db(const char *folder, const char *journal, const char *synchronous, sqlite3 **db) {
    char sql[256];
    int rc = sqlite3_open_v2(in(folder, "x.db"), db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);
    snprintf(sql, sizeof sql,
             "PRAGMA busy_timeout = 20000; PRAGMA journal_mode = %s; PRAGMA synchronous = %s;"
             "PRAGMA wal_autocheckpoint = 0; CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, body TEXT)",
             journal, synchronous);
    if (rc != SQLITE_OK) return rc;
    sqlite3_extended_result_codes(*db, 1);
    return run(*db, sql);
}

/* What belongs beside an id: up to two pages of digits. */
#define BODY "printf('%0*d', 300 + id * 977 % 5000, id)"

static int insert(sqlite3 *db, int id) {
    char sql[200];
    snprintf(sql, sizeof sql, "INSERT INTO t SELECT id, %s FROM (SELECT %d AS id)", BODY, id);
    return run(db, sql);
}

static int64_t number(sqlite3 *db, const char *sql) {
    sqlite3_stmt *statement = NULL;
    int64_t value = -1;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK && sqlite3_step(statement) == SQLITE_ROW)
        value = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return value;
}

/* The rows 1 .. n, or -1: damaged, -2: no database. */
static int64_t rows_of(const char *folder) {
    sqlite3 *db;
    int64_t n = -2;
    if (access(in(folder, "x.db"), F_OK) != 0) return n;
    int rc = sqlite3_open_v2(in(folder, "x.db"), &db, SQLITE_OPEN_READWRITE, NULL);
    int64_t tables = rc == SQLITE_OK ? number(db, "SELECT count(*) FROM sqlite_schema") : -1;
    if (tables == 0)
        n = 0;
    else
        n = tables < 0 ? -1
                       : number(db, "SELECT CASE WHEN (SELECT group_concat(integrity_check) FROM "
                                    "pragma_integrity_check) = 'ok' AND count(*) = ifnull(max(id), 0) AND "
                                    "count(*) = total(body = " BODY ") THEN count(*) ELSE -1 END FROM t");
    sqlite3_close(db);
    return n;
}

/* ROWS commits over two connections, with checkpoints of both kinds between them: the first error. */
struct work {
    struct dirs *d;
    const char *journal, *synchronous;
    int committed, begun; /* rows */
};

static int workload(struct work *work) {
    sqlite3 *db[2] = {NULL, NULL};
    int rc = open_db(work->d->from, work->journal, work->synchronous, &db[0]);
    if (rc == SQLITE_OK) rc = open_db(work->d->from, work->journal, work->synchronous, &db[1]);
    for (int id = 1; id <= ROWS && rc == SQLITE_OK; id++) {
        work->begun = id;
        rc = insert(db[id % 2], id);
        if (rc == SQLITE_OK) work->committed = id;
        if (rc == SQLITE_OK && id % 7 == 0)
            rc = run(db[id / 7 % 2], id % 2 ? "PRAGMA wal_checkpoint(PASSIVE)" : "PRAGMA wal_checkpoint(TRUNCATE)");
    }
    sqlite3_close(db[0]);
    sqlite3_close(db[1]);
    return rc;
}

struct cuts {
    struct work work;
    uint64_t seed;
    int n, damaged, lost, extra;
};

static void cut_and_look(struct cuts *cuts) {
    struct work *work = &cuts->work;
    cuts->damaged += faulty_power_cut(work->d->from, work->d->to, cuts->seed++) != 0;
    int64_t n = rows_of(work->d->to);
    cuts->n++;
    cuts->damaged += n == -1;
    cuts->lost += n != -1 && n < work->committed && (n >= 0 || work->committed > 0);
    cuts->extra += n > work->begun;
}

/* Many seeds around a sync, one before every other change. */
static void at_change(const struct faulty_op *op, void *user) {
    int n = op->class == FAULTY_SYNC ? 10 : !op->done;
    for (int i = 0; i < n; i++) cut_and_look(user);
}

static struct cuts cut_everywhere(struct dirs *d, const char *journal, const char *synchronous, int volatile_names) {
    struct cuts cuts = {.work = {.d = d, .journal = journal, .synchronous = synchronous}};
    empty(d->from);
    faulty_volatile_names(volatile_names);
    faulty_set(FAULTY_CHANGE, 0, 0, 0);
    faulty_at(0, at_change, &cuts);
    assert_int_equal(workload(&cuts.work), SQLITE_OK);
    faulty_clear();
    print_message("%s %s%s: %d cuts, %d damaged, %d lost commits\n", journal, synchronous,
                  volatile_names ? " with volatile names" : "", cuts.n, cuts.damaged, cuts.lost);
    assert_int_equal(cuts.extra, 0);
    assert_true(cuts.n > 100);
    return cuts;
}

/* What SQLite promises, and not more, is what the simulated disks show. */
static void test_power_cut(void **state) {
    static const struct {
        const char *journal, *synchronous;
        int volatile_names, damages, loses;
    } cases[] = {
        {"WAL", "FULL", 0, 0, 0},    {"WAL", "FULL", 1, 0, 0}, {"DELETE", "EXTRA", 1, 0, 0},
        {"DELETE", "FULL", 1, 0, 1}, /* the deletion of the journal is the commit, and the folder is not synced */
        {"WAL", "NORMAL", 0, 0, 1},  {"WAL", "OFF", 0, 1, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct cuts cuts = cut_everywhere(*state, cases[i].journal, cases[i].synchronous, cases[i].volatile_names);
        assert_true(cases[i].damages ? cuts.damaged > 5 : cuts.damaged == 0);
        assert_true(cases[i].loses ? cuts.lost > 5 : cuts.lost == 0);
        if (!cases[i].loses) assert_true(cuts.n > 500);
    }
}

/* The shim's idea of the files is the files, byte for byte. */
static void test_model(void **state) {
    struct dirs *d = *state;
    const size_t room = 1 << 20;
    unsigned char *real = malloc(room), *cut = malloc(room);
    static const char *const names[] = {"x.db", "x.db-wal"};
    sqlite3 *db, *other;
    assert_int_equal(open_db(d->from, "WAL", "OFF", &db), SQLITE_OK);
    assert_int_equal(open_db(d->from, "WAL", "NORMAL", &other), SQLITE_OK);
    sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    sqlite3_db_config(other, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    for (int id = 1; id <= 60; id++) {
        assert_int_equal(insert(id % 2 ? db : other, id), SQLITE_OK);
        if (id == 20) assert_int_equal(run(other, "PRAGMA wal_checkpoint(TRUNCATE)"), SQLITE_OK);
        if (id == 40) assert_int_equal(run(db, "DELETE FROM t WHERE id <= 30; VACUUM"), SQLITE_OK);
        if (id == 50) assert_int_equal(run(db, "PRAGMA wal_checkpoint(RESTART)"), SQLITE_OK);
    }
    sqlite3_close(db);
    sqlite3_close(other);
    assert_int_equal(faulty_power_cut(d->from, d->to, 1), 0);
    for (int i = 0; i < 2; i++) {
        long n = slurp(in(d->from, names[i]), real, room);
        assert_true(n > 0 && n < (long)room);
        assert_int_equal(slurp(in(d->to, names[i]), cut, room), n);
        assert_memory_equal(cut, real, n);
    }
    assert_int_equal(access(in(d->to, "x.db-shm"), F_OK), -1);
    free(real);
    free(cut);
}

/* ---- counting and failing ---- */

struct seen {
    uint64_t n[2], last;
    unsigned class;
    int wal;
};

static void see(const struct faulty_op *op, void *user) {
    struct seen *seen = user;
    seen->n[op->done]++;
    seen->last = op->n;
    seen->class = op->class;
    seen->wal = strstr(op->path, "-wal") != NULL;
}

static void test_count(void **state) {
    struct dirs *d = *state;
    struct seen seen = {0};
    sqlite3 *db;
    assert_int_equal(open_db(d->from, "WAL", "FULL", &db), SQLITE_OK);
    assert_int_equal(insert(db, 1), SQLITE_OK);
    faulty_set(FAULTY_SYNC, 0, 0, 0);
    for (int id = 2; id <= 6; id++) assert_int_equal(insert(db, id), SQLITE_OK);
    assert_int_equal(faulty_count(), 5);
    assert_int_equal(run(db, "PRAGMA synchronous = OFF"), SQLITE_OK);
    assert_int_equal(insert(db, 7), SQLITE_OK);
    assert_int_equal(faulty_count(), 5);

    faulty_set(FAULTY_WRITE | FAULTY_SYNC, 0, 0, 0);
    faulty_only("x.db-wal");
    faulty_at(3, see, &seen);
    faulty_pause(1);
    assert_int_equal(insert(db, 8), SQLITE_OK);
    faulty_pause(0);
    assert_int_equal(faulty_count(), 0);
    assert_int_equal(run(db, "PRAGMA wal_checkpoint"), SQLITE_OK); /* writes the database alone */
    assert_int_equal(faulty_count(), 0);
    for (int id = 9; id <= 12; id++) assert_int_equal(insert(db, id), SQLITE_OK);
    assert_true(faulty_count() > 8);
    assert_true(seen.n[0] == 1 && seen.n[1] == 1 && seen.last == 3 && seen.class == FAULTY_WRITE && seen.wal);
    assert_int_equal(faulty_fired(), 0);

    assert_int_equal(run(db, "PRAGMA synchronous = FULL"), SQLITE_OK);
    faulty_set(FAULTY_SYNC, 2, 0, SQLITE_IOERR_FSYNC);
    assert_int_equal(insert(db, 13), SQLITE_OK);
    assert_int_equal(insert(db, 14), SQLITE_IOERR_FSYNC);
    assert_int_equal(insert(db, 14), SQLITE_OK);
    assert_int_equal(faulty_fired(), 1);
    faulty_set(FAULTY_SYNC, 2, FAULTY_ONWARD, SQLITE_IOERR_FSYNC);
    assert_int_equal(insert(db, 15), SQLITE_OK);
    assert_int_equal(insert(db, 16), SQLITE_IOERR_FSYNC);
    assert_int_equal(insert(db, 16), SQLITE_IOERR_FSYNC);
    assert_int_equal(faulty_fired(), 2);
    faulty_clear();
    assert_int_equal(faulty_fired(), 2);
    assert_int_equal(insert(db, 16), SQLITE_OK);
    sqlite3_close(db);
    assert_int_equal(rows_of(d->from), 16);
}

/* Every operation of the whole workload in its turn: the error arrives, and committed rows stay. */
static void test_fail_each(void **state) {
    static const struct {
        unsigned class;
        int code, flags, first, step; /* the first of them, and then every so many */
    } cases[] = {
        {FAULTY_WRITE, SQLITE_FULL, FAULTY_HALF, 1, 3},
        {FAULTY_WRITE, SQLITE_IOERR_WRITE, FAULTY_ONWARD, 2, 3},
        {FAULTY_SYNC, SQLITE_IOERR_FSYNC, 0, 1, 1},
        {FAULTY_SYNC, SQLITE_IOERR_FSYNC, FAULTY_LOST, 1, 1},
        {FAULTY_READ, SQLITE_IOERR_READ, 0, 1, 5},
        {FAULTY_OPEN, SQLITE_CANTOPEN, 0, 1, 1},
        {FAULTY_TRUNCATE, SQLITE_IOERR_TRUNCATE, 0, 1, 1},
        {FAULTY_DELETE, SQLITE_IOERR_DELETE, 0, 1, 1},
        {FAULTY_LOCK, SQLITE_BUSY, 0, 1, 17},
        {FAULTY_SHM, SQLITE_IOERR_SHMMAP, 0, 1, 1},
        {FAULTY_LOOK, SQLITE_IOERR_FSTAT, 0, 1, 7},
    };
    struct dirs *d = *state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int failed = 0, fired = 1;
        for (uint64_t n = (uint64_t)cases[i].first; fired; n += (uint64_t)cases[i].step) {
            struct work work = {.d = d, .journal = "WAL", .synchronous = "FULL"};
            empty(d->from);
            faulty_set(cases[i].class, n, cases[i].flags, cases[i].code);
            int rc = workload(&work);
            fired = (int)faulty_fired();
            faulty_clear();
            failed += rc == cases[i].code;
            if (!fired) assert_int_equal(rc, SQLITE_OK);
            if (fired && !(cases[i].flags & FAULTY_ONWARD)) assert_int_equal(fired, 1);
            int64_t rows = rows_of(d->from);
            if (rows == -2) rows = work.committed ? -2 : 0;
            assert_in_range(rows, work.committed, work.begun);
        }
        /* SQLite never looks at some errors: a deletion at close, a busy lock that it tries again. */
        if (!(cases[i].class & (FAULTY_DELETE | FAULTY_LOCK))) assert_true(failed > 0);
    }
}

/* ---- threads ---- */

struct writer {
    struct dirs *d;
    int first;
    _Atomic int committed, failed;
};

static void *write_rows(void *arg) {
    struct writer *w = arg;
    sqlite3 *db;
    w->failed = open_db(w->d->from, "WAL", "FULL", &db) != SQLITE_OK;
    for (int i = 0; i < ROWS && !w->failed; i++) {
        w->failed = insert(db, w->first + i) != SQLITE_OK;
        if (!w->failed) w->committed++;
    }
    sqlite3_close(db);
    return NULL;
}

static void test_threads(void **state) {
    struct dirs *d = *state;
    struct writer writers[3];
    pthread_t threads[3];
    sqlite3 *keep, *db; /* kept open: the last to close would checkpoint and delete the log */
    assert_int_equal(open_db(d->from, "WAL", "FULL", &keep), SQLITE_OK);
    faulty_set(FAULTY_ALL, 0, 0, 0);
    for (int i = 0; i < 3; i++) {
        writers[i].d = d;
        writers[i].first = 1000 * i;
        writers[i].committed = writers[i].failed = 0;
        assert_int_equal(pthread_create(&threads[i], NULL, write_rows, &writers[i]), 0);
    }
    for (uint64_t seed = 0, busy = 1; busy; seed++) {
        int committed[3];
        busy = 0;
        for (int i = 0; i < 3; i++) {
            committed[i] = writers[i].committed;
            busy += !writers[i].failed && committed[i] < ROWS;
        }
        assert_int_equal(faulty_power_cut(d->from, d->to, seed), 0);
        assert_int_equal(sqlite3_open_v2(in(d->to, "x.db"), &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
        for (int i = 0; i < 3; i++) {
            char sql[100];
            snprintf(sql, sizeof sql, "SELECT count(*) FROM t WHERE id / 1000 = %d", i);
            assert_true(number(db, sql) >= committed[i]);
        }
        sqlite3_close(db);
    }
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(writers[i].failed, 0);
    }
    sqlite3_close(keep);
    assert_true(faulty_count() > 3 * ROWS);
}

/* ---- memory ---- */

static void test_sqlite_memory(void **state) {
    struct dirs *d = *state;
    int failed = 0;
    uint64_t fired = 1;
    for (uint64_t n = 1; fired; n += 1 + n / 40) {
        struct work work = {.d = d, .journal = "WAL", .synchronous = "FULL"};
        empty(d->from);
        faulty_malloc_fail(n, n % 2 ? FAULTY_ONWARD : 0);
        int rc = workload(&work);
        fired = faulty_malloc_fired();
        if (fired) assert_true(faulty_malloc_count() >= n);
        faulty_clear();
        failed += (rc & 255) == SQLITE_NOMEM || rc == SQLITE_IOERR_NOMEM;
        int64_t rows = rows_of(d->from);
        if (rows == -2) rows = work.committed ? -2 : 0;
        assert_in_range(rows, work.committed, work.begun);
    }
    assert_true(failed > 50);
}

static void test_c_heap(void **state) {
    (void)state;
    void *volatile p, *volatile q; /* compilers leave out allocations that nothing is done with */
    if (!faulty_heap_linked()) skip();
    faulty_heap_fail(2, 0);
    p = malloc(10);
    assert_non_null(p);
    q = realloc(p, 20);
    assert_null(q);
    p = realloc(p, 30);
    assert_non_null(p);
    free(p);
    assert_int_equal(faulty_heap_count(), 3);
    assert_int_equal(faulty_heap_fired(), 1);
    faulty_heap_fail(1, FAULTY_ONWARD);
    p = malloc(10);
    assert_null(p);
    p = calloc(1, 10);
    assert_null(p);
    p = strdup(in("", "text"));
    assert_null(p);
    faulty_pause(1);
    p = calloc(2, 10);
    assert_non_null(p);
    free(p);
    faulty_pause(0);
    /* SQLite is a library of its own: it goes on. */
    p = sqlite3_malloc(10);
    assert_non_null(p);
    sqlite3_free(p);
    assert_int_equal(faulty_heap_fired(), 3);
    faulty_clear();
    p = strdup(in("", "text"));
    assert_string_equal((char *)p, "/text");
    free(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_sectors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_outside, setup, teardown),
        cmocka_unit_test_setup_teardown(test_half_and_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(test_power_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(test_model, setup, teardown),
        cmocka_unit_test_setup_teardown(test_count, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fail_each, setup, teardown),
        cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sqlite_memory, setup, teardown),
        cmocka_unit_test(test_c_heap),
    };
    if (faulty_malloc_install() != SQLITE_OK || faulty_install() != SQLITE_OK) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
