"""A GGUF of the llama or qwen2 architecture as a transformers model over the same dequantized weights, and
LoRA beside it, for the scripts that make golden files.

Rows of attn_q and attn_k: a llama GGUF stores them so that rotary pairs are neighbours (2i, 2i + 1),
transformers wants them in halves (i, i + D/2); `head_order` is the way between. Golden values are always in
GGUF's row order.
"""

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

torch.set_num_threads(2)

# Targets in the order used everywhere, with the name of the module in a transformers layer.
TARGETS = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
]


# ---- counter-based random numbers, as core/base/random.h --------------------------------------------------


def random_mix(x):
    """uint64 array -> uint64 array"""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_u64(key, index):
    """key: int, index: array of integers -> uint64 array"""
    key = np.array([key], dtype=np.uint64)
    return random_mix(random_mix(key) ^ random_mix(~np.asarray(index, dtype=np.uint64)))


def random_uniform(key, n):
    """float32 (n) in [0, 1) for the indices 0 .. n-1"""
    return (random_u64(key, np.arange(n)) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


# ---- weights ----------------------------------------------------------------------------------------------


def head_order(heads, D):
    """order[gguf row] = transformers row, for a q or k of a llama GGUF."""
    i, half = np.meshgrid(np.arange(D // 2), np.arange(2), indexing="ij")
    one = (half * (D // 2) + i).reshape(-1)
    return (np.arange(heads)[:, None] * D + one[None, :]).reshape(-1)


def inverse_order(order):
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


class Base:
    """A GGUF file: its settings, and `model`, the transformers model (float32, eager attention, eval mode)."""

    def __init__(self, path):
        reader = GGUFReader(path)
        get = lambda key: reader.fields[key].contents()
        self.arch = get("general.architecture")
        a = self.arch
        self.L, self.C, self.F = (get(f"{a}.{k}") for k in ("block_count", "embedding_length", "feed_forward_length"))
        self.H = get(f"{a}.attention.head_count")
        self.KV = get(f"{a}.attention.head_count_kv")
        has_length = f"{a}.attention.key_length" in reader.fields
        self.D = get(f"{a}.attention.key_length") if has_length else self.C // self.H
        self.chat_template = get("tokenizer.chat_template")
        tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
        self.V = tensors["token_embd.weight"].shape[0]
        self.tied = "output.weight" not in tensors
        self.order = {}  # target index -> order[gguf row] = transformers row
        if self.arch == "llama":
            self.order = {0: head_order(self.H, self.D), 1: head_order(self.KV, self.D)}
        settings = dict(
            vocab_size=self.V,
            hidden_size=self.C,
            intermediate_size=self.F,
            num_hidden_layers=self.L,
            num_attention_heads=self.H,
            num_key_value_heads=self.KV,
            max_position_embeddings=get(f"{a}.context_length"),
            rms_norm_eps=get(f"{a}.attention.layer_norm_rms_epsilon"),
            tie_word_embeddings=self.tied,
            rope_parameters={"rope_type": "default", "rope_theta": get(f"{a}.rope.freq_base")},
            attn_implementation="eager",
        )
        if self.arch == "llama":
            model = LlamaForCausalLM(LlamaConfig(head_dim=self.D, **settings))
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**settings))
        missing, unexpected = model.load_state_dict(self.state(tensors), strict=False)
        assert not unexpected and missing == (["lm_head.weight"] if self.tied else []), (missing, unexpected)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == self.tied
        self.model = model.float().eval()
        for p in self.model.parameters():
            p.requires_grad_(False)
        if "rope_freqs.weight" in tensors:
            self.model.model.rotary_emb.inv_freq /= torch.from_numpy(tensors["rope_freqs.weight"].reshape(-1))

    def state(self, tensors):
        """The state dict of the transformers model."""
        state = {
            "model.embed_tokens.weight": tensors["token_embd.weight"],
            "model.norm.weight": tensors["output_norm.weight"],
        }
        if not self.tied:
            state["lm_head.weight"] = tensors["output.weight"]
        for layer in range(self.L):
            hf = f"model.layers.{layer}."
            state[hf + "input_layernorm.weight"] = tensors[f"blk.{layer}.attn_norm.weight"]
            state[hf + "post_attention_layernorm.weight"] = tensors[f"blk.{layer}.ffn_norm.weight"]
            for t, (name, module) in enumerate(TARGETS):
                for kind in ("weight", "bias"):
                    if (w := tensors.get(f"blk.{layer}.{name}.{kind}")) is not None:
                        state[f"{hf}{module}.{kind}"] = w[inverse_order(self.order[t])] if t in self.order else w
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}

    def linear(self, layer, target):
        return self.model.get_submodule(f"model.layers.{layer}.{TARGETS[target][1]}")

    def logits(self, ids):
        """(T, V) of one sequence, float32"""
        return self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


class Lora:
    """Pairs A (R, in), B (out, R) beside all seven linear layers, filled by the generator:
    value = (random_uniform(key, index) - 0.5) * span, key 1000 + 2 * (layer * 7 + target) for A, + 1 for B,
    index row-major, rows in GGUF's order. `parameters` is the flat list: by layer, by target, A then B."""

    def __init__(self, base, rank, alpha, span):
        self.parameters, self.names = [], []
        for layer in range(base.L):
            for target, (name, _) in enumerate(TARGETS):
                linear = base.linear(layer, target)
                key = 1000 + 2 * (layer * 7 + target)
                pair = []
                for k, shape in enumerate([(rank, linear.in_features), (linear.out_features, rank)]):
                    values = (random_uniform(key + k, shape[0] * shape[1]) - np.float32(0.5)) * np.float32(span)
                    pair.append(torch.from_numpy(values.reshape(shape)).requires_grad_())
                    self.names.append(f"blk.{layer}.{name}.weight.lora_{'ab'[k]}")
                self.parameters += pair
                rows = inverse_order(base.order[target]) if target in base.order else None
                linear.register_forward_hook(self.hook(pair[0], pair[1], alpha / rank, rows))

    @staticmethod
    def hook(a, b, scale, rows):
        rows = None if rows is None else torch.from_numpy(rows)

        def add(_module, inputs, output):
            b_here = b if rows is None else b[rows]
            return output + scale * (inputs[0] @ a.T) @ b_here.T

        return add


def mean_loss(logits, ids, positions):
    """Mean over `positions` p of -log softmax(logits[p])[ids[p + 1]], nats."""
    positions = torch.as_tensor(positions)
    return torch.nn.functional.cross_entropy(logits[positions], torch.as_tensor(ids)[positions + 1])
