"""The peer in bench/compare-training: PyTorch, transformers and PEFT on the CPU. Runs in that script's environment.

    peft_training.py prepare BASE.gguf ROWS.jsonl TOKENS.jsonl FOLDER
    peft_training.py sweep FOLDER TOKENS.jsonl [--rows N]
    peft_training.py train FOLDER TOKENS.jsonl --dtype D --layout L [--checkpointing] [--epochs N] --out ADAPTER

prepare writes the dequantized weights of the GGUF to FOLDER/float32 and FOLDER/bfloat16, and checks that the
tokenizer and chat template of the GGUF, as transformers reads them, give the very ids and supervised tokens of
TOKENS.jsonl (which attune wrote). The others train on those ids. Each prints one JSON object on its last line.

A step is four conversations in the file's order, each the mean over its supervised tokens, then the mean of them.
Layouts put the four through the model differently, for the same gradient:

    each    one by one, no padding
    padded  four at once, padded to the longest
    pairs   sorted by length, the two shorter ones at once, then the two longer ones
    packed  four in one sequence without padding, each attending to itself alone

Logits are made at supervised positions only (logits_to_keep), as attune does.
"""

import argparse
import json
import math
import os
import sys
import time
import warnings
from pathlib import Path

STARTED = time.perf_counter()
warnings.filterwarnings("ignore", category=FutureWarning)

import torch
from torch.nn.functional import cross_entropy

RANK, ALPHA, BATCH, RATE, WARMUP, CLIP, MAX_TOKENS = 8, 16, 4, 2e-3, 0.05, 1.0, 512
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LAYOUTS = ["each", "padded", "pairs", "packed"]
DTYPES = ["float32", "bfloat16"]


def peak_mib():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return math.nan


def read_tokens(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# ---- batches ----


def groups(rows, layout):
    """The conversations of a step, as they go through the model together."""
    if layout == "each":
        return [[row] for row in rows]
    if layout == "pairs":
        ordered = sorted(rows, key=lambda row: len(row["ids"]))
        return [ordered[i : i + 2] for i in range(0, len(ordered), 2)]
    return [rows]


def targets_of(row):
    """Positions from which a supervised token is predicted."""
    return [i - 1 for i in range(1, len(row["ids"])) if row["supervised"][i]]


def make_batch(rows, packed, n_rows):
    """Inputs, where logits are wanted, and per wanted logit its target and weight. Nothing is predicted from the
    last token, so it is not put through. Padding is on the right: a causal model needs no mask for it."""
    ids, positions, wanted, select, targets, weights = [], [], set(), [], [], []
    longest = max(len(row["ids"]) for row in rows) - 1
    for i, row in enumerate(rows):
        start = len(ids) if packed else 0
        of_row = targets_of(row)
        for p in of_row:
            wanted.add(start + p)
            select.append((0 if packed else i, start + p))
            targets.append(row["ids"][p + 1])
            weights.append(1 / (len(of_row) * n_rows))
        body = row["ids"][:-1]
        if packed:
            ids += body
            positions += range(len(body))
        else:
            ids.append(body + [0] * (longest - len(body)))
    keep = sorted(wanted)
    place = {p: i for i, p in enumerate(keep)}
    return {
        "input_ids": torch.tensor([ids] if packed else ids),
        "position_ids": torch.tensor([positions]) if packed else None,
        "logits_to_keep": torch.tensor(keep),
    }, (
        torch.tensor([row for row, _ in select]),
        torch.tensor([place[p] for _, p in select]),
        torch.tensor(targets),
        torch.tensor(weights),
    )


def weighted_loss(model, inputs, wanted):
    rows, places, targets, weights = wanted
    logits = model(**{k: v for k, v in inputs.items() if v is not None}, use_cache=False).logits
    losses = cross_entropy(logits[rows, places].float(), targets, reduction="none")
    return (losses * weights).sum()


# ---- training ----


def load(folder, dtype, checkpointing, seed=1):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ.get("PEER_THREADS") or len(os.sched_getaffinity(0))))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(Path(folder) / dtype, dtype=getattr(torch, dtype))
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=MODULES)
    model = get_peft_model(model, config)
    set_checkpointing(model, checkpointing)
    model.train()
    return model


def set_checkpointing(model, on):
    if on:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def rate_of(step, steps, highest=RATE):
    """Warm-up, then cosine: attune's default schedule."""
    warmup = math.floor(WARMUP * steps)
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    return highest * 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(steps - warmup, 1), 1)))


class Trainer:
    def __init__(self, model):
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.adamw = torch.optim.AdamW(self.parameters, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
                                       fused=True)

    def step(self, rows, layout, rate):
        total = 0.0
        for group in groups(rows, layout):
            loss = weighted_loss(self.model, *make_batch(group, layout == "packed", len(rows)))
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return total


def count(rows):
    return {"rows": len(rows), "tokens": sum(len(r["ids"]) - 1 for r in rows),
            "supervised_tokens": sum(len(targets_of(r)) for r in rows)}


