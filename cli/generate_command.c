#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

struct generate {
    struct engine_arguments engine;
    struct answer_arguments answer;
    const char *prompt;
    size_t length;
    bool raw;
};

static int append(attune_session *session, const struct generate *g, attune_error *err) {
    if (g->raw) return attune_session_append_text(session, g->prompt, g->length, ATTUNE_TOKENIZE_SPECIAL, err);
    attune_message messages[2];
    size_t n = 0;
    if (g->answer.system) messages[n++] = (attune_message){"system", g->answer.system};
    messages[n++] = (attune_message){"user", g->prompt};
    return attune_session_append(session, messages, n, err);
}

static int answer(const struct cli *cli, attune_engine *engine, attune_session *session, const struct generate *g) {
    attune_error err = {0};
    attune_generate_result result;
    if (append(session, g, &err) != ATTUNE_OK) return cli_fail(&err);
    int code = cli_answer(cli, session, &g->answer, NULL, &result);
    return code == CLI_DONE ? cli_answer_end(cli, engine, session, &result, NULL) : code;
}

static int generate(const struct cli *cli, const struct generate *g) {
    attune_engine *engine = NULL;
    attune_session *session = NULL;
    int code = cli_engine_open(cli, &generate_command, &g->engine, &engine);
    if (code != CLI_GO) return code;
    code = cli_session_open(engine, &g->answer, &session);
    if (code == CLI_GO) code = answer(cli, engine, session, g);
    attune_session_close(session);
    attune_engine_close(engine);
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    struct generate g = {0};
    struct arguments a = {.command = &generate_command, .positional_min = 1, .positional_max = 1};
    cli_engine_options(&a, &g.engine);
    cli_answer_options(&a, &g.answer);
    cli_option(&a, option_flag("raw", "the prompt as it stands: no chat template, special tokens recognised", &g.raw));
    int code = cli_parse(cli, &a, argc, argv);
    if (code == CLI_GO) code = cli_answer_take(cli, &a, &g.answer);
    if (code != CLI_GO) return code;
    if (g.raw && g.answer.system) return cli_usage(a.command, "--raw has no template that a --system could go into");
    char *input = NULL;
    g.prompt = a.positional[0];
    g.length = strlen(g.prompt);
    if (strcmp(g.prompt, "-") == 0) {
        code = cli_read_input(!g.raw, &input, &g.length);
        if (code != CLI_GO) return code;
        g.prompt = input;
    } else if (cli_utf8_valid(g.prompt, g.length) != g.length) {
        return cli_usage(a.command, "the prompt is not UTF-8");
    }
    code = generate(cli, &g);
    free(input);
    return code;
}

const struct command generate_command = {
    .name = "generate",
    .arguments = "PROMPT|- [options]",
    .summary = "Answer one prompt with the personalized model.",
    .notes = "- reads the prompt from standard input; without --raw, a newline at its very end is left out.",
    .run = run,
};
