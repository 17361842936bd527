/* Everyday questions with plain answers, by nobody in particular: what a base should still be able to say after it has
 * learned from a person. Frozen: figures of different runs and homes compare only over the same rows, so rows are
 * neither changed nor taken out, and never trained on. */
#ifndef JOB_REFERENCE_SET_H
#define JOB_REFERENCE_SET_H

enum {
    REFERENCE_ROWS = 64,
    REFERENCE_ANSWERED = 8 /* every eighth question, from the first on, is also answered freely */
};
struct reference_row {
    const char *prompt, *response;
};
extern const struct reference_row reference_set[REFERENCE_ROWS];

#endif
