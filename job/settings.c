/* attune.conf: settings for people to edit. One table holds every key: its text, its limits, where it goes. */
#include "core/base/file.h"
#include "core/base/numerals.h"
#include "job/home.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of one busy CPU, in watts: what a core of such a device takes at full load, rounded up. */
static double watts_of(enum device_kind device) {
    return device == DEVICE_PHONE ? 2 : device == DEVICE_DESKTOP ? 12 : 8;
}

void settings_default_of(enum device_kind device, struct settings *s) {
    *s = (struct settings){.merge = MERGE_AUTO,
                           .drift_limit = 0.02,
                           .reference_limit = 0.1,
                           .reference_kl_limit = 2.5,
                           .shuffle = 1,
                           .held_out = 0.1,
                           .source_cap = 4096,
                           .day_cap = 1024,
                           .group_cap = 8,
                           .replay = 1,
                           .rollback = 1,
                           .memory = 600u << 20,
                           .checkpoint_seconds = 60,
                           .device = device,
                           .watts_per_cpu = watts_of(device),
                           .rows_new_min = 1,
                           .keep_adapters = 16,
                           .keep_nights_days = 400};
    policy_default(device, &s->policy);
    train_config_default(&s->train);
}

void settings_default(struct settings *s) { settings_default_of(DEVICE_LAPTOP, s); }

