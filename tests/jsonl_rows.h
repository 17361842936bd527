/* A parsed line as the row that an export of it would write, and rows compared. */
#ifndef TESTS_JSONL_ROWS_H
#define TESTS_JSONL_ROWS_H

#include <string.h>

#include "datastore/jsonl.h"

/* single: room for the one message of a prompt. The row borrows from both. */
static inline attune_row row_of_line(const struct jsonl_row *line, attune_message *single) {
    const attune_interaction *in = &line->interaction;
    attune_row row = {.size = sizeof row, .id = line->id, .time_ms = in->time_ms, .response = in->response};
    *single = (attune_message){.role = "user", .content = in->prompt};
    row.messages = in->prompt ? single : in->messages;
    row.n_messages = in->prompt ? 1 : in->n_messages;
    row.app = in->app;
    row.session = in->session;
    row.source = in->source;
    row.model = in->model;
    row.adapter = in->adapter;
    row.template_hash = in->template_hash;
    row.consent = in->consent == ATTUNE_CONSENT_GIVEN;
    row.tier = in->tier;
    row.sensitivity = in->sensitivity;
    row.feedback = line->feedback;
    row.n_feedback = line->n_feedback;
    row.private_findings = line->private_findings;
    return row;
}

/* Not said is NULL in both, or "" where `empty_is_none`. */
static inline int same_text(const char *a, const char *b, int empty_is_none) {
    if (empty_is_none) a = a ? a : "", b = b ? b : "";
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* NULL, or the name of what differs. */
static inline const char *difference(const attune_row *a, const attune_row *b) {
    if (strcmp(a->id.text, b->id.text) != 0) return "id";
    if (a->time_ms != b->time_ms) return "time";
    if (!same_text(a->app, b->app, 1)) return "app";
    if (!same_text(a->session, b->session, 1)) return "session";
    if (!same_text(a->source, b->source, 1)) return "source";
    if (!same_text(a->model, b->model, 0)) return "model";
    if (!same_text(a->adapter, b->adapter, 0)) return "adapter";
    if (!same_text(a->template_hash, b->template_hash, 0)) return "template_hash";
    if (a->consent != b->consent) return "consent";
    if (a->tier != b->tier) return "tier";
    if (a->sensitivity != b->sensitivity) return "sensitivity";
    if (a->private_findings != b->private_findings) return "private_findings";
    if (a->n_messages != b->n_messages || a->n_feedback != b->n_feedback) return "a count";
    if (!same_text(a->response, b->response, 0)) return "response";
    for (size_t i = 0; i < a->n_messages; i++)
        if (!same_text(a->messages[i].role, b->messages[i].role, 0) ||
            !same_text(a->messages[i].content, b->messages[i].content, 0))
            return "a message";
    for (size_t i = 0; i < a->n_feedback; i++) {
        const attune_feedback *x = &a->feedback[i], *y = &b->feedback[i];
        if (x->kind != y->kind || x->value != y->value || x->time_ms != y->time_ms || !same_text(x->text, y->text, 0))
            return "a piece of feedback";
    }
    return NULL;
}

#endif
