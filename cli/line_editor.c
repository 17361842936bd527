#define _GNU_SOURCE
#include "cli/line_editor.h"

#include "cli/cli.h"

#include <errno.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#ifdef ATTUNE_LINE_EDITING
#include <histedit.h>
#endif

struct line_editor {
    const volatile sig_atomic_t *interrupt;
    bool terminal;
    char *line; /* owned */
    size_t capacity;
#ifdef ATTUNE_LINE_EDITING
    const char *prompt;
    EditLine *edit; /* NULL: lines as they come */
    History *history;
    mbstate_t character; /* bytes of one that is not whole yet */
    bool asked;          /* the terminal, to mark what is pasted into this line */
#endif
};

#ifdef ATTUNE_LINE_EDITING

enum { HISTORY_LINES = 1000 };

static struct line_editor *editor_of(EditLine *edit) {
    void *editor = NULL;
    el_get(edit, EL_CLIENTDATA, &editor);
    return editor;
}

static char *show_prompt(EditLine *edit) { return (char *)(uintptr_t)editor_of(edit)->prompt; }

/* Until there is a byte. false: interrupted. SIGINT comes while waiting or is seen before, never in between: a flag that
 * was set just before read() would be noticed with the next key only. */
static bool wait_for_byte(const struct line_editor *e) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    sigset_t interrupt, before;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, &before);
    while (!*e->interrupt && ppoll(&input, 1, NULL, &before) < 0 && errno == EINTR) continue;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return !*e->interrupt;
}

/* One character in place of libedit's own reader, which takes Ctrl-C for a reason to read again. 1: *out is one;
 * 0: the end; -1: an error, or interrupted. */
static int read_character(EditLine *edit, wchar_t *out) {
    struct line_editor *e = editor_of(edit);
    /* Here, and not with the prompt: libedit shows that before it takes the terminal over. */
    if (!e->asked) fputs("\033[?2004h", stderr);
    e->asked = true;
    for (;;) {
        char byte;
        if (!wait_for_byte(e)) return -1;
        ssize_t n = read(STDIN_FILENO, &byte, 1);
        if (n < 0 && errno == EINTR && !*e->interrupt) continue; /* the window changed, or the process was continued */
        if (n <= 0) return (int)n;
        size_t length = mbrtowc(out, &byte, 1, &e->character);
        if (length == (size_t)-2) continue;
        if (length == (size_t)-1) {
            e->character = (mbstate_t){0};
            *out = 0xFFFD;
        }
        return 1;
    }
}

static void insert(EditLine *edit, wchar_t c) {
    wchar_t text[2] = {c == L'\r' ? L'\n' : c};
    if (text[0] >= 0x20 || text[0] == L'\n' || text[0] == L'\t') el_winsertstr(edit, text);
}

/* What stands between ESC [200~ and ESC [201~ was pasted (xterm's bracketed paste): it goes into the line as text,
 * its ends of lines too, and controls nothing. */
static unsigned char take_paste(EditLine *edit, int key) {
    static const wchar_t end[] = L"\033[201~";
    wchar_t c;
    size_t matched = 0;
    (void)key;
    while (end[matched] && el_wgetc(edit, &c) == 1) {
        if (c == end[matched]) {
            matched++;
            continue;
        }
        for (size_t i = 1; i < matched; i++) insert(edit, end[i]); /* it was not the end */
        matched = c == end[0];
        if (!matched) insert(edit, c);
    }
    return CC_REFRESH;
}