/* MINUTES: seconds in memory. DURATION, ENERGY, SIZE: 0 is written "none". */
enum kind { TEXT, REAL, COUNT, SEED, BYTES, SIZE, DURATION, ENERGY, MINUTES, WINDOW, CHOICE, TARGETS, MERGE };
/* Whether a key is part of a run's configuration. Those that came later may be missing in a stored one. */
enum recipe { NO_RECIPE, RECIPE, RECIPE_LATER };
struct key {
    const char *name;
    enum kind kind;
    size_t offset, size;
    double low, high;
    const char *choices; /* "a|b": values 0, 1 */
    enum recipe recipe;
    const char *comment;
};
#define DEVICES "laptop|phone|desktop" /* enum device_kind */
#define AT(field) offsetof(struct settings, field), sizeof(((struct settings *)0)->field)
static const struct key keys[] = {
    {"base", TEXT, AT(base), 0, 0, NULL, NO_RECIPE, "the base model, a GGUF file, and its sha256"},
    {"base_sha256", TEXT, AT(base_sha256), 0, 0, NULL, NO_RECIPE, NULL},
    {"merge", MERGE, AT(merge), 0, 0, NULL, RECIPE,
     "how an adapter is merged when it is loaded: none, same, calibrated, q8, f16 or auto (docs/cli.md)"},
    {"drift_limit", REAL, AT(drift_limit), 0, 100, NULL, NO_RECIPE,
     "auto takes the fastest way whose answers were measured to differ by no more than this, in nats a token"},
    {"rank", COUNT, AT(train.lora.rank), 1, LORA_RANK_MAX, NULL, RECIPE, "the adapter: rank, alpha, and which layers"},
    {"alpha", REAL, AT(train.lora.alpha), 0.001, 65536, NULL, RECIPE, NULL},
    {"targets", TARGETS, AT(train.lora.targets), 0, 0, NULL, RECIPE, NULL},
    {"dropout", REAL, AT(train.dropout), 0, 0.95, NULL, RECIPE, NULL},
    {"learning_rate", REAL, AT(train.learning_rate), 0, 1, NULL, RECIPE, "AdamW and its schedule: cosine or constant"},
    {"schedule", CHOICE, AT(train.schedule), 0, 0, "constant|cosine", RECIPE, NULL},
    {"warmup", REAL, AT(train.warmup), 0, 1, NULL, RECIPE, NULL},
    {"beta1", REAL, AT(train.beta1), 0, 0.9999, NULL, RECIPE, NULL},
    {"beta2", REAL, AT(train.beta2), 0, 0.999999, NULL, RECIPE, NULL},
    {"epsilon", REAL, AT(train.epsilon), 1e-20, 1, NULL, RECIPE, NULL},
    {"weight_decay", REAL, AT(train.weight_decay), 0, 10, NULL, RECIPE, NULL},
    {"clip", REAL, AT(train.clip), 0, 1e6, NULL, RECIPE, "largest norm of a step's gradient; 0: off"},
    {"batch", COUNT, AT(train.batch), 1, 1024, NULL, RECIPE, "conversations a step"},
    {"epochs", REAL, AT(epochs), 0, 100, NULL, RECIPE,
     "passes over the rows, 0: by their number, 3 for a few and 1 from 256 on; a time budget may allow fewer"},
    {"order", CHOICE, AT(shuffle), 0, 0, "recorded|shuffled", RECIPE, NULL},
    {"max_tokens", COUNT, AT(train.max_tokens), 16, 1 << 20, NULL, RECIPE, "longer texts are cut there"},
    {"micro_tokens", COUNT, AT(train.micro_tokens), 16, 1 << 20, NULL, RECIPE,
     "tokens that go through the layers together"},
    {"precision", CHOICE, AT(train.precision), 0, 0, "auto|f32", RECIPE_LATER,
     "of products with the base while training: auto, the fastest whose error is bounded, or f32"},
    {"preference_beta", REAL, AT(train.preference.beta), 0.0001, 1000, NULL, RECIPE_LATER,
     "DPO on pairs, with so much of saying the better answer; KTO on answers that were liked, and not"},
    {"preference_length", CHOICE, AT(train.preference.mean), 0, 0, "sum|mean", RECIPE_LATER, NULL},
    {"preference_weight", REAL, AT(train.preference.dpo), 0, 1000, NULL, RECIPE_LATER, NULL},
    {"preference_sft", REAL, AT(train.preference.sft), 0, 1000, NULL, RECIPE_LATER, NULL},
    {"thumb_up", REAL, AT(train.preference.up), 0, 1000, NULL, RECIPE_LATER, NULL},
    {"thumb_down", REAL, AT(train.preference.down), 0, 1000, NULL, RECIPE_LATER, NULL},
    {"held_out", REAL, AT(held_out), 0.01, 0.5, NULL, RECIPE, "share of prompts that judge and are never trained on"},
    {"reference_limit", REAL, AT(reference_limit), 0, 100, NULL, RECIPE_LATER,
     "on everyday questions: rise of the loss above the base's, as a share, and divergence, that are allowed"},
    {"reference_kl_limit", REAL, AT(reference_kl_limit), 0, 100, NULL, RECIPE_LATER, NULL},
    {"source_cap", COUNT, AT(source_cap), 0, 1 << 20, NULL, RECIPE_LATER,
     "so many of the newest rows are learned from: of an app and source, of a day of it, of one prompt; 0: all"},
    {"day_cap", COUNT, AT(day_cap), 0, 1 << 20, NULL, RECIPE_LATER, NULL},
    {"group_cap", COUNT, AT(group_cap), 0, 1 << 20, NULL, RECIPE_LATER, NULL},
    {"replay", REAL, AT(replay), 0, 100, NULL, RECIPE_LATER,
     "rows that the active adapter knows already and that are learned again, for each new one; 0: none"},
    {"seed", SEED, AT(train.seed), 0, 0, NULL, RECIPE, NULL},
    {"rollback", CHOICE, AT(rollback), 0, 0, "never|automatic", NO_RECIPE,
     "whether an adapter whose answers people like less than those before it is rolled back by itself"},
    {"checkpoint_seconds", REAL, AT(checkpoint_seconds), 0, 86400, NULL, NO_RECIPE,
     "progress is written no more often than this"},
    {"memory", BYTES, AT(memory), 1e6, 1e15, NULL, NO_RECIPE, "ceiling of resident memory while training"},
    {"device", CHOICE, AT(device), 0, 0, DEVICES, NO_RECIPE,
     "laptop, phone or desktop: keys below that are taken out have its defaults"},
    {"window", WINDOW, AT(policy.window), 0, 0, NULL, NO_RECIPE,
     "the night, in local time, such as 22:00-07:00; or always"},
    {"charger", CHOICE, AT(policy.charger_required), 0, 0, "ignored|required", NO_RECIPE,
     "whether the device must be on a charger"},
    {"charger_stable", DURATION, AT(policy.charger_stable_s), 0, 86400, NULL, NO_RECIPE,
     "once it was off the charger: for how long it must be on it again"},
    {"battery_min", COUNT, AT(policy.battery_min), 0, 100, NULL, NO_RECIPE,
     "least charge of the battery in per cent, where there is one"},
    {"idle", CHOICE, AT(policy.idle_required), 0, 0, "ignored|required", NO_RECIPE,
     "whether nobody may be at the device, and for how long before"},
    {"idle_minutes", MINUTES, AT(policy.idle_s), 0, 1440, NULL, NO_RECIPE, NULL},
    {"temperature_max", REAL, AT(policy.celsius_max), 0, 150, NULL, NO_RECIPE,
     "in degrees Celsius: at which it pauses, and by how much cooler it goes on; 0: not looked at"},
    {"temperature_back", REAL, AT(policy.celsius_back), 0, 100, NULL, NO_RECIPE, NULL},
    {"pressure_cpu", REAL, AT(policy.pressure_cpu), 0, 1, NULL, NO_RECIPE,
     "share of the time in which other programs wait for a CPU, above which it slows down; 0: not looked at"},
    {"pressure_memory", REAL, AT(policy.pressure_memory), 0, 1, NULL, NO_RECIPE,
     "the same for memory, above which it pauses"},
    {"memory_free", SIZE, AT(policy.memory_free), 0, 1e15, NULL, NO_RECIPE,
     "memory that is left to other programs, such as 500M; none: not looked at"},
    {"without_sensors", CHOICE, AT(policy.without_sensors), 0, 0, "stop|run", NO_RECIPE,
     "where the device cannot tell one of these; a charger that is required is never done without"},
    {"duty", REAL, AT(policy.duty), 0.05, 1, NULL, NO_RECIPE, "share of the time that is used"},
    {"threads", COUNT, AT(policy.threads), 0, 1024, NULL, NO_RECIPE, "threads at most; 0: one for each CPU"},
    {"time_run", DURATION, AT(policy.seconds_run), 0, 1e9, NULL, NO_RECIPE,
     "time for one call, for a night, for seven days: 90s, 20m, 1.5h, or none"},
    {"time_night", DURATION, AT(policy.seconds_night), 0, 1e9, NULL, NO_RECIPE, NULL},
    {"time_week", DURATION, AT(policy.seconds_week), 0, 1e9, NULL, NO_RECIPE, NULL},
    {"energy_run", ENERGY, AT(policy.joules_run), 0, 1e12, NULL, NO_RECIPE,
     "energy for the same: 500J, 5kJ, 10Wh, or none"},
    {"energy_night", ENERGY, AT(policy.joules_night), 0, 1e12, NULL, NO_RECIPE, NULL},
    {"energy_week", ENERGY, AT(policy.joules_week), 0, 1e12, NULL, NO_RECIPE, NULL},
    {"watts_per_cpu", REAL, AT(watts_per_cpu), 0.01, 1000, NULL, NO_RECIPE,
     "watts of one busy CPU: for energy that cannot be measured"},
    {"written_night", SIZE, AT(policy.written_night), 0, 1e15, NULL, NO_RECIPE,
     "bytes that a night may write, for flash wears: 500M, 2G, or none"},
    {"wait", CHOICE, AT(wait), 0, 0, "no|yes", NO_RECIPE,
     "whether it waits for its conditions until the window closes, or ends at once and is called again"},
    {"rows_new_min", COUNT, AT(rows_new_min), 1, 1 << 20, NULL, NO_RECIPE, "no run begins for fewer new rows"},
    {"keep_adapters", COUNT, AT(keep_adapters), 0, 1 << 20, NULL, NO_RECIPE,
     "how many adapters that are not active any more keep their file, the newest; 0: all"},
    {"keep_nights_days", REAL, AT(keep_nights_days), 0, 1e5, NULL, NO_RECIPE,
     "for how many days records of nights are kept; 0: for ever"},
};
enum { N_KEYS = sizeof keys / sizeof *keys };

