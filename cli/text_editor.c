/* A text in the person's own editor. */
#include "cli/cli.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { EDITED_MAX = 16 << 20 };

/* In memory where the system has a folder for that. */
static bool make_folder(char *out, size_t size) {
    static const char *const variables[] = {"XDG_RUNTIME_DIR", "TMPDIR"};
    for (size_t i = 0; i < 3; i++) {
        const char *parent = i < 2 ? getenv(variables[i]) : "/tmp";
        if (!parent || !*parent) continue;
        if ((size_t)snprintf(out, size, "%s/attune-XXXXXX", parent) < size && mkdtemp(out)) return true;
    }
    return false;
}

/* With the copies and notes that editors leave beside their file. */
static void remove_folder(const char *folder) {
    DIR *dir = opendir(folder);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir) closedir(dir);
    rmdir(folder);
}

static bool put_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    if (!file) {
        if (fd >= 0) close(fd);
        return false;
    }
    bool written = fputs(text, file) >= 0 && (!*text || text[strlen(text) - 1] == '\n' || fputc('\n', file) != EOF);
    return fclose(file) == 0 && written;
}

/* NULL: it cannot be read, and errno says why; 0: it is too long or not text. */
static char *take_file(const char *path) {
    FILE *file = fopen(path, "re");
    char *text = file ? malloc(EDITED_MAX + 1) : NULL;
    if (text) {
        size_t n = fread(text, 1, EDITED_MAX + 1, file);
        int bad = ferror(file);
        errno = bad ? EIO : 0;
        if (!bad && n <= EDITED_MAX && !memchr(text, 0, n) && cli_utf8_valid(text, n) == n) {
            if (n > 0 && text[n - 1] == '\n') n--;
            text[n] = '\0';
            char *fitting = realloc(text, n + 1);
            text = fitting ? fitting : text;
        } else {
            free(text);
            text = NULL;
        }
    }
    if (file) fclose(file);
    return text;
}

/* The variable is a command with options, as a shell reads it. The child's signals are as a new program expects them;
 * Ctrl-C there is the editor's. */
static int run_editor(const char *editor, const char *path) {
    char command[4096];
    posix_spawnattr_t attributes;
    sigset_t defaults;
    pid_t child;
    int status = -1;
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    if ((size_t)snprintf(command, sizeof command, "%s \"$1\"", editor) >= sizeof command) return -1;
    char *arguments[] = {(char[]){"sh"}, (char[]){"-c"}, command, (char[]){"sh"}, (char *)(uintptr_t)path, NULL};
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGINT);
    sigaddset(&defaults, SIGPIPE);
    if (posix_spawnattr_init(&attributes) != 0) return -1;
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    sigemptyset(&ignore.sa_mask);
    sigaction(SIGINT, &ignore, &before);
    if (posix_spawnp(&child, "sh", NULL, &attributes, arguments, environ) == 0)
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
        }
    sigaction(SIGINT, &before, NULL);
    posix_spawnattr_destroy(&attributes);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int edit_file(const char *editor, const char *path, const char *text, char **edited) {
    if (!put_file(path, text)) return cli_fail_text("cannot write %s: %s", path, strerror(errno));
    if (run_editor(editor, path) != 0) return cli_fail_text("the editor failed: %s; nothing was changed", editor);
    char *now = take_file(path);
    if (!now) return cli_fail_text("cannot take the text back: %s", errno ? strerror(errno) : "too long, or no UTF-8");
    size_t n = strlen(text);
    bool same = strncmp(now, text, n) == 0 && !now[n];
    if (!same && n > 0 && text[n - 1] == '\n') same = strlen(now) == n - 1 && strncmp(now, text, n - 1) == 0;
    if (same) free(now);
    *edited = same ? NULL : now;
    return CLI_GO;
}

int cli_edit_text(const char *text, char **edited) {
    char folder[1024], path[1040];
    const char *editor = getenv("VISUAL");
    if (!editor || !*editor) editor = getenv("EDITOR");
    if (!editor || !*editor)
        return cli_fail_text("neither $VISUAL nor $EDITOR names an editor: /edit TEXT goes without");
    if (!make_folder(folder, sizeof folder))
        return cli_fail_text("cannot make a folder for the text: %s", strerror(errno));
    snprintf(path, sizeof path, "%s/answer.txt", folder);
    fflush(NULL);
    int code = edit_file(editor, path, text, edited);
    remove_folder(folder);
    return code;
}
