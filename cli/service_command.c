#define _GNU_SOURCE
#include "cli/cli.h"

#include "cli/service_units.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* ---- what the units are about ---- */

struct service {
    const struct cli *cli;
    char executable[PATH_MAX], home[PATH_MAX], folder[PATH_MAX];
    char service_path[PATH_MAX + 32], timer_path[PATH_MAX + 32];
    char *service, *timer, *crontab; /* owned */
};

static void service_free(struct service *s) {
    free(s->service);
    free(s->timer);
    free(s->crontab);
}

static int find_executable(char out[PATH_MAX]) {
    ssize_t n = readlink("/proc/self/exe", out, PATH_MAX - 1);
    if (n <= 0) return cli_fail_text("cannot find this program's own file: %s", strerror(errno));
    out[n] = '\0';
    if (access(out, X_OK) == 0) return CLI_GO;
    return cli_fail_text("this program's file is not there any more: call the one that is installed now (%s)", out);
}

/* The home need not be there any more for `remove`. */
static int find_home(const struct cli *cli, char out[PATH_MAX]) {
    char path[PATH_MAX];
    size_t n = attune_home_path(cli->home, path, sizeof path);
    if (n == 0 || n >= sizeof path) return cli_fail_text("no home: give --home, or set ATTUNE_HOME or HOME");
    if (realpath(path, out)) return CLI_GO;
    if (path[0] != '/') return cli_fail_text("there is no such home: %s (%s)", strerror(errno), path);
    memcpy(out, path, n + 1);
    return CLI_GO;
}

/* A relative or empty variable counts as unset (XDG Base Directory Specification). */
static int find_folder(char out[PATH_MAX]) {
    const char *config = getenv("XDG_CONFIG_HOME"), *user = getenv("HOME");
    bool is_config = config && config[0] == '/';
    if (!is_config && (!user || user[0] != '/'))
        return cli_fail_text("there is no place for the units: set XDG_CONFIG_HOME or HOME");
    int n = snprintf(out, PATH_MAX, "%s%s/systemd/user", is_config ? config : user, is_config ? "" : "/.config");
    return n > 0 && n < PATH_MAX ? CLI_GO : cli_fail_text("the path of the folder for the units is too long");
}

static int service_make(const struct cli *cli, struct service *s) {
    *s = (struct service){.cli = cli};
    int code = find_executable(s->executable);
    if (code == CLI_GO) code = find_home(cli, s->home);
    if (code == CLI_GO) code = find_folder(s->folder);
    if (code == CLI_GO) code = units_make(s->executable, s->home, &s->service, &s->timer);
    if (code != CLI_GO) return code;
    s->crontab = units_crontab(s->executable, s->home);
    snprintf(s->service_path, sizeof s->service_path, "%s/%s", s->folder, SERVICE_NAME);
    snprintf(s->timer_path, sizeof s->timer_path, "%s/%s", s->folder, TIMER_NAME);
    return s->crontab ? CLI_GO : cli_fail_text("out of memory");
}

/* ---- systemctl ---- */

enum { WORDS_MAX = 8, SYSTEMCTL_SECONDS = 60 };

/* What it said, of both streams, to its end; what there is no room for is dropped. false: it says nothing for too
 * long. */
static bool read_answer(int fd, char *out, size_t size) {
    char rest[512];
    size_t n = 0;
    ssize_t got = -1;
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    while (poll(&ready, 1, SYSTEMCTL_SECONDS * 1000) > 0) {
        bool full = n + 1 >= size;
        got = read(fd, full ? rest : out + n, full ? sizeof rest : size - 1 - n);
        if (got <= 0) break;
        if (!full) n += (size_t)got;
    }
    out[n] = '\0';
    return got == 0;
}

