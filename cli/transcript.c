/* A file of a conversation is a JSON object:
 *
 *   {"session": NAME, "messages": [{"role": "system", "content": TEXT},
 *                                  {"role": "user", "content": TEXT},
 *                                  {"role": "assistant", "content": TEXT, "id": ID}, ...]}
 *
 * The system message may be missing; then user and assistant take turns. id is that of the recorded interaction, and
 * missing where there is none. `messages` is what `attune import` reads, too. */
#include "cli/transcript.h"

#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

/* ---- made and unmade ---- */

static void answer_free(struct answer *a) {
    while (a->n_marks) answer_drop_mark(a);
    free(a->marks);
    free(a->text);
}

void answer_drop_mark(struct answer *a) { free(a->marks[--a->n_marks].text); }

void turn_drop_answer(struct turn *turn) { answer_free(&turn->answers[--turn->n_answers]); }

void conversation_drop_turn(struct conversation *c) {
    struct turn *turn = &c->turns[--c->n];
    while (turn->n_answers) turn_drop_answer(turn);
    free(turn->answers);
    free(turn->prompt);
}

/* When it began, and enough chance that two at once differ. */
static void make_name(char *out, size_t size) {
    uint32_t chance = 0;
    time_t now = time(NULL);
    struct tm utc;
    char text[32] = "";
    if (gmtime_r(&now, &utc)) strftime(text, sizeof text, "%Y%m%dT%H%M%SZ", &utc);
    if (getrandom(&chance, sizeof chance, 0) != sizeof chance) chance = (uint32_t)getpid();
    snprintf(out, size, "%s-%08x", text, (unsigned)chance);
}

void conversation_clear(struct conversation *c) {
    while (c->n) conversation_drop_turn(c);
    make_name(c->name, sizeof c->name);
}

void conversation_free(struct conversation *c) {
    while (c->n) conversation_drop_turn(c);
    free(c->turns);
    free(c->system);
    *c = (struct conversation){0};
}

struct turn *conversation_last(const struct conversation *c) {
    return c->n ? &c->turns[c->n - 1] : NULL;
}

struct answer *conversation_last_answer(const struct conversation *c) {
    struct turn *turn = conversation_last(c);
    return turn && turn->n_answers ? &turn->answers[turn->n_answers - 1] : NULL;
}

const char *answer_text(const struct answer *a) {
    for (size_t i = a->n_marks; i-- > 0;)
        if (a->marks[i].kind == ATTUNE_FEEDBACK_EDIT) return a->marks[i].text;
    return a->text;
}

/* Room for one more of *items; NULL: no memory. */
static void *grown(void *items, size_t n, size_t size) { return realloc(items, (n + 1) * size); }

bool conversation_set_system(struct conversation *c, const char *text) {
    char *copy = text ? strdup(text) : NULL;
    if (text && !copy) return false;
    free(c->system);
    c->system = copy;
    return true;
}

bool conversation_add_turn(struct conversation *c, const char *prompt) {
    struct turn *turns = grown(c->turns, c->n, sizeof *turns);
    if (!turns) return false;
    c->turns = turns;
    turns[c->n] = (struct turn){.prompt = strdup(prompt)};
    return turns[c->n].prompt && ++c->n;
}

bool conversation_add_answer(struct conversation *c, const char *text) {
    struct turn *turn = conversation_last(c);
    struct answer *answers = grown(turn->answers, turn->n_answers, sizeof *answers);
    if (!answers) return false;
    turn->answers = answers;
    answers[turn->n_answers] = (struct answer){.text = strdup(text)};
    return answers[turn->n_answers].text && ++turn->n_answers;
}

bool answer_add_mark(struct answer *a, int kind, const char *text) {
    struct mark *marks = grown(a->marks, a->n_marks, sizeof *marks);
    if (!marks) return false;
    a->marks = marks;
    marks[a->n_marks] = (struct mark){.kind = kind, .text = text ? strdup(text) : NULL};
    if (text && !marks[a->n_marks].text) return false;
    a->n_marks++;
    return true;
}

attune_message *conversation_messages(const struct conversation *c, bool without_answer, size_t *n) {
    attune_message *messages = malloc((2 * c->n + 1) * sizeof *messages);
    if (!messages) return NULL;
    *n = 0;
    if (c->system) messages[(*n)++] = (attune_message){"system", c->system};
    for (size_t i = 0; i < c->n; i++) {
        const struct turn *turn = &c->turns[i];
        messages[(*n)++] = (attune_message){"user", turn->prompt};
        if (turn->n_answers && !(without_answer && i + 1 == c->n))
            messages[(*n)++] = (attune_message){"assistant", answer_text(&turn->answers[turn->n_answers - 1])};
    }
    return messages;
}

