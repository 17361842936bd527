#!/usr/bin/env python3
"""Reference data for tests/test_sampler.c: writes tests/golden/sampling.bin.

What top-k, typical-p, top-p and min-p, alone and together in this order, leave of fixed logits, by the warpers of
transformers. llama.cpp's samplers, when llama_cpp is there, must leave the same. Needs torch and transformers.
Run: python tests/reference/sampling.py tests/golden/sampling.bin

Layout, little-endian: u32 rows, V, cases; f32 logits[rows][V]; and for each case
  u32 row, u32 top_k, f32 typical_p, top_p, min_p (0: off), u8 kept[V / 8]: token i is bit i mod 8 of byte i / 8
"""
import ctypes
import itertools
import struct
import sys

import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

V = 120
SCALES = (0.05, 1.0, 2.5, 6.0)
# Powers of two and their sums, which f32 holds exactly.
TOP_K = (0, 1, 7, 40, 119)
TYPICAL_P = (0, 0.25, 0.90625)
TOP_P = (0, 0.125, 0.5, 0.953125)
MIN_P = (0, 0.03125, 0.5)


def kept_by_transformers(logits, top_k, typical_p, top_p, min_p, dtype):
    scores = logits.to(dtype)[None, :]
    for on, warper in (
        (top_k, lambda: TopKLogitsWarper(top_k)),
        (typical_p, lambda: TypicalLogitsWarper(typical_p)),
        (top_p, lambda: TopPLogitsWarper(top_p)),
        (min_p, lambda: MinPLogitsWarper(min_p)),
    ):
        if on:
            scores = warper()(None, scores)
    return frozenset(torch.isfinite(scores[0]).nonzero()[:, 0].tolist())


def kept_by_llama_cpp(llama_cpp, logits, top_k, typical_p, top_p, min_p):
    data = (llama_cpp.llama_token_data * V)()
    for i in range(V):
        data[i] = llama_cpp.llama_token_data(i, logits[i].item(), 0.0)
    array = llama_cpp.llama_token_data_array(data=data, size=V, selected=-1, sorted=False)
    for on, make in (
        (top_k, lambda: llama_cpp.llama_sampler_init_top_k(top_k)),
        (typical_p, lambda: llama_cpp.llama_sampler_init_typical(typical_p, 1)),
        (top_p, lambda: llama_cpp.llama_sampler_init_top_p(top_p, 1)),
        (min_p, lambda: llama_cpp.llama_sampler_init_min_p(min_p, 1)),
    ):
        if on:
            sampler = make()
            llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
            llama_cpp.llama_sampler_free(sampler)
    return frozenset(array.data[i].id for i in range(array.size))


def main():
    try:
        import llama_cpp
    except ImportError:
        llama_cpp = None
    generator = torch.Generator().manual_seed(20220201)
    rows = [torch.randn(V, generator=generator) * scale for scale in SCALES]
    cases, unsure, differ = [], 0, 0
    for row, top_k, typical_p, top_p, min_p in itertools.product(range(len(rows)), TOP_K, TYPICAL_P, TOP_P, MIN_P):
        setting = (top_k, typical_p, top_p, min_p)
        kept = kept_by_transformers(rows[row], *setting, torch.float64)
        if kept != kept_by_transformers(rows[row], *setting, torch.float32):
            unsure += 1  # rounding decides
            continue
        if llama_cpp and kept != kept_by_llama_cpp(llama_cpp, rows[row], *setting):
            differ += 1
            print("llama.cpp leaves others:", row, setting)
        cases.append(struct.pack("<II3f", row, *setting) + sum(1 << i for i in kept).to_bytes(V // 8, "little"))
    with open(sys.argv[1], "wb") as f:
        f.write(struct.pack("<III", len(rows), V, len(cases)))
        for row in rows:
            f.write(row.numpy().astype("<f4").tobytes())
        for case in cases:
            f.write(case)
    print(f"{len(cases)} cases, {unsure} left out where rounding decides; llama.cpp differs in {differ}"
          if llama_cpp else f"{len(cases)} cases, {unsure} left out where rounding decides; no llama_cpp")
    return differ > 0


if __name__ == "__main__":
    sys.exit(main())
