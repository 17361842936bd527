/* The words of a chat: what was said, what was made of it, and how to take that back; in a file and out of it.
 * Knows neither sessions nor the store. */
#ifndef CLI_TRANSCRIPT_H
#define CLI_TRANSCRIPT_H

#include "attune.h"

#include <stdbool.h>

/* Feedback that was given to an answer. */
struct mark {
    int kind;   /* enum attune_feedback_kind */
    char *text; /* of an edit */
};
struct answer {
    char *text;     /* as the model gave it */
    attune_uuid id; /* "" : not recorded */
    bool loaded;    /* from a file: who gave it is not known */
    struct mark *marks;
    size_t n_marks;
};
/* What the person said, and what was answered: the last answer counts, those before it were regenerated. */
struct turn {
    char *prompt;
    struct answer *answers;
    size_t n_answers;
};
struct conversation {
    char *system; /* NULL: the model's own */
    struct turn *turns;
    size_t n;
    char name[64]; /* under which it is recorded */
};

/* An empty one with a new name and the same system message. */
void conversation_clear(struct conversation *c);
void conversation_free(struct conversation *c);
struct turn *conversation_last(const struct conversation *c);          /* NULL: there is none */
struct answer *conversation_last_answer(const struct conversation *c); /* NULL: there is none */
const char *answer_text(const struct answer *answer);                  /* with the edits that were made */

/* false: no memory, and nothing is changed; texts are copied. */
bool conversation_set_system(struct conversation *c, const char *text);
bool conversation_add_turn(struct conversation *c, const char *prompt);
bool conversation_add_answer(struct conversation *c, const char *text); /* to the last turn */
bool answer_add_mark(struct answer *answer, int kind, const char *text);
void conversation_drop_turn(struct conversation *c);
void turn_drop_answer(struct turn *turn);
void answer_drop_mark(struct answer *answer);

/* All of it as messages that borrow from it; without_answer: but for the answer of the last turn. To be freed; NULL:
 * no memory. */
attune_message *conversation_messages(const struct conversation *c, bool without_answer, size_t *n);

/* JSON, 0600, whole or not at all. Errors are told. */
bool conversation_save(const struct conversation *c, const char *path);
/* *c is as it was on an error, which is told. */
bool conversation_load(struct conversation *c, const char *path);

#endif
