"""Makes the tiny random models of tests/golden and their golden values: tiny_llama, tiny_llama3, tiny_qwen2.

    python3 tests/reference/tiny_models.py [OUTPUT_FOLDER]       (default: tests/golden)

Needs torch, transformers, gguf, tokenizers; llama_cpp, when it is there, checks the files and logits again.
Every weight comes from the counter-based generator of core/base/random.h, so a second run writes the same
models; golden values are float32 results of transformers over the dequantized weights of the file.

tests/golden/tiny_*.bin, little-endian, no padding:

    u32 T              tokens of the sequence (33)
    u32 V              vocabulary
    u32 R              LoRA rank (4)
    f32 alpha          LoRA alpha (8); scale = alpha / R
    u32 first          first supervised position: positions first .. T-2 are (T-1-first of them, 20)
    u32 n              LoRA parameters in all
    i32 ids[T]
    f32 logits[T][V]   without an adapter
    f32 loss           with the adapter: mean over positions p = first .. T-2 of -ln softmax(logits[p])[ids[p+1]]
    f32 gradient[n]    d loss / d parameters

Parameters: layer by layer; in a layer the targets attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down;
for a target A (R, in), then B (out, R), row-major, rows in the order of the GGUF's rows. Filled with
(random_uniform(key, index) - 0.5) * 0.2, key = 1000 + 2 * (layer * 7 + target) for A and + 1 for B, index
counting the elements of that one tensor from 0.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from gguf import GGUFWriter
from gguf.quants import quantize
from gguf_torch import TARGETS, Base, Lora, mean_loss, random_u64, random_uniform
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

T, SUPERVISED, RANK, ALPHA, SPAN = 33, 20, 4, 8.0, 0.2

# Chat templates as the model families publish them (SmolLM2 and Qwen2.5: Apache-2.0; Llama 3: its instruct models).
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN25_TEMPLATE = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

# What merges are learned from: plain words, so that ordinary English is not all single bytes.
TEXT = """the morning was cold and the harbour lay still under a thin grey mist. she walked along the stones
and counted the boats, one after another, until the sun came over the hill. there were more than she had
thought, and none of them was hers. at the end of the wall an old man mended his nets and sang to himself.
he said that the wind would turn before noon, and that the fish would come back with it. the user asked the
assistant for an answer, and the system was helpful. then the bread was warm, the tea was strong, and the
letters in the drawer could wait for another day. we should have started earlier, they told each other."""

CONFIGURATIONS = {
    # Dimensions; `linear(layer, target)` and the others are tensor types.
    "tiny_llama": dict(
        arch="llama", C=64, H=4, KV=2, D=16, F=96, L=2, V=349, eps=1e-5, theta=10000.0, context=256, tied=True,
        pre="smollm", specials=CHATML, specials_first=True, bos=1, eos=2, add_bos=False, template=SMOLLM2_TEMPLATE,
        embedding=Q.Q8_0, linear=lambda layer, t: Q.Q4_1, seed=100,
    ),
    # Head size other than C / H, odd shapes, llama-3 frequency factors, a head of its own.
    "tiny_llama3": dict(
        arch="llama", C=48, H=3, KV=1, D=32, F=80, L=2, V=331, eps=1e-5, theta=500000.0, context=512, tied=False,
        pre="llama-bpe", specials=LLAMA3, specials_first=False, bos=LLAMA3[0], eos=LLAMA3[4], add_bos=True,
        template=LLAMA3_TEMPLATE, embedding=Q.F16, head=Q.F16, linear=lambda layer, t: Q.F16, seed=200,
        rope=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    ),
    "tiny_qwen2": dict(
        arch="qwen2", C=64, H=4, KV=2, D=16, F=96, L=2, V=352, eps=1e-6, theta=1000000.0, context=256, tied=True,
        pre="qwen2", specials=CHATML, specials_first=False, bos=CHATML[0], eos=CHATML[2], add_bos=False,
        template=QWEN25_TEMPLATE, embedding=Q.Q8_0,
        linear=lambda layer, t: Q.F32 if t in (layer, 6 * layer) else Q.Q8_0, seed=300,
    ),
}


def byte_level_bpe(n_merges):
    """(256 byte tokens in code point order + n_merges tokens, merges as "left right")"""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + n_merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT.replace("\n", " ")], trainer)

    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    assert len(tokens) == 256 + n_merges and len(merges) == n_merges, (len(tokens), len(merges))
    assert tokens[256:] == [m.replace(" ", "") for m in merges]
    return tokens, merges


def add_vocabulary(writer, c):
    words, merges = byte_level_bpe(c["V"] - 256 - len(c["specials"]))
    tokens = c["specials"] + words if c["specials_first"] else words + c["specials"]
    control = set(c["specials"])
    number = lambda t: t if isinstance(t, int) else tokens.index(t)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(c["pre"])
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in control else 1 for t in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(number(c["bos"]))
    writer.add_eos_token_id(number(c["eos"]))
    writer.add_add_bos_token(c["add_bos"])
    writer.add_chat_template(c["template"])


class Weights:
    """Random tensors, each with a key of its own."""

    def __init__(self, seed):
        self.key = seed * 1000

    def take(self, shape, deviation, mean=0.0):
        self.key += 1
        n = int(np.prod(shape))
        flat = (random_uniform(self.key, n) - 0.5) * (12.0**0.5) * deviation + mean
        return flat.astype(np.float32).reshape(shape)


def rope_factors(c):
    """What llama-3 scaling divides the frequencies by, (D / 2)"""
    config = lambda p: LlamaConfig(hidden_size=c["C"], num_attention_heads=c["H"], head_dim=c["D"], rope_parameters=p)
    plain = LlamaRotaryEmbedding(config({"rope_type": "default", "rope_theta": c["theta"]})).inv_freq
    scaled = LlamaRotaryEmbedding(config({"rope_type": "llama3", "rope_theta": c["theta"], **c["rope"]})).inv_freq
    return (plain / scaled).numpy().astype(np.float32)


def write_model(path, name, c):
    a, C, D, F, V = c["arch"], c["C"], c["D"], c["F"], c["V"]
    writer = GGUFWriter(path, a)
    writer.add_name(name)
    writer.add_block_count(c["L"])
    writer.add_context_length(c["context"])
    writer.add_embedding_length(C)
    writer.add_feed_forward_length(F)
    writer.add_head_count(c["H"])
    writer.add_head_count_kv(c["KV"])
    writer.add_layer_norm_rms_eps(c["eps"])
    writer.add_rope_freq_base(c["theta"])
    if D * c["H"] != C:
        writer.add_key_length(D)
        writer.add_value_length(D)
    if a == "llama":
        writer.add_rope_dimension_count(D)
        writer.add_vocab_size(V)
    add_vocabulary(writer, c)

    weights = Weights(c["seed"])

    def tensor(tensor_name, shape, deviation, qtype, mean=0.0):
        data = quantize(weights.take(shape, deviation, mean), qtype)
        writer.add_tensor(tensor_name, data, raw_dtype=None if qtype in (Q.F32, Q.F16) else qtype)

    # With deviation 1/sqrt(in) a row's output is about as large as its input; more in q and k for attention that is
    # not flat.
    tensor("token_embd.weight", (V, C), 0.3, c["embedding"])
    if not c["tied"]:
        tensor("output.weight", (V, C), 0.3, c["head"])
    tensor("output_norm.weight", (C,), 0.1, Q.F32, mean=1.0)
    if "rope" in c:
        writer.add_tensor("rope_freqs.weight", rope_factors(c))
    QD, KD = c["H"] * D, c["KV"] * D
    shapes = [(QD, C), (KD, C), (KD, C), (C, QD), (F, C), (F, C), (C, F)]
    for layer in range(c["L"]):
        for norm in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{layer}.{norm}.weight", (C,), 0.1, Q.F32, mean=1.0)
        for t, (target, _) in enumerate(TARGETS):
            gain = 1.5 if t < 2 else 1.0
            tensor(f"blk.{layer}.{target}.weight", shapes[t], gain / shapes[t][1] ** 0.5, c["linear"](layer, t))
            if a == "qwen2" and t < 3:
                tensor(f"blk.{layer}.{target}.bias", (shapes[t][0],), 0.3, Q.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_rope(base, c):
    """The frequencies in use are transformers' own llama-3 ones."""
    if "rope" in c:
        config = base.model.config
        config.rope_parameters = {"rope_type": "llama3", "rope_theta": c["theta"], **c["rope"]}
        theirs = LlamaRotaryEmbedding(config).inv_freq
        torch.testing.assert_close(base.model.model.rotary_emb.inv_freq, theirs, rtol=1e-6, atol=0)
        assert (rope_factors(c) != 1).any() and (rope_factors(c) == 1).any()


