/* What the commands share: arguments, output, an engine from options, an answer.
 *
 * Owns the command line's manners: strict arguments, exit codes, one JSON object on standard output, messages
 * on standard error. Knows attune.h and nothing behind it. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "attune.h"

enum cli_exit {
    CLI_DONE = 0,
    CLI_FAILED = 1,     /* refused or failed: the message is on standard error */
    CLI_USAGE = 2,      /* the arguments make no sense */
    CLI_UNFINISHED = 3, /* not finished or not eligible now: call again */
    CLI_GO = -1         /* cli_parse: no exit yet, the command runs */
};

struct cli {
    const char *home;     /* --home; NULL: what the library takes by default */
    const char *key_file; /* --key-file; NULL: the one that the home remembers, if it is encrypted */
    bool json;
};

struct command {
    const char *name;
    const char *arguments; /* as in "usage: attune NAME ARGUMENTS" */
    const char *summary;   /* one line, for the list of commands */
    const char *notes;     /* more, after the options; NULL: nothing */
    bool texts;            /* reads or writes texts of the store: takes --key-file */
    int (*run)(struct cli *cli, int argc, char **argv); /* argv[0]: the first argument; returns enum cli_exit */
};

extern const struct command init_command, record_command, import_command, status_command, history_command,
    consent_command, forget_command, export_command, train_command, eval_command, generate_command, chat_command,
    adapters_command, backup_command, restore_command, tokenize_command, bench_command, doctor_command,
    nightly_command, service_command, report_command, learned_command, catalog_command;

/* ---- arguments ---- */

enum { TEXTS_MAX = 32, POSITIONAL_MAX = 4, OPTIONS_MAX = 40 };

/* Values of an option that may be given several times; borrowed from argv. */
struct texts {
    const char *items[TEXTS_MAX];
    size_t n;
};

enum option_kind {
    OPTION_FLAG,     /* takes no value */
    OPTION_TEXT,     /* UTF-8 */
    OPTION_PATH,     /* any bytes */
    OPTION_TEXTS,    /* UTF-8, several */
    OPTION_CHOICE,   /* one of value, a|b|c */
    OPTION_INTEGER,  /* low..high */
    OPTION_UNSIGNED, /* 64 bits */
    OPTION_NUMBER,   /* low..high */
    OPTION_DURATION, /* seconds: 90, 90s, 1.5m, 2h */
    OPTION_ENERGY,   /* joules: 500, 500J, 5kJ, 0.2Wh */
    OPTION_WHEN,     /* milliseconds since 1970: a date, a date and time, or so long ago; see when.c */
    OPTION_SIZE      /* bytes: 1000, 64K, 400M, 1.5G; binary */
};

struct option {
    const char *name; /* without the dashes */
    const char *value; /* what the help calls it */
    const char *help;
    enum option_kind kind;
    union {
        bool *flag;
        const char **text;
        struct texts *texts;
        int *small;
        int64_t *integer;
        uint64_t *whole;
        double *number;
    } to;
    bool is_small; /* OPTION_INTEGER into an int */
    double low, high;
    bool given;
};

