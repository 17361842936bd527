/* attune chat: a conversation over a session, and into the store.
 *
 * The session is the conversation as tokens, `words` as texts. They go in step but where the person changed what was
 * said: then the session is set anew from the words before the next answer. */
#include "cli/cli.h"
#include "cli/transcript.h"
#include "cli/line_editor.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define APP "attune chat"
enum { REMEMBERED = 200 }; /* lines of earlier chats to go through */

struct chat {
    const struct cli *cli;
    struct engine_arguments engine_arguments;
    struct answer_arguments answer;
    bool no_record;
    bool terminal; /* a person types */
    attune_engine *engine;
    attune_session *session;
    attune_store *store; /* NULL: nothing is recorded */
    struct line_editor *lines;
    struct conversation words;
    bool changed; /* the words are not what the session holds */
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

static int no_memory(void) { return cli_fail_text("out of memory"); }

/* ---- the store ---- */

static const char *known(const char *text) { return *text ? text : NULL; }

/* The last answer as an interaction; answer->id stays empty where nothing is recorded, or where that fails, which is
 * told. */
static void record(struct chat *c, struct answer *answer) {
    attune_error err = {0};
    attune_interaction interaction;
    attune_provenance from;
    ATTUNE_INIT(interaction);
    ATTUNE_INIT(from);
    if (!c->store || !answer->text[0] || answer->loaded) return;
    attune_message *messages = conversation_messages(&c->words, true, &interaction.n_messages);
    if (!messages) {
        no_memory();
        return;
    }
    interaction.messages = messages;
    interaction.response = answer->text;
    interaction.app = APP;
    interaction.session = c->words.name;
    int code = attune_session_provenance(c->session, &from, &err);
    interaction.model = known(from.model);
    interaction.adapter = known(from.adapter);
    interaction.template_hash = known(from.template_hash);
    if (code == ATTUNE_OK) code = attune_store_record(c->store, &interaction, &answer->id, &err);
    if (code != ATTUNE_OK) {
        answer->id.text[0] = '\0';
        cli_fail(&err);
    }
    free(messages);
}

/* Feedback on the last answer, into the store. An answer that was interrupted is recorded for it. */
static void give_feedback(struct chat *c, struct answer *answer, int kind, int64_t value, const char *text) {
    attune_error err = {0};
    attune_feedback feedback;
    ATTUNE_INIT(feedback);
    feedback.kind = kind;
    feedback.value = value;
    feedback.text = text;
    if (!answer->id.text[0]) record(c, answer);
    if (!c->store || !answer->id.text[0]) return;
    if (attune_store_feedback(c->store, answer->id.text, &feedback, &err) != ATTUNE_OK) cli_fail(&err);
}

/* Lines of earlier chats come out of the store: they are as safe there, and forgotten with it. */
static void remember_lines(struct chat *c) {
    attune_cursor *cursor = NULL;
    attune_filter filter;
    attune_row row;
    ATTUNE_INIT(filter);
    ATTUNE_INIT(row);
    filter.app = APP;
    filter.limit = REMEMBERED;
    filter.oldest_first = 1;
    if (attune_store_query(c->store, &filter, &cursor, NULL) != ATTUNE_OK) return;
    while (attune_cursor_next(cursor, &row, NULL) == ATTUNE_CONTINUE)
        line_editor_remember(c->lines, cli_row_prompt(&row));
    attune_cursor_close(cursor);
}

/* ---- a turn ---- */

static void copy_options(const struct chat *c, bool again, struct answer_arguments *out) {
    const struct turn *turn = conversation_last(&c->words);
    *out = c->answer;
    out->options.logit_bias = out->biases;
    out->options.seed += turn->n_answers; /* another draw each time */
    if (again && out->options.temperature == 0) {
        out->options.temperature = 0.8; /* the likeliest answer was given already */
        out->options.lookup = 0;
        if (out->options.top_p == 0) out->options.top_p = 0.95;
    }
}

/* Answers the last turn, keeps and records what comes. */
static int answer(struct chat *c, bool again) {
    struct answer_arguments arguments;
    attune_generate_result result;
    copy_options(c, again, &arguments);
    int code = cli_answer(c->cli, c->session, &arguments, &interrupted, &result);
    if (code != CLI_DONE) {
        c->changed = true;
        return code;
    }
    if (!conversation_add_answer(&c->words, attune_session_text(c->session))) return no_memory();
    struct answer *given = conversation_last_answer(&c->words);
    if (result.reason != ATTUNE_STOP_CALLBACK) record(c, given);
    code = cli_answer_end(c->cli, c->engine, c->session, &result, given->id.text[0] ? &given->id : NULL);
    return fflush(stdout) == 0 ? code : CLI_FAILED;
}

/* The session gets what it has not yet of the words, up to the person's last. */
static int bring_up(struct chat *c) {
    attune_error err = {0};
    size_t n, from;
    attune_message *messages = conversation_messages(&c->words, true, &n);
    if (!messages) return no_memory();
    from = c->words.n == 1 ? 0 : n - 1; /* what is before was said or given by the session */
    int code = c->changed ? attune_session_set(c->session, messages, n, &err)
                          : attune_session_append(c->session, messages + from, n - from, &err);
    free(messages);
    if (code != ATTUNE_OK) return cli_fail(&err);
    c->changed = false;
    return CLI_DONE;
}

static int say(struct chat *c, const char *text) {
    if (!conversation_add_turn(&c->words, text)) return no_memory();
    int code = bring_up(c);
    if (code == CLI_DONE) code = answer(c, false);
    struct turn *turn = conversation_last(&c->words);
    if (turn->n_answers == 0) conversation_drop_turn(&c->words);
    return code;
}

/* ---- commands: CLI_DONE, or an exit code that was told ---- */

static void tell(const struct chat *c, const char *text) {
    if (c->terminal) cli_note("%s\n", text);
}

static struct answer *last_answer(const struct chat *c) {
    struct answer *last = conversation_last_answer(&c->words);
    if (!last) cli_fail_text("there is no answer yet");
    return last;
}

static const char *kept(const struct chat *c, const struct answer *last) {
    if (last->id.text[0] && c->store) return "kept";
    return last->loaded ? "not kept: the answer is not recorded in this home" : "not kept: nothing is recorded";
}

static int thumbs(struct chat *c, const char *text) {
    bool up = strcmp(text, "up") == 0;
    struct answer *last = last_answer(c);
    if (!last) return CLI_FAILED;
    if (!up && strcmp(text, "down") != 0) return cli_fail_text("/thumbs up or /thumbs down");
    if (!answer_add_mark(last, ATTUNE_FEEDBACK_THUMB, NULL)) return no_memory();
    give_feedback(c, last, ATTUNE_FEEDBACK_THUMB, up ? 1 : -1, NULL);
    if (c->terminal) cli_note("Thumb %s, %s.\n", up ? "up" : "down", kept(c, last));
    return CLI_DONE;
}

static int edit(struct chat *c, const char *text) {
    char *edited = NULL;
    struct answer *last = last_answer(c);
    if (!last) return CLI_FAILED;
    int code = *text ? CLI_GO : cli_edit_text(answer_text(last), &edited);
    if (code != CLI_GO) return code;
    if (!*text) text = edited;
    if (!text || !*text) {
        tell(c, "The answer is as it was.");
        free(edited);
        return CLI_DONE;
    }
    if (!answer_add_mark(last, ATTUNE_FEEDBACK_EDIT, text))
        code = no_memory();
    else {
        give_feedback(c, last, ATTUNE_FEEDBACK_EDIT, 0, text);
        c->changed = true;
        if (c->terminal) cli_note("The edit is %s; the conversation goes on from it.\n", kept(c, last));
        code = CLI_DONE;
    }
    free(edited);
    return code;
}

/* The last feedback; an answer that was given in another's place; or the turn. */
static int undo(struct chat *c, const char *text) {
    (void)text;
    struct turn *turn = conversation_last(&c->words);
    if (!turn) return cli_fail_text("there is nothing to take back");
    struct answer *last = conversation_last_answer(&c->words);
    bool feedback = last->n_marks > 0, regenerated = turn->n_answers > 1;
    if (!feedback && regenerated) {
        turn_drop_answer(turn);
        last = conversation_last_answer(&c->words);
    }
    if (feedback || regenerated) {
        answer_drop_mark(last);
        give_feedback(c, last, ATTUNE_FEEDBACK_UNDO, 0, NULL);
        tell(c, feedback ? "The last feedback is taken back." : "The answer before is back.");
    } else {
        if (c->terminal && last->id.text[0])
            cli_note("The last turn is taken back. It stays recorded: attune forget --id %s deletes it.\n",
                     last->id.text);
        else
            tell(c, "The last turn is taken back.");
        conversation_drop_turn(&c->words);
    }
    c->changed = true;
    return CLI_DONE;
}

static int regenerate(struct chat *c, const char *text) {
    (void)text;
    struct answer *last = last_answer(c);
    if (!last) return CLI_FAILED;
    c->changed = true; /* the session holds the answer */
    int code = bring_up(c);
    if (code != CLI_DONE) return code;
    if (!answer_add_mark(last, ATTUNE_FEEDBACK_REGENERATE, NULL)) return no_memory();
    give_feedback(c, last, ATTUNE_FEEDBACK_REGENERATE, 0, NULL);
    return answer(c, true);
}

/* An adapter that was published meanwhile answers the next conversation, where the home's active one was asked for. */
static int pick_up(struct chat *c) {
    const char *adapter = c->engine_arguments.adapter;
    if (c->engine_arguments.base || (adapter && strcmp(adapter, "active") != 0)) return CLI_GO;
    if (!attune_engine_is_stale(c->engine)) return CLI_GO;
    int code = cli_engine_swap(c->engine, NULL, NULL);
    if (code == CLI_GO) tell(c, "A new adapter answers from now on.");
    return code;
}

static int begin_anew(struct chat *c, const char *text) {
    (void)text;
    attune_error err = {0};
    int code = pick_up(c);
    if (code != CLI_GO) return code;
    if (attune_session_reset(c->session, &err) != ATTUNE_OK) return cli_fail(&err);
    conversation_clear(&c->words);
    c->changed = false;
    tell(c, "A new conversation.");
    return CLI_DONE;
}

static int set_system(struct chat *c, const char *text) {
    if (!conversation_set_system(&c->words, *text ? text : NULL)) return no_memory();
    c->changed = c->changed || c->words.n > 0;
    tell(c, *text ? "It goes for the whole conversation." : "The model's own system message is back.");
    return CLI_DONE;
}

/* Beside the words what the session holds, which saves running them again. */
static bool state_path(const char *path, char *out, size_t size) {
    if ((size_t)snprintf(out, size, "%s.state", path) < size) return true;
    cli_fail_text("the path is too long");
    return false;
}

static int save(struct chat *c, const char *path) {
    attune_error err = {0};
    char state[4096];
    if (!*path) return cli_fail_text("/save FILE");
    if (c->words.n == 0) return cli_fail_text("nothing was said yet");
    if (!state_path(path, state, sizeof state) || !conversation_save(&c->words, path)) return CLI_FAILED;
    unlink(state); /* of other words */
    if (!c->changed && attune_session_save(c->session, state, &err) != ATTUNE_OK) return cli_fail(&err);
    tell(c, "Saved. It is not encrypted.");
    return CLI_DONE;
}

static int load(struct chat *c, const char *path) {
    char state[4096];
    if (!*path) return cli_fail_text("/load FILE");
    if (!state_path(path, state, sizeof state) || !conversation_load(&c->words, path)) return CLI_FAILED;
    /* Another adapter, cache or context, or no file at all: the words are there. */
    c->changed = attune_session_restore(c->session, state, NULL) != ATTUNE_OK;
    if (c->terminal) cli_note("%s turns, and the conversation goes on.\n", cli_count((int64_t)c->words.n).text);
    return CLI_DONE;
}

static int help(struct chat *c, const char *text);

enum { QUIT = -2 }; /* of commands: no exit code */

static int quit(struct chat *c, const char *text) {
    (void)c;
    (void)text;
    return QUIT;
}

static const struct chat_word {
    const char *name, *arguments, *help;
    int (*run)(struct chat *c, const char *text);
} words[] = {
    {"thumbs", "up|down", "what you think of the last answer", thumbs},
    {"edit", "[TEXT]", "make TEXT of it, or what you leave in $VISUAL or $EDITOR", edit},
    {"regenerate", "", "another answer", regenerate},
    {"undo", "", "take back the last feedback, or else the last turn", undo},
    {"new", "", "begin a new conversation, with the newest adapter", begin_anew},
    {"system", "[TEXT]", "the system message; without TEXT the model's own", set_system},
    {"save", "FILE", "the conversation, to go on with later", save},
    {"load", "FILE", "go on with it", load},
    {"help", "", "this", help},
    {"quit", "", "or Ctrl-D: the end. Ctrl-C ends an answer, or drops the line", quit},
};
enum { N_WORDS = sizeof words / sizeof words[0] };

static int help(struct chat *c, const char *text) {
    (void)text;
    cli_note("A line is a message; one that begins with // is sent with a single /. Commands:\n");
    for (size_t i = 0; i < N_WORDS; i++) {
        char left[32];
        snprintf(left, sizeof left, "/%s %s", words[i].name, words[i].arguments);
        cli_note("  %-18s  %s\n", left, words[i].help);
    }
    if (c->store) cli_note("What was said is deleted with attune forget, from another terminal.\n");
    return CLI_DONE;
}

static int run_word(struct chat *c, const char *line) {
    const char *names[N_WORDS];
    char name[32];
    size_t n = strcspn(line + 1, " \t\n");
    const char *text = line + 1 + n + strspn(line + 1 + n, " \t\n");
    snprintf(name, sizeof name, "%.*s", (int)(n < sizeof name ? n : sizeof name - 1), line + 1);
    for (size_t i = 0; i < N_WORDS; i++) {
        names[i] = words[i].name;
        if (strcmp(name, names[i]) != 0) continue;
        if (!words[i].arguments[0] && *text) return cli_fail_text("/%s stands alone", name);
        return words[i].run(c, text);
    }
    const char *near = cli_nearest(name, names, N_WORDS);
    if (near) return cli_fail_text("there is no /%s; did you mean /%s?", name, near);
    return cli_fail_text("there is no /%s; /help tells what there is", name);
}

/* ---- the chat ---- */

/* A mistake ends a pipe's chat, and not a person's. */
static int talk(struct chat *c) {
    for (;;) {
        char *line = NULL;
        interrupted = 0;
        enum line_read read = line_editor_read(c->lines, "> ", &line);
        if (read == LINE_INTERRUPTED && c->terminal) continue;
        if (read != LINE_READ) return read == LINE_FAILED ? CLI_FAILED : CLI_DONE;
        interrupted = 0;
        if (!line[strspn(line, " \t\n")]) continue;
        line_editor_remember(c->lines, line);
        int code = line[0] == '/' && line[1] != '/' ? run_word(c, line) : say(c, line + (line[0] == '/'));
        if (code == QUIT) return CLI_DONE;
        if (code != CLI_DONE && (!c->terminal || ferror(stdout))) return code;
    }
}

/* What happens with what is said, before anything is. */
static void announce(const struct chat *c) {
    char home[1024];
    attune_status status;
    ATTUNE_INIT(status);
    const char *learned = "";
    if (!c->store) {
        cli_note("Nothing of this is recorded. ");
    } else if (attune_home_path(c->cli->home, home, sizeof home)) {
        if (attune_home_status(c->cli->home, &status, NULL) == ATTUNE_OK)
            learned = status.consent ? ", and may be learned from" : ", and not learned from (attune consent give)";
        cli_note("This is recorded in %s%s; --no-record leaves that. ", home, learned);
    }
    cli_note("/help tells the commands.\n");
}

static int chat(struct chat *c) {
    attune_error err = {0};
    c->lines = line_editor_open(c->terminal, &interrupted);
    if (!c->lines || !conversation_set_system(&c->words, c->answer.system)) return no_memory();
    conversation_clear(&c->words);
    if (c->terminal && c->store) remember_lines(c);
    announce(c);
    catch_interrupt();
    int code = talk(c);
    signal(SIGINT, SIG_DFL);
    if (c->store && attune_store_flush(c->store, &err) != ATTUNE_OK) return cli_fail(&err);
    return code;
}

static int chat_open(struct chat *c) {
    int code = CLI_GO;
    if (!c->no_record && !c->engine_arguments.base) code = cli_store_open(c->cli, &c->store);
    if (code == CLI_GO) code = cli_engine_open(c->cli, &chat_command, &c->engine_arguments, &c->engine);
    if (code == CLI_GO) code = cli_session_open(c->engine, &c->answer, &c->session);
    if (code == CLI_GO) code = chat(c);
    line_editor_close(c->lines);
    conversation_free(&c->words);
    attune_session_close(c->session);
    attune_engine_close(c->engine);
    attune_store_close(c->store);
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    struct chat c = {.cli = cli, .terminal = isatty(STDIN_FILENO) && isatty(STDERR_FILENO)};
    struct arguments a = {.command = &chat_command};
    cli_engine_options(&a, &c.engine_arguments);
    cli_answer_options(&a, &c.answer);
    cli_option(&a, option_flag("no-record", "nothing of it goes into the home", &c.no_record));
    int code = cli_parse(cli, &a, argc, argv);
    if (code == CLI_GO) code = cli_answer_take(cli, &a, &c.answer);
    return code == CLI_GO ? chat_open(&c) : code;
}

const struct command chat_command = {
    .name = "chat",
    .arguments = "[options]",
    .summary = "Talk with the personalized model.",
    .notes = "A line is a message; /help tells the commands; /quit or the end of the input ends the chat, Ctrl-C an\n"
             "answer. Each answer is recorded in the home, unless there is --no-record or --base. With --json each\n"
             "answer is one object on its own line.",
    .texts = true,
    .run = run,
};
