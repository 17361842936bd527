#define _GNU_SOURCE /* memmem */
#include "core/model/chat_template.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/excerpt.h"
#include "core/base/hash.h"

/* ChatML. Each message is
 *
 *     <|im_start|>ROLE\nCONTENT<|im_end|>\n
 *
 * and an answer is asked for by "<|im_start|>assistant\n". Models differ in the system message that
 * they put in front of a conversation which has none. A template is taken when it holds the line that
 * renders such a message and the one that asks for an answer, and nothing that is known to render more
 * or less than that. Between two special tokens the text is encoded as one piece, as it is when the
 * rendered whole is tokenized. */

enum { SOURCE_BYTES_MAX = 64 * 1024 };
#define START "<|im_start|>"
#define END "<|im_end|>"

struct chat_template {
    const struct tokenizer *tokenizer; /* borrowed */
    char *system; /* the base's own system message, NULL: none */
    int32_t start, end;
    int32_t line_feed[4]; /* what follows an end-of-turn token */
    size_t n_line_feed;
    char hash[HASH_HEX_SIZE];
};

/* ---- recognising ---- */

/* In a pattern: a blank is any white space or none, ' is either quote, a line feed is one or its
 * escape. Returns the end of the match, NULL if there is none. */
static const char *match(const char *at, const char *end, const char *pattern) {
    for (; *pattern; pattern++) {
        if (*pattern == ' ') {
            while (at < end && (*at == ' ' || *at == '\t' || *at == '\r' || *at == '\n')) at++;
        } else if (*pattern == '\n' && end - at >= 2 && at[0] == '\\' && at[1] == 'n') {
            at += 2;
        } else if (at < end && (*at == *pattern || (*pattern == '\'' && *at == '"'))) {
            at++;
        } else {
            return NULL;
        }
    }
    return at;
}

static const char *find(const char *at, const char *end, const char *word) {
    return memmem(at, (size_t)(end - at), word, strlen(word));
}

static int refuse(const char *source, size_t size, const char *why, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_UNSUPPORTED, "tokenizer.chat_template",
                     "the model's chat template is not one that attune knows: %s; it starts \"%s\"", why,
                     excerpt_of(source, size).text);
}

/* The line that renders a message is there. */
static int has_message_line(const char *source, const char *end) {
    static const char *const lines[] = {
        "'" START "' + message['role'] + '\n' + message['content'] + '" END "' + '\n'",
        "'" START "' + message['role'] + '\n' + message['content'] + '" END "\n'",
        "'" START "' + message.role + '\n' + message.content + '" END "' + '\n'",
        "'" START "' + message.role + '\n' + message.content + '" END "\n'",
    };
    for (const char *at = source + 1; at < end && (at = find(at, end, START)); at++)
        for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
            if (match(at - 1, end, lines[i])) return 1;
    return 0;
}

/* An answer is asked for with nothing behind the header: some models put the start of a thought there. */
static int has_answer_line(const char *source, const char *end) {
    int found = 0;
    for (const char *at = source; (at = find(at, end, START "assistant")); at++) {
        if (!match(at, end, START "assistant\n'")) return 0;
        found = 1;
    }
    return found;
}

