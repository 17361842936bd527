"""Golden values of the real base model, SmolLM2-135M-Instruct Q4_1, from transformers and PEFT in float32 over the
file's dequantized weights.

    python3 tests/reference/real_model.py BASE.gguf --conversations FILE.jsonl [--out FOLDER]
    python3 tests/reference/real_model.py BASE.gguf --compare-logits A.f32 B.f32 C.f32
    python3 tests/reference/real_model.py BASE.gguf --compare-gradients G.f32

Needs torch, transformers, peft, gguf, llama_cpp (its tokenizer). FILE.jsonl has prompt and response in each line.
--compare reads raw float32 dumps of another program for the inputs in the golden files: the logits (T, V) of each
of the three texts, or the gradient of all LoRA parameters as one vector. It prints the largest difference of a
logit, and the worst relative L2 error of a tensor's gradient.

All files are little-endian without padding. A conversation is

    u32 T
    u16 ids[T]
    u8  mask[T]        1: supervised, so position i - 1 has ids[i] as its target

rendered by the model's own template (with its default system message), supervised in the response and the
<|im_end|> after it; the last token is the line feed. Its loss is the mean of -ln p over its supervised tokens.
LoRA parameters are in the order of tiny_models.py (layer, target, A then B, rows as in the GGUF; 420 tensors), and
filled as there with (random_uniform(key, index) - 0.5) * 0.02.

real_logits.bin: no adapter

    u32 n_texts        3
    u32 V
    u32 n_probes       24
    u32 probes[n_probes]           token ids
    for each text:
        u32 T
        u16 ids[T]
        for each position:
            f32 log_sum_exp
            f32 largest            the largest logit
            u32 argmax             its id
            f32 logits[n_probes]   of the probes

real_gradients.bin: one packed batch of two conversations

    u32 rank           8
    f32 alpha          16
    f32 span           0.02
    u32 n_conversations   2
    conversations
    f32 losses[n_conversations]
    f32 loss           their mean; the gradients are of this
    u32 n_tensors      420
    u32 n_projections  16
    for each tensor:
        f32 norm       L2
        f32 projections[n_projections]     sum over elements e of sign(i, e) * gradient[e], row-major; sign is +1
                       where random_u64(key = tensor's number, index = i * 2^32 + e) is odd, else -1

real_steps.bin: AdamW (lr 1e-3, betas 0.9 and 0.999, eps 1e-8, no decay, no clipping) from A as above and B = 0

    u32 rank, f32 alpha, f32 span     8, 16, 0.02
    u32 n_steps        10
    u32 n_per_step     4
    for each step:
        conversations[n_per_step]
        f32 loss       mean of the four losses, before the step's update
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import torch
from gguf_torch import Base, Lora, mean_loss, random_u64, random_uniform
from peft import LoraConfig, get_peft_model

RANK, ALPHA, SPAN, PROJECTIONS, PROBES = 8, 16.0, 0.02, 16, 24
STEPS, PER_STEP = 10, 4

TEXTS = [
    """The lighthouse at the end of the long spit had been empty for eleven years when Marta bought it. She did not \
want the light itself, which had gone to a museum in the capital, nor the brass clockwork that once turned it. She \
wanted the silence. The first winter taught her that there is no such thing. The wind had forty voices, and the sea \
had more; the iron stairs rang when the temperature fell, and gulls walked about on the roof at dawn as if they were \
moving furniture. By February she knew each sound, and she began to write them down in a ledger that the last keeper \
had left half full. On the left page stood his entries: ships, weather, oil used, wicks trimmed. On the right page \
she put hers: a low hum before rain, the click of the shutter in a north-easterly, three long groans of the stone at \
every spring tide. When the ledger was full she noticed that the two columns agreed. Where he had written of a storm, \
she had, without looking, described the same noises on the same day of the year. She closed the book, made tea, and \
listened with more respect. In spring a man from the university came to measure the erosion of the spit. He stayed \
for a week, lost two instruments to the waves, and told her that the tower would stand for another century if nobody \
tried to improve it. She thought that this was the best advice she had ever been given.""",
    """How to keep a sourdough starter alive while you travel. Step 1: two days before you leave, feed it with 50 g of \
flour and 40 ml of water instead of the usual 1:1 mix; a stiff dough ferments at about half the speed. Step 2: let it \
stand for one hour at room temperature (18-22 °C), then put it in a clean jar with a loose lid. Never screw the \
lid tight: the gas has to escape, and glass under pressure is dangerous! Step 3: move the jar to the coldest part of \
the fridge. At 4 °C it will keep for 3 to 4 weeks. Is there grey liquid on top when you return? Don't worry; that's \
only alcohol and water, and you can pour it off or stir it in. Pink or orange streaks, however, mean that bacteria have \
moved in, and then everything must go. For trips of more than a month, dry it: spread 2 tablespoons on baking paper, \
wait until it cracks (24-36 hours), crumble it and store the flakes in an envelope. To wake it up, mix 10 g of flakes \
with 20 ml of lukewarm water and 20 g of flour, and repeat twice a day until it doubles within 6 hours. Costs: about \
$0.30. Equipment: a jar, a spoon, some patience. The Romans did the same with grape must, and they had neither fridges \
nor envelopes. If you bake for a family of five, keep 200 g; if you live alone, 30 g are plenty.""",
    """"You are late," said the inspector, "and you have brought the wrong map."

