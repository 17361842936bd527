/* PEFT adapters: adapter_config.json + adapter_model.safetensors.
 *
 * The rows of q and k in llama GGUFs are permuted against Hugging Face's (rotary pairs interleaved
 * against halves): B's rows of attn_q and attn_k are permuted back on export and forth on import, for
 * architectures whose rope is ROPE_INTERLEAVED. */
#ifndef ADAPTERS_PEFT_H
#define ADAPTERS_PEFT_H

#include "adapters/lora.h"

/* folder is made if missing (not its parents); existing files of these two names are an error
 * (ATTUNE_ERROR_STATE). The configuration is written last: a folder with one is complete. */
int peft_export(const struct lora *lora, const struct model *model, const char *folder, attune_error *err);
/* Reads F32, F16 and BF16 tensors. What PEFT can do and attune cannot is refused by name: other methods than LoRA,
 * DoRA, biases, modules_to_save, patterns of ranks and alphas, choices of layers, initializations that change the
 * base (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), and any setting attune does not know that is not empty. rsLoRA's scale,
 * alpha / sqrt(R), is kept by an alpha that is sqrt(R) times larger: the configuration's lora_alpha and
 * lora->config.alpha differ then. */
int peft_import(const char *folder, const struct model *model, struct lora **out, attune_error *err);

#endif
