#include "cli/service_units.h"

#include <stdlib.h>
#include <string.h>

/* @EXECUTABLE@ and @HOME@ are put in. What a manager of its own, or an older one, cannot give a user's service is left
 * out by it, in silence: no line here keeps the service from starting.
 *
 * No PrivateNetwork: the kernel tells of a pulled charger through a netlink socket of the network namespace that the
 * devices are in, and a namespace of the service's own hears nothing. Sockets of the internet are refused by family
 * instead. No PrivateUsers: a kernel that allows users no namespaces would refuse to start it; from version 253 on the
 * manager takes one by itself where ProtectSystem needs it. Nothing that lowers capabilities (ProtectClock,
 * ProtectKernelModules, CapabilityBoundingSet): a user's manager may not, and the service would fail to start. No
 * ProcSubset: pressure and memory are read in /proc. */
static const char service_template[] = UNIT_MARKER
    " Changes are lost with the next install; put yours into a drop-in.\n"
    "[Unit]\n"
    "Description=Nightly training of a personal language model\n"
    "\n"
    "[Service]\n"
    "Type=notify\n"
    "ExecStart=\"@EXECUTABLE@\" nightly --home \"@HOME@\"\n"
    "# Not now, or not finished: the next call goes on.\n"
    "SuccessExitStatus=3\n"
    "TimeoutStartSec=10min\n"
    "WatchdogSec=5min\n"
    "# It stops within moments, and needs the rest for its checkpoint.\n"
    "TimeoutStopSec=30s\n"
    "\n"
    "# Behind everything else. Threads, share of time and memory are set in attune.conf; this is the last fence.\n"
    "Nice=19\n"
    "CPUSchedulingPolicy=idle\n"
    "IOSchedulingClass=idle\n"
    "CPUWeight=1\n"
    "IOWeight=1\n"
    "MemoryMax=50%\n"
    "TasksMax=256\n"
    "OOMScoreAdjust=500\n"
    "# A core dump would hold what was recorded.\n"
    "LimitCORE=0\n"
    "\n"
    "# No network. Not PrivateNetwork=: the kernel's word of a pulled charger comes over netlink, of the network\n"
    "# namespace that the devices are in. AF_UNIX: the message bus (idleness) and the notices to systemd.\n"
    "RestrictAddressFamilies=AF_UNIX AF_NETLINK\n"
    "IPAddressDeny=any\n"
    "\n"
    "NoNewPrivileges=yes\n"
    "ProtectSystem=strict\n"
    "ReadWritePaths=\"@HOME@\"\n"
    "PrivateTmp=yes\n"
    "ProtectKernelTunables=yes\n"
    "ProtectControlGroups=yes\n"
    "MemoryDenyWriteExecute=yes\n"
    "LockPersonality=yes\n"
    "RestrictNamespaces=yes\n"
    "RestrictRealtime=yes\n"
    "RestrictSUIDSGID=yes\n"
    "SystemCallArchitectures=native\n"
    "SystemCallFilter=@system-service\n"
    "SystemCallErrorNumber=EPERM\n"
    "UMask=0077\n";

static const char timer_template[] = UNIT_MARKER
    " Changes are lost with the next install; put yours into a drop-in.\n"
    "[Unit]\n"
    "Description=Calls attune nightly, which decides by itself whether it may begin\n"
    "\n"
    "[Timer]\n"
    "# Often, for a call that may not begin costs a few milliseconds: window, charger and all the rest are in\n"
    "# attune.conf, and `attune nightly --explain` tells what they say. Wakes no sleeping device.\n"
    "OnCalendar=*:0/20\n"
    "RandomizedDelaySec=2min\n"
    "AccuracySec=1min\n"
    "Persistent=yes\n"
    "\n"
    "[Install]\n"
    "WantedBy=timers.target\n";

/* ---- text ---- */

struct text {
    char *at;
    size_t n, room;
    bool failed;
};

static void add(struct text *text, const char *from, size_t n) {
    if (text->failed) return;
    if (text->room - text->n <= n) {
        size_t room = 2 * text->room + n + 256;
        char *at = realloc(text->at, room);
        if (!at) {
            text->failed = true;
            return;
        }
        text->at = at;
        text->room = room;
    }
    memcpy(text->at + text->n, from, n);
    text->n += n;
    text->at[text->n] = '\0';
}

static char *finish(struct text *text) {
    if (!text->failed) return text->at;
    free(text->at);
    return NULL;
}

/* Inside of double quotes of a unit: % begins a specifier. */
static void add_unit_path(struct text *text, const char *path) {
    for (; *path; path++) add(text, *path == '%' ? "%%" : path, *path == '%' ? 2 : 1);
}

static char *fill(const char *template, const char *executable, const char *home) {
    struct text text = {0};
    while (*template) {
        const char *value = strncmp(template, "@EXECUTABLE@", 12) == 0 ? executable
                            : strncmp(template, "@HOME@", 6) == 0      ? home
                                                                       : NULL;
        if (value)
            add_unit_path(&text, value);
        else
            add(&text, template, 1);
        template += !value ? 1 : value == executable ? 12 : 6;
    }
    return finish(&text);
}

/* What systemd, or a shell of cron, would take for something else. */
static bool is_plain(const char *path) {
    if (path[0] != '/') return false;
    for (const char *c = path; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127 || strchr("\"\\$'", *c)) return false;
    return path[strlen(path) - 1] != ' ';
}

int units_make(const char *executable, const char *home, char **service, char **timer) {
    const char *wrong = !is_plain(executable) ? executable : !is_plain(home) ? home : NULL;
    if (wrong)
        return cli_fail_text(
            "a path with quotes, backslashes, dollars or control characters cannot be put into a unit: "
            "use another one (%s)",
            wrong);
    *service = fill(service_template, executable, home);
    *timer = fill(timer_template, executable, home);
    if (*service && *timer) return CLI_GO;
    free(*service);
    free(*timer);
    return cli_fail_text("out of memory");
}

/* cron takes % for the end of the command, whatever quotes are around it. */
static void add_cron_path(struct text *text, const char *path) {
    add(text, "'", 1);
    for (; *path; path++) {
        if (*path == '%') add(text, "\\", 1);
        add(text, path, 1);
    }
    add(text, "'", 1);
}

char *units_crontab(const char *executable, const char *home) {
    struct text text = {0};
    add(&text, "*/20 * * * * ", 13);
    add_cron_path(&text, executable);
    add(&text, " nightly --home ", 16);
    add_cron_path(&text, home);
    add(&text, " >/dev/null", 11);
    return finish(&text);
}
