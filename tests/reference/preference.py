"""Makes tests/golden/preference.bin: steps over answers to say, pairs and thumbs, with tiny_llama.

    python3 tests/reference/preference.py [--trl TRL_FOLDER]

Needs torch, transformers, gguf. --trl: the folder `trl` of an unpacked TRL 0.12; its own dpo_loss and kto_loss are then
run beside the formulas here, which are those of the papers (arXiv:2305.18290, arXiv:2402.01306).

Little-endian, no padding:

    u32 R, f32 alpha, f32 span    LoRA, filled as gguf_torch.Lora does
    u32 n                         rows
    n times: u32 kind (0 answer, 1 pair, 3 thumb), i32 label, f32 weight,
             a conversation, of a pair two: u32 T, u16 ids[T], u8 supervised[T]
    u32 variations, of each:
        f32 beta, u32 mean, f32 dpo, f32 sft, f32 up, f32 down
        all rows in one step, the adapter measured against the base:
        f32 loss, f32 margin (sum over pairs), u32 won, u32 g, f32 gradient[g] in the order of gguf_torch.Lora
        ten steps of AdamW from the adapter, measured against it; step k has the rows 3 k + i, i < 5, modulo n:
        f32 rate, f32 loss[10]
"""

import argparse
import ast
import struct
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from gguf_torch import Base, Lora, random_u64
from torch.nn import functional as F

RANK, ALPHA, SPAN, RATE, STEPS, EACH = 2, 4.0, 0.2, 2e-3, 10, 5
SFT, PAIR, THUMB = 0, 1, 3
# kind, label, weight
ROWS = [(PAIR, 0, 1.0), (SFT, 0, 1.0), (THUMB, 1, 1.0), (THUMB, -1, 0.5), (PAIR, 0, 0.6), (SFT, 0, 0.8)]
ROWS += [(THUMB, -1, 1.0)]
VARIATIONS = [
    dict(beta=0.1, mean=0, dpo=1.0, sft=0.25, up=1.0, down=1.5),
    dict(beta=2.0, mean=1, dpo=0.75, sft=0.0, up=1.25, down=0.5),
]


def conversation(key, prompt, answer, V):
    """prompt: key of a conversation's first part"""
    n = [9 + prompt % 5, 4 + answer % 7]
    ids = np.concatenate([random_u64(k, np.arange(m)) % np.uint64(V) for k, m in zip((prompt, key), n)])
    return ids.astype(np.int64), np.repeat([0, 1], n)


def make_rows(V):
    rows = []
    for i, (kind, label, weight) in enumerate(ROWS):
        texts = [conversation(500 + 10 * i + j, 300 + i, 3 * i + 2 * j, V) for j in range(2 if kind == PAIR else 1)]
        rows.append((kind, label, weight, texts))
    return rows


def answer_logps(base, ids, supervised):
    """ln p of each supervised token"""
    targets = np.flatnonzero(supervised[1:])
    logits = base.logits(ids)[torch.from_numpy(targets)]
    return -F.cross_entropy(logits, torch.from_numpy(ids[targets + 1]), reduction="none")


def gain_of(base, text, reference, c):
    logps = answer_logps(base, *text)
    r = logps.sum() - reference
    return r / len(logps) if c["mean"] else r


def step_loss(base, rows, references, c):
    """(objective whose gradient is taken, reported loss, sum of margins, pairs won)"""
    gains = [[gain_of(base, t, r, c) for t, r in zip(row[3], refs)] for row, refs in zip(rows, references)]
    total, margins, won = 0.0, 0.0, 0
    for i, ((kind, label, weight, texts), r) in enumerate(zip(rows, gains)):
        nats = -answer_logps(base, *texts[0]).mean()
        if kind == SFT:
            loss = nats
        elif kind == PAIR:
            margin = r[0] - r[1]
            loss = -c["dpo"] * F.logsigmoid(c["beta"] * margin) + c["sft"] * nats
            margins, won = margins + margin.item(), won + int(margin.item() > 0)
        else:
            others = [g[0].detach() for j, (row, g) in enumerate(zip(rows, gains)) if row[0] == THUMB and j != i]
            z = (sum(others) / len(others)).clamp(min=0) if others else 0.0
            loss = (
                c["up"] * (1 - torch.sigmoid(c["beta"] * (r[0] - z)))
                if label > 0
                else c["down"] * (1 - torch.sigmoid(c["beta"] * (z - r[0])))
            )
        total = total + weight * loss
    return total / len(rows), total.item() / sum(row[2] for row in rows), margins, won