/* Groups, by the key that each begins with. */
static const struct heading {
    const char *key, *text;
} headings[] = {
    {"base", "The model"},
    {"rank", "What is learned, and how: counts from the next run that is planned on"},
    {"checkpoint_seconds", "While a run is under way"},
    {"device", "When a run may begin and go on. What holds now: attune nightly --explain"},
    {"duty", "How much of the device a run may take"},
    {"wait", "attune nightly"},
};

static void *at(const struct key *key, struct settings *s) { return (char *)s + key->offset; }

static int bad(attune_error *err, const char *where, const struct key *key, const char *value, const char *wanted) {
    return error_set(err, ATTUNE_ERROR_FORMAT, where, "%s = %.60s: wanted %s", key->name, value, wanted);
}

static double parse_real(const char *value, char **end) {
    locale_t before = numerals_enter();
    errno = 0;
    double number = strtod(value, end);
    int saved = errno;
    numerals_leave(before);
    errno = saved;
    return number;
}

static void real_text(double value, int digits, char *out, size_t size) {
    locale_t before = numerals_enter();
    snprintf(out, size, "%.*g", digits, value);
    numerals_leave(before);
}

/* As few digits as bring the same double back. What is part of a run's identity keeps its 17. */
static void short_text(double value, char *out, size_t size) {
    locale_t before = numerals_enter();
    int whole = fmod(value, 1) == 0 && fabs(value) < 1e15;
    if (whole) snprintf(out, size, "%.0f", value);
    for (int digits = 1; digits <= 17 && !whole; digits++) {
        snprintf(out, size, "%.*g", digits, value);
        if (strtod(out, NULL) == value) break;
    }
    numerals_leave(before);
}

