/* Lines that a person types or a pipe gives. On a terminal with editing, a history to go through, and pasted text of
 * several lines as one (libedit, where attune was built with it); else as they come. */
#ifndef CLI_LINE_EDITOR_H
#define CLI_LINE_EDITOR_H

#include <signal.h>
#include <stdbool.h>

struct line_editor;

enum line_read {
    LINE_READ,
    LINE_END,         /* of the input */
    LINE_INTERRUPTED, /* *interrupt was set by a signal: what was typed is dropped */
    LINE_FAILED       /* and that was told */
};

/* A handler of SIGINT without SA_RESTART sets *interrupt. NULL: no memory. */
struct line_editor *line_editor_open(bool terminal, const volatile sig_atomic_t *interrupt);
void line_editor_close(struct line_editor *editor);
/* A line without its end; UTF-8; *line is good until the next call. The prompt goes to standard error, on a terminal
 * only. */
enum line_read line_editor_read(struct line_editor *editor, const char *prompt, char **line);
/* Into the history of this process. */
void line_editor_remember(struct line_editor *editor, const char *line);

#endif
