/* The page of `attune report`: what the nights did, for people. Holds figures and attune's own words, and never a path;
 * a text that was recorded, or that a model made of such, only with `texts`. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include "cli/markup.h"
#include "cli/night_summary.h"

enum { REPORT_NIGHTS_SHOWN = 3, REPORT_DRIFTS_MAX = 20 };

/* attune_moment, with texts of its own. */
struct moment {
    int64_t time_ms;
    int64_t until_ms; /* this holds until then: the next moment, or the end of the call */
    char verdict[12], reason[96];
    double celsius, watts, percent, loss; /* NaN: not known */
};
/* A night that is looked at closely. */
struct night_moments {
    const struct night *night;
    struct moment *items; /* (n), in order of time */
    size_t n, capacity;
    bool no_memory;
};
/* An adapter, and how far the fastest merged way that was measured is from it; kl NaN: not measured. */
struct report_adapter {
    attune_adapter_info info;
    char merge[16];
    double kl, agreement;
};
struct report {
    int64_t now_ms;
    attune_status status;
    struct nights nights;
    struct night_moments close[REPORT_NIGHTS_SHOWN]; /* the newest first */
    size_t n_close;
    struct report_adapter *adapters; /* (n_adapters), the newest first */
    size_t n_adapters, adapter_capacity;
    attune_learned *learned; /* of the active adapter, as it was kept; NULL: nothing is */
    bool texts;              /* words, answers and rows too */
};

/* The whole page. */
void report_page(struct markup *out, const struct report *report);

/* The section on what the active adapter has learned; nothing where that is not known. */
void report_learned(struct markup *out, const struct report *report);

/* Its plots, each as a figure with legend; in two widths, of which the style sheet shows one. */
void report_plot_losses(struct markup *out, const struct nights *nights);
void report_plot_energy(struct markup *out, const struct nights *nights);
void report_plot_night(struct markup *out, const struct night_moments *close, int number);
/* "run", "throttle", "pause", "stop" or "other": a class, whatever the record says. */
const char *report_verdict(const char *recorded);
/* "running", "slowed down", "paused", "stopped". */
const char *report_verdict_words(const char *recorded);

#endif