/* What renders more or less than the message as it is. */
static const char *alteration(const char *source, const char *end) {
    static const char *const words[] = {"bos_token", "eos_token", "think>",   "trim",
                                        "strip(",    "split(",    "replace(", "reasoning"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (find(source, end, words[i])) return words[i];
    return NULL;
}

/* A string literal from at, just behind its opening quote or within, to END: the text into out, which
 * has room. Returns the place of END; NULL when the literal ends before it or has an escape that is
 * not known. */
static const char *literal(const char *at, const char *end, char quote, char *out) {
    static const char escapes[] = "n\nt\tr\r\\\\''\"\"";
    while (at < end && !match(at, end, END)) {
        if (*at == quote) return NULL;
        if (*at != '\\') {
            *out++ = *at++;
            continue;
        }
        size_t i = 0;
        while (escapes[i] && (at + 1 == end || escapes[i] != at[1])) i += 2;
        if (!escapes[i]) return NULL;
        *out++ = escapes[i + 1];
        at += 2;
    }
    *out = '\0';
    return at < end ? at : NULL;
}

/* Finds the base's own system message: the literal between START "system\n" and END. Each such START
 * must be understood, or what is rendered would differ. Returns what is wrong, NULL if nothing is.
 * text has room for the source twice; *found: its first half holds the message. */
static const char *find_system(const char *source, const char *end, char *text, int *found) {
    char *again = text + (end - source) + 1;
    *found = 0;
    for (const char *at = source; (at = find(at, end, START "system")); at++) {
        const char *behind = match(at, end, START "system\n");
        char quote = at > source ? at[-1] : 0;
        if (!behind || (quote != '\'' && quote != '"'))
            return "it writes the system message in a way that attune cannot read";
        if (behind < end && *behind == quote) {
            /* the conversation's own, or the start of the one with tools, which attune never gives */
            if (!match(behind, end, "' + message") && !(match(behind, end, "' }}") && find(source, at, "if tools")))
                return "its system message is put together in parts";
            continue;
        }
        const char *close = literal(behind, end, quote, *found ? again : text);
        if (!close || !match(close, end, END "\n'")) return "its own system message does not end as attune expects";
        if (*found && strcmp(text, again) != 0) return "it has two system messages of its own";
        *found = 1;
    }
    return NULL;
}

/* Between its tags { } a template renders what is written there. White space goes where a tag has a
 * minus on that side, and transformers and llama.cpp also drop a line feed behind a block and blanks in
 * front of one. Whether nothing is left of at..end. */
static int renders_nothing(const char *at, const char *end, const char *source, const char *source_end) {
    int block_before = at - source >= 2 && (at[-2] == '%' || at[-2] == '#');
    int block_behind = source_end - end >= 2 && (end[1] == '%' || end[1] == '#');
    if (at - source >= 3 && at[-3] == '-') return match(at, end, " ") == end;
    if (source_end - end >= 3 && end[2] == '-') return match(at, end, " ") == end;
    if (at < end && *at == '\n' && (block_before || end == source_end)) at++;
    if (block_behind && (at == source || at[-1] == '\n' || memchr(at, '\n', (size_t)(end - at))))
        while (end > at && (end[-1] == ' ' || end[-1] == '\t')) end--;
    return at == end;
}

/* The end of the tag at `at`, behind its last brace; a string in it may hold braces. NULL: open. */
static const char *tag_end(const char *at, const char *end) {
    char last = at[1] == '{' ? '}' : at[1], quote = 0;
    for (at += 2; end - at >= 2; at++) {
        if (quote && *at == '\\')
            at++;
        else if (quote)
            quote = *at == quote ? 0 : quote;
        else if (last != '#' && (*at == '\'' || *at == '"'))
            quote = *at;
        else if (at[0] == last && at[1] == '}')
            return at + 2;
    }
    return NULL;
}

/* Nothing is rendered between the tags, and each expression renders a part of a message. With tools
 * there are others, and attune never gives tools. */
static int tags_are_plain(const char *source, const char *end) {
    int tools = find(source, end, "if tools") != NULL;
    for (const char *at = source, *tag;; at = tag) {
        for (tag = at; end - tag >= 2 && !(tag[0] == '{' && strchr("{%#", tag[1])); tag++) {}
        if (end - tag < 2) return renders_nothing(at, end, source, end);
        if (!renders_nothing(at, tag, source, end)) return 0;
        if (end - tag < 4) return 0;
        const char *inside = tag[2] == '-' ? tag + 3 : tag + 2;
        if (tag[1] == '{' && !tools && !match(inside, end, " '" START)) return 0;
        if (!(tag = tag_end(tag, end))) return 0;
    }
}

static int recognise(struct chat_template *chat, const char *source, size_t size, attune_error *err) {
    const char *end = source + size, *word;
    if (!find(source, end, START) || !find(source, end, END))
        return refuse(source, size, "it is not ChatML (" START " and " END ")", err);
    if (memchr(source, '\0', size)) return refuse(source, size, "it holds a NUL", err);
    if ((word = alteration(source, end))) {
        char why[64] = "it uses ";
        strncat(why, word, sizeof why - strlen(why) - 1);
        return refuse(source, size, why, err);
    }
    if (!has_message_line(source, end)) return refuse(source, size, "its messages are not plain ChatML", err);
    if (!has_answer_line(source, end)) return refuse(source, size, "it does not ask for an answer as ChatML does", err);
    if (!tags_are_plain(source, end)) return refuse(source, size, "it renders more than ChatML", err);
    chat->system = malloc(2 * (size + 1));
    if (!chat->system) return error_set_memory(err, "a chat template", 2 * (size + 1));
    int found;
    const char *why = find_system(source, end, chat->system, &found);
    if (why || !found) {
        free(chat->system);
        chat->system = NULL;
    }
    return why ? refuse(source, size, why, err) : ATTUNE_OK;
}

static int find_token(const struct tokenizer *tokenizer, const char *text, int32_t *id, attune_error *err) {
    *id = tokenizer_find(tokenizer, text);
    if (*id >= 0 && tokenizer_is_special(tokenizer, *id)) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.tokens",
                     "the chat template is ChatML, but the vocabulary has no special token %s", text);
}