/* systemctl --user WORDS, the words up to NULL. Its exit code; -1: there is none to be had, and *answer says why. */
static int systemctl(const char *const *words, char *answer, size_t size) {
    char *argv[WORDS_MAX + 3] = {(char *)"systemctl", (char *)"--user"};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t pipe_alone;
    int fds[2], status = 0;
    pid_t pid;
    for (size_t i = 0; i < WORDS_MAX && words[i]; i++) argv[i + 2] = (char *)words[i];
    *answer = '\0';
    if (pipe2(fds, O_CLOEXEC) != 0) {
        snprintf(answer, size, "%s", strerror(errno));
        return -1;
    }
    sigemptyset(&pipe_alone);
    sigaddset(&pipe_alone, SIGPIPE); /* this program ignores it; that one need not */
    int wrong = posix_spawn_file_actions_init(&actions);
    if (!wrong) wrong = posix_spawnattr_init(&attributes);
    if (!wrong) wrong = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (!wrong) wrong = posix_spawn_file_actions_adddup2(&actions, fds[1], 1);
    if (!wrong) wrong = posix_spawn_file_actions_adddup2(&actions, fds[1], 2);
    if (!wrong) wrong = posix_spawnattr_setsigdefault(&attributes, &pipe_alone);
    if (!wrong) wrong = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    if (!wrong) wrong = posix_spawnp(&pid, "systemctl", &actions, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    close(fds[1]);
    if (!wrong && !read_answer(fds[0], answer, size)) kill(pid, SIGKILL);
    close(fds[0]);
    if (wrong) {
        snprintf(answer, size, "%s", strerror(wrong));
        return -1;
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define SYSTEMCTL(answer, ...) systemctl((const char *const[WORDS_MAX]){__VA_ARGS__}, answer, sizeof(answer))

/* The first line of what systemctl said. */
static int fail_systemctl(const char *what, char *answer) {
    answer[strcspn(answer, "\n")] = '\0';
    return cli_fail_text("systemctl --user %s failed: %s", what, *answer ? answer : "it does not say why");
}

static bool has_manager(void) {
    char answer[512];
    return SYSTEMCTL(answer, "show", "--property=Version") == 0;
}

/* A system without systemd, or a login without a manager of its own (su, a container). */
static int no_manager(const struct service *s, bool removed) {
    if (s->cli->json) {
        int code = cli_json(json_pack("{s:b, s:o}", "systemd", 0, "crontab", cli_json_text(s->crontab)));
        if (code != CLI_DONE) return code;
    } else {
        cli_print(removed ? "If cron calls attune, take this line out with `crontab -e`:\n\n%s\n"
                          : "cron can do it: add this line with `crontab -e`\n\n%s\n",
                  s->crontab);
    }
    return cli_fail_text("there is no systemd user manager here");
}

/* ---- unit files ---- */

enum { UNIT_MAX = 65536 };

/* What the path holds: malloc'ed in *text, NULL: nothing is there. Refused: what attune has not written. */
static int read_unit(const char *path, char **text) {
    struct stat st;
    *text = NULL;
    if (lstat(path, &st) != 0) {
        if (errno == ENOENT || errno == ENOTDIR) return CLI_GO;
        return cli_fail_text("cannot look at the unit: %s (%s)", strerror(errno), path);
    }
    int fd = S_ISREG(st.st_mode) ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK) : -1;
    char *read_text = fd >= 0 ? calloc(1, UNIT_MAX) : NULL;
    ssize_t n = read_text ? read(fd, read_text, UNIT_MAX - 1) : 0;
    if (fd >= 0) close(fd);
    if (n > 0 && strncmp(read_text, UNIT_MARKER, sizeof UNIT_MARKER - 1) == 0) {
        *text = read_text;
        return CLI_GO;
    }
    free(read_text);
    return cli_fail_text("attune has not written this unit, and leaves it alone: move it away first (%s)", path);
}

/* One timer serves one home. */
static int check_home(const struct service *s, const char *there) {
    static const char key[] = "ReadWritePaths=";
    const char *old = strstr(there, key), *new = strstr(s->service, key);
    size_t n = old ? strcspn(old, "\n") : 0;
    if (!old || (strncmp(old, new, n) == 0 && new[n] == '\n')) return CLI_GO;
    return cli_fail_text("the timer is installed for another home: `attune service remove` comes first (%.*s)",
                         (int)(n - sizeof key + 1), old + sizeof key - 1);
}

static int make_folders(const char *folder) {
    char part[PATH_MAX];
    snprintf(part, sizeof part, "%s", folder);
    for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(part, 0700) != 0 && errno != EEXIST)
            return cli_fail_text("cannot make the folder for the units: %s (%s)", strerror(errno), part);
        *slash = '/';
    }
    if (mkdir(folder, 0755) == 0 || errno == EEXIST) return CLI_GO;
    return cli_fail_text("cannot make the folder for the units: %s (%s)", strerror(errno), folder);
}