/* Limits of a float are floats too: what was stored at a limit reads back. */
static int parse_number(const struct key *key, const char *value, double *out) {
    char *end;
    *out = parse_real(value, &end);
    if (end == value || *end || errno) return 0;
    if (key->kind == REAL && key->size == sizeof(float))
        return (float)*out >= (float)key->low && (float)*out <= (float)key->high;
    return *out >= key->low && *out <= key->high;
}

/* Stores by the field's size: float or double, int or size_t. */
static void put_real(void *field, size_t size, double value) {
    if (size == sizeof(float))
        *(float *)field = (float)value;
    else
        *(double *)field = value;
}
static void put_count(void *field, size_t size, size_t value) {
    if (size == sizeof(int))
        *(int *)field = (int)value;
    else
        *(size_t *)field = value;
}
static double get_real(const void *field, size_t size) {
    return size == sizeof(float) ? (double)*(const float *)field : *(const double *)field;
}
static size_t get_count(const void *field, size_t size) {
    return size == sizeof(int) ? (size_t)*(const int *)field : *(const size_t *)field;
}

static int parse_choice(const struct key *key, const char *value, size_t *out) {
    size_t n = strlen(value), which = 0;
    for (const char *c = key->choices; *c; which++) {
        size_t length = strcspn(c, "|");
        if (length == n && strncmp(c, value, n) == 0) {
            *out = which;
            return 1;
        }
        c += length + (c[length] == '|');
    }
    return 0;
}

/* The largest first: what a value is written in. */
struct unit {
    const char *name;
    double factor;
};
static const struct unit byte_units[] = {{"G", 1073741824.0}, {"M", 1048576.0}, {"K", 1024.0}, {"", 1}, {NULL, 0}};
static const struct unit time_units[] = {{"h", 3600}, {"m", 60}, {"s", 1}, {"", 1}, {NULL, 0}};
static const struct unit energy_units[] = {{"kWh", 3.6e6}, {"Wh", 3600}, {"kJ", 1000}, {"J", 1}, {"", 1}, {NULL, 0}};

/* A number and one of the units; "none" is 0. */
static int parse_scaled(const struct key *key, const char *value, const struct unit *units, double *out) {
    char *end;
    double number = strcmp(value, "none") == 0 ? 0 : parse_real(value, &end);
    if (strcmp(value, "none") != 0) {
        if (end == value || errno) return 0;
        while (units->name && strcmp(units->name, end) != 0) units++;
        if (!units->name) return 0;
        number *= units->factor;
    }
    if (!(number >= key->low && number <= key->high)) return 0;
    *out = number;
    return 1;
}

/* In the largest unit that leaves a whole number. */
static void scaled_text(double value, const struct unit *units, char *out, size_t size) {
    char digits[40];
    if (value == 0) {
        snprintf(out, size, "none");
        return;
    }
    while (units->factor != 1 && fmod(value, units->factor) != 0) units++;
    short_text(value / units->factor, digits, sizeof digits);
    snprintf(out, size, "%s%s", digits, units->name);
}

static int parse_bytes(const struct key *key, const char *value, uint64_t *out) {
    double number;
    if (!parse_scaled(key, value, byte_units, &number)) return 0;
    *out = (uint64_t)number;
    return 1;
}

