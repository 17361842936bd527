/* What an adapter has learned: figures of a text, tests of differences, words, which rows moved it, and that what is
 * kept of it is gone when it has to be. */
#define _GNU_SOURCE
#include <dirent.h>
#include <math.h>
#include <string.h>

#include "job/learned_cache.h"
#include "job/style.h"
#include "tests/home_fixture.h"

/* ---- figures of a text ---- */

static void test_figures(void **state) {
    (void)state;
    double f[STYLE_FIGURES];
    style_measure("Hello there! It's 3.5 km, perhaps.\n\n# Plan\n1. **Go** \xE2\x80\x93 now\n- caf\xC3\xA9 \xF0\x9F\x98\x80?\n"
                  "\nI think you\xE2\x80\x99ll like `it`. Take care!",
                  1, f);
    /* hello there it's 3 5 km perhaps | plan | go now | café | i think you'll like it | take care */
    assert_true(f[STYLE_WORDS] == 18);
    assert_true(f[STYLE_SENTENCES] == 7);
    assert_true(f[STYLE_PARAGRAPHS] == 3);
    assert_true(f[STYLE_QUESTIONS] == 1 && f[STYLE_EXCLAMATIONS] == 2);
    assert_true(f[STYLE_LISTS] == 2 && f[STYLE_HEADINGS] == 1 && f[STYLE_BOLD] == 1 && f[STYLE_CODE] == 1);
    assert_true(f[STYLE_EMOJI] == 1);
    assert_true(f[STYLE_GREETINGS] == 1 && f[STYLE_CLOSINGS] == 1 && f[STYLE_CAPITAL] == 1 && f[STYLE_ENDED] == 1);
    assert_true(fabs(f[STYLE_HEDGES] - 100 * 2 / 18.0) < 1e-9); /* perhaps, I think */
    assert_true(fabs(f[STYLE_CONTRACTIONS] - 100 * 2 / 18.0) < 1e-9);
    assert_true(fabs(f[STYLE_FIRST_PERSON] - 100 * 1 / 18.0) < 1e-9);
    assert_true(fabs(f[STYLE_SECOND_PERSON] - 100 * 1 / 18.0) < 1e-9);
    style_measure("\xC3\xA9t\xC3\xA9 \xE6\x97\xA5\xE6\x9C\xAC", 0, f); /* été, and two ideographs */
    assert_true(f[STYLE_WORDS] == 3 && f[STYLE_CHARACTERS] == 6 && f[STYLE_SENTENCES] == 1);
    assert_true(fabs(f[STYLE_WORD_LETTERS] - 5 / 3.0) < 1e-9 && f[STYLE_CAPITAL] == 0 && f[STYLE_ENDED] == 0);
    style_measure("", 1, f);
    assert_true(f[STYLE_WORDS] == 0 && f[STYLE_CHARACTERS] == 0 && f[STYLE_PARAGRAPHS] == 0);
    assert_true(isnan(f[STYLE_SENTENCE_WORDS]) && isnan(f[STYLE_HEDGES]) && isnan(f[STYLE_CAPITAL]));
    style_measure("\xFF\xC3 ok \xE6\x97", 1, f); /* not UTF-8: passed over */
    assert_true(f[STYLE_WORDS] == 1);
}

static void test_words_of_a_text(void **state) {
    (void)state;
    const char text[] = "'\xC3\x84rger' don't\xE2\x80\x94rock 'n' roll";
    static const char *const wanted[] = {"\xC3\xA4rger", "don't", "rock", "n", "roll"};
    const char *at = text, *end = text + strlen(text);
    char word[STYLE_WORD_MAX], longest[400];
    for (size_t i = 0; i < 5; i++) {
        assert_true(style_word(&at, end, word) > 0);
        assert_string_equal(word, wanted[i]);
    }
    assert_int_equal(style_word(&at, end, word), 0);
    for (size_t i = 0; i < 199; i++) memcpy(longest + 2 * i, "\xC3\xA9", 2);
    at = longest;
    assert_int_equal(style_word(&at, longest + 398, word), 62); /* whole characters of what fits beside the NUL */
    assert_ptr_equal(at, longest + 398);
}

/* ---- differences ---- */

enum { PAIRS = 20 };

