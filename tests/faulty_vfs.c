#include "tests/faulty_vfs.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- triggers ---- */

struct trigger {
    uint64_t count, fired;
    uint64_t at; /* 0: never */
    int flags;
};

/* How deep this thread is inside faulty_pause or a callback. */
static _Thread_local int paused;

static void arm(struct trigger *trigger, uint64_t at, int flags) {
    *trigger = (struct trigger){.at = at, .flags = flags};
}

static int pull(struct trigger *trigger) {
    uint64_t n = ++trigger->count;
    int fires = trigger->at && (n == trigger->at || (n > trigger->at && (trigger->flags & FAULTY_ONWARD)));
    trigger->fired += (uint64_t)fires;
    return fires;
}

static uint64_t read_figure(pthread_mutex_t *mutex, const uint64_t *figure) {
    pthread_mutex_lock(mutex);
    uint64_t value = *figure;
    pthread_mutex_unlock(mutex);
    return value;
}

/* ---- memory ---- */

/* A mutex of its own, which nothing allocates under: the shim allocates while it holds `lock`. */
static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;
static struct trigger sqlite_trigger, heap_trigger;
static sqlite3_mem_methods sqlite_memory;

/* The linker makes these of --wrap; weak, so that they may be missing. */
extern void *__real_malloc(size_t size) __attribute__((weak));
extern void *__real_calloc(size_t n, size_t size) __attribute__((weak));
extern void *__real_realloc(void *old, size_t size) __attribute__((weak));
extern char *__real_strdup(const char *text) __attribute__((weak));
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
char *__wrap_strdup(const char *text);

static int out_of_memory(struct trigger *trigger) {
    if (paused) return 0;
    pthread_mutex_lock(&memory_lock);
    int fires = pull(trigger);
    pthread_mutex_unlock(&memory_lock);
    if (fires) errno = ENOMEM;
    return fires;
}

static void arm_memory(struct trigger *trigger, uint64_t at, int flags) {
    pthread_mutex_lock(&memory_lock);
    arm(trigger, at, flags);
    pthread_mutex_unlock(&memory_lock);
}

void *__wrap_malloc(size_t size) { return out_of_memory(&heap_trigger) ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t n, size_t size) { return out_of_memory(&heap_trigger) ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *old, size_t size) { return out_of_memory(&heap_trigger) ? NULL : __real_realloc(old, size); }
char *__wrap_strdup(const char *text) { return out_of_memory(&heap_trigger) ? NULL : __real_strdup(text); }

int faulty_heap_linked(void) { return __real_malloc && __real_calloc && __real_realloc && __real_strdup; }
void faulty_heap_fail(uint64_t n, int flags) { arm_memory(&heap_trigger, n, flags); }
uint64_t faulty_heap_count(void) { return read_figure(&memory_lock, &heap_trigger.count); }
uint64_t faulty_heap_fired(void) { return read_figure(&memory_lock, &heap_trigger.fired); }

static void *sqlite_malloc(int size) { return out_of_memory(&sqlite_trigger) ? NULL : sqlite_memory.xMalloc(size); }

static void *sqlite_realloc(void *old, int size) {
    return out_of_memory(&sqlite_trigger) ? NULL : sqlite_memory.xRealloc(old, size);
}

int faulty_malloc_install(void) {
    sqlite3_mem_methods ours;
    if (sqlite_memory.xMalloc) return SQLITE_OK;
    int rc = sqlite3_config(SQLITE_CONFIG_GETMALLOC, &ours);
    if (rc != SQLITE_OK) return rc;
    sqlite3_mem_methods theirs = ours;
    ours.xMalloc = sqlite_malloc;
    ours.xRealloc = sqlite_realloc;
    /* Small allocations out of a connection's own pool could not fail one by one. */
    rc = sqlite3_config(SQLITE_CONFIG_LOOKASIDE, 0, 0);
    if (rc == SQLITE_OK) rc = sqlite3_config(SQLITE_CONFIG_MALLOC, &ours);
    if (rc == SQLITE_OK) sqlite_memory = theirs;
    return rc;
}