static int set_value(const struct key *key, const char *value, struct settings *s, const char *where,
                     attune_error *err) {
    double number;
    size_t choice;
    char *end, wanted[160];
    switch (key->kind) {
    case TEXT:
        if (strlen(value) >= key->size) return bad(err, where, key, value, "a shorter text");
        strcpy(at(key, s), value);
        return ATTUNE_OK;
    case REAL:
    case COUNT:
        if (!parse_number(key, value, &number) || (key->kind == COUNT && number != floor(number))) {
            snprintf(wanted, sizeof wanted, "a %snumber from %g to %g", key->kind == COUNT ? "whole " : "", key->low,
                     key->high);
            return bad(err, where, key, value, wanted);
        }
        if (key->kind == REAL)
            put_real(at(key, s), key->size, number);
        else
            put_count(at(key, s), key->size, (size_t)number);
        return ATTUNE_OK;
    case SEED:
        errno = 0;
        s->train.seed = strtoull(value, &end, 10);
        if (!isdigit((unsigned char)*value) || *end || errno) return bad(err, where, key, value, "a whole number");
        return ATTUNE_OK;
    case BYTES:
        if (!parse_bytes(key, value, at(key, s))) return bad(err, where, key, value, "a size such as 600M");
        return ATTUNE_OK;
    case SIZE:
        if (!parse_bytes(key, value, at(key, s))) return bad(err, where, key, value, "a size such as 600M, or none");
        return ATTUNE_OK;
    case DURATION:
        if (!parse_scaled(key, value, time_units, at(key, s)))
            return bad(err, where, key, value, "a time such as 90s, 20m or 1.5h, or none");
        return ATTUNE_OK;
    case ENERGY:
        if (!parse_scaled(key, value, energy_units, at(key, s)))
            return bad(err, where, key, value, "an energy such as 500J, 5kJ or 10Wh, or none");
        return ATTUNE_OK;
    case MINUTES:
        if (!parse_number(key, value, &number)) return bad(err, where, key, value, "minutes, from 0 to 1440");
        *(double *)at(key, s) = number * 60;
        return ATTUNE_OK;
    case WINDOW:
        if (!window_parse(value, at(key, s)))
            return bad(err, where, key, value, "a span of the day such as 22:00-07:00, or always");
        return ATTUNE_OK;
    case CHOICE:
        if (!parse_choice(key, value, &choice)) return bad(err, where, key, value, key->choices);
        put_count(at(key, s), sizeof(int), choice);
        return ATTUNE_OK;
    case TARGETS:
        if (lora_targets_parse(value, at(key, s), err) == ATTUNE_OK) return ATTUNE_OK;
        return bad(err, where, key, value, "all, or names such as attn_q,ffn_up");
    case MERGE:
        if (merge_mode_parse(value, at(key, s), err) == ATTUNE_OK) return ATTUNE_OK;
        return bad(err, where, key, value, "none, same, calibrated, q8, f16 or auto");
    }
    return ATTUNE_ERROR_INTERNAL;
}

static void value_text(const struct key *key, const struct settings *s, char *out, size_t size) {
    const void *field = (const char *)s + key->offset;
    switch (key->kind) {
    case TEXT: snprintf(out, size, "%s", (const char *)field); break;
    case REAL: /* nine digits bring every float back */
        if (key->recipe == NO_RECIPE) short_text(get_real(field, key->size), out, size);
        else real_text(get_real(field, key->size), key->size == sizeof(float) ? 9 : 17, out, size);
        break;
    case COUNT: snprintf(out, size, "%zu", get_count(field, key->size)); break;
    case SEED: snprintf(out, size, "%llu", (unsigned long long)s->train.seed); break;
    case BYTES:
    case SIZE: scaled_text((double)*(const uint64_t *)field, byte_units, out, size); break;
    case DURATION: scaled_text(*(const double *)field, time_units, out, size); break;
    case ENERGY: scaled_text(*(const double *)field, energy_units, out, size); break;
    case MINUTES: short_text(*(const double *)field / 60, out, size); break;
    case WINDOW: {
        char window[16];
        window_text(field, window);
        snprintf(out, size, "%s", window);
        break;
    }
    case CHOICE: {
        const char *c = key->choices;
        for (int n = *(const int *)field; n > 0; n--) c += strcspn(c, "|") + 1;
        snprintf(out, size, "%.*s", (int)strcspn(c, "|"), c);
        break;
    }
    case TARGETS: {
        *out = 0;
        for (int t = 0; t < TARGET_COUNT; t++)
            if (*(const uint32_t *)field & (1u << t))
                snprintf(out + strlen(out), size - strlen(out), "%s%s", *out ? "," : "", target_names[t]);
        if (*(const uint32_t *)field == LORA_ALL_TARGETS) snprintf(out, size, "all");
        break;
    }
    case MERGE: snprintf(out, size, "%s", merge_mode_name(*(const enum merge_mode *)field)); break;
    }
}