def check_with_llama_cpp(path, ids, logits):
    try:
        from llama_cpp import Llama
    except ImportError:
        return print("  llama_cpp is not there: not compared")
    model = Llama(str(path), n_ctx=64, n_threads=2, logits_all=True, verbose=False)
    model.eval(ids)
    theirs = np.array(model.scores[: len(ids)])
    print(f"  llama.cpp differs by at most {np.abs(theirs - logits).max():.4f} (it quantizes activations)")


def write_golden(path, base, c):
    ids = (random_u64(c["seed"] + 7, np.arange(T)) % np.uint64(c["V"])).astype(np.int32)
    with torch.no_grad():
        logits = base.logits(ids).numpy()
    lora = Lora(base, RANK, ALPHA, SPAN)
    first = T - 1 - SUPERVISED
    loss = mean_loss(base.logits(ids), ids.astype(np.int64), np.arange(first, T - 1))
    loss.backward()
    gradient = np.concatenate([p.grad.numpy().reshape(-1) for p in lora.parameters])
    with open(path, "wb") as f:
        f.write(struct.pack("<IIIfII", T, base.V, RANK, ALPHA, first, gradient.size))
        f.write(ids.astype("<i4").tobytes() + logits.astype("<f4").tobytes())
        f.write(struct.pack("<f", loss.item()) + gradient.astype("<f4").tobytes())
    norms = [p.grad.norm().item() for p in lora.parameters]
    print(f"  logits in {logits.min():.3f} .. {logits.max():.3f}, loss {loss.item():.6f}, gradients {gradient.size}, "
          f"norm of a tensor's {min(norms):.2e} .. {max(norms):.2e}")
    return ids, logits


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "golden"
    for name, c in CONFIGURATIONS.items():
        path = folder / f"{name}.gguf"
        write_model(path, name, c)
        print(f"{path.name}: {path.stat().st_size} bytes")
        base = Base(path)
        check_rope(base, c)
        ids, logits = write_golden(folder / f"{name}.bin", base, c)
        check_with_llama_cpp(path, [int(i) for i in ids], logits)


if __name__ == "__main__":
    main()
