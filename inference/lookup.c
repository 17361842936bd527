/* Drafts by prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): answers repeat names, code and
 * quotations that the conversation has already, so what followed the same tokens before is a fair guess. */
#include "inference/session.h"

enum {
    MATCH_LEAST = 2, /* one token that came before says too little about the next */
    MATCH_MOST = 16  /* longer ones are all the same: bounds the work */
};

/* Tokens before ids[a] that equal those before ids[b]; a < b. */
static size_t match(const int32_t *ids, size_t a, size_t b) {
    size_t n = 0;
    while (n < MATCH_MOST && n < a && ids[a - 1 - n] == ids[b - 1 - n]) n++;
    return n;
}

size_t lookup_draft(const int32_t *line, size_t n, size_t most, int32_t *draft) {
    size_t longest = MATCH_LEAST - 1, from = 0;
    if (most == 0) return 0;
    for (size_t at = n; --at < n && longest < MATCH_MOST;) {
        size_t length = match(line, at, n);
        if (length <= longest) continue;
        longest = length;
        from = at;
    }
    if (longest < MATCH_LEAST) return 0;
    size_t drafted = n - from < most ? n - from : most;
    for (size_t i = 0; i < drafted; i++) draft[i] = line[from + i];
    return drafted;
}
