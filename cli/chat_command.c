#include "cli/cli.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct chat {
    struct engine_arguments engine;
    struct answer_arguments answer;
    bool terminal; /* a person types: prompts are shown */
    bool begun;    /* the system message has gone in */
    char *line;
    size_t capacity;
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number) {
    (void)number;
    interrupted = 1;
}

/* Without SA_RESTART: Ctrl-C while a line is awaited ends the wait. */
static void catch_interrupt(void) {
    struct sigaction action = {.sa_handler = on_interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

/* 1: a line without its end is in chat->line; 0: no more; -1: an error that was told. */
static int read_line(struct chat *chat) {
    interrupted = 0;
    if (chat->terminal) {
        fputs("> ", stderr);
        fflush(stderr);
    }
    errno = 0;
    ssize_t n = getline(&chat->line, &chat->capacity, stdin);
    if (n < 0) {
        if (chat->terminal) fputs("\n", stderr);
        if (feof(stdin) || interrupted) return 0;
        cli_fail_text("cannot read standard input: %s", strerror(errno));
        return -1;
    }
    if (strlen(chat->line) != (size_t)n || cli_utf8_valid(chat->line, (size_t)n) != (size_t)n) {
        cli_fail_text("a line is not UTF-8 text");
        return -1;
    }
    chat->line[strcspn(chat->line, "\r\n")] = '\0';
    return 1;
}

static int turn(const struct cli *cli, struct chat *chat, attune_engine *engine, attune_session *session) {
    attune_error err = {0};
    attune_message messages[2];
    size_t n = 0;
    if (chat->answer.system && !chat->begun) messages[n++] = (attune_message){"system", chat->answer.system};
    messages[n++] = (attune_message){"user", chat->line};
    if (attune_session_append(session, messages, n, &err) != ATTUNE_OK) return cli_fail(&err);
    chat->begun = true;
    return cli_answer(cli, engine, session, &chat->answer, &interrupted);
}

static void print_help(void) {
    cli_note("A line is a message. /quit or Ctrl-D ends the chat, Ctrl-C an answer. Nothing is recorded.\n");
}

static int talk(const struct cli *cli, struct chat *chat, attune_engine *engine, attune_session *session) {
    for (;;) {
        int read = read_line(chat);
        if (read <= 0) return read < 0 ? CLI_FAILED : CLI_DONE;
        if (strcmp(chat->line, "/quit") == 0) return CLI_DONE;
        if (strcmp(chat->line, "/help") == 0) print_help();
        else if (chat->line[0] == '/' && chat->terminal)
            cli_note("There is no %s; /help tells what there is.\n", chat->line);
        else if (chat->line[0]) {
            int code = turn(cli, chat, engine, session);
            if (code != CLI_DONE || fflush(stdout) != 0) return code;
        }
    }
}

static int chat_open(const struct cli *cli, struct chat *chat) {
    attune_error err = {0};
    attune_session_options options;
    attune_engine *engine = NULL;
    attune_session *session = NULL;
    ATTUNE_INIT(options);
    options.context = chat->answer.context;
    int code = cli_engine_open(cli, &chat_command, &chat->engine, &engine);
    if (code != CLI_GO) return code;
    if (attune_session_open(engine, &options, &session, &err) != ATTUNE_OK) {
        code = cli_fail(&err);
    } else {
        catch_interrupt();
        if (chat->terminal) print_help();
        code = talk(cli, chat, engine, session);
        signal(SIGINT, SIG_DFL);
    }
    attune_session_close(session);
    attune_engine_close(engine);
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    struct chat chat = {.terminal = isatty(STDIN_FILENO) && isatty(STDERR_FILENO)};
    struct arguments a = {.command = &chat_command};
    cli_engine_options(&a, &chat.engine);
    cli_answer_options(&a, &chat.answer);
    int code = cli_parse(cli, &a, argc, argv);
    if (code == CLI_GO) code = chat_open(cli, &chat);
    free(chat.line);
    return code;
}

const struct command chat_command = {
    .name = "chat",
    .arguments = "[options]",
    .summary = "Talk with the personalized model.",
    .notes = "A line is a message; /quit or the end of the input ends the chat, Ctrl-C an answer, /help tells this.\n"
             "Nothing is recorded: that is for `attune record`. With --json each answer is one object on its own line.",
    .run = run,
};