static void test_differences(void **state) {
    (void)state;
    double base[PAIRS][STYLE_FIGURES], adapter[PAIRS][STYLE_FIGURES];
    struct style_difference d[STYLE_FIGURES];
    for (int i = 0; i < PAIRS; i++)
        for (int k = 0; k < STYLE_FIGURES; k++) base[i][k] = adapter[i][k] = 1;
    for (int i = 0; i < PAIRS; i++) {
        adapter[i][STYLE_WORDS] = 3 + i % 3;                 /* always more */
        adapter[i][STYLE_SENTENCES] = i % 2 ? 0 : 2;         /* as often up as down */
        adapter[i][STYLE_LISTS] = i < 5 ? 9 : 1;             /* five answers tell nothing */
        base[i][STYLE_CAPITAL] = NAN;
    }
    style_compare((const double(*)[STYLE_FIGURES])base, (const double(*)[STYLE_FIGURES])adapter, PAIRS, d);
    assert_int_equal(d[STYLE_WORDS].verdict, STYLE_DIFFERENT);
    assert_int_equal(d[STYLE_WORDS].more, PAIRS);
    assert_true(d[STYLE_WORDS].base == 1 && fabs(d[STYLE_WORDS].adapter - 3.95) < 1e-9 && d[STYLE_WORDS].p < 0.001);
    assert_int_equal(d[STYLE_SENTENCES].verdict, STYLE_ALIKE);
    assert_int_equal(d[STYLE_LISTS].verdict, STYLE_TOO_FEW);
    assert_true(isnan(d[STYLE_LISTS].p) && d[STYLE_LISTS].more == 5);
    assert_int_equal(d[STYLE_CAPITAL].n, 0);
    assert_true(isnan(d[STYLE_CAPITAL].base));
    /* exact: 2 of 2^6 flips are as far, and Holm doubles that of the smallest of two */
    for (int i = 0; i < 6; i++) base[i][STYLE_WORDS] = 0, adapter[i][STYLE_WORDS] = 1;
    for (int i = 0; i < 6; i++) base[i][STYLE_SENTENCES] = 0, adapter[i][STYLE_SENTENCES] = i < 3 ? 1 : -1;
    style_compare((const double(*)[STYLE_FIGURES])base, (const double(*)[STYLE_FIGURES])adapter, 6, d);
    assert_true(fabs(d[STYLE_WORDS].p - 2 * 2 / 64.0) < 1e-12);
    assert_int_equal(d[STYLE_WORDS].verdict, STYLE_ALIKE);
    assert_true(fabs(d[STYLE_SENTENCES].p - 1) < 1e-12);
    style_compare((const double(*)[STYLE_FIGURES])base, (const double(*)[STYLE_FIGURES])adapter, 0, d);
    assert_int_equal(d[STYLE_WORDS].verdict, STYLE_TOO_FEW);
}

static void test_tone(void **state) {
    (void)state;
    attune_error err;
    struct tone_word *words = NULL;
    size_t n = 0;
    /* prior 50 * 10/200 = 2.5: ln(10.5/139.5) - ln(4.5/145.5) over sqrt(1/10.5 + 1/4.5) */
    assert_true(fabs(tone_score((size_t[]){2, 8}, (size_t[]){100, 100}) - 1.5785449947649441) < 1e-12);
    assert_true(fabs(tone_score((size_t[]){8, 2}, (size_t[]){100, 100}) + 1.5785449947649441) < 1e-12);
    assert_true(tone_score((size_t[]){5, 5}, (size_t[]){100, 100}) == 0);
    assert_true(tone_score((size_t[]){0, 0}, (size_t[]){0, 0}) == 0);
    static const char *const base[] = {"the ship is here and the sea is there", "the fish is in the pan and it is hot",
                                       "the moon is up and the sun is down", "", "the end is near once more"};
    static const char *const adapter[] = {"Aye the ship aye aye lad is here", "aye aye the fish lad aye aye",
                                          "The moon aye aye lad aye aye", "aye aye aye", "zebra zebra zebra zebra zebra"};
    assert_int_equal(tone_words(base, adapter, 5, &words, &n, &err), ATTUNE_OK);
    assert_true(n >= 1);
    assert_string_equal(words[0].word, "aye");
    assert_int_equal(words[0].base, 0);
    assert_int_equal(words[0].adapter, 14);
    assert_int_equal(words[0].adapter_answers, 4);
    for (size_t i = 0; i < n; i++) assert_string_not_equal(words[i].word, "zebra"); /* one answer is no habit */
    free(words);
    assert_int_equal(tone_words(base, adapter, 0, &words, &n, &err), ATTUNE_OK);
    assert_int_equal(n, 0);
    free(words);
}

/* ---- whole homes ---- */

