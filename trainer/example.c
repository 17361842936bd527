/* Examples: conversations in tokens, with what is supervised marked. */
#include "trainer/trainer.h"

#include "core/base/random.h"

#include <stdlib.h>
#include <string.h>

static uint64_t key_of(const char *hex) {
    char digits[17] = {0};
    strncpy(digits, hex, 16);
    return strtoull(digits, NULL, 16);
}

/* Takes ids and supervised, on success. */
static int append(struct example_set *set, int32_t *ids, uint8_t *supervised, size_t n, const char *content_hash,
                  const char *prompt_hash, attune_error *err) {
    struct example example = {.weight = 1.0, .ids = ids, .supervised = supervised, .n = n,
                              .key = key_of(content_hash)};
    for (size_t i = 1; i < n; i++) example.n_supervised += supervised[i];
    strncpy(example.hash, content_hash, sizeof example.hash - 1);
    strncpy(example.prompt_hash, prompt_hash, sizeof example.prompt_hash - 1);
    if (set->n == set->capacity) {
        size_t capacity = set->capacity ? 2 * set->capacity : 64;
        struct example *grown = realloc(set->items, capacity * sizeof *grown);
        if (!grown) return error_set_memory(err, "examples", capacity * sizeof *grown);
        set->items = grown;
        set->capacity = capacity;
    }
    set->items[set->n++] = example;
    return ATTUNE_OK;
}

static int render(const struct model *model, const attune_message *messages, size_t n, const char *response,
                  struct token_list *tokens, attune_error *err) {
    attune_message *all = malloc((n + 1) * sizeof *all);
    if (!all) return error_set_memory(err, "a conversation", (n + 1) * sizeof *all);
    memcpy(all, messages, n * sizeof *all);
    all[n] = (attune_message){"assistant", response};
    int code = chat_template_render(model->chat, all, n + 1, 1, 1, 0, tokens, err);
    free(all);
    return code;
}

int example_add(struct example_set *set, const struct model *model, const attune_message *messages, size_t n_messages,
                const char *response, const char *content_hash, const char *prompt_hash, size_t max_tokens, int *added,
                attune_error *err) {
    struct token_list tokens = {0};
    *added = 0;
    if (!model->chat) {
        if (err) *err = model->chat_error;
        return model->chat_error.code;
    }
    int code = render(model, messages, n_messages, response, &tokens, err);
    if (code != ATTUNE_OK) goto out;
    /* Behind the last supervised token there is nothing to learn from. */
    size_t n = tokens.n < max_tokens ? tokens.n : max_tokens;
    while (n > 0 && !tokens.mask[n - 1]) n--;
    /* the first token is nobody's target */
    if (n < 2) goto out;
    code = append(set, tokens.ids, tokens.mask, n, content_hash, prompt_hash, err);
    if (code != ATTUNE_OK) goto out;
    *added = 1;
    return ATTUNE_OK;
out:
    token_list_free(&tokens);
    return code;
}

static void drop_last(struct example_set *set, size_t n) {
    while (n-- > 0) example_free(&set->items[--set->n]);
}

/* As example_add, of a kind that is measured against the starting point. */
static int add_measured(struct example_set *set, const struct model *model, const attune_message *messages,
                        size_t n_messages, const char *response, enum example_kind kind, const char *content_hash,
                        const char *prompt_hash, size_t max_tokens, int *added, attune_error *err) {
    int code = example_add(set, model, messages, n_messages, response, content_hash, prompt_hash, max_tokens, added,
                           err);
    if (code != ATTUNE_OK || !*added) return code;
    struct example *example = &set->items[set->n - 1];
    example->kind = kind;
    example->reference = calloc(1, sizeof *example->reference);
    if (example->reference) return ATTUNE_OK;
    drop_last(set, 1);
    *added = 0;
    return error_set_memory(err, "an example", sizeof *example->reference);
}

static int same_tokens(const struct example *a, const struct example *b) {
    return a->n == b->n && memcmp(a->ids, b->ids, a->n * sizeof *a->ids) == 0;
}

int example_add_preference(struct example_set *set, const struct model *model, const attune_message *messages,
                           size_t n_messages, const char *chosen, const char *rejected, const char *content_hash,
                           const char *prompt_hash, size_t max_tokens, int *added, attune_error *err) {
    size_t before = set->n;
    int code = add_measured(set, model, messages, n_messages, chosen, EXAMPLE_PREFERENCE, content_hash, prompt_hash,
                            max_tokens, added, err);
    if (code == ATTUNE_OK && *added)
        code = add_measured(set, model, messages, n_messages, rejected, EXAMPLE_REJECTED, content_hash, prompt_hash,
                            max_tokens, added, err);
    if (code == ATTUNE_OK && *added) {
        struct example *pair = &set->items[before];
        pair[1].key = random_mix(~pair->key);
        if (!same_tokens(&pair[0], &pair[1])) return ATTUNE_OK;
    }
    drop_last(set, set->n - before);
    *added = 0;
    return code;
}

int example_add_thumb(struct example_set *set, const struct model *model, const attune_message *messages,
                      size_t n_messages, const char *response, int label, const char *content_hash,
                      const char *prompt_hash, size_t max_tokens, int *added, attune_error *err) {
    int code = add_measured(set, model, messages, n_messages, response, EXAMPLE_THUMB, content_hash, prompt_hash,
                            max_tokens, added, err);
    if (code == ATTUNE_OK && *added) set->items[set->n - 1].label = label > 0 ? 1 : -1;
    return code;
}

int example_add_tokens(struct example_set *set, const int32_t *ids, const uint8_t *supervised, size_t n,
                       const char *content_hash, const char *prompt_hash, attune_error *err) {
    int32_t *own_ids = malloc(n * sizeof *own_ids);
    uint8_t *own_supervised = malloc(n);
    int code = own_ids && own_supervised ? ATTUNE_OK : error_set_memory(err, "an example", n * sizeof *own_ids);
    if (code == ATTUNE_OK) {
        memcpy(own_ids, ids, n * sizeof *own_ids);
        memcpy(own_supervised, supervised, n);
        code = append(set, own_ids, own_supervised, n, content_hash, prompt_hash, err);
    }
    if (code != ATTUNE_OK) {
        free(own_ids);
        free(own_supervised);
    }
    return code;
}

void example_free(struct example *example) {
    free(example->ids);
    free(example->supervised);
    free(example->reference);
}

void example_set_free(struct example_set *set) {
    if (!set) return;
    for (size_t i = 0; i < set->n; i++) example_free(&set->items[i]);
    free(set->items);
    *set = (struct example_set){0};
}
