/* Asks the personalized model, prints the answer as it comes, and records it with what answered.
 *
 *   ask HOME QUESTION             cc ask.c $(pkg-config --cflags --libs attune) */
#include "attune.h"

#include <stdio.h>

static int print(const char *text, size_t length, void *user) {
    fwrite(text, 1, length, user);
    return fflush(user); /* not zero, and the answer ends */
}

/* The record says which base, which adapter and which template gave this answer. */
static int record(const char *home, const attune_session *session, const char *question, attune_error *err) {
    attune_store *store = NULL;
    attune_provenance provenance;
    attune_interaction interaction;
    ATTUNE_INIT(provenance);
    ATTUNE_INIT(interaction);
    int code = attune_session_provenance(session, &provenance, err);
    if (code == ATTUNE_OK) code = attune_store_open(home, NULL, &store, err);
    if (code != ATTUNE_OK) return code;
    interaction.prompt = question;
    interaction.response = attune_session_text(session);
    interaction.app = "ask";
    interaction.model = provenance.model;
    interaction.adapter = provenance.adapter;
    interaction.template_hash = provenance.template_hash;
    /* an empty answer is nothing to record */
    if (*interaction.response) code = attune_store_record(store, &interaction, NULL, err);
    if (code == ATTUNE_OK) code = attune_store_flush(store, err);
    attune_store_close(store);
    return code;
}

static int ask(const char *home, attune_engine **engine, attune_session **session, const char *text,
               attune_error *err) {
    attune_message question = {"user", text};
    int code = attune_engine_open(home, NULL, engine, err);
    if (code == ATTUNE_OK) code = attune_session_open(*engine, NULL, session, err);
    if (code == ATTUNE_OK) code = attune_session_append(*session, &question, 1, err);
    if (code == ATTUNE_OK) code = attune_session_generate(*session, NULL, print, stdout, NULL, err);
    return code;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: ask HOME QUESTION\n");
        return 2;
    }
    attune_error err = {0};
    attune_engine *engine = NULL;
    attune_session *session = NULL;
    int code = ask(argv[1], &engine, &session, argv[2], &err);
    putchar('\n');
    if (code == ATTUNE_OK) code = record(argv[1], session, argv[2], &err);
    attune_session_close(session);
    attune_engine_close(engine);
    if (code == ATTUNE_OK) return 0;
    fprintf(stderr, "ask: %s%s%s\n", err.message, *err.where ? ": " : "", err.where);
    return 1;
}