static inline struct option option_flag(const char *name, const char *help, bool *to) {
    return (struct option){.name = name, .help = help, .kind = OPTION_FLAG, .to.flag = to};
}
static inline struct option option_text(const char *name, const char *value, const char *help, const char **to) {
    return (struct option){.name = name, .value = value, .help = help, .kind = OPTION_TEXT, .to.text = to};
}
static inline struct option option_path(const char *name, const char *value, const char *help, const char **to) {
    return (struct option){.name = name, .value = value, .help = help, .kind = OPTION_PATH, .to.text = to};
}
static inline struct option option_texts(const char *name, const char *value, const char *help, struct texts *to) {
    return (struct option){.name = name, .value = value, .help = help, .kind = OPTION_TEXTS, .to.texts = to};
}
static inline struct option option_choice(const char *name, const char *choices, const char *help, const char **to) {
    return (struct option){.name = name, .value = choices, .help = help, .kind = OPTION_CHOICE, .to.text = to};
}
static inline struct option option_int(const char *name, const char *help, int *to, int low, int high) {
    return (struct option){.name = name, .value = "N", .help = help, .kind = OPTION_INTEGER, .to.small = to,
                           .is_small = true, .low = low, .high = high};
}
/* high stays below 2^53. */
static inline struct option option_integer(const char *name, const char *help, int64_t *to, int64_t low, int64_t high) {
    return (struct option){.name = name, .value = "N", .help = help, .kind = OPTION_INTEGER, .to.integer = to,
                           .low = (double)low, .high = (double)high};
}
static inline struct option option_unsigned(const char *name, const char *value, const char *help, uint64_t *to) {
    return (struct option){.name = name, .value = value, .help = help, .kind = OPTION_UNSIGNED, .to.whole = to};
}
static inline struct option option_number(const char *name, const char *value, const char *help, double *to, double low,
                                          double high) {
    return (struct option){.name = name, .value = value, .help = help, .kind = OPTION_NUMBER, .to.number = to,
                           .low = low, .high = high};
}
static inline struct option option_duration(const char *name, const char *help, double *to) {
    return (struct option){.name = name, .value = "TIME", .help = help, .kind = OPTION_DURATION, .to.number = to};
}
static inline struct option option_energy(const char *name, const char *help, double *to) {
    return (struct option){.name = name, .value = "ENERGY", .help = help, .kind = OPTION_ENERGY, .to.number = to};
}
static inline struct option option_when(const char *name, const char *help, int64_t *to) {
    return (struct option){.name = name, .value = "WHEN", .help = help, .kind = OPTION_WHEN, .to.integer = to};
}
static inline struct option option_size(const char *name, const char *help, uint64_t *to) {
    return (struct option){.name = name, .value = "SIZE", .help = help, .kind = OPTION_SIZE, .to.whole = to};
}

/* Most of anything that is counted: examples, tokens. */
#define COUNT_MAX INT64_C(1000000000000)
#define THREADS_MAX 1024

struct arguments {
    const struct command *command;
    struct option options[OPTIONS_MAX];
    size_t n_options;
    size_t positional_min, positional_max;
    const char *positional[POSITIONAL_MAX];
    size_t n_positional;
};

void cli_option(struct arguments *arguments, struct option option);
/* Fills what the options point at, *cli and the positional arguments. CLI_GO, or the exit
 * code after --help (on standard output) or a usage error (on standard error). */
