#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/random.h"
#include "job/home.h"
#include "tests/expect.h"

#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define HEAD "base = /models/base.gguf\nbase_sha256 = " SHA "\n"
enum { HEAD_LINES = 2 };

static char home[64], path[128];

static int setup(void **state) {
    (void)state;
    strcpy(home, "/tmp/attune-settings-XXXXXX");
    if (!mkdtemp(home)) return -1;
    snprintf(path, sizeof path, "%s/attune.conf", home);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    unlink(path);
    return rmdir(home);
}
static void put(const char *text, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}
static int read_text(const char *text, struct settings *out, attune_error *err) {
    *err = (attune_error){0};
    put(text, strlen(text));
    return settings_read(home, out, err);
}

/* When a run may begin and for how much. */
static void assert_same_night(const struct settings *a, const struct settings *b) {
    const struct policy *p = &a->policy, *q = &b->policy;
    assert_int_equal(a->device, b->device);
    assert_true(p->window.from == q->window.from && p->window.until == q->window.until);
    assert_true(p->charger_required == q->charger_required && p->battery_min == q->battery_min);
    assert_true(p->idle_required == q->idle_required && p->without_sensors == q->without_sensors);
    assert_true(p->threads == q->threads && p->memory_free == q->memory_free && p->written_night == q->written_night);
    const double *reals[][2] = {{&p->charger_stable_s, &q->charger_stable_s}, {&p->idle_s, &q->idle_s},
                                {&p->celsius_max, &q->celsius_max}, {&p->celsius_back, &q->celsius_back},
                                {&p->pressure_cpu, &q->pressure_cpu}, {&p->pressure_memory, &q->pressure_memory},
                                {&p->duty, &q->duty}, {&p->seconds_run, &q->seconds_run},
                                {&p->seconds_night, &q->seconds_night}, {&p->seconds_week, &q->seconds_week},
                                {&p->joules_run, &q->joules_run}, {&p->joules_night, &q->joules_night},
                                {&p->joules_week, &q->joules_week}, {&p->modelled_guard, &q->modelled_guard},
                                {&a->watts_per_cpu, &b->watts_per_cpu}, {&a->keep_nights_days, &b->keep_nights_days}};
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
        if (memcmp(reals[i][0], reals[i][1], sizeof(double)) != 0)
            fail_msg("figure %zu: %.17g, then %.17g", i, *reals[i][0], *reals[i][1]);
    assert_int_equal(a->wait, b->wait);
    assert_int_equal(a->rollback, b->rollback);
    assert_true(a->rows_new_min == b->rows_new_min && a->keep_adapters == b->keep_adapters);
    assert_int_equal(q->now, 0); /* a call's, never the file's */
}

static void assert_same(const struct settings *a, const struct settings *b, int recipe_only) {
    const struct train_config *x = &a->train, *y = &b->train;
    assert_int_equal(a->merge, b->merge);
    assert_memory_equal(&x->lora, &y->lora, sizeof x->lora);
    const float *floats[][2] = {{&x->dropout, &y->dropout}, {&x->learning_rate, &y->learning_rate},
                                {&x->warmup, &y->warmup}, {&x->beta1, &y->beta1}, {&x->beta2, &y->beta2},
                                {&x->epsilon, &y->epsilon}, {&x->weight_decay, &y->weight_decay},
                                {&x->clip, &y->clip}};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        assert_memory_equal(floats[i][0], floats[i][1], sizeof(float));
    assert_int_equal(x->schedule, y->schedule);
    assert_true(x->batch == y->batch && x->max_tokens == y->max_tokens && x->micro_tokens == y->micro_tokens);
    assert_true(x->seed == y->seed && x->precision == y->precision);
    const struct preference_config *p = &x->preference, *q = &y->preference;
    assert_true(p->beta == q->beta && p->mean == q->mean && p->dpo == q->dpo && p->sft == q->sft && p->up == q->up &&
                p->down == q->down);
    assert_memory_equal(&a->epochs, &b->epochs, sizeof a->epochs);
    assert_memory_equal(&a->held_out, &b->held_out, sizeof a->held_out);
    assert_int_equal(a->shuffle, b->shuffle);
    assert_true(a->source_cap == b->source_cap && a->day_cap == b->day_cap && a->group_cap == b->group_cap && a->replay == b->replay);
    assert_true(a->reference_limit == b->reference_limit && a->reference_kl_limit == b->reference_kl_limit);
    if (recipe_only) return;
    assert_string_equal(a->base, b->base);
    assert_string_equal(a->base_sha256, b->base_sha256);
    assert_true(a->memory == b->memory);
    assert_memory_equal(&a->checkpoint_seconds, &b->checkpoint_seconds, sizeof a->checkpoint_seconds);
    assert_memory_equal(&a->drift_limit, &b->drift_limit, sizeof a->drift_limit);
    assert_same_night(a, b);
}