static char *trim(char *text) {
    while (isspace((unsigned char)*text)) text++;
    size_t n = strlen(text);
    while (n > 0 && isspace((unsigned char)text[n - 1])) text[--n] = 0;
    return text;
}

static int parse_line(char *line, const char *where, struct settings *s, unsigned char seen[N_KEYS],
                      attune_error *err) {
    char *text = trim(line);
    if (!*text || *text == '#') return ATTUNE_OK;
    char *equals = strchr(text, '=');
    if (!equals) return error_set(err, ATTUNE_ERROR_FORMAT, where, "wanted `key = value`, found: %.80s", text);
    *equals = 0;
    char *name = trim(text), *value = trim(equals + 1);
    for (size_t k = 0; k < N_KEYS; k++) {
        if (strcmp(keys[k].name, name) != 0) continue;
        if (seen[k]++) return error_set(err, ATTUNE_ERROR_FORMAT, where, "%s is set twice", name);
        return set_value(&keys[k], value, s, where, err);
    }
    return error_set(err, ATTUNE_ERROR_FORMAT, where, "unknown setting \"%.60s\"; docs/formats.md lists them", name);
}

/* What the file says goes over the defaults of the device that it names, wherever it names it. */
static void fill_missing(struct settings *s, const unsigned char seen[N_KEYS]) {
    struct settings whole;
    settings_default_of(s->device, &whole);
    for (size_t k = 0; k < N_KEYS; k++)
        if (seen[k]) memcpy(at(&keys[k], &whole), at(&keys[k], s), keys[k].size);
    *s = whole;
}

int settings_read(const char *home, struct settings *out, attune_error *err) {
    char path[HOME_PATH_MAX], where[HOME_PATH_MAX + 32];
    struct file_bytes file;
    struct settings s;
    unsigned char seen[N_KEYS] = {0};
    int code = home_file(home, "attune.conf", path, err);
    if (code != ATTUNE_OK) return code;
    code = file_bytes_open(path, FILE_READ, 1 << 20, &file, err);
    if (code != ATTUNE_OK) return code;
    s = (struct settings){.device = DEVICE_LAPTOP};
    size_t number = 1;
    for (size_t from = 0; from < file.size && code == ATTUNE_OK; number++) {
        char line[2048];
        size_t n = 0;
        while (from + n < file.size && file.data[from + n] != '\n') n++;
        snprintf(where, sizeof where, "%s:line %zu", path, number);
        if (n >= sizeof line || memchr(file.data + from, 0, n)) {
            code = error_set(err, ATTUNE_ERROR_FORMAT, where, "the line is too long or holds a NUL");
            break;
        }
        memcpy(line, file.data + from, n);
        line[n] = 0;
        code = parse_line(line, where, &s, seen, err);
        from += n + 1;
    }
    file_bytes_close(&file);
    if (code != ATTUNE_OK) return code;
    fill_missing(&s, seen);
    if (!*s.base || strlen(s.base_sha256) != 64)
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "base and base_sha256 must be set; attune init writes them");
    if (s.train.micro_tokens < s.train.max_tokens) s.train.micro_tokens = s.train.max_tokens;
    *out = s;
    return ATTUNE_OK;
}

static const char *heading_of(const char *key) {
    for (size_t h = 0; h < sizeof headings / sizeof *headings; h++)
        if (strcmp(headings[h].key, key) == 0) return headings[h].text;
    return NULL;
}