int cli_parse(struct cli *cli, struct arguments *arguments, int argc, char **argv);
bool cli_given(const struct arguments *arguments, const char *name);
/* "attune: MESSAGE", and where to find help for the command (NULL: in general). Returns CLI_USAGE. */
int cli_usage(const struct command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The candidate that `word` was probably meant to be; NULL: none is near. */
const char *cli_nearest(const char *word, const char *const *candidates, size_t n);
/* Whole string, no sign, no spaces. */
bool cli_parse_integer(const char *text, int64_t low, int64_t high, int64_t *out);
/* Decimal, with or without an exponent; a minus sign where low is below zero. */
bool cli_parse_number(const char *text, double low, double high, double *out);
/* A number and one unit out of `units`, each with its factor; no unit: 1. Above 0, at most high. */
bool cli_parse_scaled(const char *text, const char *units, const double *factors, double high, double *out);
/* Later than 1970-01-01T00:00:00Z, before the year 10000; so that 0 always means "not given". */
bool cli_parse_when(const char *text, int64_t now_ms, int64_t *ms);

/* ---- the store, and interactions out of it ---- */

/* With --key-file. Errors are told; returns enum cli_exit or CLI_GO. *out only on success. */
int cli_store_open(const struct cli *cli, attune_store **out);

/* Which interactions, as options say it: attune_filter. */
struct selection {
    struct texts ids;
    int64_t since, until; /* milliseconds; 0: open */
    const char *app, *session, *match;
    char *input; /* what came on standard input in the place of match; owned */
};
enum { SELECT_ID = 1, SELECT_MATCH = 2 };
/* --since, --until, --app, --session; with: others, of SELECT_*. */
void cli_selection_options(struct arguments *arguments, struct selection *selection, unsigned with);
bool cli_selection_given(const struct selection *selection);
/* Checks, reads standard input for a "-", fills *filter, which borrows from the selection. CLI_GO or an exit code. */
int cli_selection_take(const struct command *command, struct selection *selection, attune_filter *filter);
void cli_selection_free(struct selection *selection);

/* What the rows of JSON Lines have, so that one may be imported; without memory NULL. */
json_t *cli_row_json(const attune_row *row);
/* The last message of the person's. */
const char *cli_row_prompt(const attune_row *row);

/* ---- what forgets: forget, and consent withdrawn ---- */

/* Before anything is opened or read: a person at a terminal can be asked, or has said --yes. CLI_GO or an exit code. */
int cli_agree_possible(const struct cli *cli, const struct command *command, bool yes);
/* Shows what the filter names and asks. CLI_GO: the answer was yes. CLI_DONE: nothing is named, and that was told. */
int cli_agree(const struct cli *cli, attune_store *store, const attune_filter *filter, const char *question);
void cli_revoked_print(const attune_forget_result *result);
/* Adds what was revoked; object may be NULL. */
void cli_revoked_json(json_t *object, const attune_forget_result *result);

/* ---- input ---- */

/* Bytes at the start of text that are whole valid characters: n when all are. */
size_t cli_utf8_valid(const char *text, size_t n);
/* All of standard input, malloc'ed, NUL-terminated: at most 64 MiB of UTF-8 without NUL. line: a newline at
 * its very end (a pipe's, not the text's) is left out. Errors are told; returns enum cli_exit or CLI_GO. */
int cli_read_input(bool line, char **text, size_t *length);

/* The text as the person leaves it in $VISUAL or $EDITOR, without the newline at its end; in a folder that nobody else
 * may read and that is removed. *edited: malloc'ed, NULL when it is as it was. Errors are told; CLI_GO or an exit
 * code. */
int cli_edit_text(const char *text, char **edited);

/* ---- output ---- */

/* Standard output or error. A terminal gets no control characters but newline and tab: text may come from
 * a model or a hostile file. */
void cli_put(FILE *stream, const char *text, size_t length);
void cli_print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void cli_note(const char *format, ...) __attribute__((format(printf, 1, 2))); /* on standard error */
/* "  name          value" */
void cli_field(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Columns of a terminal, without the last one; 79 where there is none. */
size_t cli_columns(FILE *stream);
/* Text out of the store, whether or not standard output is a terminal: what would steer one is shown as a symbol,
 * and lines begin with `indent` spaces. Ends with a newline. */
void cli_put_text(const char *text, int indent);
/* The same on one line, without its end, cut to so many columns; returns how many it took. */
size_t cli_put_line(const char *text, size_t columns);
/* The next line of a text that is broken between words into lines of so many columns, at least 2, and at its own
 * newlines; *text moves behind it. Without its end; returns how many columns it took. */
size_t cli_put_wrapped(const char **text, size_t columns);
/* Begins a style on a terminal that wants colour: "" elsewhere. */
enum style { STYLE_PLAIN, STYLE_BOLD, STYLE_GREEN, STYLE_YELLOW, STYLE_RED };
void cli_style(FILE *stream, enum style style);
/* "attune: MESSAGE (WHERE)"; returns CLI_FAILED. */
int cli_fail(const attune_error *err);
int cli_fail_text(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* One line with the object, which is released. NULL: no memory to build it. */
int cli_json(json_t *object);
/* The same without the end of the line. */
int cli_json_part(json_t *object);
json_t *cli_json_text(const char *text); /* bytes that are not UTF-8 become U+FFFD */
json_t *cli_json_number(double value);   /* null when not finite */
json_t *cli_json_time(int64_t ms);       /* null for 0 */

/* Text for people, into out; returns out. */
struct words {
    char text[64];
};
struct words cli_duration(double seconds); /* "3 min 20 s" */
struct words cli_bytes(double bytes);      /* "3.1 MiB" */
struct words cli_time(int64_t ms);         /* "2025-01-31 23:05", local; "-" for 0 */
struct words cli_count(int64_t n);         /* "12,345" */
struct words cli_loss(double before, double after); /* "2.345 → 2.101", "-" when not measured */

/* ---- an engine from options ---- */

#define CLI_KV_CHOICES "f16|q8|f32"
#define CLI_PRECISION_CHOICES "auto|f32"
int cli_kv(const char *choice);        /* enum attune_kv_kind; NULL: the default */
int cli_precision(const char *choice); /* enum attune_precision; NULL: ATTUNE_PRECISION_SETTINGS */

struct engine_arguments {
    const char *base, *adapter, *merge, *precision;
    int threads;
};
void cli_engine_options(struct arguments *arguments, struct engine_arguments *engine);
/* Shows progress on a terminal where it takes long; Ctrl-C ends it. Errors are told. *out only on success. */
int cli_engine_open(const struct cli *cli, const struct command *command, const struct engine_arguments *engine,
                    attune_engine **out);
/* The same for another adapter of an open engine; both as in attune_engine_swap. */
int cli_engine_swap(attune_engine *engine, const char *adapter, const char *merge);

/* ---- an answer ---- */

struct answer_arguments {
    attune_generate_options options;
    struct texts stop, bias;
    attune_logit_bias biases[TEXTS_MAX];
    int64_t context;
    const char *system, *kv, *window;
    bool shift;
};
void cli_answer_options(struct arguments *arguments, struct answer_arguments *answer);
/* After cli_parse, before the others. CLI_GO or an exit code; answer must stay where it is. */
int cli_answer_take(const struct cli *cli, const struct arguments *arguments, struct answer_arguments *answer);
/* Errors are told. *out only on success. */
int cli_session_open(attune_engine *engine, const struct answer_arguments *answer, attune_session **out);
/* Generates, and prints the text as it comes where that is for people. *interrupt (nullable) != 0 stops. Errors are
 * told; returns enum cli_exit. */
int cli_answer(const struct cli *cli, attune_session *session, const struct answer_arguments *answer,
               const volatile sig_atomic_t *interrupt, attune_generate_result *result);
/* What follows the text, or the JSON object; id (nullable): of the interaction that it was recorded as. */
int cli_answer_end(const struct cli *cli, const attune_engine *engine, const attune_session *session,
                   const attune_generate_result *result, const attune_uuid *id);

/* ---- bench record and bench governor, beside the other benches ---- */

void cli_bench_record_options(struct arguments *arguments, attune_bench_record_options *options, bool *alone);
void cli_bench_governor_options(struct arguments *arguments, attune_bench_governor_options *options);
/* Errors are told; returns enum cli_exit. */
int cli_bench_governor(const struct cli *cli, const char *base, const attune_bench_governor_options *options);
int cli_bench_record(const struct cli *cli, const attune_bench_record_options *options);

/* Room for progress on standard error, when it is a terminal. */
struct progress {
    bool shown;       /* standard error is a terminal */
    double drawn_at;  /* monotonic seconds */
    bool on_screen;
};
void cli_progress_open(struct progress *progress);
void cli_progress_draw(struct progress *progress, const attune_progress *now);
void cli_progress_clear(struct progress *progress);

/* ---- what was learned: learned_command.c and report_learned.c ---- */

/* "61.2", "83 %", "3.1 of 100 words"; "-" where no answer says. */
struct words cli_style_figure(const char *unit, double value);
/* A difference that was found, in a word: "more", "fewer". */
const char *cli_style_word(const attune_learned_style *style);

/* ---- what a run was judged by: judged_by.c ---- */

enum { CLI_CRITERIA_MAX = 16 }; /* more than there are */
struct criteria_seen {
    attune_criterion items[CLI_CRITERIA_MAX];
    size_t n;
};
int cli_note_criterion(const attune_criterion *criterion, void *seen); /* an attune_criterion_callback */
json_t *cli_criteria_json(const struct criteria_seen *seen);
void cli_criteria_print(const struct criteria_seen *seen); /* a table; nothing where there are none */

#endif