/* Out to the file and back, out to a run's configuration and back. */
static void check_round_trip(const struct settings *settings) {
    struct settings back;
    char text[2048], again[2048];
    memset(&back, 0x5a, sizeof back);
    OK(settings_write(home, settings, &err));
    OK(settings_read(home, &back, &err));
    assert_same(settings, &back, 0);
    settings_configuration(settings, text, sizeof text);
    assert_true(strlen(text) < sizeof text - 60); /* room for what a plan puts in front */
    settings_default(&back);
    OK(settings_from_configuration(text, &back, &err));
    assert_same(settings, &back, 1);
    settings_configuration(&back, again, sizeof again);
    assert_string_equal(text, again);
}

static struct settings complete(void) {
    struct settings s;
    settings_default(&s);
    strcpy(s.base, "/models/a base.gguf");
    strcpy(s.base_sha256, SHA);
    return s;
}

static void test_round_trip(void **state) {
    (void)state;
    struct settings s = complete();
    check_round_trip(&s);
    s.merge = MERGE_SAME;
    s.train = (struct train_config){
        .lora = {16, 31.4f, 1 << TARGET_Q | 1 << TARGET_UP}, .dropout = 0.1f, .learning_rate = 2.5e-4f,
        .schedule = SCHEDULE_CONSTANT, .warmup = 1.0f / 3, .beta1 = 0.85f, .beta2 = 0.97f, .epsilon = 1e-6f,
        .weight_decay = 0.07f, .clip = 0.3f, .batch = 3, .max_tokens = 300, .micro_tokens = 700,
        .seed = 18446744073709551615u, .precision = PRECISION_F32,
        .preference = {0.3f, 1, 0.7f, 0.0f, 1.0f / 3, 1000.0f}};
    s.epochs = 1.0 / 3;
    s.shuffle = 0;
    s.held_out = 0.123456789012345;
    s.source_cap = 77;
    s.day_cap = 55;
    s.group_cap = 0;
    s.memory = 123456789;
    s.checkpoint_seconds = 12.5;
    s.policy.charger_required = 0;
    s.policy.battery_min = 55;
    s.drift_limit = 0.0123456789012345;
    check_round_trip(&s);
    s.device = DEVICE_PHONE; /* what differs from its defaults is in the file too */
    s.policy.window = (struct window){23 * 60 + 59, 1};
    s.policy.charger_stable_s = 90.5;
    s.policy.idle_required = 0;
    s.policy.idle_s = 450;
    s.policy.celsius_max = 66.6;
    s.policy.celsius_back = 3.3;
    s.policy.pressure_cpu = 1.0 / 3;
    s.policy.pressure_memory = 0.07;
    s.policy.memory_free = 123456789;
    s.policy.without_sensors = 1;
    s.policy.duty = 0.123456789012345;
    s.policy.threads = 3;
    s.policy.seconds_run = 5401;
    s.policy.seconds_night = 7200.25;
    s.policy.seconds_week = 0;
    s.policy.joules_run = 1234.5678;
    s.policy.joules_night = 7.2e6;
    s.policy.joules_week = 36000;
    s.policy.written_night = 3u << 30;
    s.wait = 1;
    s.rollback = 0;
    s.watts_per_cpu = 3.14159;
    s.rows_new_min = 7;
    s.keep_adapters = 0;
    s.keep_nights_days = 30.5;
    check_round_trip(&s);
    for (int device = DEVICE_LAPTOP; device <= DEVICE_DESKTOP; device++) {
        settings_default_of((enum device_kind)device, &s);
        strcpy(s.base, "/b");
        strcpy(s.base_sha256, SHA);
        check_round_trip(&s);
    }
    s = complete();
    for (int merge = MERGE_NONE; merge < MERGE_MODES; merge++) {
        s.merge = (enum merge_mode)merge;
        check_round_trip(&s);
    }
    for (uint32_t targets = 1; targets <= LORA_ALL_TARGETS; targets++) {
        s.train.lora.targets = targets;
        check_round_trip(&s);
    }
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

/* Every float and double comes back, to the last bit. */
static void test_digits(void **state) {
    (void)state;
    struct settings s = complete(), back = complete();
    char text[2048];
    for (uint64_t i = 0; i < 1000; i++) {
        s.train.learning_rate = random_uniform(1, i) * random_uniform(2, i);
        s.train.beta1 = 0.9f + 0.09f * random_uniform(3, i);
        s.held_out = 0.1 + 0.1 * (double)random_u64(4, i) / 18446744073709551616.0;
        settings_configuration(&s, text, sizeof text);
        OK(settings_from_configuration(text, &back, &err));
        assert_same(&s, &back, 1);
    }
}

static void test_longest_configuration(void **state) {
    (void)state;
    struct settings s = complete();
    s.train.lora = (struct lora_config){256, 1234.56787f, LORA_ALL_TARGETS - (1 << TARGET_V)};
    s.train.dropout = s.train.warmup = s.train.beta1 = s.train.beta2 = 0.123456791f;
    s.train.learning_rate = 1.23456795e-25f;
    s.train.weight_decay = 1.23456795e-25f;
    s.train.clip = 1.23456795e-25f;
    s.train.epsilon = 1.23456783e-10f;
    s.train.batch = 1024;
    s.train.max_tokens = s.train.micro_tokens = 1 << 20;
    s.train.seed = 18446744073709551615u;
    s.train.preference = (struct preference_config){123.456787f, 1, 1.23456795e-25f, 1.23456795e-25f, 1.23456795e-25f,
                                                    1.23456795e-25f};
    s.epochs = 99.123456789012345;
    s.held_out = 0.12345678901234567;
    s.replay = 12.345678901234567;
    s.source_cap = s.day_cap = s.group_cap = 1 << 20;
    check_round_trip(&s);
    memset(s.base, 'b', sizeof s.base - 1);
    s.base[sizeof s.base - 1] = 0;
    check_round_trip(&s);
}

/* ---- limits of each key: what is at them is taken, and comes back; what is behind them is refused ---- */

static const struct {
    const char *key, *good[6], *bad[10];
} limits[] = {
    {"base_sha256", {SHA}, {SHA "0"}},
    {"merge", {"none", "f16", "q8", "same", "calibrated", "auto"}, {"automatic", "F16", "q4", ""}},
    {"preference_beta", {"0.0001", "1000", "0.1"}, {"0", "0.00009", "1001", "nan", ""}},
    {"preference_length", {"sum", "mean"}, {"total", "0", ""}},
    {"preference_weight", {"0", "1000"}, {"-1", "1001", "nan"}},
    {"preference_sft", {"0", "1000"}, {"-1", "1001", "nan"}},
    {"replay", {"0", "100", "0.5"}, {"-1", "101", "nan"}},
    {"thumb_up", {"0", "1000"}, {"-1", "1001", "nan"}},
    {"thumb_down", {"0", "1000"}, {"-1", "1001", "nan"}},
    {"drift_limit", {"0", "100", "0.02"}, {"-0.001", "100.1", "nan", "inf", ""}},
    {"reference_limit", {"0", "100", "0.1"}, {"-0.001", "100.1", "nan", "inf", ""}},
    {"reference_kl_limit", {"0", "100", "2.5"}, {"-0.001", "100.1", "nan", ""}},
    {"rank", {"1", "256", "8"}, {"0", "257", "-1", "1.5", "", "eight", "8x", "nan", "inf"}},
    {"alpha", {"0.001", "65536", "16.25"}, {"0", "-1", "0.00099", "65537", "nan", "inf", "1e400"}},
    {"targets", {"all", "attn_q", "attn_q,ffn_up", "ffn_down,attn_k"}, {"", "attn_x", "attn_q,", "attn_q,nothing"}},
    {"dropout", {"0", "0.95", "0.5"}, {"-0.01", "0.951", "1", "nan"}},
    {"learning_rate", {"0", "1", "1e-5"}, {"-1e-9", "1.01", "nan", "inf", "0,001"}},
    {"schedule", {"constant", "cosine"}, {"linear", "", "0", "cosine|constant", "constant|"}},
    {"warmup", {"0", "1", "0.05"}, {"-0.1", "1.1"}},
    {"beta1", {"0", "0.9999"}, {"1", "-0.1", "0.99991"}},
    {"beta2", {"0", "0.999999"}, {"1", "-0.1", "0.9999999"}},
    {"epsilon", {"1e-20", "1", "1e-8"}, {"0", "9e-21", "1.1", "-1e-8", "1e-400"}},
    {"weight_decay", {"0", "10"}, {"-1", "10.1"}},
    {"clip", {"0", "1e6", "1000000"}, {"-1", "1.1e6"}},
    {"batch", {"1", "1024"}, {"0", "1025", "2.5"}},
    {"epochs", {"0", "100", "0.25"}, {"-1", "nan", "101"}},
    {"order", {"recorded", "shuffled"}, {"random", ""}},
    {"max_tokens", {"16", "1048576"}, {"15", "1048577", "1e20"}},
    {"micro_tokens", {"16", "1048576"}, {"15", "1048577"}},
    {"held_out", {"0.01", "0.5"}, {"0", "0.009", "0.51", "1"}},
    {"source_cap", {"0", "1048576", "4096"}, {"-1", "1048577", "1.5", "", "none"}},
    {"day_cap", {"0", "1048576", "1024"}, {"-1", "1048577", "1.5", "", "none"}},
    {"group_cap", {"0", "1048576", "8"}, {"-1", "1048577", "1.5", ""}},
    {"seed", {"0", "1", "18446744073709551615"}, {"-1", "", "1.5", "18446744073709551616", "+1", "seed"}},
    {"checkpoint_seconds", {"0", "86400", "0.5"}, {"-1", "86401"}},
    {"memory",
     {"1000000", "1M", "600M", "2.5G", "977K", "1000G"},
     {"0", "999999", "1", "600T", "600MB", "M", "-600M", "1e16", "inf"}},
    {"charger", {"ignored", "required"}, {"yes", ""}},
    {"battery_min", {"0", "100"}, {"-1", "101", "30.5"}},
    {"device", {"laptop", "phone", "desktop"}, {"server", "", "0", "laptop|phone"}},
    {"window", {"22:00-07:00", "always", "00:00-23:59", "09:30-10:00"}, {"", "never", "22-7", "24:00-07:00", "22:00"}},
    {"charger_stable", {"none", "0", "90s", "1.5m", "24h"}, {"-1", "25h", "s", "1 s", "1d", "nan", "inf", "", "90ss"}},
    {"idle", {"ignored", "required"}, {"no", ""}},
    {"idle_minutes", {"0", "1440", "7.5"}, {"-1", "1441", "10m", "nan", ""}},
    {"temperature_max", {"0", "150", "82.5"}, {"-1", "151", "85C", "nan"}},
    {"temperature_back", {"0", "100"}, {"-0.1", "101"}},
    {"pressure_cpu", {"0", "1", "0.4"}, {"-0.1", "1.1", "40%"}},
    {"pressure_memory", {"0", "1"}, {"-0.1", "1.1"}},
    {"memory_free", {"none", "0", "1", "500M", "1.5G", "1000000000000000"}, {"-1", "500MB", "", "1e16", "nan", "all"}},
    {"without_sensors", {"stop", "run"}, {"go", ""}},
    {"duty", {"0.05", "1", "0.5"}, {"0", "0.049", "1.01", "nan"}},
    {"threads", {"0", "1024"}, {"-1", "1025", "1.5", "all"}},
    {"time_run", {"none", "0", "90", "90s", "20m", "1.5h"}, {"-1s", "1d", "h", "1h30m", "1e10", "inf", "nan", "No"}},
    {"time_night", {"none", "4h"}, {"-1", "4 h"}},
    {"time_week", {"none", "168h"}, {"-1", "week"}},
    {"energy_run", {"none", "0", "500", "500J", "5kJ", "0.5kWh"}, {"-1J", "5KJ", "5W", "kJ", "1e13", "nan", "5 kJ", ""}},
    {"energy_night", {"none", "10Wh"}, {"-1", "10wh"}},
    {"energy_week", {"none", "1000kJ"}, {"-1", "x"}},
    {"watts_per_cpu", {"0.01", "1000", "7.5"}, {"0", "1001", "8W", "nan"}},
    {"written_night", {"none", "0", "2G", "512M"}, {"-1", "2T", ""}},
    {"wait", {"no", "yes"}, {"1", "maybe", ""}},
    {"rows_new_min", {"1", "1048576"}, {"0", "1048577", "1.5"}},
    {"rollback", {"never", "automatic"}, {"1", "always", ""}},
    {"keep_adapters", {"0", "1048576"}, {"-1", "1048577"}},
    {"keep_nights_days", {"0", "100000", "0.5"}, {"-1", "100001", "nan"}},
};

static void test_limits(void **state) {
    (void)state;
    char text[2048], line[16];
    for (size_t k = 0; k < sizeof limits / sizeof *limits; k++) {
        const char *key = limits[k].key, *head = strcmp(key, "base_sha256") ? HEAD : "base = b\n# the hash:\n";
        struct settings s;
        attune_error err;
        snprintf(line, sizeof line, ":line %d", HEAD_LINES + 1);
        for (size_t g = 0; g < 6 && limits[k].good[g]; g++) {
            snprintf(text, sizeof text, "%s%s = %s\n", head, key, limits[k].good[g]);
            if (read_text(text, &s, &err) != ATTUNE_OK) fail_msg("%s = %s: %s", key, limits[k].good[g], err.message);
            check_round_trip(&s);
        }
        for (size_t b = 0; b < 10 && limits[k].bad[b]; b++) {
            snprintf(text, sizeof text, "%s%s = %s\n", head, key, limits[k].bad[b]);
            memset(&s, 0x5a, sizeof s);
            if (read_text(text, &s, &err) != ATTUNE_ERROR_FORMAT) fail_msg("%s = %s was taken", key, limits[k].bad[b]);
            if (!strstr(err.where, line) || !strstr(err.message, key))
                fail_msg("%s = %s: \"%s\" at \"%s\"", key, limits[k].bad[b], err.message, err.where);
            assert_int_equal(*(unsigned char *)&s, 0x5a);
        }
    }
}

/* ---- lines ---- */

static void test_lines(void **state) {
    (void)state;
    struct settings s;
    attune_error err;
    static const char sound[] = "\n# a comment = 1\n\t base\t=  /a b/c = d.gguf \r\nbase_sha256=" SHA "\n   \nrank=3";
    assert_int_equal(read_text(sound, &s, &err), ATTUNE_OK);
    assert_string_equal(s.base, "/a b/c = d.gguf");
    assert_int_equal(s.train.lora.rank, 3);
    assert_int_equal(read_text(HEAD "max_tokens = 600\n", &s, &err), ATTUNE_OK);
    assert_true(s.train.micro_tokens >= 600); /* a text goes through in one piece */

    static const struct {
        const char *text, *where, *message;
    } wrong[] = {
        {HEAD "colour = red\n", ":line 3", "colour"},
        {HEAD "\n\nRank = 3\n", ":line 5", "Rank"},
        {HEAD "rank = 3\nbatch = 2\nrank = 3\n", ":line 5", "rank is set twice"},
        {HEAD "rank 3\n", ":line 3", "rank 3"},
        {HEAD "= 3\n", ":line 3", "\"\""},
        {"\xef\xbb\xbf" HEAD, ":line 1", "base"},
        {"base = x\n", "attune.conf", "base_sha256"},
        {"base_sha256 = " SHA "\n", "attune.conf", "base"},
        {"base = x\nbase_sha256 = 0123\n", "attune.conf", "base_sha256"},
        {"", "attune.conf", "init"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (read_text(wrong[i].text, &s, &err) != ATTUNE_ERROR_FORMAT) fail_msg("text %zu was taken", i);
        if (!strstr(err.where, wrong[i].where) || !strstr(err.message, wrong[i].message))
            fail_msg("text %zu: \"%s\" at \"%s\"", i, err.message, err.where);
    }
}

static void test_bytes_that_are_no_text(void **state) {
    (void)state;
    struct settings s;
    attune_error err = {0};
    static char text[5000];
    int n = snprintf(text, sizeof text, HEAD "rank = 3");
    text[n++] = 0;
    text[n++] = '7';
    put(text, (size_t)n);
    assert_int_equal(settings_read(home, &s, &err), ATTUNE_ERROR_FORMAT);
    assert_non_null(strstr(err.where, ":line 3"));
    n = snprintf(text, sizeof text, HEAD "# ");
    memset(text + n, 'x', 3000);
    put(text, (size_t)n + 3000);
    assert_int_equal(settings_read(home, &s, &err), ATTUNE_ERROR_FORMAT);
    assert_non_null(strstr(err.where, ":line 3"));
    n = snprintf(text, sizeof text, "base_sha256 = " SHA "\nbase = ");
    memset(text + n, 'x', 1024); /* one too many */
    put(text, (size_t)n + 1024);
    assert_int_equal(settings_read(home, &s, &err), ATTUNE_ERROR_FORMAT);
    put(text, (size_t)n + 1023);
    assert_int_equal(settings_read(home, &s, &err), ATTUNE_OK);
    assert_int_equal(strlen(s.base), 1023);
    unlink(path);
    assert_int_equal(settings_read(home, &s, &err), ATTUNE_ERROR_IO);
    assert_int_equal(mkfifo(path, 0600), 0); /* nothing is waited for */
    assert_true(settings_read(home, &s, &err) < 0);
    unlink(path);
}

/* ---- the defaults of a device ---- */

static void check_device(const char *text, enum device_kind device, int battery_min) {
    struct settings s, wanted;
    attune_error err;
    if (read_text(text, &s, &err) != ATTUNE_OK) fail_msg("%s: %s", text, err.message);
    settings_default_of(device, &wanted);
    strcpy(wanted.base, s.base);
    strcpy(wanted.base_sha256, s.base_sha256);
    if (battery_min >= 0) wanted.policy.battery_min = battery_min;
    assert_same(&s, &wanted, 0);
}

/* A file from before there were devices is a laptop's; what it says itself counts. Wherever the device stands, what it
 * brings never goes over what is said. */
static void test_device(void **state) {
    (void)state;
    struct settings laptop, phone, desktop;
    settings_default_of(DEVICE_LAPTOP, &laptop);
    settings_default_of(DEVICE_PHONE, &phone);
    settings_default_of(DEVICE_DESKTOP, &desktop);
    assert_true(laptop.policy.celsius_max != phone.policy.celsius_max);
    assert_true(laptop.policy.seconds_night != desktop.policy.seconds_night);
    check_device(HEAD, DEVICE_LAPTOP, -1);
    check_device(HEAD "battery_min = 77\n", DEVICE_LAPTOP, 77);
    check_device(HEAD "device = phone\n", DEVICE_PHONE, -1);
    check_device("device = desktop\n" HEAD "battery_min = 77\n", DEVICE_DESKTOP, 77);
    check_device(HEAD "battery_min = 77\ndevice = desktop\n", DEVICE_DESKTOP, 77);
    check_device("battery_min = 40\n" HEAD "device = phone\n", DEVICE_PHONE, 40); /* a laptop's default, but said */
    enum device_kind device = DEVICE_LAPTOP;
    attune_error err;
    assert_int_equal(settings_device_parse("phone", &device, &err), ATTUNE_OK);
    assert_int_equal(device, DEVICE_PHONE);
    assert_int_equal(settings_device_parse("toaster", &device, &err), ATTUNE_ERROR_ARGUMENT);
    assert_non_null(strstr(err.message, "laptop, phone or desktop"));
}

/* Every key stands in a new file, once, and what is written in it is for people. */
static void test_written_for_people(void **state) {
    (void)state;
    struct settings s = complete();
    char text[20000];
    s.policy.seconds_night = 4 * 3600;
    s.policy.joules_night = 15e3;
    s.policy.joules_week = 0;
    s.policy.memory_free = 512u << 20;
    s.policy.written_night = 1000;
    OK(settings_write(home, &s, &err));
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    static const char *const lines[] = {"\ndevice = laptop\n", "\nwindow = 22:00-07:00\n", "\ntime_night = 4h\n",
                                        "\nenergy_night = 15kJ\n", "\nenergy_week = none\n", "\nmemory_free = 512M\n",
                                        "\nwritten_night = 1000\n", "\nidle_minutes = 10\n", "\nmemory = 600M\n",
                                        "\nwait = no\n", "\npressure_cpu = 0.4\n", "\n# ---- attune nightly ----\n"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (!strstr(text, lines[i])) fail_msg("not in the file:%s", lines[i]);
    for (size_t k = 0; k < sizeof limits / sizeof *limits; k++) {
        char line[64];
        snprintf(line, sizeof line, "\n%s = ", limits[k].key);
        if (!strstr(text, line)) fail_msg("%s is not in the file", limits[k].key);
    }
    size_t longest = 0;
    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strcspn(line, "\n") > longest) longest = strcspn(line, "\n");
    assert_true(longest <= 120);
}

/* ---- a run's configuration ---- */

static void test_configuration(void **state) {
    (void)state;
    struct settings s = complete(), back;
    attune_error err = {0};
    char text[2048], short_text[2048];
    settings_configuration(&s, text, sizeof text);
    assert_null(strstr(text, "models")); /* paths, memory and power are no part of what is computed */
    assert_null(strstr(text, "memory"));
    assert_null(strstr(text, "charger"));
    assert_null(strstr(text, "window"));
    assert_null(strstr(text, "time_"));
    assert_null(strstr(text, "device"));
    /* every key is needed but those that came later, and its value is checked as in attune.conf */
    for (const char *key = strchr(text, '"'); key; key = strchr(strchr(key, ',') ? strchr(key, ',') : "", '"')) {
        size_t before = (size_t)(key - text);
        snprintf(short_text, sizeof short_text, "%.*s\"x%s", (int)before, text, key + 1);
        settings_default(&back);
        int later = strncmp(key, "\"source_cap\"", 12) == 0 || strncmp(key, "\"group_cap\"", 11) == 0 ||
                    strncmp(key, "\"day_cap\"", 9) == 0 ||
                    strncmp(key, "\"precision\"", 11) == 0 || strncmp(key, "\"preference_", 12) == 0 ||
                    strncmp(key, "\"thumb_", 7) == 0 || strncmp(key, "\"replay\"", 8) == 0 ||
                    strncmp(key, "\"reference_", 11) == 0;
        int code = settings_from_configuration(short_text, &back, &err);
        if (code != (later ? ATTUNE_OK : ATTUNE_ERROR_FORMAT)) fail_msg("without %.30s: %d", key, code);
        if (!strchr(key, ',')) break;
    }
    static const char *const wrong[] = {"", "[]", "{", "{}", "null", "{\"rank\": 8}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(settings_from_configuration(wrong[i], &back, &err), ATTUNE_ERROR_FORMAT);
    char *rank = strstr(text, "\"rank\": \"8\"");
    assert_non_null(rank);
    rank[strlen("\"rank\": \"")] = '0';
    assert_int_equal(settings_from_configuration(text, &back, &err), ATTUNE_ERROR_FORMAT);
    assert_non_null(strstr(err.message, "rank"));
}

/* As it was stored before there were caps, a precision and preferences: the rest counts, and they are what
 * they are by default. */
static void test_configuration_of_an_earlier_version(void **state) {
    (void)state;
    struct settings s = complete(), back;
    char text[2048], *from, *to;
    s.train.lora.rank = 5;
    s.train.seed = 77;
    s.source_cap = 9;
    s.day_cap = 4;
    s.group_cap = 3;
    s.train.precision = PRECISION_F32;
    s.train.preference.beta = 0.7f;
    settings_configuration(&s, text, sizeof text);
    from = strstr(text, "\"source_cap\": \"9\", \"day_cap\": \"4\", \"group_cap\": \"3\", ");
    assert_non_null(from);
    to = strstr(from, "\"seed\"");
    memmove(from, to, strlen(to) + 1);
    from = strstr(text, "\"precision\": \"f32\", ");
    to = strstr(text, "\"held_out\"");
    assert_true(from && to > from);
    memmove(from, to, strlen(to) + 1);
    settings_default(&back);
    OK(settings_from_configuration(text, &back, &err));
    assert_int_equal(back.train.precision, PRECISION_AUTO);
    assert_float_equal(back.train.preference.beta, 1.0f, 0);
    assert_int_equal(back.train.lora.rank, 5);
    assert_int_equal(back.train.seed, 77);
    assert_int_equal(back.source_cap, 4096);
    assert_int_equal(back.day_cap, 1024);
    assert_int_equal(back.group_cap, 8);
}

/* ---- another base ---- */

static void expect_base(const char *text, const char *base, const char *wanted) {
    char found[512];
    put(text, strlen(text));
    OK(settings_base_change(home, base, &err));
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    found[fread(found, 1, sizeof found - 1, f)] = 0;
    fclose(f);
    assert_string_equal(found, wanted);
}

static void test_another_base(void **state) {
    (void)state;
    static const char tail[] = "base_sha256 = " SHA "\n# base = not this\nrank = 3";
    char text[512], wanted[512];
    static const char *const lines[] = {"base = /old/place.gguf\n", "  base=/old\n", "\tbase\t = x y \r\n"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(text, sizeof text, "# mine\n%s%s", lines[i], tail);
        snprintf(wanted, sizeof wanted, "# mine\nbase = /new/place.gguf\n%s", tail);
        expect_base(text, "/new/place.gguf", wanted);
    }
    expect_base("base_sha256 = " SHA "\nbase = x", "/new", "base_sha256 = " SHA "\nbase = /new");
    attune_error err = {0};
    static const char none[] = "base_sha256 = x\n# base = y\nbases = z\n";
    put(none, strlen(none));
    assert_int_equal(settings_base_change(home, "/new", &err), ATTUNE_ERROR_FORMAT);
    assert_non_null(strstr(err.message, "base"));
    unlink(path);
    assert_int_equal(settings_base_change(home, "/new", &err), ATTUNE_ERROR_IO);
}

/* A host that writes its numbers with a comma: our files have a point all the same. */
static void test_locale_of_the_host(void **state) {
    (void)state;
    char command[256], locales[128], plain[1024], text[1024];
    struct settings s = complete(), back;
    s.train.learning_rate = 2.5e-4f;
    s.held_out = 0.125;
    settings_configuration(&s, plain, sizeof plain);
    snprintf(locales, sizeof locales, "%s/de_DE.UTF-8", home);
    snprintf(command, sizeof command, "localedef -i de_DE -f UTF-8 %s >/dev/null 2>&1", locales);
    if (system(command) == 0) setenv("LOCPATH", home, 1); /* else the system's own, if it has one */
    char *found = setlocale(LC_ALL, "de_DE.UTF-8");
    if (found) {
        snprintf(text, sizeof text, "%.1f", 0.5);
        assert_string_equal(text, "0,5");
        OK(settings_write(home, &s, &err));
        OK(settings_read(home, &back, &err));
        assert_same(&s, &back, 0);
        settings_configuration(&s, text, sizeof text);
        assert_string_equal(text, plain);
        OK(settings_from_configuration(plain, &back, &err));
        assert_same(&s, &back, 1);
        snprintf(text, sizeof text, "%.1f", 0.5);
        assert_string_equal(text, "0,5"); /* the host's choice stands */
    }
    setlocale(LC_ALL, "C");
    unsetenv("LOCPATH");
    snprintf(command, sizeof command, "rm -rf %s", locales);
    assert_int_equal(system(command), 0);
    if (!found) skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_digits), cmocka_unit_test(test_longest_configuration),
        cmocka_unit_test(test_limits),     cmocka_unit_test(test_lines),
        cmocka_unit_test(test_bytes_that_are_no_text),
        cmocka_unit_test(test_device),     cmocka_unit_test(test_written_for_people), cmocka_unit_test(test_configuration),
        cmocka_unit_test(test_configuration_of_an_earlier_version), cmocka_unit_test(test_another_base),
        cmocka_unit_test(test_locale_of_the_host),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