int settings_write(const char *home, const struct settings *s, attune_error *err) {
    char path[HOME_PATH_MAX], text[16384], value[HOME_PATH_MAX];
    size_t n = (size_t)snprintf(text, sizeof text, "# attune's settings. Lines are `key = value`.\n");
    for (size_t k = 0; k < N_KEYS && n < sizeof text; k++) {
        const char *heading = heading_of(keys[k].name), *comment = keys[k].comment;
        value_text(&keys[k], s, value, sizeof value);
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s%s%s%s%s%s = %s\n", heading ? "\n\n# ---- " : "",
                              heading ? heading : "", heading ? " ----\n" : "", comment ? "\n# " : "",
                              comment ? comment : "", comment ? "\n" : "", keys[k].name, value);
    }
    if (n >= sizeof text) return error_set(err, ATTUNE_ERROR_INTERNAL, "attune.conf", "there is no room for its text");
    int code = home_file(home, "attune.conf", path, err);
    if (code != ATTUNE_OK) return code;
    return file_write_atomic(path, "settings", text, n, err);
}

int settings_device_parse(const char *text, enum device_kind *out, attune_error *err) {
    static const struct key key = {.name = "device", .choices = DEVICES};
    size_t choice;
    if (!parse_choice(&key, text, &choice))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "there is no device \"%.40s\": laptop, phone or desktop",
                         text);
    *out = (enum device_kind)choice;
    return ATTUNE_OK;
}

/* Where the line of the key `base` begins, and its length; 0: there is none. */
static size_t find_base_line(const unsigned char *text, size_t size, size_t *at) {
    for (size_t from = 0, n; from < size; from += n + 1) {
        n = 0;
        while (from + n < size && text[from + n] != '\n') n++;
        size_t skip = 0;
        while (skip < n && isspace(text[from + skip])) skip++;
        if (n - skip < 4 || memcmp(text + from + skip, "base", 4) != 0) continue;
        skip += 4;
        while (skip < n && isspace(text[from + skip])) skip++;
        if (skip == n || text[from + skip] != '=') continue;
        *at = from;
        return n;
    }
    return 0;
}

int settings_base_change(const char *home, const char *base, attune_error *err) {
    char path[HOME_PATH_MAX];
    struct file_bytes file;
    struct file_writer writer = {0};
    size_t at = 0;
    int code = home_file(home, "attune.conf", path, err);
    if (code == ATTUNE_OK) code = file_bytes_open(path, FILE_READ, 1 << 20, &file, err);
    if (code != ATTUNE_OK) return code;
    size_t n = find_base_line(file.data, file.size, &at);
    if (n == 0) code = error_set(err, ATTUNE_ERROR_FORMAT, path, "base must be set; attune init writes it");
    if (code == ATTUNE_OK) code = file_writer_open(path, "settings", &writer, err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, file.data, at, err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, "base = ", 7, err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, base, strlen(base), err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, file.data + at + n, file.size - at - n, err);
    if (code == ATTUNE_OK) code = file_writer_publish(&writer, err);
    file_writer_abandon(&writer);
    file_bytes_close(&file);
    return code;
}

void settings_configuration(const struct settings *s, char *out, size_t size) {
    size_t n = (size_t)snprintf(out, size, "{");
    char value[512];
    for (size_t k = 0; k < N_KEYS; k++) {
        if (keys[k].recipe == NO_RECIPE) continue;
        value_text(&keys[k], s, value, sizeof value);
        n += (size_t)snprintf(out + n, size - n, "%s\"%s\": \"%s\"", n > 1 ? ", " : "", keys[k].name, value);
    }
    snprintf(out + n, size - n, "}");
}

int settings_from_configuration(const char *text, struct settings *s, attune_error *err) {
    json_t *object = json_loads(text, 0, NULL);
    int code = json_is_object(object) ? ATTUNE_OK
                                      : error_set(err, ATTUNE_ERROR_FORMAT, "run", "its configuration is not JSON");
    for (size_t k = 0; k < N_KEYS && code == ATTUNE_OK; k++) {
        const char *value = json_string_value(json_object_get(object, keys[k].name));
        if (keys[k].recipe == NO_RECIPE || (keys[k].recipe == RECIPE_LATER && !value)) continue;
        code = value ? set_value(&keys[k], value, s, "run", err)
                     : error_set(err, ATTUNE_ERROR_FORMAT, "run", "its configuration lacks %s", keys[k].name);
    }
    json_decref(object);
    return code;
}
