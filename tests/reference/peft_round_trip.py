#!/usr/bin/env python3
"""Adapters between attune, PEFT and llama.cpp on a real base model.

1. an adapter that attune wrote, exported as PEFT: PEFT loads it over the same weights in transformers, and what it
   adds to each matrix is scale B A of the GGUF file
2. the same in the other direction, for an adapter that PEFT saved, with and without rsLoRA
3. llama.cpp loads the GGUF file and its logits move with it as PEFT's do

    peft_round_trip.py BASE.gguf ADAPTER_TOOL      the tool is adapter_tool.c, built against attune

Needs torch, transformers, peft, gguf; llama_cpp for the third (left out without it).
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model

from gguf_torch import TARGETS, Base


def gguf_deltas(path):
    """(layer, target) -> scale B A in GGUF's rows, float32."""
    reader = GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {t.name: t.data for t in reader.tensors}
    deltas = {}
    for name, a in tensors.items():
        if not name.endswith(".lora_a"):
            continue
        b = tensors[name[:-1] + "b"]
        _, layer, target, _, _ = name.split(".")
        deltas[int(layer), target] = (b @ a) * np.float32(alpha / a.shape[0])
    return deltas


def peft_deltas(model, base):
    """The same out of PEFT's model, rows moved to GGUF's order."""
    deltas = {}
    for layer in range(base.L):
        for t, (name, module) in enumerate(TARGETS):
            linear = model.base_model.model.model.layers[layer].get_submodule(module)
            delta = linear.get_delta_weight("default").detach().numpy()
            deltas[layer, name] = delta[base.order[t]] if t in base.order else delta
    return deltas


def compare(what, got, want):
    assert got.keys() == want.keys() and len(got) > 0
    worst = max(float(np.abs(got[k] - want[k]).max() / np.abs(want[k]).max()) for k in want)
    print(f"{what}: {len(want)} matrices, largest difference {worst:.1e} of a matrix's largest element")
    assert worst < 1e-5, worst


def logits_of_llama(base, adapter, ids):
    from llama_cpp import Llama

    model = Llama(str(base), lora_path=adapter and str(adapter), n_ctx=64, n_threads=2, logits_all=True, verbose=False)
    model.eval(ids)
    return np.array(model.scores[: len(ids)], dtype=np.float64)


def main():
    base_path, tool = (pathlib.Path(p).resolve() for p in sys.argv[1:3])
    run = lambda *a: subprocess.run([str(tool), a[0], str(base_path), *map(str, a[1:])], check=True)
    base = Base(base_path)
    ids = [1, 9690, 198, 2683, 359, 260, 1314, 3575, 282, 253, 4444]
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        plain = base.logits(ids).numpy().astype(np.float64)
        ours = folder / "ours.gguf"
        run("make", ours, 8, 100, 3)  # large: llama.cpp rounds activations to 8 bits, which moves logits by 0.3
        run("export", ours, folder / "peft")
        model = PeftModel.from_pretrained(base.model, folder / "peft")
        compare("attune to PEFT", peft_deltas(model, base), gguf_deltas(ours))
        adapted = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy().astype(np.float64)
        base.model = model.unload()

        for rslora in (False, True):
            torch.manual_seed(7)
            names = [module.split(".")[1] for _, module in TARGETS]
            model = get_peft_model(base.model, LoraConfig(
                task_type="CAUSAL_LM", r=4, lora_alpha=9, target_modules=names, use_rslora=rslora))
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.uniform_(-0.1, 0.1)
            theirs = folder / f"theirs{rslora:d}"
            model.save_pretrained(theirs)
            run("import", theirs, folder / f"imported{rslora:d}.gguf")
            what = "PEFT to attune" + (", rsLoRA" if rslora else "")
            compare(what, gguf_deltas(folder / f"imported{rslora:d}.gguf"), peft_deltas(model, base))
            base.model = model.unload()

        try:
            import llama_cpp  # noqa: F401
        except ImportError:
            print("llama.cpp: not installed, left out")
            return
        # the effect of the adapter is compared, not the bits
        want = adapted - plain
        got = logits_of_llama(base_path, ours, ids) - logits_of_llama(base_path, None, ids)
        correlation = float(np.corrcoef(got.ravel(), want.ravel())[0, 1])
        ratio = float(np.linalg.norm(got) / np.linalg.norm(want))
        print(f"llama.cpp: the adapter's effect on logits: correlation with PEFT's {correlation:.5f}, size {ratio:.4f}")
        assert correlation > 0.99 and abs(ratio - 1) < 0.05


if __name__ == "__main__":
    main()
