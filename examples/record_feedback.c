/* An app records what its user did, shows what is kept, and deletes what it is told to delete.
 *
 *   record_feedback [HOME]        cc record_feedback.c $(pkg-config --cflags --libs attune-store) */
#include "attune.h"

#include <stdio.h>
#include <string.h>

static int fail(const attune_error *err) {
    fprintf(stderr, "record_feedback: %s%s%s\n", err->message, *err->where ? ": " : "", err->where);
    return 1;
}

/* What only this app knows to be secret. Called on the store's own thread. */
static size_t find_project_names(const char *text, size_t length, void *user) {
    (void)length, (void)user;
    return strstr(text, "Project Heron") ? 1 : 0;
}

static int open_store(const char *home, attune_store **store, attune_error *err) {
    attune_store_options options;
    ATTUNE_INIT(options);
    options.when_full = ATTUNE_FULL_DROP; /* a lost row is better than a stuck screen */
    options.find_private = find_project_names;
    return attune_store_open(home, &options, store, err);
}

/* A draft, and what the person made of it before sending it: the edit is what will be learned. */
static int record_edit(attune_store *store, attune_error *err) {
    const attune_message conversation[] = {
        {"system", "You draft short mails."},
        {"user", "Tell Ada that I cannot come on Friday."},
    };
    attune_interaction interaction;
    ATTUNE_INIT(interaction);
    interaction.messages = conversation;
    interaction.n_messages = 2;
    interaction.response = "Dear Ada, I regret to inform you that I shall be unable to attend on Friday.";
    interaction.app = "mail";
    interaction.session = "draft-17";
    interaction.consent = ATTUNE_CONSENT_GIVEN; /* this app has asked */

    attune_uuid id;
    int code = attune_store_record(store, &interaction, &id, err);
    if (code != ATTUNE_OK) return code;

    attune_feedback feedback;
    ATTUNE_INIT(feedback);
    feedback.kind = ATTUNE_FEEDBACK_EDIT;
    feedback.text = "Hi Ada, Friday won't work for me after all. Next week?";
    code = attune_store_feedback(store, id.text, &feedback, err);
    if (code == ATTUNE_OK) printf("edited    %s\n", id.text);
    return code;
}

/* A thumb down: kept, and never learned. */
static int record_rejection(attune_store *store, attune_error *err) {
    attune_interaction interaction;
    ATTUNE_INIT(interaction);
    interaction.prompt = "What rhymes with orange?";
    interaction.response = "Banana.";
    interaction.app = "mail";
    interaction.consent = ATTUNE_CONSENT_GIVEN;

    attune_uuid id;
    int code = attune_store_record(store, &interaction, &id, err);
    if (code != ATTUNE_OK) return code;

    attune_feedback feedback;
    ATTUNE_INIT(feedback);
    feedback.kind = ATTUNE_FEEDBACK_THUMB;
    feedback.value = -1;
    code = attune_store_feedback(store, id.text, &feedback, err);
    if (code == ATTUNE_OK) printf("rejected  %s\n", id.text);
    return code;
}

/* The answer was pasted from a web page: kept for the person, never learned. */
static int record_pasted(attune_store *store, attune_error *err) {
    attune_interaction interaction;
    ATTUNE_INIT(interaction);
    interaction.prompt = "What do they say about the festival?";
    interaction.response = "Gates open at noon. No umbrellas.";
    interaction.app = "mail";
    interaction.session = "draft-18";
    interaction.tier = ATTUNE_TIER_WEB;
    return attune_store_record(store, &interaction, NULL, err);
}

/* The app goes to the background, and comes back. */
static int sleep_and_wake(attune_store *store, attune_error *err) {
    int code = attune_store_suspend(store, err);
    if (code != ATTUNE_OK) return code;
    return attune_store_resume(store, err);
}

/* What is kept of this app, the newest first. */
static int show_kept(attune_store *store, attune_error *err) {
    attune_filter filter;
    attune_cursor *cursor;
    attune_row row;
    ATTUNE_INIT(filter);
    ATTUNE_INIT(row);
    filter.app = "mail";
    filter.limit = 10;
    int code = attune_store_query(store, &filter, &cursor, err);
    if (code != ATTUNE_OK) return code;
    while ((code = attune_cursor_next(cursor, &row, err)) == ATTUNE_CONTINUE)
        printf("kept      %s (%zu feedback)\n", row.messages[row.n_messages - 1].content, row.n_feedback);
    attune_cursor_close(cursor);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* The person deletes a draft: what was learned from it goes too. */
static int forget_draft(attune_store *store, attune_error *err) {
    attune_filter filter;
    attune_forget_result result;
    ATTUNE_INIT(filter);
    ATTUNE_INIT(result);
    filter.app = "mail";
    filter.session = "draft-18";
    int code = attune_store_forget(store, &filter, &result, err);
    if (code == ATTUNE_OK)
        printf("forgotten %lld, %d adapters revoked\n", (long long)result.interactions, result.adapters_revoked);
    return code;
}

int main(int argc, char **argv) {
    attune_error err = {0};
    attune_store *store = NULL;
    attune_store_statistics statistics;
    ATTUNE_INIT(statistics);
    int code = open_store(argc > 1 ? argv[1] : NULL, &store, &err);
    if (code == ATTUNE_OK) code = record_edit(store, &err);
    if (code == ATTUNE_OK) code = record_rejection(store, &err);
    if (code == ATTUNE_OK) code = record_pasted(store, &err);
    if (code == ATTUNE_OK) code = attune_store_flush(store, &err);
    if (code == ATTUNE_OK) code = sleep_and_wake(store, &err);
    if (code == ATTUNE_OK) code = show_kept(store, &err);
    if (code == ATTUNE_OK) code = forget_draft(store, &err);
    if (code == ATTUNE_OK) code = attune_store_statistics_get(store, &statistics, &err);
    attune_store_close(store);
    if (code != ATTUNE_OK) return fail(&err);
    printf("%lld interactions, %lld with consent, %lld feedback, %lld dropped\n", (long long)statistics.interactions,
           (long long)statistics.consented, (long long)statistics.feedback, (long long)statistics.dropped);
    return 0;
}