int chat_template_create(const struct gguf *gguf, const struct tokenizer *tokenizer, struct chat_template **out,
                         attune_error *err) {
    static const char key[] = "tokenizer.chat_template";
    struct gguf_string source;
    if (!gguf_find(gguf, key))
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, key,
                         "the model has no chat template (%s): it is not an instruction-tuned model, or was converted "
                         "without it", key);
    int code = gguf_get_string(gguf, key, &source, err);
    if (code != ATTUNE_OK) return code;
    if (source.size > SOURCE_BYTES_MAX)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, key,
                         "the chat template is %zu bytes long; attune takes at most %d", source.size,
                         (int)SOURCE_BYTES_MAX);
    struct chat_template *chat = calloc(1, sizeof *chat);
    if (!chat) return error_set_memory(err, "a chat template", sizeof *chat);
    chat->tokenizer = tokenizer;
    hash_bytes(source.data, source.size, chat->hash);
    code = recognise(chat, source.data, source.size, err);
    if (code == ATTUNE_OK) code = find_token(tokenizer, START, &chat->start, err);
    if (code == ATTUNE_OK) code = find_token(tokenizer, END, &chat->end, err);
    if (code == ATTUNE_OK)
        code = tokenizer_encode(tokenizer, "\n", 1, 0, chat->line_feed, 4, &chat->n_line_feed, err);
    if (code == ATTUNE_OK)
        *out = chat;
    else
        chat_template_destroy(chat);
    return code;
}

void chat_template_destroy(struct chat_template *chat) {
    if (!chat) return;
    free(chat->system);
    free(chat);
}

const char *chat_template_name(const struct chat_template *chat) {
    (void)chat;
    return "chatml";
}
const char *chat_template_hash(const struct chat_template *chat) { return chat->hash; }
int32_t chat_template_start(const struct chat_template *chat) { return chat->start; }
int32_t chat_template_end(const struct chat_template *chat) { return chat->end; }

/* ---- a list of tokens ---- */

void token_list_free(struct token_list *list) {
    free(list->ids);
    free(list->mask);
    *list = (struct token_list){0};
}

int token_list_reserve(struct token_list *list, size_t more, attune_error *err) {
    size_t need, bytes;
    if (!checked_add(list->n, more, &need)) return error_set_memory(err, "tokens", SIZE_MAX);
    if (need <= list->capacity) return ATTUNE_OK;
    size_t capacity = list->capacity + list->capacity / 2;
    if (capacity < need) capacity = need;
    if (capacity < 64) capacity = 64;
    if (!checked_mul(capacity, sizeof *list->ids, &bytes)) return error_set_memory(err, "tokens", SIZE_MAX);
    int32_t *ids = realloc(list->ids, bytes);
    if (!ids) return error_set_memory(err, "tokens", bytes);
    list->ids = ids;
    uint8_t *mask = realloc(list->mask, capacity);
    if (!mask) return error_set_memory(err, "tokens", capacity);
    list->mask = mask;
    list->capacity = capacity;
    return ATTUNE_OK;
}