"It is the only map there is," Ilse answered. She unrolled it on the table between the cups. "My grandfather drew it \
in 1931. The road has moved since then, but the river has not."

He put on his glasses. The paper was soft as cloth, and someone had corrected it in three colours of ink. In the \
upper corner a small house was crossed out, drawn again further to the east, and crossed out once more.

"Why twice?" he asked.

"The first time it burned. The second time they took it apart and carried it to the other bank, because the taxes were \
lower there. My family has always been practical."

He laughed in spite of himself. Outside a lorry shifted its gears on the hill, and the window trembled. He had come to \
close the case: a boundary, two farms, a fence that nobody would admit to having built. It should have taken an hour. \
Instead he asked for more coffee and followed the blue line of the river with a pencil, field by field, name by name, \
until it left the sheet.

"Here," he said at last. "This bend. If the water ran on this side of the willows in 1931, the meadow is yours. If it \
ran on that side, it is theirs."

"And which was it?"

"Your grandfather drew both," said the inspector, and took off his glasses. "He was a practical man as well.\"""",
]

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


# ---- inputs -----------------------------------------------------------------------------------------------


class Vocabulary:
    def __init__(self, path):
        from llama_cpp import Llama

        self.llama = Llama(str(path), vocab_only=True, verbose=False)

    def ids(self, text, special):
        return self.llama.tokenize(text.encode(), add_bos=False, special=special)

    def conversation(self, prompt, response):
        """(ids, mask)"""
        head = (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n"
                "<|im_start|>assistant\n")
        ids = self.ids(head + response + "<|im_end|>\n", special=True)
        start = len(self.ids(head, special=True))
        answer = self.ids(response, special=False)
        assert ids[:start] == self.ids(head, special=True) and ids[start : start + len(answer)] == answer
        assert len(ids) == start + len(answer) + 2  # <|im_end|> and the line feed
        return ids, [int(start <= i < len(ids) - 1) for i in range(len(ids))]


def read_conversations(path, vocabulary, n):
    """The n shortest, in the file's order"""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
    rendered = [vocabulary.conversation(r["prompt"], r["response"]) for r in rows]
    keep = sorted(sorted(range(len(rows)), key=lambda i: (len(rendered[i][0]), i))[:n])
    return [rendered[i] for i in keep]


def pack_conversation(ids, mask):
    return struct.pack("<I", len(ids)) + np.array(ids, "<u2").tobytes() + bytes(mask)


class Reader:
    """Reads the golden files back, for --compare."""

    def __init__(self, path):
        self.data, self.at = Path(path).read_bytes(), 0

    def take(self, kind, n):
        out = np.frombuffer(self.data, kind, n, self.at)
        self.at += out.nbytes
        return out

    def conversation(self):
        T = int(self.take("<u4", 1)[0])
        return self.take("<u2", T).tolist(), self.take("u1", T).tolist()


# ---- golden values ----------------------------------------------------------------------------------------


def conversation_loss(base, ids, mask):
    targets = np.flatnonzero(mask)
    return mean_loss(base.logits(ids), np.array(ids, dtype=np.int64), targets - 1)


def write_logits(path, base, vocabulary):
    probes = np.sort(random_u64(24, np.arange(PROBES)) % np.uint64(base.V)).astype("<u4")
    assert len(set(probes.tolist())) == PROBES
    out = struct.pack("<III", len(TEXTS), base.V, PROBES) + probes.tobytes()
    for text in TEXTS:
        ids = vocabulary.ids(text, special=False)
        assert len(ids) >= 256, len(ids)
        with torch.no_grad():
            logits = base.logits(ids)
        lse, (largest, argmax) = torch.logsumexp(logits.double(), 1).numpy(), (t.numpy() for t in logits.max(1))
        out += struct.pack("<I", len(ids)) + np.array(ids, "<u2").tobytes()
        for t in range(len(ids)):
            out += struct.pack("<ffI", lse[t], largest[t], argmax[t])
            out += logits[t].numpy()[probes].astype("<f4").tobytes()
        nll = np.mean([lse[t] - logits[t, ids[t + 1]].item() for t in range(len(ids) - 1)])
        print(f"text of {len(ids)} tokens, mean loss {nll:.6f}")
    path.write_bytes(out)


def gradients(base, conversations):
    """(losses, gradient of their mean for each of the 420 tensors)"""
    lora = Lora(base, RANK, ALPHA, SPAN)
    losses = [conversation_loss(base, *c) for c in conversations]
    (sum(losses) / len(losses)).backward()
    return [loss.item() for loss in losses], [p.grad.numpy() for p in lora.parameters], lora.names


