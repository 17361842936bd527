/* Engines and answers, as generate, chat, eval and tokenize have them in common. */
#include "cli/cli.h"

#include <string.h>
#include <unistd.h>

#define MERGE_CHOICES "none|f16|q8|same"

/* ---- engine ---- */

void cli_engine_options(struct arguments *a, struct engine_arguments *engine) {
    cli_option(a, option_path("base", "FILE", "a base model (GGUF), in place of the home's", &engine->base));
    cli_option(a, option_path("adapter", "base|active|N|FILE", "which adapter; default active (base with --base)",
                              &engine->adapter));
    cli_option(a, option_choice("merge", MERGE_CHOICES, "how the adapter joins the base", &engine->merge));
    cli_option(a, option_int("threads", "0: all CPUs of this process (default)", &engine->threads, 0, THREADS_MAX));
}

static int open_files(const struct command *command, const struct engine_arguments *engine,
                      attune_engine_options *options, attune_engine **out, attune_error *err) {
    const char *adapter = engine->adapter;
    int64_t number;
    if (adapter && (strcmp(adapter, "active") == 0 || cli_parse_integer(adapter, 0, INT64_MAX, &number)))
        return cli_usage(command, "--adapter %s is of a home, and --base stands in place of one: give a file or base",
                         adapter);
    if (adapter && strcmp(adapter, "base") == 0) adapter = NULL;
    int code = attune_engine_open_files(engine->base, adapter, options, out, err);
    return code == ATTUNE_OK ? CLI_GO : cli_fail(err);
}

int cli_engine_open(const struct cli *cli, const struct command *command, const struct engine_arguments *engine,
                    attune_engine **out) {
    attune_error err = {0};
    attune_engine_options options;
    ATTUNE_INIT(options);
    options.merge = engine->merge;
    options.threads = engine->threads;
    if (engine->base) return open_files(command, engine, &options, out, &err);
    options.adapter = engine->adapter;
    int code = attune_engine_open(cli->home, &options, out, &err);
    return code == ATTUNE_OK ? CLI_GO : cli_fail(&err);
}

/* ---- answer ---- */

void cli_answer_options(struct arguments *a, struct answer_arguments *answer) {
    attune_generate_options *o = &answer->options;
    ATTUNE_INIT(*o);
    cli_option(a, option_integer("max-tokens", "of the answer; default 256", &o->max_tokens, 1, COUNT_MAX));
    cli_option(a, option_number("temp", "T", "temperature; default 0: always the likeliest token", &o->temperature, 0,
                                100));
    cli_option(a, option_int("top-k", "draw from the K likeliest; 0: off", &o->top_k, 0, INT32_MAX));
    cli_option(a, option_number("top-p", "P", "draw from the likeliest that add up to P; 0: off", &o->top_p, 0, 1));
    cli_option(a, option_number("min-p", "P", "leave out what is under P times the top; 0: off", &o->min_p, 0, 1));
    cli_option(a, option_number("repetition-penalty", "R", "over the last 64 tokens; 0 or 1: off",
                                &o->repetition_penalty, 0, 100));
    cli_option(a, option_unsigned("seed", "S", "of the draw; default 0", &o->seed));
    cli_option(a, option_texts("stop", "TEXT", "ends the answer before TEXT; may be repeated", &answer->stop));
    cli_option(a, option_text("system", "TEXT", "system message, in place of the model's own", &answer->system));
    cli_option(a, option_integer("context", "tokens that prompt and answer may take", &answer->context, 1, COUNT_MAX));
}

struct printer {
    const volatile sig_atomic_t *interrupt;
    bool streams, printed;
};

static int on_text(const char *text, size_t length, void *user) {
    struct printer *printer = user;
    if (printer->interrupt && *printer->interrupt) return 1;
    if (!printer->streams) return 0;
    printer->printed = true;
    cli_put(stdout, text, length);
    return fflush(stdout) != 0 || ferror(stdout);
}

static const char *reason_name(int reason) {
    switch (reason) {
    case ATTUNE_STOP_END: return "end";
    case ATTUNE_STOP_LENGTH: return "length";
    case ATTUNE_STOP_STRING: return "string";
    case ATTUNE_STOP_CALLBACK: return "interrupt";
    case ATTUNE_STOP_CONTEXT: return "context";
    default: return "unknown";
    }
}

static json_t *ids_json(const attune_session *session) {
    const int32_t *ids = NULL;
    size_t n = 0;
    json_t *array = json_array();
    if (attune_session_ids(session, &ids, &n) != ATTUNE_OK) n = 0;
    for (size_t i = 0; i < n; i++) json_array_append_new(array, json_integer(ids[i]));
    return array;
}

static int print_json(const attune_engine *engine, const attune_session *session,
                      const attune_generate_result *result) {
    attune_error err = {0};
    attune_engine_info info;
    ATTUNE_INIT(info);
    if (attune_engine_info_get(engine, &info, &err) != ATTUNE_OK) return cli_fail(&err);
    /* `seconds` begins at the first token: the speed is that of the others. */
    double speed = result->tokens > 1 && result->seconds > 0 ? (double)(result->tokens - 1) / result->seconds : 0;
    return cli_json(json_pack("{s:o, s:o, s:I, s:I, s:o, s:o, s:o, s:s, s:o, s:i, s:s}", "text",
                              cli_json_text(attune_session_text(session)), "ids", ids_json(session), "prompt_tokens",
                              (json_int_t)result->prompt_tokens, "tokens", (json_int_t)result->tokens, "prompt_seconds",
                              cli_json_number(result->prompt_seconds), "seconds", cli_json_number(result->seconds),
                              "tokens_per_s", cli_json_number(speed), "reason", reason_name(result->reason), "model",
                              cli_json_text(info.name), "adapter", info.adapter, "merge", info.merge));
}

/* Why a text ends in the middle, for the person at the terminal. */
static void explain_end(const attune_generate_result *result) {
    if (!isatty(STDERR_FILENO)) return;
    if (result->reason == ATTUNE_STOP_LENGTH)
        cli_note("(stopped after %lld tokens: --max-tokens)\n", (long long)result->tokens);
    if (result->reason == ATTUNE_STOP_CONTEXT) cli_note("(stopped: the context is full: --context)\n");
}

int cli_answer(const struct cli *cli, attune_engine *engine, attune_session *session, struct answer_arguments *answer,
               const volatile sig_atomic_t *interrupt) {
    attune_error err = {0};
    attune_generate_result result;
    ATTUNE_INIT(result);
    struct printer printer = {.interrupt = interrupt, .streams = !cli->json};
    answer->options.stop = answer->stop.items;
    answer->options.n_stop = answer->stop.n;
    int code = attune_session_generate(session, &answer->options, on_text, &printer, &result, &err);
    if (code != ATTUNE_OK) {
        if (printer.printed) cli_print("\n");
        return cli_fail(&err);
    }
    if (cli->json) return print_json(engine, session, &result);
    cli_print("\n");
    explain_end(&result);
    return CLI_DONE;
}
