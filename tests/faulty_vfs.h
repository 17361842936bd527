/* Faults for code that stands on SQLite: a VFS that counts and fails I/O, invents what a disk may hold after a power
 * cut, and memory that runs out at the N-th allocation. For tests only.
 *
 *     faulty_malloc_install();                     before anything else of SQLite, if its memory is to fail
 *     faulty_install();                            from here on every sqlite3_open_v2(..., NULL) goes through the shim
 *     faulty_set(FAULTY_WRITE, 3, 0, SQLITE_FULL); the third write from now fails, once
 *     ...
 *     faulty_clear();
 *
 * Any thread may call anything. All SQLite I/O of the files has to be this process's: another process's writes are
 * noticed only when a file is opened while nobody here has it open. What is not done through SQLite is not seen.
 *
 * The sync itself is left out (the process does survive its power cuts), so tests with thousands of commits are fast;
 * every other operation reaches the real file. */
#ifndef TESTS_FAULTY_VFS_H
#define TESTS_FAULTY_VFS_H

#include <stdint.h>

#include <sqlite3.h>

/* ---- counting and failing I/O ---- */

/* Classes of operations; any sum of them is a selection. */
enum {
    FAULTY_OPEN = 1,
    FAULTY_DELETE = 2,
    FAULTY_READ = 4,
    FAULTY_WRITE = 8,
    FAULTY_TRUNCATE = 16,
    FAULTY_SYNC = 32,
    FAULTY_LOCK = 64,  /* taking a lock of the file or of the shared memory; giving one back is not counted */
    FAULTY_SHM = 128,  /* mapping shared memory */
    FAULTY_LOOK = 256, /* existence and size of a file */
    FAULTY_CHANGE = FAULTY_DELETE | FAULTY_WRITE | FAULTY_TRUNCATE | FAULTY_SYNC,
    FAULTY_ALL = 511,
};

/* How an operation fails; any sum. */
enum {
    FAULTY_ONWARD = 1, /* the N-th and all after it; without: the N-th alone */
    FAULTY_HALF = 2,   /* a failing write has written its first half, as on a disk that is full */
    /* A failing sync loses a random part of what it should have written, for good: as on Linux, where the pages count
     * as clean after it, and a second sync that succeeds proves nothing. Without: the next sync makes up for it. */
    FAULTY_LOST = 4,
};

/* Makes the shim the default VFS, over "unix". SQLITE_OK, or why not. Calling it again does nothing. */
int faulty_install(void);

/* Counts the operations of these classes from 0 and fails the n-th, n >= 1, with `code`; n = 0 only counts. */
void faulty_set(unsigned classes, uint64_t n, int flags, int code);

/* Only operations on paths that hold this text count ("-wal", a folder); NULL: all, as at first. */
void faulty_only(const char *text);

/* Disarms everything: I/O, callback, filter, SQLite's memory and the heap. The counts can still be read. */
void faulty_clear(void);

uint64_t faulty_count(void); /* operations since faulty_set */
uint64_t faulty_fired(void); /* how many of them were made to fail */

/* While the balance of this thread's calls, on = 1 and on = 0, is above zero, nothing of what it does is counted,
 * called back or made to fail: for the looks that a test takes. A callback runs like this. */
void faulty_pause(int on);

struct faulty_op {
    unsigned class;
    const char *path; /* NULL: a temporary file */
    uint64_t n;       /* as faulty_count */
    int done;         /* 0: it is about to happen, 1: it has, or was made to fail */
};

/* Calls back before and after the n-th operation that faulty_set counts; n = 0: at every one. The callback stands
 * inside SQLite's I/O: it may cut the power and open databases of its own, but not the database at work. */
void faulty_at(uint64_t n, void (*callback)(const struct faulty_op *op, void *user), void *user);

/* ---- power cut ---- */

/* Writes into to_dir, which exists, the database files of from_dir as a disk may hold them had the power gone at this
 * instant. What was synced is there. Of the rest each sector (512 or 4096 bytes) holds what it held at some moment
 * since the last sync, each its own, so writes are lost, torn and reordered; the size of the file, with its
 * truncations, has a moment of its own. Bytes within a size that never arrived are zero.
 * A file that existed when it was first opened counts as synced as it then was.
 * Memory holds each file as of its last sync and every write since: with synchronous=OFF that grows without end.
 *
 * The same seed and history give the same disk. Seed 0: nothing but what was synced. Seed 1: all that was written.
 *
 * Only files that SQLite opened through the shim are written, and never -shm: recovery rebuilds it. Before that the
 * databases of the same names in to_dir go, with their -wal, -shm and -journal. No file of from_dir is opened, as
 * closing it would drop the process's locks on it. 0, or -1 with errno. */
int faulty_power_cut(const char *from_dir, const char *to_dir, uint64_t seed);

/* on: a file made or deleted since its folder was last synced may be missing, or there again, after the cut.
 * Off at first: names are on the disk at once. SQLite's own syncs of a folder are known to the shim. */
void faulty_volatile_names(int on);

/* The code under test has itself synced this folder. */
void faulty_folder_synced(const char *dir);

/* Frees what is kept of files that are not open. What they hold counts as synced when they are opened again. */
void faulty_forget(void);

/* ---- SQLite's memory ---- */

/* Before sqlite3_initialize, which faulty_install and every open imply; else SQLITE_MISUSE. */
int faulty_malloc_install(void);
void faulty_malloc_fail(uint64_t n, int flags); /* counts from 0; n = 0 only counts; flags: FAULTY_ONWARD or 0 */
uint64_t faulty_malloc_count(void);
uint64_t faulty_malloc_fired(void);

/* ---- the C library's heap ---- */

/* These work in a program that is linked with
 *
 *     -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=strdup
 *
 * which reaches the calls in the objects and static libraries that are linked into the program, never those inside
 * shared libraries. Libraries that take an allocator are handed the wrapped one by name: in such a program
 * json_set_alloc_funcs(malloc, free) makes jansson fail too, and pcre2_general_context_create can be given functions
 * that call malloc. Without the flags all compiles and links, and nothing is counted or fails. The test's own
 * allocations count like any other. */
int faulty_heap_linked(void); /* whether the flags are there */
void faulty_heap_fail(uint64_t n, int flags);
uint64_t faulty_heap_count(void);
uint64_t faulty_heap_fired(void);

#endif