int token_list_add(struct token_list *list, int32_t id, int supervised, attune_error *err) {
    int code = token_list_reserve(list, 1, err);
    if (code != ATTUNE_OK) return code;
    list->ids[list->n] = id;
    list->mask[list->n++] = supervised != 0;
    return ATTUNE_OK;
}

/* ---- rendering ---- */

/* Plain text. Tokens that start at byte `supervised_from` of it or later are marked: one that spans
 * the header and the content is half given by the prompt. */
static int add_text(const struct chat_template *chat, const char *text, size_t size, size_t supervised_from,
                    struct token_list *out, attune_error *err) {
    size_t n, at = 0;
    int code = token_list_reserve(out, size, err); /* a token is a byte at least */
    if (code == ATTUNE_OK)
        code = tokenizer_encode(chat->tokenizer, text, size, 0, out->ids + out->n, size, &n, err);
    if (code != ATTUNE_OK) return code;
    for (size_t i = 0; i < n; i++, out->n++) {
        size_t piece;
        out->mask[out->n] = at >= supervised_from;
        (void)tokenizer_piece(chat->tokenizer, out->ids[out->n], &piece);
        at += piece;
    }
    return ATTUNE_OK;
}

static int add_end(const struct chat_template *chat, int supervised, struct token_list *out, attune_error *err) {
    int code = token_list_add(out, chat->end, supervised, err);
    for (size_t i = 0; code == ATTUNE_OK && i < chat->n_line_feed; i++)
        code = token_list_add(out, chat->line_feed[i], 0, err);
    return code;
}

static int add_message(const struct chat_template *chat, const char *role, const char *content, int supervised,
                       struct token_list *out, attune_error *err) {
    size_t header = strlen(role) + 1, size = header + strlen(content);
    char *text = malloc(size + 1);
    if (!text) return error_set_memory(err, "a message", size + 1);
    memcpy(text, role, header - 1);
    text[header - 1] = '\n';
    memcpy(text + header, content, size - header);
    int code = token_list_add(out, chat->start, 0, err);
    if (code == ATTUNE_OK) code = add_text(chat, text, size, supervised ? header : SIZE_MAX, out, err);
    if (code == ATTUNE_OK) code = add_end(chat, supervised, out, err);
    free(text);
    return code;
}

static int check_messages(const attune_message *messages, size_t n, int supervise_last, attune_error *err) {
    static const char *const roles[] = {"system", "user", "assistant"};
    for (size_t i = 0; i < n; i++) {
        if (!messages[i].role || !messages[i].content)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "message %zu has no role or no content", i);
        size_t known = 0;
        while (known < 3 && strcmp(messages[i].role, roles[known]) != 0) known++;
        if (known == 3)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                             "message %zu has the role \"%s\"; there are system, user and assistant", i,
                             excerpt_of(messages[i].role, strlen(messages[i].role)).text);
    }
    if (supervise_last && (!n || strcmp(messages[n - 1].role, "assistant") != 0))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the last message to learn from is not an assistant's");
    return ATTUNE_OK;
}

int chat_template_render(const struct chat_template *chat, const attune_message *messages, size_t n, int first,
                         int supervise_last, int open_answer, struct token_list *out, attune_error *err) {
    int code = check_messages(messages, n, supervise_last, err);
    if (code != ATTUNE_OK) return code;
    size_t before = out->n;
    if (first && n && chat->system && strcmp(messages[0].role, "system") != 0)
        code = add_message(chat, "system", chat->system, 0, out, err);
    for (size_t i = 0; code == ATTUNE_OK && i < n; i++)
        code = add_message(chat, messages[i].role, messages[i].content, supervise_last && i + 1 == n, out, err);
    if (code == ATTUNE_OK && open_answer) {
        static const char header[] = "assistant\n";
        code = token_list_add(out, chat->start, 0, err);
        if (code == ATTUNE_OK) code = add_text(chat, header, sizeof header - 1, SIZE_MAX, out, err);
    }
    if (code != ATTUNE_OK) out->n = before;
    return code;
}

int chat_template_close_turn(const struct chat_template *chat, struct token_list *out, attune_error *err) {
    size_t before = out->n;
    int code = add_end(chat, 0, out, err);
    if (code != ATTUNE_OK) out->n = before;
    return code;
}