/* Lines as they come where the terminal is too simple, or memory is short. */
static void open_edit(struct line_editor *e) {
    const char *terminal = getenv("TERM");
    HistEvent event;
    setlocale(LC_CTYPE, "");
    if (MB_CUR_MAX == 1) setlocale(LC_CTYPE, "C.UTF-8"); /* what is sent to the model is UTF-8 anyway */
    if (!terminal || !*terminal || strcmp(terminal, "dumb") == 0) return;
    e->history = history_init();
    e->edit = e->history ? el_init("attune", stdin, stderr, stderr) : NULL;
    if (!e->edit) return;
    history(e->history, &event, H_SETSIZE, HISTORY_LINES);
    history(e->history, &event, H_SETUNIQUE, 1);
    el_set(e->edit, EL_CLIENTDATA, e);
    el_set(e->edit, EL_PROMPT, show_prompt);
    el_set(e->edit, EL_EDITOR, "emacs");
    el_set(e->edit, EL_SIGNAL, 1);
    el_set(e->edit, EL_HIST, history, e->history);
    el_set(e->edit, EL_GETCFN, read_character);
    el_wset(e->edit, EL_ADDFN, L"attune-paste", L"text of several lines at once", take_paste); /* el_set would leak */
    el_source(e->edit, NULL);
    el_set(e->edit, EL_BIND, "\\e[200~", "attune-paste", NULL);
}

static enum line_read read_edited(struct line_editor *e, const char *prompt, char **line) {
    int n = 0;
    e->prompt = prompt;
    e->character = (mbstate_t){0};
    e->asked = false;
    const char *text = el_gets(e->edit, &n);
    fputs("\033[?2004l", stderr);
    if (!text || n <= 0) {
        fputs("\n", stderr);
        return *e->interrupt ? LINE_INTERRUPTED : LINE_END;
    }
    free(e->line);
    e->line = strndup(text, (size_t)n - (text[n - 1] == '\n'));
    e->capacity = 0;
    if (!e->line) {
        cli_fail_text("out of memory reading a line");
        return LINE_FAILED;
    }
    *line = e->line;
    return LINE_READ;
}

#endif

struct line_editor *line_editor_open(bool terminal, const volatile sig_atomic_t *interrupt) {
    struct line_editor *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->interrupt = interrupt;
    e->terminal = terminal;
#ifdef ATTUNE_LINE_EDITING
    if (terminal) open_edit(e);
#endif
    return e;
}

void line_editor_close(struct line_editor *e) {
    if (!e) return;
#ifdef ATTUNE_LINE_EDITING
    if (e->edit) el_end(e->edit);
    if (e->history) history_end(e->history);
#endif
    free(e->line);
    free(e);
}

static enum line_read read_plain(struct line_editor *e, const char *prompt, char **line) {
    if (e->terminal) {
        fputs(prompt, stderr);
        fflush(stderr);
    }
    errno = 0;
    ssize_t n = getline(&e->line, &e->capacity, stdin);
    if (n < 0) {
        if (e->terminal) fputs("\n", stderr);
        if (*e->interrupt) {
            clearerr(stdin);
            return LINE_INTERRUPTED;
        }
        if (feof(stdin)) return LINE_END;
        cli_fail_text("cannot read standard input: %s", strerror(errno));
        return LINE_FAILED;
    }
    if (strlen(e->line) != (size_t)n) {
        cli_fail_text("a line has a NUL byte");
        return LINE_FAILED;
    }
    e->line[strcspn(e->line, "\r\n")] = '\0';
    *line = e->line;
    return LINE_READ;
}

enum line_read line_editor_read(struct line_editor *e, const char *prompt, char **line) {
    enum line_read read;
#ifdef ATTUNE_LINE_EDITING
    if (e->edit)
        read = read_edited(e, prompt, line);
    else
#endif
        read = read_plain(e, prompt, line);
    if (read != LINE_READ || cli_utf8_valid(*line, strlen(*line)) == strlen(*line)) return read;
    cli_fail_text("a line is not UTF-8 text");
    return LINE_FAILED;
}

void line_editor_remember(struct line_editor *e, const char *line) {
#ifdef ATTUNE_LINE_EDITING
    HistEvent event;
    if (e->edit && *line) history(e->history, &event, H_ENTER, line);
#else
    (void)e;
    (void)line;
#endif
}