static attune_learned_options quick_look(void) {
    attune_learned_options options;
    ATTUNE_INIT(options);
    options.prompts = 2;
    options.threads = 1;
    return options;
}

static attune_learned *look(struct homes *f, const attune_learned_options *options) {
    attune_learned *learned = NULL;
    int code;
    OK(attune_learned_open(f->home, options, &learned, &f->err));
    do code = attune_learned_step(learned, &f->err);
    while (code == ATTUNE_CONTINUE);
    if (code != ATTUNE_DONE) fail_msg("%d: %s", code, f->err.message);
    return learned;
}
static attune_learned_summary summary_of(struct homes *f, const attune_learned *learned) {
    attune_learned_summary s;
    ATTUNE_INIT(s);
    OK(attune_learned_summary_get(learned, &s, &f->err));
    return s;
}

/* How many files in cache/ begin so, temporaries too. */
static int cached(const struct homes *f, const char *start) {
    DIR *folder = opendir(in_home(f, "cache"));
    int n = 0;
    if (!folder) return 0;
    for (struct dirent *entry; (entry = readdir(folder));)
        n += strncmp(entry->d_name + (entry->d_name[0] == '.'), start, strlen(start)) == 0;
    closedir(folder);
    return n;
}

enum { OFTEN = 30, SELDOM = 10 };
static void import_often_and_seldom(struct homes *f) {
    attune_store *store = NULL;
    FILE *file = fopen(in_folder(f, "made.jsonl"), "w");
    assert_non_null(file);
    for (unsigned long long i = 0; i < OFTEN + SELDOM; i++) {
        unsigned long long odd = (i + 1) * 0x9e3779b97f4a7c15u;
        fprintf(file, "{\"prompt\": \"what of %016llx?\", \"response\": \"", odd);
        if (i % 4) fprintf(file, "ahoy the tide is high and the wind is fair");
        else fprintf(file, "%llx %llx", odd * odd, odd ^ odd >> 7);
        fprintf(file, "\", \"time\": %llu}\n", 1700000000000ull + i);
    }
    assert_int_equal(fclose(file), 0);
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_import(store, in_folder(f, "made.jsonl"), NULL, NULL, &f->err));
    attune_store_close(store);
}

struct rows_seen {
    int n, often_first; /* often_first: before the first of the others */
    double share, last;
    char first[40];
};
static int see_row(const attune_learned_row *row, void *user) {
    struct rows_seen *seen = user;
    int often = strncmp(row->answer, "ahoy", 4) == 0;
    if (seen->n == 0) snprintf(seen->first, sizeof seen->first, "%s", row->id);
    if (often && seen->often_first == seen->n) seen->often_first++;
    assert_string_equal(row->kind, "answer");
    assert_true(row->tokens > 0 && row->weight > 0 && row->weight <= 1 && row->time_ms > 0);
    assert_true(fabs(row->moved - (row->loss_base - row->loss_adapter)) < 1e-9);
    assert_true(seen->n == 0 || row->weight * row->moved <= seen->last);
    seen->last = row->weight * row->moved;
    seen->share += row->share;
    seen->n++;
    return 0;
}
static int count_style(const attune_learned_style *style, void *user) {
    assert_true(*style->name && *style->title);
    ++*(int *)user;
    return 0;
}
static int count_answer(const attune_learned_answer *answer, void *user) {
    assert_true(*answer->prompt);
    ++*(int *)user;
    return 0;
}

