#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

static int print_ids(const struct cli *cli, const int32_t *ids, size_t n) {
    if (!cli->json) {
        for (size_t i = 0; i < n; i++) cli_print("%s%d", i ? " " : "", ids[i]);
        cli_print("\n");
        return CLI_DONE;
    }
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(array, json_integer(ids[i]));
    return cli_json(json_pack("{s:o}", "ids", array));
}

static int tokenize(const struct cli *cli, const attune_engine *engine, const char *text, size_t length, int flags) {
    attune_error err = {0};
    size_t n = 0;
    if (attune_engine_tokenize(engine, text, length, flags, NULL, 0, &n, &err) != ATTUNE_OK) return cli_fail(&err);
    int32_t *ids = calloc(n ? n : 1, sizeof *ids);
    if (!ids) return cli_fail_text("out of memory for %zu tokens", n);
    int code;
    if (attune_engine_tokenize(engine, text, length, flags, ids, n, &n, &err) != ATTUNE_OK) code = cli_fail(&err);
    else code = print_ids(cli, ids, n);
    free(ids);
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    bool special = false;
    /* The vocabulary is the base's: no adapter, and no threads to start for it. */
    struct engine_arguments from = {.adapter = "base", .threads = 1};
    struct arguments a = {.command = &tokenize_command, .positional_min = 1, .positional_max = 1};
    cli_option(&a, option_path("base", "FILE", "a base model (GGUF), in place of the home's", &from.base));
    cli_option(&a, option_flag("special", "recognise special tokens such as <|im_end|>", &special));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    const char *text = a.positional[0];
    size_t length = strlen(text);
    char *input = NULL;
    if (strcmp(text, "-") == 0) {
        code = cli_read_input(false, &input, &length);
        if (code != CLI_GO) return code;
        text = input;
    } else if (cli_utf8_valid(text, length) != length) {
        return cli_usage(a.command, "the text is not UTF-8");
    }
    attune_engine *engine = NULL;
    code = cli_engine_open(cli, a.command, &from, &engine);
    if (code == CLI_GO) code = tokenize(cli, engine, text, length, special ? ATTUNE_TOKENIZE_SPECIAL : 0);
    attune_engine_close(engine);
    free(input);
    return code;
}

const struct command tokenize_command = {
    .name = "tokenize",
    .arguments = "TEXT|- [--special] [--base FILE]",
    .summary = "The tokens of a text, as the base model counts them.",
    .notes = "- reads the text from standard input, every byte of it.",
    .run = run,
};
