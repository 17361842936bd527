/* An app records what its user did: an answer that was edited, and one that was no good.
 *
 *   record_feedback [HOME]        cc record_feedback.c $(pkg-config --cflags --libs attune-store) */
#include "attune.h"

#include <stdio.h>

static int fail(const attune_error *err) {
    fprintf(stderr, "record_feedback: %s%s%s\n", err->message, *err->where ? ": " : "", err->where);
    return 1;
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

int main(int argc, char **argv) {
    attune_error err = {0};
    attune_store *store = NULL;
    attune_store_statistics statistics;
    ATTUNE_INIT(statistics);
    int code = attune_store_open(argc > 1 ? argv[1] : NULL, NULL, &store, &err);
    if (code == ATTUNE_OK) code = record_edit(store, &err);
    if (code == ATTUNE_OK) code = record_rejection(store, &err);
    if (code == ATTUNE_OK) code = attune_store_statistics_get(store, &statistics, &err);
    attune_store_close(store);
    if (code != ATTUNE_OK) return fail(&err);
    printf("%lld interactions, %lld with consent, %lld feedback\n", (long long)statistics.interactions,
           (long long)statistics.consented, (long long)statistics.feedback);
    return 0;
}