def train(o):
    model = load(o.folder, o.dtype, o.checkpointing, o.seed)
    rows = read_tokens(o.tokens)
    trainer = Trainer(model)
    steps = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)] * o.epochs
    loaded = time.perf_counter()
    for i, step in enumerate(steps):
        loss = trainer.step(step, o.layout, rate_of(i, len(steps), o.rate))
    trained = time.perf_counter()
    model.save_pretrained(o.out)
    return count(rows * o.epochs) | {
        "seconds_load": loaded - STARTED, "seconds_train": trained - loaded,
        "seconds": time.perf_counter() - STARTED, "loss": loss, "peak_rss_mib": peak_mib()}


# ---- which settings are best: rows a second over a few steps, after one to warm up ----


def sweep(o):
    rows = read_tokens(o.tokens)[: o.rows]
    steps = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    tried = []

    def measure(trainer, dtype, layout, checkpointing):
        trainer.step(steps[0], layout, 0.0)
        begun = time.perf_counter()
        for step in steps:
            trainer.step(step, layout, 0.0)
        rate = len(rows) / (time.perf_counter() - begun)
        tried.append({"dtype": dtype, "layout": layout, "checkpointing": checkpointing, "rows_per_s": rate})
        print(f"  {dtype:9} {layout:7} checkpointing {'on ' if checkpointing else 'off'} {rate:6.2f} rows/s",
              file=sys.stderr, flush=True)

    for dtype in DTYPES:
        model = load(o.folder, dtype, False)
        trainer = Trainer(model)
        for layout in LAYOUTS:
            measure(trainer, dtype, layout, False)
        # what is best without is among the two best with: only they are tried
        best = sorted((t for t in tried if t["dtype"] == dtype), key=lambda t: -t["rows_per_s"])[:2]
        set_checkpointing(model, True)
        for t in best:
            measure(trainer, dtype, t["layout"], True)
        del model, trainer
    return {"tried": tried}


# ---- the same model and the same tokens ----


def read_tokenizer(source):
    """transformers reads vocabulary, merges and template of a GGUF, but cuts words as gpt-2 does whatever the file
    says: SmolLM2 sets digits apart first."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**source)
    path = Path(source["pretrained_model_name_or_path"]) / source["gguf_file"]
    if GGUFReader(path).get_field("tokenizer.ggml.pre").contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def prompt_of(row):
    return row["Context"] + ": " + row["Input"] if "Context" in row else row["prompt"]


def check_tokens(tokenizer, rows, tokens):
    """Each row rendered and tokenized by transformers; supervised are the response and the end of the turn."""
    if len(rows) != len(tokens):
        sys.exit(f"peft_training: {len(rows)} rows, but attune took {len(tokens)} of them")
    for number, (row, ours) in enumerate(zip(rows, tokens), 1):
        response = row["Response"] if "Response" in row else row["response"]
        asked = [{"role": "user", "content": prompt_of(row)}]
        head = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(head, add_special_tokens=False)["input_ids"]
        answer = tokenizer(response, add_special_tokens=False)["input_ids"]
        answer.append(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        supervised = ([0] * len(ids) + [1] * len(answer))[:MAX_TOKENS]
        ids = (ids + answer)[:MAX_TOKENS]
        n = len(ours["ids"])
        if ids[:n] != ours["ids"] or supervised[:n] != ours["supervised"] or len(ids) != n:
            sys.exit(f"peft_training: row {number} has other tokens in transformers than in attune: no comparison")


def prepare(o):
    from transformers import AutoModelForCausalLM

    source = {"pretrained_model_name_or_path": str(Path(o.base).parent), "gguf_file": Path(o.base).name}
    tokens = read_tokens(o.tokens)
    rows = [json.loads(line) for line in Path(o.rows_file).read_text().splitlines() if line.strip()]
    check_tokens(read_tokenizer(source), rows, tokens)
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    del read
    total, n, some = 0.0, 0, tokens[:8]
    with torch.no_grad():
        for row in some:
            inputs, wanted = make_batch([row], False, 1)
            total += weighted_loss(model, inputs, wanted).item() * len(wanted[2])
            n += len(wanted[2])
    for dtype in DTYPES:
        model.to(getattr(torch, dtype)).save_pretrained(Path(o.folder) / dtype)
    return {"loss": total / n, "rows": len(some), "tokens": n}


def versions():
    import peft
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
            "python": sys.version.split()[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    p = verbs.add_parser("prepare")
    p.add_argument("base")
    p.add_argument("rows_file")
    p.add_argument("tokens")
    p.add_argument("folder")
    p = verbs.add_parser("sweep")
    p.add_argument("folder")
    p.add_argument("tokens")
    p.add_argument("--rows", type=int, default=32)
    p = verbs.add_parser("train")
    p.add_argument("folder")
    p.add_argument("tokens")
    p.add_argument("--dtype", choices=DTYPES, required=True)
    p.add_argument("--layout", choices=LAYOUTS, required=True)
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--epochs", type=int, default=1)
    p.add_argument("--rate", type=float, default=RATE, help="the highest; default attune's")
    p.add_argument("--seed", type=int, default=1, help="of the adapter's first weights")
    p.add_argument("--out", required=True)
    verbs.add_parser("versions")
    o = parser.parse_args()
    result = versions() if o.verb == "versions" else {"prepare": prepare, "sweep": sweep, "train": train}[o.verb](o)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
