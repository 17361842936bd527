/* What a home holds and how it is: status for people, checks for when something is wrong. */
#include "core/base/options.h"
#include "datastore/store.h"
#include "energy/policy.h"
#include "job/nightly.h"
#include "job/rollback.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct count {
    const char *home;
    int n;
};

static int count_adapter(const attune_adapter_info *info, void *user) {
    struct count *count = user;
    count->n += strcmp(info->state, "revoked") != 0 && !retention_removed(count->home, info);
    return 0;
}

static void describe_base(const char *home, attune_status *s) {
    struct model *model = NULL;
    char sha256[65];
    if (base_hash(home, s->base_path, s->base_sha256, sha256, NULL) == ATTUNE_OK)
        s->base_ok = strcmp(sha256, s->base_sha256) == 0;
    if (model_open(s->base_path, FILE_MAP, &model, NULL) != ATTUNE_OK) return;
    snprintf(s->base_name, sizeof s->base_name, "%s", model->name);
    model_close(model);
}

static int describe_store(attune_store *store, attune_status *s, attune_error *err) {
    struct store_run run;
    struct count adapters = {.home = s->home};
    int code = store_consent_get(store, &s->consent, err);
    if (code == ATTUNE_OK)
        code = store_counts(store, &s->interactions, &s->consented, &s->feedback, &s->examples_new, err);
    if (code == ATTUNE_OK) code = store_adapters(store, count_adapter, &adapters, err);
    if (code != ATTUNE_OK) return code;
    s->n_adapters = adapters.n;
    s->run_loss_before = s->run_loss_after = NAN;
    code = store_run_last(store, NULL, &run, err);
    if (code == ATTUNE_ERROR_NOT_FOUND) return ATTUNE_OK;
    if (code != ATTUNE_OK) return code;
    s->run_started_ms = run.started_ms;
    snprintf(s->run_state, sizeof s->run_state, "%s", run.state);
    snprintf(s->run_reason, sizeof s->run_reason, "%s", run.reason);
    s->run_loss_before = run.loss_before;
    s->run_loss_after = run.loss_after;
    s->run_seconds = run.seconds;
    s->run_examples = run.examples;
    s->run_steps = run.steps;
    s->run_steps_done = run.steps_done;
    s->run_tokens_per_s = run.tokens_per_s;
    return ATTUNE_OK;
}

static int describe_rollback(attune_store *store, const struct settings *settings, attune_status *s,
                             attune_error *err) {
    struct rollback r;
    attune_adapter_info info;
    ATTUNE_INIT(info);
    /* a CURRENT that the store does not know is the doctor's matter */
    if (s->active_adapter && store_adapter_get(store, s->active_adapter, &info, NULL) != ATTUNE_OK) return ATTUNE_OK;
    int code = rollback_look(s->home, store, settings->base_sha256, s->active_adapter, &r, err);
    if (code == ATTUNE_ERROR_FORMAT || code == ATTUNE_ERROR_NOT_FOUND) return ATTUNE_OK; /* a damaged lineage too */
    if (code != ATTUNE_OK) return code;
    s->answers_good = r.now.good;
    s->answers_bad = r.now.bad;
    s->before_good = r.before.good;
    s->before_bad = r.before.bad;
    s->rollback_evidence = r.evidence;
    s->rollback_to = r.to;
    s->rollback_pending = !r.wanted ? 0 : settings->rollback ? 1 : 2;
    return ATTUNE_OK;
}

int attune_home_status(const char *home, attune_status *status, attune_error *err) {
    struct settings settings;
    attune_store *store = NULL;
    attune_status s;
    ATTUNE_INIT(s);
    int code = home_resolve(home, s.home, err);
    if (code == ATTUNE_OK) code = settings_read(s.home, &settings, err);
    if (code == ATTUNE_OK) code = store_current_read(s.home, &s.active_adapter, NULL, NULL, err);
    if (code == ATTUNE_OK) code = store_open_path(s.home, 0, &store, err);
    if (code != ATTUNE_OK) return code;
    snprintf(s.base_path, sizeof s.base_path, "%s", settings.base);
    snprintf(s.base_sha256, sizeof s.base_sha256, "%s", settings.base_sha256);
    describe_base(s.home, &s);
    code = describe_store(store, &s, err);
    if (code == ATTUNE_OK) code = describe_rollback(store, &settings, &s, err);
    attune_store_close(store);
    return code == ATTUNE_OK ? options_write(status, &s, sizeof s, "attune_status", err) : code;
}

/* ---- checks ---- */

struct check {
    attune_check_callback callback;
    void *user;
    int defects;
};

static void report(struct check *check, int level, const char *subject, const char *message) {
    if (level == 2) check->defects++;
    if (check->callback) check->callback(level, subject, message, check->user);
}

static void report_error(struct check *check, const char *subject, const attune_error *e) {
    char text[sizeof e->message + sizeof e->where + 8];
    snprintf(text, sizeof text, *e->where ? "%s (%s)" : "%s", e->message, e->where);
    report(check, 2, subject, text);
}

