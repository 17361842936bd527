/* Engines and answers, as generate, chat, eval and tokenize have them in common. */
#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MERGE_CHOICES "none|same|calibrated|q8|f16|auto"

/* ---- choices ---- */

int cli_kv(const char *choice) {
    if (!choice || strcmp(choice, "f16") == 0) return ATTUNE_KV_F16;
    return strcmp(choice, "q8") == 0 ? ATTUNE_KV_Q8 : ATTUNE_KV_F32;
}

int cli_precision(const char *choice) {
    if (!choice) return ATTUNE_PRECISION_SETTINGS;
    return strcmp(choice, "f32") == 0 ? ATTUNE_PRECISION_F32 : ATTUNE_PRECISION_AUTO;
}

/* ---- opening takes a while when an adapter is merged ---- */

static const double QUIET_SECONDS = 0.5; /* without a progress bar */

static volatile sig_atomic_t stopped;

static void on_stop(int number) {
    (void)number;
    stopped = 1;
}

struct opening {
    struct progress progress;
    struct timespec from;
    struct sigaction before; /* of SIGINT */
};

/* Ctrl-C is asked for between matrices; a second one ends the process. */
static void opening_begin(struct opening *o) {
    struct sigaction action = {.sa_handler = on_stop, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    stopped = 0;
    sigaction(SIGINT, &action, &o->before);
    cli_progress_open(&o->progress);
    clock_gettime(CLOCK_MONOTONIC, &o->from);
}

static int on_merge(double share, void *user) {
    struct opening *o = user;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds = (double)(now.tv_sec - o->from.tv_sec) + 1e-9 * (double)(now.tv_nsec - o->from.tv_nsec);
    if (seconds > QUIET_SECONDS)
        cli_progress_draw(&o->progress,
                          &(attune_progress){.phase = "merge", .done = (int64_t)(1000 * share), .total = 1000});
    return stopped;
}

/* CLI_GO, or what opening failed with, told. */
static int opening_end(struct opening *o, int code, const attune_error *err) {
    sigaction(SIGINT, &o->before, NULL);
    cli_progress_clear(&o->progress);
    if (code != ATTUNE_OK) return cli_fail(err);
    return stopped ? cli_fail_text("stopped on request") : CLI_GO;
}

/* ---- engine ---- */

void cli_engine_options(struct arguments *a, struct engine_arguments *engine) {
    cli_option(a, option_path("base", "FILE", "a base model (GGUF), in place of the home's", &engine->base));
    cli_option(a, option_path("adapter", "base|active|N|FILE", "which adapter; default active (base with --base)",
                              &engine->adapter));
    cli_option(a, option_choice("merge", MERGE_CHOICES, "how the adapter joins the base", &engine->merge));
    cli_option(a, option_int("threads", "0: all CPUs of this process (default)", &engine->threads, 0, THREADS_MAX));
    cli_option(a, option_choice("precision", CLI_PRECISION_CHOICES, "of products with the base; default auto",
                                &engine->precision));
}

static int open_files(const struct command *command, const struct engine_arguments *engine,
                      attune_engine_options *options, struct opening *opening, attune_engine **out) {
    attune_error err = {0};
    const char *adapter = engine->adapter;
    int64_t number;
    if (adapter && (strcmp(adapter, "active") == 0 || cli_parse_integer(adapter, 0, INT64_MAX, &number)))
        return cli_usage(command, "--adapter %s is of a home, and --base stands in place of one: give a file or base",
                         adapter);
    if (adapter && strcmp(adapter, "base") == 0) adapter = NULL;
    opening_begin(opening);
    return opening_end(opening, attune_engine_open_files(engine->base, adapter, options, out, &err), &err);
}

static int open_home(const struct cli *cli, const struct engine_arguments *engine, attune_engine_options *options,
                     struct opening *opening, attune_engine **out) {
    attune_error err = {0};
    options->adapter = engine->adapter;
    opening_begin(opening);
    return opening_end(opening, attune_engine_open(cli->home, options, out, &err), &err);
}

int cli_engine_open(const struct cli *cli, const struct command *command, const struct engine_arguments *engine,
                    attune_engine **out) {
    struct opening opening = {0};
    attune_engine *opened = NULL;
    attune_engine_options options;
    ATTUNE_INIT(options);
    options.merge = engine->merge;
    options.threads = engine->threads;
    options.precision = cli_precision(engine->precision);
    options.on_progress = on_merge;
    options.user = &opening;
    int code = engine->base ? open_files(command, engine, &options, &opening, &opened)
                            : open_home(cli, engine, &options, &opening, &opened);
    if (code != CLI_GO) attune_engine_close(opened);
    else *out = opened;
    return code;
}

int cli_engine_swap(attune_engine *engine, const char *adapter, const char *merge) {
    attune_error err = {0};
    int code = attune_engine_swap(engine, adapter, merge, &err);
    return code == ATTUNE_OK ? CLI_GO : cli_fail(&err);
}

/* ---- session ---- */

int cli_session_open(attune_engine *engine, const struct answer_arguments *answer, attune_session **out) {
    attune_error err = {0};
    attune_session_options options;
    ATTUNE_INIT(options);
    options.context = answer->context;
    options.kv = cli_kv(answer->kv);
    options.when_full = answer->shift ? ATTUNE_CONTEXT_SHIFT : ATTUNE_CONTEXT_STOP;
    return attune_session_open(engine, &options, out, &err) == ATTUNE_OK ? CLI_GO : cli_fail(&err);
}

/* ---- answer ---- */

static void sampling_options(struct arguments *a, struct answer_arguments *answer) {
    attune_generate_options *o = &answer->options;
    cli_option(a, option_number("temp", "T", "temperature; default 0: always the likeliest token", &o->temperature, 0,
                                100));
    cli_option(a, option_int("top-k", "draw from the K likeliest; 0: off", &o->top_k, 0, INT32_MAX));
    cli_option(a, option_number("top-p", "P", "draw from the likeliest that add up to P; 0: off", &o->top_p, 0, 1));
    cli_option(a, option_number("min-p", "P", "leave out what is under P times the top; 0: off", &o->min_p, 0, 1));
    cli_option(a, option_number("typical-p", "P", "draw from the most typical that add up to P; 0: off", &o->typical_p,
                                0, 1));
    cli_option(a, option_number("repetition-penalty", "R", "divides what was there; 0 or 1: off",
                                &o->repetition_penalty, 0, 100));
    cli_option(a, option_number("frequency-penalty", "F", "off a token's logit each time that it was there",
                                &o->frequency_penalty, -2, 2));
    cli_option(a, option_number("presence-penalty", "F", "off it once, if it was there", &o->presence_penalty, -2, 2));
    cli_option(a, option_text("penalty-window", "N|all", "tokens that penalties look back on; default 64",
                              &answer->window));
    cli_option(a, option_texts("bias", "ID=VALUE", "adds to a token's logit, -100 to 100 or -inf; may be repeated",
                               &answer->bias));
    cli_option(a, option_unsigned("seed", "S", "of the draw; default 0", &o->seed));
}

void cli_answer_options(struct arguments *a, struct answer_arguments *answer) {
    attune_generate_options *o = &answer->options;
    ATTUNE_INIT(*o);
    cli_option(a, option_integer("max-tokens", "of the answer; default 256", &o->max_tokens, 1, COUNT_MAX));
    sampling_options(a, answer);
    cli_option(a, option_int("alternatives", "with --json: so many best tokens for each place", &o->alternatives, 0,
                             20));
    cli_option(a, option_int("lookup", "tokens drafted at once from what was said before; default 0", &o->lookup, 0,
                             8));
    cli_option(a, option_texts("stop", "TEXT", "ends the answer before TEXT; may be repeated", &answer->stop));
    cli_option(a, option_text("system", "TEXT", "system message, in place of the model's own", &answer->system));
    cli_option(a, option_integer("context", "tokens that prompt and answer may take", &answer->context, 1, COUNT_MAX));
    cli_option(a, option_choice("kv", CLI_KV_CHOICES, "how past tokens are kept; default f16", &answer->kv));
    cli_option(a, option_flag("shift", "when the context is full, drop the oldest half and go on", &answer->shift));
}

static int take_bias(const struct arguments *a, const char *text, attune_logit_bias *out) {
    char id[16];
    int64_t number;
    double value = -INFINITY;
    size_t n = strcspn(text, "=");
    if (n > 0 && n < sizeof id && text[n] == '=') {
        memcpy(id, text, n);
        id[n] = '\0';
        bool forbids = strcmp(text + n + 1, "-inf") == 0;
        if (cli_parse_integer(id, 0, INT32_MAX, &number) &&
            (forbids || cli_parse_number(text + n + 1, -100, 100, &value))) {
            *out = (attune_logit_bias){(int32_t)number, (float)value};
            return CLI_GO;
        }
    }
    return cli_usage(a->command, "--bias wants ID=VALUE, -100 to 100 or -inf, not \"%.60s\"", text);
}

int cli_answer_take(const struct cli *cli, const struct arguments *a, struct answer_arguments *answer) {
    attune_generate_options *o = &answer->options;
    int64_t window = 0;
    int code = CLI_GO;
    if (o->alternatives && !cli->json) return cli_usage(a->command, "--alternatives is for --json");
    if (answer->window && strcmp(answer->window, "all") == 0) window = -1;
    else if (answer->window && !cli_parse_integer(answer->window, 1, INT32_MAX, &window))
        return cli_usage(a->command, "--penalty-window wants a whole number from 1, or all, not \"%.60s\"",
                         answer->window);
    for (size_t i = 0; i < answer->bias.n && code == CLI_GO; i++)
        code = take_bias(a, answer->bias.items[i], &answer->biases[i]);
    o->penalty_window = (int)window;
    o->logit_bias = answer->biases;
    o->n_logit_bias = answer->bias.n;
    o->stop = answer->stop.items;
    o->n_stop = answer->stop.n;
    return code;
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

int cli_answer(const struct cli *cli, attune_session *session, const struct answer_arguments *answer,
               const volatile sig_atomic_t *interrupt, attune_generate_result *result) {
    attune_error err = {0};
    struct printer printer = {.interrupt = interrupt, .streams = !cli->json};
    ATTUNE_INIT(*result);
    int code = attune_session_generate(session, &answer->options, on_text, &printer, result, &err);
    if (code == ATTUNE_OK) return CLI_DONE;
    if (printer.printed) cli_print("\n");
    return cli_fail(&err);
}

/* ---- what is said of it ---- */

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

/* A token's own text; one that holds a part of a character shows it as U+FFFD. */
static json_t *token_json(const attune_engine *engine, const attune_alternative *token) {
    size_t n = 0;
    attune_engine_detokenize(engine, &token->id, 1, NULL, 0, &n, NULL);
    char *text = calloc(n + 1, 1);
    if (!text) return NULL;
    attune_engine_detokenize(engine, &token->id, 1, text, n, &n, NULL);
    json_t *object = json_pack("{s:i, s:o, s:o}", "id", (int)token->id, "text", cli_json_text(text), "logprob",
                               cli_json_number(token->log_probability));
    free(text);
    return object;
}

/* For each place its token, and the best ones for it. */
static json_t *alternatives_json(const attune_engine *engine, const attune_session *session) {
    const attune_alternative *tokens = NULL;
    json_t *places = json_array();
    size_t n = 0;
    for (size_t place = 0; attune_session_alternatives(session, place, &tokens, &n) == ATTUNE_OK && n > 0; place++) {
        json_t *here = token_json(engine, &tokens[0]), *best = json_array();
        for (size_t i = 1; i < n; i++) json_array_append_new(best, token_json(engine, &tokens[i]));
        if (json_object_set_new(here, "best", best) != 0 || json_array_append_new(places, here) != 0) {
            json_decref(places);
            return NULL;
        }
    }
    return places;
}

static json_t *timing_json(const attune_generate_result *r, const attune_engine_info *info) {
    return json_pack("{s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:o, s:o, s:b}", "first_token_seconds",
                     cli_json_number(r->prompt_seconds), "seconds", cli_json_number(r->seconds), "tokens_per_s",
                     cli_json_number(r->tokens_per_s), "reused_tokens", (json_int_t)r->reused_tokens, "drafted",
                     (json_int_t)r->drafted, "accepted", (json_int_t)r->accepted, "dropped_tokens",
                     (json_int_t)r->dropped_tokens, "open_seconds", cli_json_number(info->seconds_open),
                     "merge_seconds", cli_json_number(info->seconds_merge), "from_cache", info->from_cache);
}

static int print_json(const attune_engine *engine, const attune_session *session, const attune_generate_result *r,
                      const attune_uuid *id) {
    attune_error err = {0};
    attune_engine_info info;
    ATTUNE_INIT(info);
    if (attune_engine_info_get(engine, &info, &err) != ATTUNE_OK) return cli_fail(&err);
    json_t *object = json_pack("{s:o, s:o, s:I, s:I, s:o, s:s, s:o, s:i, s:s}", "text",
                               cli_json_text(attune_session_text(session)), "ids", ids_json(session), "prompt_tokens",
                               (json_int_t)r->prompt_tokens, "tokens", (json_int_t)r->tokens, "prompt_seconds",
                               cli_json_number(r->prompt_seconds), "reason", reason_name(r->reason), "model",
                               cli_json_text(info.name), "adapter", info.adapter, "merge", info.merge);
    json_t *timing = timing_json(r, &info), *alternatives = alternatives_json(engine, session);
    int bad = json_object_update(object, timing) != 0 || !alternatives;
    if (!bad && json_array_size(alternatives) > 0) bad = json_object_set(object, "alternatives", alternatives) != 0;
    if (!bad && id) bad = json_object_set_new(object, "id", json_string(id->text)) != 0;
    json_decref(timing);
    json_decref(alternatives);
    if (bad) json_decref(object);
    return cli_json(bad ? NULL : object);
}

/* Why a text ends in the middle, for the person at the terminal. */
static void explain_end(const attune_generate_result *result) {
    if (!isatty(STDERR_FILENO)) return;
    if (result->reason == ATTUNE_STOP_LENGTH)
        cli_note("(stopped after %lld tokens: --max-tokens)\n", (long long)result->tokens);
    if (result->reason == ATTUNE_STOP_CONTEXT) cli_note("(stopped: the context is full: --context, --shift)\n");
    if (result->dropped_tokens > 0)
        cli_note("(the context was full: the oldest %lld tokens were dropped)\n", (long long)result->dropped_tokens);
}

int cli_answer_end(const struct cli *cli, const attune_engine *engine, const attune_session *session,
                   const attune_generate_result *result, const attune_uuid *id) {
    if (cli->json) return print_json(engine, session, result, id);
    cli_print("\n");
    explain_end(result);
    return CLI_DONE;
}