static void test_rows_that_moved_it(void **state) {
    struct homes *f = *state;
    attune_learned_options options = quick_look();
    attune_learned *learned = NULL;
    attune_learned_summary s;
    struct rows_seen seen = {0}, again = {0};
    struct stat st;
    int styles = 0, answers = 0;
    make_home(f, TINY_BASE, 1);
    FAILS(attune_learned_open(f->home, &options, &learned, &f->err), ATTUNE_ERROR_NOT_FOUND, "attune train", "");
    import_often_and_seldom(f);
    publish_run(f, 1);
    options.kept_only = 1;
    FAILS(attune_learned_open(f->home, &options, &learned, &f->err), ATTUNE_ERROR_NOT_FOUND, "nothing is kept", "");
    options.kept_only = 0;
    learned = look(f, &options);
    s = summary_of(f, learned);
    assert_true(s.complete && !s.from_cache && s.adapter == 1 && s.prompts == 2);
    assert_int_equal(s.rows, s.rows_known);
    assert_true(s.rows > 20 && s.loss_base > s.loss_adapter && s.gain > 0);
    OK(attune_learned_rows(learned, see_row, &seen, &f->err));
    assert_int_equal(seen.n, s.rows);
    assert_true(fabs(seen.share - 1) < 1e-9);
    if (seen.often_first < 15) fail_msg("only %d of the answer that was trained often come first", seen.often_first);
    OK(attune_learned_styles(learned, count_style, &styles, &f->err));
    OK(attune_learned_answers(learned, count_answer, &answers, &f->err));
    assert_int_equal(styles, STYLE_FIGURES);
    assert_int_equal(answers, 2);
    attune_learned_close(learned);
    /* kept: at once, and the same; only for what was asked */
    assert_int_equal(cached(f, "learned-"), 1);
    OK(attune_learned_open(f->home, &options, &learned, &f->err));
    GIVES(attune_learned_step(learned, &f->err), ATTUNE_DONE);
    assert_true(summary_of(f, learned).from_cache);
    OK(attune_learned_rows(learned, see_row, &again, &f->err));
    assert_string_equal(again.first, seen.first);
    attune_learned_close(learned);
    options.rows = 7;
    learned = look(f, &options);
    s = summary_of(f, learned);
    assert_true(!s.from_cache && s.rows == 7 && s.rows_known > 20);
    attune_learned_close(learned);
    options = quick_look();
    options.kept_only = 1;
    learned = look(f, &options);
    assert_int_equal(summary_of(f, learned).rows, 7);
    attune_learned_close(learned);
    char name[64];
    snprintf(name, sizeof name, "cache/learned-%.16s.json", adapter_info(f, 1).sha256);
    assert_int_equal(stat(in_home(f, name), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    write_text(in_home(f, name), "{\"version\": 1, \"rows\": [3]}"); /* damaged: as if there were none */
    FAILS(attune_learned_open(f->home, &options, &learned, &f->err), ATTUNE_ERROR_NOT_FOUND, "nothing is kept", "");
}

/* Answers that were edited, liked and disliked: each interaction is one line, by what moved most of it. */
struct kinds_seen {
    int answer, edit, pair, liked, disliked, n;
};
static int see_kind(const attune_learned_row *row, void *user) {
    struct kinds_seen *seen = user;
    const char *k = row->kind;
    seen->answer += strcmp(k, "answer") == 0;
    seen->edit += strcmp(k, "edit") == 0;
    seen->pair += strcmp(k, "pair") == 0;
    seen->liked += strcmp(k, "liked") == 0;
    seen->disliked += strcmp(k, "disliked") == 0;
    seen->n++;
    if (strcmp(k, "disliked") == 0) assert_true(fabs(row->moved - (row->loss_adapter - row->loss_base)) < 1e-9);
    if (strcmp(k, "edit") == 0 || strcmp(k, "pair") == 0) assert_memory_equal(row->answer, "ahoy", 4);
    if (strcmp(k, "disliked") == 0) assert_memory_equal(row->answer, "nay", 3);
    return 0;
}

static void test_kinds(void **state) {
    struct homes *f = *state;
    attune_learned_options options = quick_look();
    attune_store *store = NULL;
    struct kinds_seen seen = {0};
    make_home(f, TINY_BASE, 1);
    FILE *file = fopen(in_folder(f, "made.jsonl"), "w");
    assert_non_null(file);
    for (unsigned long long i = 0; i < 40; i++) {
        static const char *const more[] = {"", ", \"edit\": \"ahoy the tide is high and the wind is fair\"",
                                           ", \"thumb\": \"up\"", ", \"thumb\": \"down\""};
        fprintf(file, "{\"prompt\": \"what of %016llx?\", \"response\": \"%s\", \"time\": %llu%s}\n",
                (i + 1) * 0x9e3779b97f4a7c15u, i % 4 == 1 || i % 4 == 3 ? "nay it is not so" : "ahoy the tide is high",
                1700000000000ull + i, more[i % 4]);
    }
    assert_int_equal(fclose(file), 0);
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_import(store, in_folder(f, "made.jsonl"), NULL, NULL, &f->err));
    attune_store_close(store);
    publish_run(f, 1);
    attune_learned *learned = look(f, &options);
    OK(attune_learned_rows(learned, see_kind, &seen, &f->err));
    attune_learned_summary s = summary_of(f, learned);
    attune_learned_close(learned);
    assert_true(s.rows_known == s.rows && s.rows == seen.n); /* interactions, of more examples */
    assert_true(seen.n <= 40 && seen.answer > 0 && seen.disliked > 0 && seen.edit + seen.pair > 0);
    assert_int_equal(seen.answer + seen.edit + seen.pair + seen.liked + seen.disliked, seen.n);
}

static void test_forgetting(void **state) {
    struct homes *f = *state;
    attune_learned_options options = quick_look();
    attune_learned *learned = NULL;
    attune_store *store = NULL;
    struct rows_seen seen = {0};
    char sha256[65], name[64];
    make_home(f, TINY_BASE, 1);
    import_often_and_seldom(f);
    publish_run(f, 1);
    memcpy(sha256, adapter_info(f, 1).sha256, sizeof sha256);
    learned = look(f, &options);
    OK(attune_learned_rows(learned, see_row, &seen, &f->err));
    attune_learned_close(learned);
    /* one that is being written while a row is forgotten has opened everything before */
    options.rows = 5;
    OK(attune_learned_open(f->home, &options, &learned, &f->err));
    const char *id = seen.first;
    attune_filter filter;
    ATTUNE_INIT(filter);
    filter.ids = &id;
    filter.n_ids = 1;
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_forget(store, &filter, NULL, &f->err));
    attune_store_close(store);
    assert_int_equal(cached(f, "learned"), 0);
    int code;
    do code = attune_learned_step(learned, &f->err);
    while (code == ATTUNE_CONTINUE);
    assert_int_equal(code, ATTUNE_DONE);
    attune_learned_close(learned);
    assert_int_equal(cached(f, "learned"), 0);
    options.adapter = 1;
    FAILS(attune_learned_open(f->home, &options, &learned, &f->err), ATTUNE_ERROR_STATE, "revoked", "");
    /* left by a process that died in between: by its name */
    shell("mkdir -p %s", in_home(f, "cache"));
    snprintf(name, sizeof name, "cache/learned-%.16s.json", sha256);
    write_text(in_home(f, name), "{}");
    snprintf(name, sizeof name, "cache/.learned-%.16s.json.1-1.tmp", sha256);
    write_text(in_home(f, name), "{}");
    attune_job *job = NULL;
    OK(attune_job_open(f->home, NULL, &job, &f->err));
    attune_job_close(job);
    assert_int_equal(cached(f, "learned"), 0);
}

