/* Nights as people speak of them: all calls that belong to one night, together. */
#ifndef CLI_NIGHT_SUMMARY_H
#define CLI_NIGHT_SUMMARY_H

#include "cli/cli.h"

struct night {
    const attune_night *calls; /* (n), the newest first; borrowed from struct nights */
    size_t n;
    const attune_night
        *telling; /* the newest call that worked, else the newest: its state and reason are the night's */
    int64_t night_ms, started_ms, ended_ms; /* ended 0: it still runs, or was killed */
    int64_t runs, tokens, steps, marked, written, pauses;
    double seconds, work_seconds;
    double joules, joules_measured, joules_battery, joules_modelled; /* joules: all labels */
    double loss_before, loss_after; /* of the newest run that ended; NaN */
    double celsius_max;             /* NaN: not known */
    int adapter, published;         /* the newest that it published, 0: none; how many */
};
struct nights {
    attune_night *calls;
    size_t n_calls, capacity;
    struct night *items; /* (n), the newest first */
    size_t n;
    bool more;           /* the limit has left some out */
};
/* Calls that began in [since_ms, until_ms), 0: open; at most `limit` nights, 0: all. Errors are told; CLI_GO or an exit
 * code. */
int cli_nights_read(const struct cli *cli, int64_t since_ms, int64_t until_ms, int64_t limit, struct nights *out);
void cli_nights_free(struct nights *nights);

json_t *cli_night_json(const struct night *night);
struct words cli_night_date(int64_t ms);    /* "2025-01-31", local */
struct words cli_energy(double joules);     /* "12.3 Wh" */
/* "measured", "battery", "modelled", "mixed", "-". */
const char *cli_night_known(const struct night *night);
/* "8.1 Wh measured, 4.2 Wh modelled": each label that there is. */
void cli_energy_parts(double measured, double battery, double modelled, char *out, size_t size);
/* The same of a night, with " (2 gaps by the model)". */
void cli_night_energy(const struct night *night, char *out, size_t size);
/* "it runs", "killed: ...", or the reason alone. */
void cli_night_ending(const struct night *night, char *out, size_t size);

/* history --nights. Returns enum cli_exit. */
int cli_nights_history(const struct cli *cli, int64_t since_ms, int64_t until_ms, int64_t limit);

#endif
