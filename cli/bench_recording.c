/* `attune bench record` */
#include "cli/cli.h"

void cli_bench_record_options(struct arguments *a, attune_bench_record_options *o, bool *alone) {
    cli_option(a, option_path("dir", "DIR", "record, governor: where stores and homes are made for it; default $TMPDIR, "
                                            "else /tmp",
                              &o->folder));
    cli_option(a, option_integer("rate", "record: rows a second of each process; default 200", &o->rate, 1, 100000));
    cli_option(a, option_flag("alone", "record: without a process beside that reads", alone));
}

static json_t *figures_json(const attune_record_figures *f) {
    return json_pack("{s:o, s:o, s:o, s:o, s:I, s:I, s:o}", "p50_us", cli_json_number(f->p50_us), "p99_us",
                     cli_json_number(f->p99_us), "p999_us", cli_json_number(f->p999_us), "max_us",
                     cli_json_number(f->max_us), "calls", (json_int_t)f->calls, "dropped", (json_int_t)f->dropped,
                     "rows_per_s", cli_json_number(f->rows_per_s));
}

static int n_loads(const attune_bench_record_result *r) {
    return r->n_loads < ATTUNE_RECORD_LOADS ? r->n_loads : ATTUNE_RECORD_LOADS;
}

static json_t *loads_json(const attune_bench_record_result *r) {
    json_t *array = json_array();
    for (int i = 0; i < n_loads(r); i++)
        json_array_append_new(array, json_pack("{s:i, s:o, s:o}", "processes", r->load[i].processes, "queue",
                                               figures_json(&r->load[i].queue), "direct",
                                               figures_json(&r->load[i].direct)));
    return array;
}

/* Latencies of the fullest load stand at the top. */
static int print_json(const attune_bench_record_result *r) {
    static const attune_record_figures none;
    const attune_record_figures *most = n_loads(r) ? &r->load[n_loads(r) - 1].queue : &none;
    return cli_json(json_pack(
        "{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:o, s:{s:o}, s:o, s:o, s:o}", "bench", "record", "rows_per_s",
        cli_json_number(r->rows_per_s), "p50_us", cli_json_number(most->p50_us), "p99_us",
        cli_json_number(most->p99_us), "p999_us", cli_json_number(most->p999_us), "max_us",
        cli_json_number(most->max_us), "loads", loads_json(r), "rows", (json_int_t)r->rows, "seconds",
        cli_json_number(r->seconds), "limits", "disk_mbytes_per_s", cli_json_number(r->disk_mbytes_per_s),
        "file_bytes_per_row", cli_json_number(r->file_bytes_per_row), "queue_peak_mib",
        cli_json_number(r->queue_peak_mib), "peak_rss_mib", cli_json_number(r->peak_rss_mib)));
}

static void print_figures(const char *what, int processes, const attune_record_figures *f) {
    cli_print("  %-8s  %9d  %9.1f  %9.1f  %9.1f  %9.1f  %9s\n", what, processes, f->p50_us, f->p99_us, f->p999_us,
              f->max_us, cli_count(f->dropped).text);
}

static void print_people(const attune_bench_record_result *r) {
    cli_print("record: microseconds that a call takes; queue: attune_store_record, direct: an SQLite insert\n\n");
    cli_print("  %-8s  %9s  %9s  %9s  %9s  %9s  %9s\n", "", "processes", "median", "99 %", "99.9 %", "longest",
              "dropped");
    for (int i = 0; i < n_loads(r); i++) {
        print_figures("queue", r->load[i].processes, &r->load[i].queue);
        print_figures("direct", r->load[i].processes, &r->load[i].direct);
    }
    cli_print("\n");
    cli_field("flat out", "%s rows/s until they are durable: %s rows in %s", cli_count((int64_t)r->rows_per_s).text,
              cli_count(r->rows).text, cli_duration(r->seconds).text);
    cli_field("disk", "%.0f MB/s at most; %.0f bytes a row in the file", r->disk_mbytes_per_s, r->file_bytes_per_row);
    cli_field("queue", "%.1f MiB at most", r->queue_peak_mib);
    cli_field("peak memory", "%.0f MiB", r->peak_rss_mib);
}

int cli_bench_record(const struct cli *cli, const attune_bench_record_options *options) {
    attune_error err = {0};
    attune_bench_record_result result;
    ATTUNE_INIT(result);
    if (attune_bench_record(options, &result, &err) != ATTUNE_OK) return cli_fail(&err);
    if (cli->json) return print_json(&result);
    print_people(&result);
    return CLI_DONE;
}
