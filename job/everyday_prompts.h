/* Questions that anybody might ask, to hear how a model answers. Not those of the reference set, nor of the personas
 * under examples/. Figures of two homes compare over the same questions only: they are neither changed nor taken out. */
#ifndef JOB_EVERYDAY_PROMPTS_H
#define JOB_EVERYDAY_PROMPTS_H

enum { EVERYDAY_PROMPTS = 24 };
extern const char *const everyday_prompts[EVERYDAY_PROMPTS];

#endif