void faulty_malloc_fail(uint64_t n, int flags) { arm_memory(&sqlite_trigger, n, flags); }
uint64_t faulty_malloc_count(void) { return read_figure(&memory_lock, &sqlite_trigger.count); }
uint64_t faulty_malloc_fired(void) { return read_figure(&memory_lock, &sqlite_trigger.fired); }

/* The shim's own memory: neither counted nor failed. A test machine without any has no test to finish. */
static void *own(void *old, size_t size) {
    if (size == 0) size = 1;
    void *memory = __real_realloc ? __real_realloc(old, size) : realloc(old, size);
    if (!memory) abort();
    return memory;
}

/* ---- what the disk holds ---- */

struct image { /* bytes of size .. room are zero */
    unsigned char *bytes;
    size_t size, room;
};

struct event {
    uint64_t offset;
    size_t length;
    unsigned char *bytes; /* NULL: the file was given the size `offset` */
};

struct disk { /* a file, whatever its name: SQLite writes on in one that was deleted */
    int refs, handles;
    struct image durable; /* as of the last sync */
    struct event *events; /* since then, oldest first */
    size_t n, room;
};

struct name {
    struct name *next;
    struct disk *now, *durable; /* NULL: no such file; durable: as of the folder's last sync */
    char path[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below */
static struct name *names;
static int volatile_names;

static void image_resize(struct image *image, size_t size) {
    if (size > image->room) {
        size_t room = size + size / 2;
        image->bytes = own(image->bytes, room);
        memset(image->bytes + image->room, 0, room - image->room);
        image->room = room;
    }
    if (size < image->size) memset(image->bytes + size, 0, image->size - size);
    image->size = size;
}

static void image_put(struct image *image, size_t at, const unsigned char *bytes, size_t n) {
    if (at + n > image->size) image_resize(image, at + n);
    memcpy(image->bytes + at, bytes, n);
}

static struct image image_copy(const struct image *from) {
    struct image copy = {0};
    if (from->size) image_put(&copy, 0, from->bytes, from->size);
    return copy;
}

static void clear_events(struct disk *disk) {
    for (size_t i = 0; i < disk->n; i++) free(disk->events[i].bytes);
    disk->n = 0;
}

static struct disk *hold(struct disk *disk) {
    if (disk) disk->refs++;
    return disk;
}

static void drop(struct disk **ref) {
    struct disk *disk = *ref;
    *ref = NULL;
    if (!disk || --disk->refs > 0) return;
    clear_events(disk);
    free(disk->events);
    free(disk->durable.bytes);
    free(disk);
}

static struct disk *new_disk(struct image image) {
    struct disk *disk = own(NULL, sizeof *disk);
    *disk = (struct disk){.refs = 1, .durable = image};
    return disk;
}

static struct name *find_name(const char *path) {
    for (struct name *name = names; name; name = name->next)
        if (strcmp(name->path, path) == 0) return name;
    size_t size = strlen(path) + 1;
    struct name *name = own(NULL, sizeof *name + size);
    name->next = names;
    name->now = name->durable = NULL;
    memcpy(name->path, path, size);
    return names = name;
}

/* A write, or with no bytes a truncation or extension to `offset`, has reached the page cache. */
static void record_event(struct disk *disk, uint64_t offset, const void *bytes, size_t n) {
    if (!disk) return;
    struct event event = {.offset = offset, .length = n};
    if (bytes) event.bytes = memcpy(own(NULL, n), bytes, n);
    pthread_mutex_lock(&lock);
    if (disk->n == disk->room) {
        disk->room = 2 * disk->room + 64;
        disk->events = own(disk->events, disk->room * sizeof event);
    }
    disk->events[disk->n++] = event;
    pthread_mutex_unlock(&lock);
}

/* ---- chance ---- */

struct dice {
    uint64_t seed, salt;
    unsigned keep, lose; /* of 8 sectors: hold all, hold nothing of what is unsynced; the others stop in between */
    size_t sector;       /* bytes */
};

static const struct dice ALL = {.seed = 1, .sector = 4096};

/* The output function of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t roll(const struct dice *dice, uint64_t what) { return mix(mix(dice->seed ^ dice->salt) + what); }

/* Salted with the name in its folder: each file fares differently, and in any folder alike. */
static struct dice dice_of(uint64_t seed, const char *path) {
    struct dice dice = {.seed = seed};
    for (const char *c = strrchr(path, '/') + 1; *c; c++) dice.salt = mix(dice.salt + (unsigned char)*c);
    uint64_t mood = roll(&dice, UINT64_MAX - 1);
    dice.keep = mood % 9;
    dice.lose = (mood >> 8) % (9 - dice.keep);
    dice.sector = mood >> 16 & 1 ? 512 : 4096;
    return dice;
}

/* How many of n events had happened when this sector, or the size, last reached the disk. */
static size_t moment(const struct dice *dice, uint64_t sector, size_t n) {
    if (dice->seed <= 1) return dice->seed ? n : 0;
    uint64_t chance = roll(dice, sector);
    if (chance % 8 < dice->keep) return n;
    if (chance % 8 < dice->keep + dice->lose) return 0;
    return (size_t)((chance >> 8) % (n + 1));
}

/* Brings `image`, the durable one or a copy, to what the dice leave of the events. The page cache only ever writes a
 * sector as it is at that moment, so of the writes that touch a sector the first few persist. A truncation that
 * reached the disk has freed its sectors: nothing from before it comes back. */
static void replay(const struct disk *disk, const struct dice *dice, struct image *image) {
    size_t size = image->size, resized = moment(dice, UINT64_MAX, disk->n);
    for (size_t i = 0; i < disk->n; i++) {
        const struct event *event = &disk->events[i];
        if (!event->bytes) {
            if (i < resized) image_resize(image, size = event->offset);
            continue;
        }
        for (size_t done = 0; done < event->length;) {
            size_t at = event->offset + done, piece = dice->sector - at % dice->sector;
            if (piece > event->length - done) piece = event->length - done;
            if (i < moment(dice, at / dice->sector, disk->n)) image_put(image, at, event->bytes + done, piece);
            done += piece;
        }
        size_t end = event->offset + event->length;
        if (i < resized && end > size) size = end;
    }
    image_resize(image, size);
}

/* ---- power cut ---- */

static int in_folder(const char *path, const char *folder) {
    size_t n = (size_t)(strrchr(path, '/') - path);
    return strncmp(path, folder, n) == 0 && folder[n] == '\0';
}

/* The caller holds the lock. */
static void sync_folder(const char *folder) {
    for (struct name *name = names; name; name = name->next) {
        if (!in_folder(name->path, folder)) continue;
        struct disk *was = name->durable;
        name->durable = hold(name->now);
        drop(&was);
    }
}

static void sync_folder_of(const char *path) {
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
    sync_folder(folder);
}

static struct disk *survivor(const struct name *name, uint64_t seed) {
    struct dice dice = dice_of(seed, name->path);
    if (!volatile_names || seed == 1) return name->now;
    if (seed == 0) return name->durable;
    switch (roll(&dice, UINT64_MAX - 2) % 4) {
    case 0:
        return name->durable;
    /* Deleted and made again: the cut may have come in between. */
    case 1:
        return name->durable == name->now ? name->now : NULL;
    default:
        return name->now;
    }
}

static int write_image(const char *path, const struct image *image) {
    FILE *file = fopen(path, "wb");
    if (!file) return -1;
    int failed = fwrite(image->bytes ? image->bytes : (const void *)"", 1, image->size, file) != image->size;
    return fclose(file) != 0 || failed ? -1 : 0;
}

/* "to_dir/name" + suffix. */
static int target(char path[PATH_MAX], const char *to_dir, const struct name *name, const char *suffix) {
    int n = snprintf(path, PATH_MAX, "%s%s%s", to_dir, strrchr(name->path, '/'), suffix);
    if (n > 0 && n < PATH_MAX) return 0;
    errno = ENAMETOOLONG;
    return -1;
}

static int remove_old(const char *to_dir, const struct name *name) {
    static const char *const suffixes[] = {"", "-wal", "-shm", "-journal"};
    char path[PATH_MAX];
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        if (target(path, to_dir, name, suffixes[i]) != 0) return -1;
        if (unlink(path) != 0 && errno != ENOENT) return -1;
    }
    return 0;
}

static int write_survivor(const char *to_dir, const struct name *name, uint64_t seed) {
    struct disk *disk = survivor(name, seed);
    char path[PATH_MAX];
    if (!disk) return 0;
    if (target(path, to_dir, name, "") != 0) return -1;
    struct dice dice = dice_of(seed, name->path);
    struct image image = image_copy(&disk->durable);
    replay(disk, &dice, &image);
    int rc = write_image(path, &image);
    free(image.bytes);
    return rc;
}

int faulty_power_cut(const char *from_dir, const char *to_dir, uint64_t seed) {
    char from[PATH_MAX];
    int rc = 0;
    if (!realpath(from_dir, from)) return -1;
    pthread_mutex_lock(&lock); /* to the end: no file may be of another instant than the rest */
    for (struct name *name = names; name && rc == 0; name = name->next)
        if (in_folder(name->path, from)) rc = remove_old(to_dir, name);
    for (struct name *name = names; name && rc == 0; name = name->next)
        if (in_folder(name->path, from)) rc = write_survivor(to_dir, name, seed);
    pthread_mutex_unlock(&lock);
    return rc;
}

void faulty_volatile_names(int on) {
    pthread_mutex_lock(&lock);
    volatile_names = on;
    pthread_mutex_unlock(&lock);
}

void faulty_folder_synced(const char *dir) {
    char folder[PATH_MAX];
    if (!realpath(dir, folder)) return;
    pthread_mutex_lock(&lock);
    sync_folder(folder);
    pthread_mutex_unlock(&lock);
}

void faulty_forget(void) {
    pthread_mutex_lock(&lock);
    for (struct name **link = &names; *link;) {
        struct name *name = *link;
        if (name->now && name->now->handles > 0) {
            link = &name->next;
            continue;
        }
        *link = name->next;
        drop(&name->now);
        drop(&name->durable);
        free(name);
    }
    pthread_mutex_unlock(&lock);
}

/* ---- counting and failing ---- */

static struct {
    struct trigger trigger;
    unsigned classes;
    int code;
    char only[PATH_MAX]; /* what is longer matches no path */
    uint64_t at;         /* 0: every one */
    void (*callback)(const struct faulty_op *op, void *user);
    void *user;
} io;

struct call {
    struct faulty_op op;
    int flags; /* how it fails */
    void (*callback)(const struct faulty_op *op, void *user);
    void *user;
};

static void call_back(struct call *call, int done) {
    if (!call->callback) return;
    call->op.done = done;
    faulty_pause(1);
    call->callback(&call->op, call->user);
    faulty_pause(0);
}

/* Stands before every operation: SQLITE_OK, or what it must fail with. */
static int enter(struct call *call, unsigned class, const char *path) {
    int rc = SQLITE_OK;
    *call = (struct call){.op = {.class = class, .path = path}};
    if (paused) return rc;
    pthread_mutex_lock(&lock);
    if ((class & io.classes) && (!io.only[0] || (path && strstr(path, io.only)))) {
        if (pull(&io.trigger)) rc = io.code;
        call->op.n = io.trigger.count;
        call->flags = io.trigger.flags;
        call->callback = io.at == 0 || io.at == call->op.n ? io.callback : NULL;
        call->user = io.user;
    }
    pthread_mutex_unlock(&lock);
    call_back(call, 0);
    return rc;
}

static int leave(struct call *call, int rc) {
    call_back(call, 1);
    return rc;
}

void faulty_set(unsigned classes, uint64_t n, int flags, int code) {
    pthread_mutex_lock(&lock);
    arm(&io.trigger, n, flags);
    io.classes = classes;
    io.code = code;
    pthread_mutex_unlock(&lock);
}

void faulty_only(const char *text) {
    pthread_mutex_lock(&lock);
    snprintf(io.only, sizeof io.only, "%s", text ? text : "");
    pthread_mutex_unlock(&lock);
}

void faulty_at(uint64_t n, void (*callback)(const struct faulty_op *op, void *user), void *user) {
    pthread_mutex_lock(&lock);
    io.at = n;
    io.callback = callback;
    io.user = user;
    pthread_mutex_unlock(&lock);
}

void faulty_clear(void) {
    pthread_mutex_lock(&lock);
    io.classes = 0;
    io.only[0] = '\0';
    io.callback = NULL;
    pthread_mutex_unlock(&lock);
    pthread_mutex_lock(&memory_lock);
    sqlite_trigger.at = heap_trigger.at = 0;
    pthread_mutex_unlock(&memory_lock);
}

void faulty_pause(int on) { paused += on ? 1 : -1; }

uint64_t faulty_count(void) { return read_figure(&lock, &io.trigger.count); }
uint64_t faulty_fired(void) { return read_figure(&lock, &io.trigger.fired); }

/* ---- an open file ---- */

struct handle {
    sqlite3_file base;
    struct disk *disk; /* NULL: a temporary file, which no power cut leaves */
    const char *path;  /* SQLite's, alive until xClose */
    int syncs_folder;  /* its next sync is one of the folder too */
    sqlite3_file *real;
};

/* The real file's own struct follows, aligned for anything. */
enum { HANDLE_SIZE = (sizeof(struct handle) + 15) / 16 * 16 };

static struct handle *handle_of(sqlite3_file *file) { return (struct handle *)file; }
static sqlite3_file *real_of(sqlite3_file *file) { return handle_of(file)->real; }

static int io_close(sqlite3_file *file) {
    struct handle *h = handle_of(file);
    int rc = h->real->pMethods->xClose(h->real);
    pthread_mutex_lock(&lock);
    if (h->disk) h->disk->handles--;
    drop(&h->disk);
    pthread_mutex_unlock(&lock);
    return rc;
}

static int io_read(sqlite3_file *file, void *bytes, int n, sqlite3_int64 offset) {
    struct call call;
    int rc = enter(&call, FAULTY_READ, handle_of(file)->path);
    if (rc == SQLITE_OK) rc = real_of(file)->pMethods->xRead(real_of(file), bytes, n, offset);
    return leave(&call, rc);
}

static int io_write(sqlite3_file *file, const void *bytes, int n, sqlite3_int64 offset) {
    struct handle *h = handle_of(file);
    struct call call;
    int rc = enter(&call, FAULTY_WRITE, h->path);
    if (rc != SQLITE_OK) n = call.flags & FAULTY_HALF ? n / 2 : 0;
    if (n > 0) {
        int written = h->real->pMethods->xWrite(h->real, bytes, n, offset);
        if (written == SQLITE_OK) record_event(h->disk, (uint64_t)offset, bytes, (size_t)n);
        if (rc == SQLITE_OK) rc = written;
    }
    return leave(&call, rc);
}

static int io_truncate(sqlite3_file *file, sqlite3_int64 size) {
    struct handle *h = handle_of(file);
    struct call call;
    int rc = enter(&call, FAULTY_TRUNCATE, h->path);
    if (rc == SQLITE_OK) rc = h->real->pMethods->xTruncate(h->real, size);
    if (rc == SQLITE_OK) record_event(h->disk, (uint64_t)size, NULL, 0);
    return leave(&call, rc);
}

static int io_sync(sqlite3_file *file, int flags) {
    struct handle *h = handle_of(file);
    struct call call;
    (void)flags;
    int rc = enter(&call, FAULTY_SYNC, h->path);
    int lost = rc != SQLITE_OK && (call.flags & FAULTY_LOST);
    pthread_mutex_lock(&lock);
    if (h->disk && (rc == SQLITE_OK || lost)) {
        struct dice dice = lost ? dice_of(call.op.n + 1, h->path) : ALL;
        replay(h->disk, &dice, &h->disk->durable);
        clear_events(h->disk);
    }
    if (rc == SQLITE_OK && h->disk && h->syncs_folder) {
        sync_folder_of(h->path);
        h->syncs_folder = 0;
    }
    pthread_mutex_unlock(&lock);
    return leave(&call, rc);
}

static int io_size(sqlite3_file *file, sqlite3_int64 *size) {
    struct call call;
    int rc = enter(&call, FAULTY_LOOK, handle_of(file)->path);
    if (rc == SQLITE_OK) rc = real_of(file)->pMethods->xFileSize(real_of(file), size);
    return leave(&call, rc);
}

static int io_lock(sqlite3_file *file, int level) {
    struct call call;
    int rc = enter(&call, FAULTY_LOCK, handle_of(file)->path);
    if (rc == SQLITE_OK) rc = real_of(file)->pMethods->xLock(real_of(file), level);
    return leave(&call, rc);
}

static int io_shm_map(sqlite3_file *file, int region, int size, int extend, void volatile **memory) {
    struct call call;
    int rc = enter(&call, FAULTY_SHM, handle_of(file)->path);
    if (rc == SQLITE_OK) rc = real_of(file)->pMethods->xShmMap(real_of(file), region, size, extend, memory);
    return leave(&call, rc);
}

static int io_shm_lock(sqlite3_file *file, int offset, int n, int flags) {
    struct call call = {0};
    int rc = flags & SQLITE_SHM_LOCK ? enter(&call, FAULTY_LOCK, handle_of(file)->path) : SQLITE_OK;
    if (rc == SQLITE_OK) rc = real_of(file)->pMethods->xShmLock(real_of(file), offset, n, flags);
    return leave(&call, rc);
}

static int io_unlock(sqlite3_file *file, int level) { return real_of(file)->pMethods->xUnlock(real_of(file), level); }
static int io_reserved(sqlite3_file *file, int *is) {
    return real_of(file)->pMethods->xCheckReservedLock(real_of(file), is);
}
static int io_control(sqlite3_file *file, int op, void *arg) {
    return real_of(file)->pMethods->xFileControl(real_of(file), op, arg);
}
static int io_sector_size(sqlite3_file *file) { return real_of(file)->pMethods->xSectorSize(real_of(file)); }
static int io_traits(sqlite3_file *file) { return real_of(file)->pMethods->xDeviceCharacteristics(real_of(file)); }
static void io_shm_barrier(sqlite3_file *file) { real_of(file)->pMethods->xShmBarrier(real_of(file)); }
static int io_shm_unmap(sqlite3_file *file, int delete) {
    return real_of(file)->pMethods->xShmUnmap(real_of(file), delete);
}
static int io_fetch(sqlite3_file *file, sqlite3_int64 offset, int n, void **memory) {
    return real_of(file)->pMethods->xFetch(real_of(file), offset, n, memory);
}
static int io_unfetch(sqlite3_file *file, sqlite3_int64 offset, void *memory) {
    return real_of(file)->pMethods->xUnfetch(real_of(file), offset, memory);
}

static const sqlite3_io_methods io_methods = {
    .iVersion = 3,
    .xClose = io_close,
    .xRead = io_read,
    .xWrite = io_write,
    .xTruncate = io_truncate,
    .xSync = io_sync,
    .xFileSize = io_size,
    .xLock = io_lock,
    .xUnlock = io_unlock,
    .xCheckReservedLock = io_reserved,
    .xFileControl = io_control,
    .xSectorSize = io_sector_size,
    .xDeviceCharacteristics = io_traits,
    .xShmMap = io_shm_map,
    .xShmLock = io_shm_lock,
    .xShmBarrier = io_shm_barrier,
    .xShmUnmap = io_shm_unmap,
    .xFetch = io_fetch,
    .xUnfetch = io_unfetch,
};

/* ---- the file system ---- */

static sqlite3_vfs *real_vfs;

static int read_image(sqlite3_file *real, struct image *image) {
    sqlite3_int64 size;
    int rc;
    do { /* again when another process has made the file shorter meanwhile */
        rc = real->pMethods->xFileSize(real, &size);
        if (rc != SQLITE_OK) return rc;
        if (size > INT_MAX) return SQLITE_TOOBIG;
        image_resize(image, (size_t)size);
        if (size == 0) return SQLITE_OK;
        rc = real->pMethods->xRead(real, image->bytes, (int)size, 0);
    } while (rc == SQLITE_IOERR_SHORT_READ);
    return rc;
}

/* Whether the file holds what the shim thinks it does. */
static int unchanged(const struct disk *disk, const struct image *image) {
    struct image expected = image_copy(&disk->durable);
    replay(disk, &ALL, &expected);
    int same = expected.size == image->size && (!image->size || memcmp(expected.bytes, image->bytes, image->size) == 0);
    free(expected.bytes);
    return same;
}

/* Finds or begins the file's history; the caller holds the lock. One that was changed or made by others, while
 * nobody here had it open, is taken as it is. */
static int adopt(struct handle *h, int existed) {
    struct name *name = find_name(h->path);
    if (!existed) {
        if (name->now) drop(&name->durable);
        drop(&name->now);
        name->now = new_disk((struct image){0});
    } else if (!name->now || name->now->handles == 0) {
        struct image image = {0};
        int rc = read_image(h->real, &image);
        if (rc != SQLITE_OK || (name->now && unchanged(name->now, &image))) {
            free(image.bytes);
            if (rc != SQLITE_OK) return rc;
        } else {
            drop(&name->durable);
            drop(&name->now);
            name->now = new_disk(image);
            name->durable = hold(name->now);
        }
    }
    h->disk = hold(name->now);
    h->disk->handles++;
    return SQLITE_OK;
}

static int open_real(struct handle *h, int flags, int *flags_out) {
    struct stat info;
    int tracked = h->path && !(flags & SQLITE_OPEN_DELETEONCLOSE);
    /* xAccess calls an empty file missing. */
    int existed = tracked && stat(h->path, &info) == 0;
    int rc = real_vfs->xOpen(real_vfs, h->path, h->real, flags, flags_out);
    if (rc == SQLITE_OK && tracked) rc = adopt(h, existed);
    if (rc != SQLITE_OK && h->real->pMethods) h->real->pMethods->xClose(h->real);
    return rc;
}

static int vfs_open(sqlite3_vfs *vfs, const char *path, sqlite3_file *file, int flags, int *flags_out) {
    /* The "unix" VFS syncs the folder with the first sync of a journal that it may have made. */
    const int journals = SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL;
    struct handle *h = handle_of(file);
    struct call call;
    (void)vfs;
    *h = (struct handle){.path = path, .real = (sqlite3_file *)((char *)file + HANDLE_SIZE)};
    h->real->pMethods = NULL;
    h->syncs_folder = (flags & SQLITE_OPEN_CREATE) && (flags & journals);
    int rc = enter(&call, FAULTY_OPEN, path);
    if (rc == SQLITE_OK) {
        pthread_mutex_lock(&lock); /* whether it existed must still hold when it is open */
        rc = open_real(h, flags, flags_out);
        pthread_mutex_unlock(&lock);
    }
    if (rc == SQLITE_OK) h->base.pMethods = &io_methods;
    return leave(&call, rc);
}

static int vfs_delete(sqlite3_vfs *vfs, const char *path, int sync) {
    struct call call;
    (void)vfs;
    int rc = enter(&call, FAULTY_DELETE, path);
    if (rc == SQLITE_OK) {
        pthread_mutex_lock(&lock);
        rc = real_vfs->xDelete(real_vfs, path, 0);
        if (rc == SQLITE_OK) {
            drop(&find_name(path)->now);
            if (sync) sync_folder_of(path);
        }
        pthread_mutex_unlock(&lock);
    }
    return leave(&call, rc);
}

static int vfs_access(sqlite3_vfs *vfs, const char *path, int flags, int *answer) {
    struct call call;
    (void)vfs;
    int rc = enter(&call, FAULTY_LOOK, path);
    if (rc == SQLITE_OK) rc = real_vfs->xAccess(real_vfs, path, flags, answer);
    return leave(&call, rc);
}

int faulty_install(void) {
    static sqlite3_vfs vfs;
    if (real_vfs) return SQLITE_OK;
    sqlite3_vfs *found = sqlite3_vfs_find("unix");
    if (!found) return SQLITE_ERROR;
    real_vfs = found;
    /* What is not replaced runs with the shim's vfs as its argument, which has all that "unix" looks at. */
    vfs = *found;
    vfs.pNext = NULL;
    vfs.zName = "faulty";
    vfs.szOsFile = HANDLE_SIZE + found->szOsFile;
    vfs.xOpen = vfs_open;
    vfs.xDelete = vfs_delete;
    vfs.xAccess = vfs_access;
    return sqlite3_vfs_register(&vfs, 1);
}