def projections(number, gradient):
    flat = gradient.astype(np.float64).reshape(-1)
    out = []
    for i in range(PROJECTIONS):
        odd = random_u64(number, np.uint64(i << 32) + np.arange(flat.size, dtype=np.uint64)) & np.uint64(1)
        out.append(np.where(odd == 1, flat, -flat).sum())
    return out


def write_gradients(path, base, conversations):
    losses, tensors, _ = gradients(base, conversations)
    out = struct.pack("<IffI", RANK, ALPHA, SPAN, len(conversations))
    out += b"".join(pack_conversation(*c) for c in conversations)
    out += struct.pack(f"<{len(losses)}f", *losses) + struct.pack("<f", np.mean(losses))
    out += struct.pack("<II", len(tensors), PROJECTIONS)
    for number, g in enumerate(tensors):
        out += struct.pack("<f", np.linalg.norm(g.astype(np.float64)))
        out += np.array(projections(number, g), "<f4").tobytes()
    path.write_bytes(out)
    print(f"two conversations of {[len(ids) for ids, _ in conversations]} tokens, losses {losses}")


def write_steps(path, base, conversations):
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(base.model, config)
    for layer in range(base.L):
        for target in range(7):
            linear = base.linear(layer, target)
            a, b = linear.lora_A["default"].weight, linear.lora_B["default"].weight
            key = 1000 + 2 * (layer * 7 + target)
            values = (random_uniform(key, a.numel()) - np.float32(0.5)) * np.float32(SPAN)
            with torch.no_grad():
                a.copy_(torch.from_numpy(values.reshape(a.shape)))
                b.zero_()
            assert linear.scaling["default"] == ALPHA / RANK
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    out, losses = struct.pack("<IffII", RANK, ALPHA, SPAN, STEPS, PER_STEP), []
    for step in range(STEPS):
        batch = conversations[step * PER_STEP : (step + 1) * PER_STEP]
        optimizer.zero_grad()
        total = 0.0
        for ids, mask in batch:
            loss = conversation_loss(base, ids, mask) / PER_STEP
            loss.backward()
            total += loss.item()
        optimizer.step()
        out += b"".join(pack_conversation(*c) for c in batch) + struct.pack("<f", total)
        losses.append(total)
    path.write_bytes(out)
    print(f"{sum(len(ids) for ids, _ in conversations)} tokens, losses of the steps: "
          + " ".join(f"{loss:.6f}" for loss in losses))


# ---- comparing full dumps ---------------------------------------------------------------------------------


def compare_logits(base, golden, dumps):
    reader = Reader(golden)
    n, V, probes = reader.take("<u4", 3).tolist()
    reader.take("<u4", probes)
    for name in dumps[:n]:
        T = int(reader.take("<u4", 1)[0])
        ids = reader.take("<u2", T).tolist()
        reader.take("<f4", T * (3 + probes))
        theirs = np.fromfile(name, "<f4").reshape(T, V)
        with torch.no_grad():
            ours = base.logits(ids).numpy()
        difference = np.abs(theirs.astype(np.float64) - ours)
        t, v = np.unravel_index(difference.argmax(), difference.shape)
        print(f"{name}: largest difference {difference.max():.3e} (position {t}, token {v}, {ours[t, v]:.4f}), "
              f"mean {difference.mean():.3e}")


def compare_gradients(base, golden, dump):
    reader = Reader(golden)
    reader.take("<f4", 3)
    conversations = [reader.conversation() for _ in range(int(reader.take("<u4", 1)[0]))]
    _, tensors, names = gradients(base, conversations)
    theirs, at, errors = np.fromfile(dump, "<f4").astype(np.float64), 0, []
    assert theirs.size == sum(g.size for g in tensors), (theirs.size, sum(g.size for g in tensors))
    for g in tensors:
        flat = g.astype(np.float64).reshape(-1)
        errors.append(np.linalg.norm(theirs[at : at + g.size] - flat) / np.linalg.norm(flat))
        at += g.size
    worst = int(np.argmax(errors))
    print(f"worst relative L2 error {errors[worst]:.3e} ({names[worst]}), median {np.median(errors):.3e}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--conversations")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "golden")
    parser.add_argument("--compare-logits", nargs=3)
    parser.add_argument("--compare-gradients")
    o = parser.parse_args()
    if o.compare_logits:
        compare_logits(Base(o.base), o.out / "real_logits.bin", o.compare_logits)
    if o.compare_gradients:
        compare_gradients(Base(o.base), o.out / "real_gradients.bin", o.compare_gradients)
    if o.conversations:
        vocabulary = Vocabulary(o.base)
        conversations = read_conversations(o.conversations, vocabulary, STEPS * PER_STEP + 2)
        base = Base(o.base)
        write_logits(o.out / "real_logits.bin", base, vocabulary)
        write_gradients(o.out / "real_gradients.bin", base, conversations[-2:])
        write_steps(o.out / "real_steps.bin", Base(o.base), conversations[: STEPS * PER_STEP])


if __name__ == "__main__":
    main()