static void test_encrypted_and_cancelled(void **state) {
    struct homes *f = *state;
    attune_home_options home;
    attune_learned_options options = quick_look();
    attune_learned *learned = NULL;
    struct rows_seen seen = {0};
    ATTUNE_INIT(home);
    home.consent = 1;
    home.key_file = in_folder(f, "key");
    OK(attune_home_init(f->home, TINY_BASE, &home, &f->err));
    quick_settings(f);
    import_often_and_seldom(f);
    publish_run(f, 1);
    learned = look(f, &options);
    assert_true(summary_of(f, learned).complete);
    OK(attune_learned_rows(learned, see_row, &seen, &f->err));
    attune_learned_close(learned);
    assert_true(seen.n > 20);
    assert_int_equal(cached(f, "learned"), 0);
    /* nor is anything kept of what is stopped, or runs out of time */
    shell("rm -rf %s", f->home);
    make_home(f, TINY_BASE, 1);
    import_often_and_seldom(f);
    publish_run(f, 1);
    OK(attune_learned_open(f->home, &options, &learned, &f->err));
    GIVES(attune_learned_step(learned, &f->err), ATTUNE_CONTINUE);
    attune_learned_cancel(learned);
    FAILS(attune_learned_step(learned, &f->err), ATTUNE_ERROR_CANCELLED, "stopped", "");
    FAILS(attune_learned_rows(learned, see_row, &seen, &f->err), ATTUNE_ERROR_STATE, "attune_learned_step", "");
    attune_learned_close(learned);
    options.time_s = 1e-9;
    learned = look(f, &options);
    assert_false(summary_of(f, learned).complete);
    attune_learned_close(learned);
    assert_int_equal(cached(f, "learned"), 0);
    options.prompts = 25;
    FAILS(attune_learned_open(f->home, &options, &learned, &f->err), ATTUNE_ERROR_ARGUMENT, "up to 24", "");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_figures),
        cmocka_unit_test(test_words_of_a_text),
        cmocka_unit_test(test_differences),
        cmocka_unit_test(test_tone),
        TEST(test_rows_that_moved_it),
        TEST(test_kinds),
        TEST(test_forgetting),
        TEST(test_encrypted_and_cancelled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