def measure(base, rows):
    with torch.no_grad():
        return [[answer_logps(base, *t).sum() for t in row[3]] for row in rows]


def write(path, gguf):
    plain = Base(gguf)
    rows = make_rows(plain.V)
    of_base = measure(plain, rows)
    out = struct.pack("<IffI", RANK, ALPHA, SPAN, len(rows))
    for kind, label, weight, texts in rows:
        out += struct.pack("<Iif", kind, label, weight)
        for ids, supervised in texts:
            out += struct.pack("<I", len(ids)) + ids.astype("<u2").tobytes() + supervised.astype("u1").tobytes()
    out += struct.pack("<I", len(VARIATIONS))
    for c in VARIATIONS:
        out += struct.pack("<fIffff", *(c[k] for k in ("beta", "mean", "dpo", "sft", "up", "down")))
        base = Base(gguf)
        lora = Lora(base, RANK, ALPHA, SPAN)
        objective, loss, margin, won = step_loss(base, rows, of_base, c)
        objective.backward()
        gradient = np.concatenate([p.grad.numpy().reshape(-1) for p in lora.parameters])
        out += struct.pack("<ffII", loss, margin, won, gradient.size) + gradient.astype("<f4").tobytes()

        of_start, losses = measure(base, rows), []
        optimizer = torch.optim.AdamW(lora.parameters, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        for step in range(STEPS):
            which = [(3 * step + i) % len(rows) for i in range(EACH)]
            optimizer.zero_grad()
            objective, reported, _, _ = step_loss(base, [rows[i] for i in which], [of_start[i] for i in which], c)
            objective.backward()
            optimizer.step()
            losses.append(reported)
        out += struct.pack("<f", RATE) + np.array(losses, "<f4").tobytes()
        print(f"{c}: loss {loss:.6f}, margin {margin:.4f}, {won} won, gradient {np.linalg.norm(gradient):.4f}; steps: "
              + " ".join(f"{x:.4f}" for x in losses))
    path.write_bytes(out)
    print(f"{path.name}: {len(out)} bytes")


# ---- TRL's own functions ------------------------------------------------------------------------------------


def method(folder, file, name):
    """A method out of a source file, without the package around it."""
    source = (folder / "trainer" / file).read_text()
    tree = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == name)
    tree.returns = None
    for a in tree.args.args:
        a.annotation = None
    kinds = SimpleNamespace(ALPHA_DIVERGENCE=SimpleNamespace(value="alpha"), JS_DIVERGENCE=SimpleNamespace(value="js"))
    space = {"torch": torch, "F": F, "nn": torch.nn, "FDivergenceType": kinds}
    exec(textwrap.dedent(ast.unparse(tree)), space)
    return space[name]


def check_trl(folder):
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(6, generator=generator, dtype=torch.float64) * 5 - 40
    chosen, rejected, chosen_start, rejected_start, kl, kl_start = (draw() for _ in range(6))
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x)
    dpo = SimpleNamespace(accelerator=accelerator, beta=0.1, loss_type="sigmoid", label_smoothing=0,
                          reference_free=False, f_divergence_type="reverse_kl", use_weighting=False)
    theirs = method(folder, "dpo_trainer.py", "dpo_loss")(dpo, chosen, rejected, chosen_start, rejected_start)[0]
    ours = -F.logsigmoid(0.1 * ((chosen - chosen_start) - (rejected - rejected_start)))
    torch.testing.assert_close(theirs, ours)
    kto = SimpleNamespace(accelerator=accelerator, beta=0.1, loss_type="kto", calculate_KL=True, desirable_weight=1.0,
                          undesirable_weight=1.5)
    theirs = method(folder, "kto_trainer.py", "kto_loss")(
        kto, chosen, rejected, kl, chosen_start, rejected_start, kl_start)[0]
    z = (kl - kl_start).mean().clamp(min=0)
    ours = torch.cat([1 - torch.sigmoid(0.1 * (chosen - chosen_start - z)),
                      1.5 * (1 - torch.sigmoid(0.1 * (z - (rejected - rejected_start))))])
    torch.testing.assert_close(theirs, ours)
    print("TRL's dpo_loss and kto_loss agree")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trl", type=Path)
    o = parser.parse_args()
    golden = Path(__file__).resolve().parents[1] / "golden"
    write(golden / "preference.bin", golden / "tiny_llama.gguf")
    if o.trl:
        check_trl(o.trl)


if __name__ == "__main__":
    main()