/* ---- into a file ---- */

static json_t *message_json(const char *role, const char *content) {
    return json_pack("{s:s, s:s}", "role", role, "content", content);
}

static json_t *to_json(const struct conversation *c) {
    json_t *messages = json_array();
    if (c->system) json_array_append_new(messages, message_json("system", c->system));
    for (size_t i = 0; i < c->n; i++) {
        const struct turn *turn = &c->turns[i];
        json_array_append_new(messages, message_json("user", turn->prompt));
        if (turn->n_answers == 0) continue;
        const struct answer *answer = &turn->answers[turn->n_answers - 1];
        json_t *message = message_json("assistant", answer_text(answer));
        if (answer->id.text[0]) json_object_set_new(message, "id", json_string(answer->id.text));
        json_array_append_new(messages, message);
    }
    return json_pack("{s:s, s:o}", "session", c->name, "messages", messages);
}

/* The error is in errno; 0: memory. */
static bool write_whole(const char *path, const char *temporary, json_t *object) {
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return false;
    errno = 0;
    bool written = json_dumpfd(object, fd, JSON_INDENT(1)) == 0 && fsync(fd) == 0;
    if (close(fd) != 0) written = false;
    if (written && rename(temporary, path) == 0) return true;
    int reason = errno;
    unlink(temporary);
    errno = reason;
    return false;
}

bool conversation_save(const struct conversation *c, const char *path) {
    char temporary[4096];
    if ((size_t)snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid()) >= sizeof temporary) {
        cli_fail_text("the path is too long");
        return false;
    }
    json_t *object = to_json(c);
    errno = 0;
    bool saved = object && write_whole(path, temporary, object);
    if (!saved) cli_fail_text("cannot write the conversation: %s (%s)", errno ? strerror(errno) : "no memory", path);
    json_decref(object);
    return saved;
}

/* ---- and out of it ---- */

static const char *text_of(const json_t *message, const char *key) {
    return json_string_value(json_object_get(message, key));
}

/* NULL, or what is wrong with the message. */
static const char *take_message(struct conversation *c, const json_t *message, size_t i) {
    const char *role = text_of(message, "role"), *content = text_of(message, "content"), *id = text_of(message, "id");
    struct turn *turn = conversation_last(c);
    bool answered = !turn || turn->n_answers;
    if (!role || !content) return "a message wants a role and a content";
    if (strcmp(role, "system") == 0 && i == 0) return conversation_set_system(c, content) ? NULL : "no memory";
    if (strcmp(role, "user") == 0 && answered) return conversation_add_turn(c, content) ? NULL : "no memory";
    if (strcmp(role, "assistant") != 0 || answered) return "user and assistant do not take turns";
    if (!conversation_add_answer(c, content)) return "no memory";
    struct answer *answer = conversation_last_answer(c);
    answer->loaded = true;
    if (id && strlen(id) < sizeof answer->id.text) snprintf(answer->id.text, sizeof answer->id.text, "%s", id);
    return NULL;
}

static const char *from_json(struct conversation *c, const json_t *object) {
    const json_t *messages = json_object_get(object, "messages"), *message;
    const char *name = text_of(object, "session"), *wrong = NULL;
    size_t i;
    if (!json_is_array(messages)) return "it has no messages";
    make_name(c->name, sizeof c->name);
    if (name && *name && strlen(name) < sizeof c->name) snprintf(c->name, sizeof c->name, "%s", name);
    json_array_foreach(messages, i, message) if ((wrong = take_message(c, message, i))) return wrong;
    return conversation_last(c) && !conversation_last_answer(c) ? "the last message has no answer" : NULL;
}

bool conversation_load(struct conversation *c, const char *path) {
    struct conversation loaded = {0};
    json_error_t where; /* its text may quote what was said: it is not told */
    errno = 0;
    json_t *object = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    const char *wrong = object ? from_json(&loaded, object) : errno ? strerror(errno) : "it is not JSON";
    if (wrong) {
        cli_fail_text("cannot take the conversation: %s (%s)", wrong, path);
        conversation_free(&loaded);
    } else {
        conversation_free(c);
        *c = loaded;
    }
    json_decref(object);
    return !wrong;
}
