#!/usr/bin/env python3
"""Makes tests/golden/peft_tiny: an adapter saved by PEFT over a tiny llama, and what PEFT adds to each matrix.

deltas.f32 holds, layer by layer and in the order q, k, v, o, gate, up, down, PEFT's own delta weight (out, in) in
float32, little-endian, with the rows of q and k moved as llama.cpp's conversion to GGUF moves them.

    peft_tiny.py [FOLDER]        needs torch, transformers, peft
"""
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, KV_HEADS, LAYERS = 4, 2, 2
MODULES = [
    ("self_attn.q_proj", HEADS),
    ("self_attn.k_proj", KV_HEADS),
    ("self_attn.v_proj", 0),
    ("self_attn.o_proj", 0),
    ("mlp.gate_proj", 0),
    ("mlp.up_proj", 0),
    ("mlp.down_proj", 0),
]


def to_gguf(w, heads):
    """Rotary halves of each head become interleaved pairs: row j * D/2 + i goes to 2 i + j."""
    return w.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(w.shape)


def main():
    default = pathlib.Path(__file__).resolve().parent.parent / "golden" / "peft_tiny"
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    torch.manual_seed(1)
    config = LlamaConfig(hidden_size=32, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
                         num_hidden_layers=LAYERS, intermediate_size=48, vocab_size=64)
    names = [module.split(".")[1] for module, _ in MODULES]
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=5, lora_dropout=0.05, target_modules=names))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.uniform_(-0.5, 0.5)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    with open(folder / "deltas.f32", "wb") as out:
        for layer in model.base_model.model.model.layers:
            for module, heads in MODULES:
                delta = layer.get_submodule(module).get_delta_weight("default").detach()
                out.write((to_gguf(delta, heads) if heads else delta).float().contiguous().numpy().tobytes())


if __name__ == "__main__":
    main()
