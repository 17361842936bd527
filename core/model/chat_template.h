/* Chat templates: recognised by what the GGUF's tokenizer.chat_template says, rendered by our own
 * code (no template language is interpreted: it could loop or grow without bound). Another
 * template is refused by name. */
#ifndef CORE_MODEL_CHAT_TEMPLATE_H
#define CORE_MODEL_CHAT_TEMPLATE_H

#include "core/model/tokenizer.h"

struct chat_template; /* immutable */

/* Borrows the tokenizer, keeps nothing of the gguf. ATTUNE_ERROR_UNSUPPORTED: no template, or one that
 * is not plain ChatML; the message says what is wrong and how the template starts. */
int chat_template_create(const struct gguf *gguf, const struct tokenizer *tokenizer, struct chat_template **out,
                         attune_error *err);
void chat_template_destroy(struct chat_template *chat);
const char *chat_template_name(const struct chat_template *chat); /* "chatml" */
/* sha256 of the template's source: kept with what was recorded. */
const char *chat_template_hash(const struct chat_template *chat);

/* A growing list of tokens. mask[i] 1: supervised (response and end-of-turn). */
struct token_list {
    int32_t *ids;
    uint8_t *mask;
    size_t n, capacity;
};
void token_list_free(struct token_list *list);
/* Room for `more` tokens, so that adding them does not allocate. */
int token_list_reserve(struct token_list *list, size_t more, attune_error *err);
int token_list_add(struct token_list *list, int32_t id, int supervised, attune_error *err);

/* Appends the conversation; content is plain text: special tokens written in it stay characters.
 * first: the conversation starts here, so the base's own system message is put in when there is
 * none. supervise_last: the last message (an assistant's) and its end-of-turn token are marked, the
 * line feed after it is not. open_answer: ends with the assistant's header. Roles: system, user,
 * assistant; others are refused. */
int chat_template_render(const struct chat_template *chat, const attune_message *messages, size_t n, int first,
                         int supervise_last, int open_answer, struct token_list *out, attune_error *err);
/* The tokens that close an assistant's turn which was generated (without its end-of-turn token). */
int chat_template_close_turn(const struct chat_template *chat, struct token_list *out, attune_error *err);
/* The tokens that begin a message, before its role, and that end it. */
int32_t chat_template_start(const struct chat_template *chat);
int32_t chat_template_end(const struct chat_template *chat);

#endif
