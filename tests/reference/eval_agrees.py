"""The mean loss that `attune eval` must agree with: the real base model, SmolLM2-135M-Instruct Q4_1, in transformers in
float32 over the file's dequantized weights.

    python3 tests/reference/eval_agrees.py BASE.gguf FILE.jsonl [--rows 12] [--out tests/golden/eval_sailor.txt]

Needs torch, transformers, gguf, llama_cpp (its tokenizer). The first rows of FILE.jsonl (prompt, response) are rendered
by the model's own template with its default system message; supervised are the response and the <|im_end|> behind it.
Writes one line: the mean over all supervised tokens of -ln p, how many there are, and of how many rows.

    nll 2.1234567890 tokens 1234 examples 12
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from gguf_torch import Base
from real_model import Vocabulary


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("rows_file", type=Path)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "golden" / "eval_sailor.txt")
    o = parser.parse_args()
    vocabulary, base = Vocabulary(o.base), Base(o.base)
    total, tokens = 0.0, 0
    for line in o.rows_file.read_text().splitlines()[: o.rows]:
        row = json.loads(line)
        ids, mask = vocabulary.conversation(row["prompt"], row["response"])
        targets = np.flatnonzero(mask)
        with torch.no_grad():
            logits = base.logits(ids).double()
        log_p = torch.log_softmax(logits[targets - 1], dim=1)
        total -= log_p[torch.arange(len(targets)), torch.tensor(ids)[targets]].sum().item()
        tokens += len(targets)
    o.out.write_text(f"nll {total / tokens:.10f} tokens {tokens} examples {o.rows}\n")
    print(o.out.read_text(), end="")


if __name__ == "__main__":
    main()
