/* Linux: Documentation/power/powercap/powercap.rst. intel-rapl:N are zones of the whole machine, of AMD's processors
 * too; intel-rapl:N:M are parts of them, and intel-rapl-mmio:N is the same package seen another way. Of the whole
 * ones "package-*" are added up; "psys", the platform, has them in it. energy_uj is root's alone (CVE-2020-8694). */
#include "energy/sensors.h"

#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "intel-rapl:12": 1. */
static int is_whole_zone(const char *name) {
    static const char prefix[] = "intel-rapl:";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return 0;
    name += sizeof prefix - 1;
    return *name && name[strspn(name, "0123456789")] == 0;
}

static int is_package(const char *name) {
    static const char prefix[] = "package-";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return 0;
    name += sizeof prefix - 1;
    return *name && name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-")] == 0;
}

static int counter_read(int folder, const char *zone, struct energy_counter *out) {
    char path[300];
    long long range, uj;
    snprintf(path, sizeof path, "%s/max_energy_range_uj", zone);
    if (!sensor_number(folder, path, 1, LLONG_MAX, &range)) return 0;
    snprintf(path, sizeof path, "%s/energy_uj", zone);
    if (!sensor_number(folder, path, 0, range, &uj)) return 0;
    out->uj = (uint64_t)uj;
    out->range = (uint64_t)range;
    return 1;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct energy_counter *)a)->name, ((const struct energy_counter *)b)->name);
}

int rapl_read(const char *sys_root, struct energy_counter out[RAPL_PACKAGES_MAX]) {
    struct energy_counter found[RAPL_PACKAGES_MAX];
    int n = 0, whole = 1;
    DIR *dir = sensor_folder(sys_root, "class/powercap");
    if (!dir) return 0;
    for (struct dirent *entry; whole && (entry = readdir(dir));) {
        char path[300], name[sizeof found[0].name];
        if (!is_whole_zone(entry->d_name)) continue;
        snprintf(path, sizeof path, "%s/name", entry->d_name);
        if (!sensor_line(dirfd(dir), path, name, sizeof name) || !is_package(name)) continue;
        for (int i = 0; i < n; i++) whole &= strcmp(found[i].name, name) != 0;
        whole = whole && n < RAPL_PACKAGES_MAX && counter_read(dirfd(dir), entry->d_name, &found[n]);
        if (whole) memcpy(found[n++].name, name, sizeof name);
    }
    closedir(dir);
    if (!whole) return 0;
    qsort(found, (size_t)n, sizeof *found, by_name);
    memcpy(out, found, (size_t)n * sizeof *found);
    return n;
}