static struct model *check_base(struct check *check, const char *path) {
    struct model *model = NULL;
    attune_error e;
    char text[300];
    if (model_open(path, FILE_MAP, &model, &e) != ATTUNE_OK) {
        report_error(check, "base", &e);
        return NULL;
    }
    snprintf(text, sizeof text, "%s: %s, %zu layers, width %zu, %.0f million parameters, context %zu", model->name,
             model->architecture->name, model->L, model->C, (double)model_parameters(model) / 1e6, model->context);
    report(check, 0, "base", text);
    if (model->chat)
        report(check, 0, "chat template", chat_template_name(model->chat));
    else
        report_error(check, "chat template", &model->chat_error);
    return model;
}

struct check_adapters {
    struct check *check;
    const char *home;
    const struct model *model;
    int current, found; /* found: the store has a row of the current one */
    const char *current_sha256;
};

static int check_adapter(const attune_adapter_info *info, void *user) {
    struct check_adapters *c = user;
    char subject[32];
    struct lora *lora = NULL;
    attune_error e;
    int current = info->number == c->current, revoked = strcmp(info->state, "revoked") == 0;
    if (current) {
        c->found = 1;
        if (revoked || strcmp(info->sha256, c->current_sha256) != 0)
            report(c->check, 2, "CURRENT",
                   revoked
                       ? "the active adapter is revoked; choose another with: attune adapters use N (or base)"
                       : "it names another file than the store; choose again with: attune adapters use N (or base)");
    }
    if (revoked) return 0;
    snprintf(subject, sizeof subject, "adapter %d", info->number);
    if (!current && retention_removed(c->home, info)) {
        report(c->check, 0, subject, "its file was removed: it is older than those that are kept");
        return 0;
    }
    if (home_adapter_read(c->home, c->model, info->number, info->sha256, &lora, &e) != ATTUNE_OK)
        report_error(c->check, subject, &e);
    else
        report(c->check, 0, subject, current ? "whole, active" : "whole");
    lora_destroy(lora);
    return 0;
}

static void check_adapters(struct check_adapters *adapters, attune_store *store) {
    attune_error e;
    if (store_adapters(store, check_adapter, adapters, &e) != ATTUNE_OK)
        report_error(adapters->check, "adapters", &e);
    else if (adapters->current && !adapters->found)
        report(
            adapters->check, 2, "CURRENT",
            "it names an adapter that the store does not know; choose another with: attune adapters use N (or base)");
}

static void check_encryption(struct check *check, const attune_store *store) {
    switch (store_encryption_get(store)) {
    case STORE_PLAIN: report(check, 0, "encryption", "none: the texts are protected by the file system alone"); break;
    case STORE_UNLOCKED: report(check, 0, "encryption", "texts are encrypted, and the key is there"); break;
    case STORE_SEALED:
        report(check, 0, "encryption", "texts are encrypted; whoever reads, writes or trains has to bring the key");
        break;
    }
}

/* adapters NULL: without the base they cannot be looked at. */
static void check_store(struct check *check, const char *home, struct check_adapters *adapters) {
    attune_store *store = NULL;
    attune_error e;
    char problem[256] = "", text[160];
    int64_t interactions, consented, feedback, fresh;
    if (store_open_path(home, 0, &store, &e) != ATTUNE_OK) {
        report_error(check, "store", &e);
        return;
    }
    if (store_check(store, problem, sizeof problem, &e) != ATTUNE_OK)
        report_error(check, "store", &e);
    else if (*problem)
        report(check, 2, "store", problem);
    else if (store_counts(store, &interactions, &consented, &feedback, &fresh, &e) == ATTUNE_OK) {
        snprintf(text, sizeof text,
                 "whole: %lld interactions, %lld with consent, %lld feedback, %lld examples not yet learned",
                 (long long)interactions, (long long)consented, (long long)feedback, (long long)fresh);
        report(check, 0, "store", text);
        if (interactions > 0 && consented == 0)
            report(check, 1, "consent", "no interaction has consent to train: nothing will be learned");
    }
    check_encryption(check, store);
    if (adapters) check_adapters(adapters, store);
    attune_store_close(store);
}

/* ---- sensors: what the nightly job would know ---- */

static void check_power(struct check *check, const struct snapshot *now) {
    const struct power_snapshot *power = &now->power;
    char text[160] = "";
    if (power->supply == POWER_UNKNOWN)
        report(check, 1, "power", "the power supply cannot be read: no training where a charger is required");
    else if (power->supply == POWER_BATTERY)
        report(check, 1, "power", "not on a charger");
    else if (power->discharging)
        report(check, 1, "power", "on a charger, but the battery is discharging");
    else
        report(check, 0, "power", power->battery ? "on a charger" : "on mains");
    if (!power->battery) {
        report(check, 0, "battery", power->supply == POWER_UNKNOWN ? "not known" : "none");
        return;
    }
    size_t n = power->percent < 0 ? (size_t)snprintf(text, sizeof text, "its charge cannot be read")
                                  : (size_t)snprintf(text, sizeof text, "%d %%", power->percent);
    if (!isnan(now->battery_watts)) snprintf(text + n, sizeof text - n, ", gives %.1f W", now->battery_watts);
    report(check, 0, "battery", text);
}