/* Whole or not at all. *changed is left alone when it stands there already. */
static int write_unit(const char *path, const char *text, bool *changed) {
    char *there, temporary[PATH_MAX + 64];
    int code = read_unit(path, &there);
    if (code != CLI_GO) return code;
    bool same = there && strcmp(there, text) == 0;
    free(there);
    if (same) return CLI_GO;
    *changed = true;
    snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid());
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    size_t n = strlen(text);
    bool written = fd >= 0 && write(fd, text, n) == (ssize_t)n && fsync(fd) == 0;
    int why = errno;
    if (fd >= 0) close(fd);
    if (written && rename(temporary, path) == 0) return CLI_GO;
    if (written) why = errno;
    unlink(temporary);
    return cli_fail_text("cannot write the unit: %s (%s)", strerror(why), path);
}

static int remove_unit(const char *path, bool *removed) {
    char *there;
    int code = read_unit(path, &there);
    if (code != CLI_GO || !there) return code;
    free(there);
    if (unlink(path) != 0) return cli_fail_text("cannot remove the unit: %s (%s)", strerror(errno), path);
    *removed = true;
    return CLI_GO;
}

/* ---- install ---- */

static int print_units(const struct service *s) {
    if (s->cli->json)
        return cli_json(json_pack("{s:o, s:o, s:o, s:o}", "folder", cli_json_text(s->folder), "service",
                                  cli_json_text(s->service), "timer", cli_json_text(s->timer), "crontab",
                                  cli_json_text(s->crontab)));
    cli_print("# %s\n%s\n# %s\n%s", s->service_path, s->service, s->timer_path, s->timer);
    return CLI_DONE;
}

static int check_installable(const struct service *s) {
    attune_error err = {0};
    attune_status status;
    char *there;
    ATTUNE_INIT(status);
    if (attune_home_status(s->cli->home, &status, &err) != ATTUNE_OK) return cli_fail(&err);
    int code = read_unit(s->service_path, &there);
    if (code == CLI_GO && there) code = check_home(s, there);
    free(there);
    return code;
}

static int install(const struct service *s) {
    char answer[1024];
    bool changed = false;
    int code = check_installable(s);
    if (code != CLI_GO) return code;
    if (!has_manager()) return no_manager(s, false);
    code = make_folders(s->folder);
    if (code == CLI_GO) code = write_unit(s->service_path, s->service, &changed);
    if (code == CLI_GO) code = write_unit(s->timer_path, s->timer, &changed);
    if (code != CLI_GO) return code;
    if (SYSTEMCTL(answer, "daemon-reload") != 0) return fail_systemctl("daemon-reload", answer);
    if (SYSTEMCTL(answer, "enable", "--now", TIMER_NAME) != 0) return fail_systemctl("enable", answer);
    if (s->cli->json)
        return cli_json(json_pack("{s:b, s:b, s:b, s:o}", "systemd", 1, "installed", 1, "changed", (int)changed,
                                  "folder", cli_json_text(s->folder)));
    cli_print(changed ? "The nightly timer is installed.\n\n" : "The nightly timer is installed already.\n\n");
    cli_field("home", "%s", s->home);
    cli_field("units", "%s", s->folder);
    cli_print("\nIt runs while you are logged in; `loginctl enable-linger` lets it run without.\n"
              "Next: attune nightly --explain tells what would happen now, attune service status when it is called.\n");
    return CLI_DONE;
}

/* ---- remove ---- */

static int remove_both(const struct service *s) {
    char answer[1024], *there[2] = {NULL, NULL};
    bool removed = false, manager = has_manager();
    int code = read_unit(s->timer_path, &there[0]);
    if (code == CLI_GO) code = read_unit(s->service_path, &there[1]);
    if (code == CLI_GO && manager && there[0] && SYSTEMCTL(answer, "disable", "--now", TIMER_NAME) != 0)
        code = fail_systemctl("disable", answer);
    /* What it is at just now is kept, as at every stop. */
    if (code == CLI_GO && manager && there[1] && SYSTEMCTL(answer, "stop", SERVICE_NAME) != 0)
        code = fail_systemctl("stop", answer);
    free(there[0]);
    free(there[1]);
    if (code == CLI_GO) code = remove_unit(s->timer_path, &removed);
    if (code == CLI_GO) code = remove_unit(s->service_path, &removed);
    if (code != CLI_GO) return code;
    if (!manager) return no_manager(s, true);
    if (removed && SYSTEMCTL(answer, "daemon-reload") != 0) return fail_systemctl("daemon-reload", answer);
    if (s->cli->json) return cli_json(json_pack("{s:b, s:b}", "systemd", 1, "removed", (int)removed));
    cli_print(removed ? "The nightly timer is removed. Homes stay as they are.\n" : "No nightly timer is installed.\n");
    return CLI_DONE;
}

