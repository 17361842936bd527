#!/usr/bin/env python3
"""lora_init (adapters/lora.h) from its description alone: prints the values that tests/test_lora.c holds."""
import numpy as np

M = (1 << 64) - 1


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & M
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M
    return x ^ (x >> 31)


def random_u64(key, index):
    return mix(mix(key) ^ mix(~index & M))


def lora_a(seed, layer, target, rank, width):
    """A (rank, width) of target 0..6 = q, k, v, output, gate, up, down."""
    key = random_u64(random_u64(seed, layer), target)
    u = np.array([random_u64(key, i) >> 40 for i in range(rank * width)], dtype=np.float32) * np.float32(2.0**-24)
    bound = np.float32(1) / np.sqrt(np.float32(width))
    return ((np.float32(2) * u - np.float32(1)) * bound).reshape(rank, width)


if __name__ == "__main__":
    for layer, target, width in ((0, 0, 32), (1, 2, 32), (1, 6, 48)):
        a = lora_a(42, layer, target, 4, width)
        picked = [a[0, 0], a[0, 1], a[2, 5], a[3, width - 1]]
        print(layer, target, ", ".join(float(x).hex() + "f" for x in picked))
