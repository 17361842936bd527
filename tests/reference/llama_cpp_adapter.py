"""Compares attune with llama.cpp on a base model and a LoRA file that both load unchanged.

    python3 tests/reference/llama_cpp_adapter.py --base BASE.gguf --adapter ADAPTER.gguf [--attune build/attune]

Needs llama_cpp, gguf, numpy. Five prompts, each rendered by the chat template of the GGUF and continued greedily for
32 tokens by both programs:

  f32   on a copy of the base with every tensor dequantized to F32 (a temporary file of 4 bytes a parameter), where
        both programs compute the same sums: the tokens must be equal.
  file  on the base as it is. attune's tokens must be those of the f32 run, the weights being the same numbers.
        llama.cpp rounds the activations to 8 bits beside quantized weights and attune does not, so two nearly equal
        tokens may swap: where the tokens part first, llama.cpp's logits of the two must be at most --gap (0.25)
        apart. What follows in that prompt is not compared. An adapter that disturbs the model (random, large) makes
        it more sensitive to that rounding; the column "in f32" has the same gap in llama.cpp's f32 run, negative
        where attune's token is the better one there.

llama.cpp keeps its keys and values in F32 here, as attune does. An adapter that names its base by hash is copied
without attune's own keys for the f32 run, since the copy of the base has another hash.

Prints a table; exits with 1 where a row fails and with 2 where a program does.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three fruits.",
    "Explain why the sky is blue to a child.",
    "Translate 'good morning' into Spanish, caf\u00e9 style.",
]
TOKENS = 32
GGML_TYPE_F32 = 0
FILE_TYPE_ALL_F32 = 0


def copy_gguf(source, target, drop_prefix=None, to_f32=False):
    """Every key, in order, and every tensor of `source`; keys that begin with drop_prefix stay behind."""
    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture, use_temp_file=False)
    for field in reader.fields.values():
        name = field.name
        if name.startswith("GGUF.") or name == "general.architecture" or (drop_prefix and name.startswith(drop_prefix)):
            continue
        kind = field.types[0]
        value = FILE_TYPE_ALL_F32 if to_f32 and name == "general.file_type" else field.contents()
        element = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, sub_type=element)
    for tensor in reader.tensors:
        if to_f32:
            writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Reference:
    """llama.cpp with the adapter, one prompt at a time."""

    def __init__(self, base, adapter, threads):
        self.llama = llama_cpp.Llama(
            model_path=str(base), lora_path=str(adapter), n_ctx=512, n_batch=512, n_threads=threads,
            n_threads_batch=threads, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32, flash_attn=False, verbose=False)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.llama.model)
        keys = self.llama.metadata
        text = lambda key: self.llama.detokenize([int(keys[key])], special=True).decode() if key in keys else ""
        self.template = Jinja2ChatFormatter(
            template=keys["tokenizer.chat_template"], bos_token=text("tokenizer.ggml.bos_token_id"),
            eos_token=text("tokenizer.ggml.eos_token_id"))

    def prompt_ids(self, prompt):
        rendered = self.template(messages=[{"role": "user", "content": prompt}]).prompt
        return self.llama.tokenize(rendered.encode(), add_bos=False, special=True)

    def greedy(self, prompt):
        """Tokens of the answer, and the logits that each was taken from (one more at an end of turn)."""
        self.llama.reset()
        self.llama.eval(self.prompt_ids(prompt))
        ids, logits = [], []
        while len(ids) < TOKENS:
            pointer = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
            logits.append(np.ctypeslib.as_array(pointer, shape=(self.llama.n_vocab(),)).copy())
            token = int(np.argmax(logits[-1]))
            if llama_cpp.llama_vocab_is_eog(self.vocabulary, token):
                break
            ids.append(token)
            self.llama.eval([token])
        return ids, logits

    def end_logit(self, logits):
        """Of the likeliest token that ends a turn."""
        return max(logits[i] for i in range(len(logits)) if llama_cpp.llama_vocab_is_eog(self.vocabulary, i))

    def close(self):
        self.llama.close()


def attune_greedy(program, base, adapter, prompt):
    command = [program, "generate", prompt, "--base", base, "--adapter", adapter, "--max-tokens", TOKENS,
               "--merge", "none", "--temp", 0, "--json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}")
        sys.exit(2)
    return json.loads(done.stdout)["ids"]


def first_difference(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def gap_at(reference, logits, position, ids, other):
    """What `ids` has at the position over what `other` has there; the end of a list is a token that ends the turn."""
    row = logits[position]
    value = lambda tokens: row[tokens[position]] if position < len(tokens) else reference.end_logit(row)
    return float(value(ids) - value(other))


def compare_f32(reference, program, base, adapter):
    """Rows of the table, how many failed, and what llama.cpp gave for each prompt."""
    failed, answers = 0, []
    for prompt in PROMPTS:
        wanted, logits = reference.greedy(prompt)
        got = attune_greedy(program, base, adapter, prompt)
        same = first_difference(wanted, got)
        gap = gap_at(reference, logits, same, wanted, got) if wanted != got else 0.0
        failed += print_row("f32", prompt, wanted, got, same, gap, None, wanted == got)
        answers.append((wanted, logits))
    return failed, answers


def compare_file(reference, program, base, adapter, answers, limit):
    failed = 0
    for prompt, (exact, exact_logits) in zip(PROMPTS, answers):
        wanted, logits = reference.greedy(prompt)
        got = attune_greedy(program, base, adapter, prompt)
        same, gap, in_f32 = first_difference(wanted, got), 0.0, None
        if wanted != got:
            gap = gap_at(reference, logits, same, wanted, got)
            if got == exact:
                in_f32 = gap_at(reference, exact_logits, same, wanted, got)
        failed += print_row("file", prompt, wanted, got, same, gap, in_f32, got == exact and gap <= limit)
    return failed


def print_row(kind, prompt, wanted, got, same, gap, in_f32, good):
    beside = "" if in_f32 is None else f"{in_f32:.4f}"
    print(f"{kind:5} {prompt[:40]:40} {len(wanted):9} {len(got):6} {same:5} {gap:9.4f} {beside:>7}  "
          f"{'ok' if good else 'FAILED'}", flush=True)
    return not good


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--attune", type=Path, default=Path("build/attune"))
    parser.add_argument("--gap", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{'base':5} {'prompt':40} llama.cpp attune  same logit gap  in f32", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        plain, loose = Path(folder) / "f32.gguf", Path(folder) / "adapter.gguf"
        copy_gguf(arguments.base, plain, to_f32=True)
        copy_gguf(arguments.adapter, loose, drop_prefix="attune.")
        reference = Reference(plain, loose, arguments.threads)
        failed, answers = compare_f32(reference, arguments.attune, plain, loose)
        reference.close()
        reference = Reference(arguments.base, arguments.adapter, arguments.threads)
        failed += compare_file(reference, arguments.attune, arguments.base, arguments.adapter, answers, arguments.gap)
        reference.close()
    print(f"{failed} of {2 * len(PROMPTS)} rows failed" if failed else "all rows hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