/* ---- status ---- */

/* The value of NAME= in lines of systemctl show, cut there; "": none. */
static const char *property(const char *lines, const char *name, char *out, size_t size) {
    size_t n = strlen(name);
    *out = '\0';
    for (const char *line = lines; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strncmp(line, name, n) == 0 && line[n] == '=')
            snprintf(out, size, "%.*s", (int)(strcspn(line, "\n") - n - 1), line + n + 1);
    return out;
}

static int status(const struct service *s) {
    char timer[2048], service[2048], *there, v[6][256];
    int code = read_unit(s->timer_path, &there);
    bool installed = there != NULL;
    free(there);
    if (code != CLI_GO) return code;
    if (!has_manager()) return no_manager(s, installed);
    if (SYSTEMCTL(timer, "show", TIMER_NAME,
                  "--property=ActiveState,UnitFileState,NextElapseUSecRealtime,LastTriggerUSec") != 0)
        return fail_systemctl("show", timer);
    if (SYSTEMCTL(service, "show", SERVICE_NAME, "--property=ActiveState,Result,ExecMainStatus,StatusText") != 0)
        return fail_systemctl("show", service);
    property(timer, "UnitFileState", v[0], sizeof v[0]);
    property(timer, "NextElapseUSecRealtime", v[1], sizeof v[1]);
    property(timer, "LastTriggerUSec", v[2], sizeof v[2]);
    property(service, "ActiveState", v[3], sizeof v[3]);
    property(service, "ExecMainStatus", v[4], sizeof v[4]);
    property(service, "StatusText", v[5], sizeof v[5]);
    bool runs = strcmp(v[3], "active") == 0 || strcmp(v[3], "activating") == 0, enabled = strcmp(v[0], "enabled") == 0;
    if (s->cli->json)
        return cli_json(json_pack("{s:b, s:b, s:b, s:b, s:o, s:o, s:o, s:o}", "systemd", 1, "installed",
                                  (int)installed, "enabled", (int)enabled, "running", (int)runs, "next",
                                  cli_json_text(v[1]), "last", cli_json_text(v[2]), "last_exit", cli_json_text(v[4]),
                                  "doing", cli_json_text(v[5])));
    if (!installed) {
        cli_print("No nightly timer is installed. Next: attune service install\n");
        return CLI_DONE;
    }
    cli_print("The nightly timer is installed%s.\n\n", enabled ? "" : ", but not enabled: attune service install");
    cli_field("next call", "%s", *v[1] ? v[1] : "not known");
    cli_field("last call", "%s%s%s", *v[2] ? v[2] : "never", *v[2] && *v[4] ? ", exit code " : "", *v[2] ? v[4] : "");
    cli_field("now", "%s%s%s", runs ? "it runs" : "it does not run", runs && *v[5] ? ": " : "", runs ? v[5] : "");
    cli_print("\nNext: attune nightly --explain, attune history --nights\n");
    return CLI_DONE;
}

/* ---- the command ---- */

static int run(struct cli *cli, int argc, char **argv) {
    bool print = false;
    struct service s;
    struct arguments a = {.command = &service_command, .positional_min = 1, .positional_max = 1};
    cli_option(&a, option_flag("print", "install: print the units and install nothing", &print));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    const char *action = a.positional[0];
    bool installs = strcmp(action, "install") == 0, removes = strcmp(action, "remove") == 0;
    if (!installs && !removes && strcmp(action, "status") != 0)
        return cli_usage(a.command, "service wants install, status or remove, not \"%s\"", action);
    if (print && !installs) return cli_usage(a.command, "--print is for service install");
    code = service_make(cli, &s);
    if (code == CLI_GO && installs) code = print ? print_units(&s) : install(&s);
    else if (code == CLI_GO) code = removes ? remove_both(&s) : status(&s);
    service_free(&s);
    return code;
}

const struct command service_command = {
    .name = "service",
    .arguments = "install|status|remove [--print]",
    .summary = "The timer that calls attune nightly.",
    .notes = "Units of your own systemd, in $XDG_CONFIG_HOME/systemd/user (~/.config): no rights of an administrator\n"
             "are needed. Where there is no systemd user manager it prints the line for a crontab; exit code 1.",
    .run = run,
};
