/* What a run was judged by: for adapters show, status and train. */
#include "cli/cli.h"

#include <math.h>
#include <string.h>

int cli_note_criterion(const attune_criterion *criterion, void *user) {
    struct criteria_seen *seen = user;
    seen->items[seen->n++] = *criterion;
    return seen->n == CLI_CRITERIA_MAX;
}

json_t *cli_criteria_json(const struct criteria_seen *seen) {
    json_t *array = json_array();
    for (size_t i = 0; i < seen->n; i++) {
        const attune_criterion *c = &seen->items[i];
        json_array_append_new(array, json_pack("{s:o, s:o, s:o, s:b, s:o}", "name", cli_json_text(c->name), "figure",
                                               cli_json_number(c->figure), "threshold", cli_json_number(c->threshold),
                                               "passed", c->passed, "detail", cli_json_text(c->detail)));
    }
    return array;
}

static struct words figure(double value) {
    struct words words = {"-"};
    if (isfinite(value)) snprintf(words.text, sizeof words.text, "%.4f", value);
    return words;
}

void cli_criteria_print(const struct criteria_seen *seen) {
    if (seen->n == 0) return;
    cli_print("\nWhat it was judged by:\n");
    cli_print("  %-12s  %9s  %9s  %-7s %s\n", "criterion", "figure", "threshold", "passed", "");
    for (size_t i = 0; i < seen->n; i++) {
        const attune_criterion *c = &seen->items[i];
        cli_print("  %-12s  %9s  %9s  %-7s %s\n", c->name, figure(c->figure).text, figure(c->threshold).text,
                  c->passed ? "yes" : "NO", c->detail);
    }
}