/* A share as per cent, or what says that it is not known. */
static const char *percent_text(double share, char out[16]) {
    if (isnan(share)) return "not known";
    snprintf(out, 16, "%.1f %%", 100 * share);
    return out;
}

static void check_pressure(struct check *check, const struct snapshot *now) {
    char text[200], cpu[16], memory[16], io[16];
    size_t n = (size_t)snprintf(text, sizeof text, "CPU %s, memory %s, disk %s", percent_text(now->pressure_cpu, cpu),
                                percent_text(now->pressure_memory, memory), percent_text(now->pressure_io, io));
    if (!isnan(now->load)) snprintf(text + n, sizeof text - n, "; load %.2f", now->load);
    report(check, 0, "pressure", text);
    if (!now->memory_available) {
        report(check, 0, "memory", "what is available is not known");
        return;
    }
    n = (size_t)snprintf(text, sizeof text, "%.0f MiB available", (double)now->memory_available / (1 << 20));
    if (!isnan(now->cpus)) snprintf(text + n, sizeof text - n, "; the cgroup allows %.2f CPUs", now->cpus);
    report(check, 0, "memory", text);
}

static void check_counters(struct check *check, const struct snapshot *now) {
    char text[RAPL_PACKAGES_MAX * (sizeof now->counter[0].name + 2)] = "";
    size_t n = 0;
    for (int i = 0; i < now->n_counters; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s", i ? ", " : "", now->counter[i].name);
    report(check, 0, "energy counter",
           n ? text : "none can be read (RAPL's are root's alone): energy is told by the battery, or estimated");
}

static void check_idle(struct check *check, const struct snapshot *now) {
    char text[64];
    if (isnan(now->idle_s))
        snprintf(text, sizeof text, "not known: logind does not tell");
    else if (isinf(now->idle_s))
        snprintf(text, sizeof text, "nobody is logged in");
    else if (now->idle_s < 60)
        snprintf(text, sizeof text, "somebody is there");
    else
        snprintf(text, sizeof text, "nobody was there for %.0f minutes", floor(now->idle_s / 60));
    report(check, 0, "idle", text);
}

static void check_sensors(struct check *check) {
    static const char *const kinds[] = {
        [DEVICE_LAPTOP] = "laptop", [DEVICE_PHONE] = "phone", [DEVICE_DESKTOP] = "desktop"};
    const struct sensors_options options = {.logind = 1};
    struct sensors *sensors = NULL;
    struct snapshot now;
    attune_error e;
    char text[64];
    if (sensors_open(&options, &sensors, &e) != ATTUNE_OK) {
        report_error(check, "sensors", &e);
        return;
    }
    sensors_read(sensors, &now);
    sensors_close(sensors);
    report(check, 0, "device", kinds[device_detect(NULL)]);
    check_power(check, &now);
    if (isnan(now.celsius))
        snprintf(text, sizeof text, "not known: no thermal zone that can be believed");
    else
        snprintf(text, sizeof text, "%.1f C at the hottest", now.celsius);
    report(check, 0, "temperature", text);
    check_counters(check, &now);
    check_pressure(check, &now);
    check_idle(check, &now);
}

static void check_home(struct check *check, const char *home) {
    struct settings settings;
    attune_error e;
    struct stat st;
    char sha256[65], current_sha256[65] = "";
    struct check_adapters adapters = {.check = check, .home = home, .current_sha256 = current_sha256};
    if (stat(home, &st) == 0 && (st.st_mode & 077))
        report(check, 1, "home", "others may look into it; chmod 700");
    if (settings_read(home, &settings, &e) != ATTUNE_OK) {
        report_error(check, "settings", &e);
        check_store(check, home, NULL);
        return;
    }
    report(check, 0, "settings", "valid");
    struct model *model = check_base(check, settings.base);
    if (model && base_hash(home, settings.base, settings.base_sha256, sha256, &e) == ATTUNE_OK) {
        if (strcmp(sha256, settings.base_sha256) != 0)
            report(check, 2, "base",
                   "another file than this home was made for; put the old one back, or make a new home");
        model_set_hash(model, settings.base_sha256);
    }
    if (store_current_read(home, &adapters.current, current_sha256, NULL, &e) != ATTUNE_OK)
        report_error(check, "CURRENT", &e);
    adapters.model = model;
    check_store(check, home, model ? &adapters : NULL);
    model_close(model);
}

int attune_home_check(const char *home, const char *base, attune_check_callback callback, void *user,
                      attune_error *err) {
    struct check check = {callback, user, 0};
    char path[HOME_PATH_MAX];
    int code = kernels_select(err);
    if (code != ATTUNE_OK) return code;
    report(&check, 0, "kernels", kernels_get()->name);
    if (base) {
        model_close(check_base(&check, base));
    } else {
        code = home_resolve(home, path, err);
        if (code != ATTUNE_OK) return code;
        check_home(&check, path);
    }
    check_sensors(&check);
    if (!check.defects) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, base ? base : path, "%d defect%s found", check.defects,
                     check.defects == 1 ? "" : "s");
}
