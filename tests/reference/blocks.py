#!/usr/bin/env python3
"""Reference data for tests/test_blocks.c: writes tests/golden/blocks.bin.

Needs numpy, the gguf package and llama-cpp-python, with the functions of whose libggml-base every section is
compared. Run: python tests/reference/blocks.py tests/golden/blocks.bin

Layout, little-endian, sections until the end of the file:
  0  operation u32: 0 blocks to floats, 1 floats to blocks. What gguf cannot quantize to (Q5_K ...) comes from
     libggml-base's reference functions
  4  block type u32, GGUF's number
  8  number of floats n u32
 12  number of block bytes m u32
 16  floats, 4 n bytes
 16 + 4 n  blocks, m bytes
"""
import ctypes
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES

rng = np.random.default_rng(20240607)


def rows_of_floats():
    """Blocks of 32 that differ in scale, sign, spread and degenerate cases, all finite."""
    blocks = [rng.normal(0, s, 32) for s in (1, 0.02, 1e-3, 1e-6, 1e-20, 30, 2000)]
    blocks += [rng.uniform(-1, 1, 32), rng.uniform(0, 1, 32), rng.uniform(-5, -4, 32)]
    blocks += [np.zeros(32), np.full(32, 0.75), np.full(32, -3.0)]
    blocks += [np.arange(-16, 16), np.arange(32) / 4, np.arange(0, -32, -1) * 0.125]
    blocks += [np.tile([2.0, -2.0], 16), np.tile([-8.0, 0.5, 7.5, 3.5], 8)]  # ties of magnitude, of rounding
    blocks += [np.concatenate([[127], np.arange(-15, 16) + 0.5])]  # Q8_0: a scale of 1, halves away from zero
    blocks += [np.where(np.arange(32) == 17, 1e5, rng.normal(0, 1, 32))]
    blocks += [rng.normal(0, 1, 32) * 10.0 ** rng.integers(-7, 5, 32) for _ in range(12)]
    blocks += [rng.standard_t(2, 32) for _ in range(32)]
    return np.concatenate(blocks).astype(np.float32)


def rows_for_k():
    """Blocks of 256: all of one kind of numbers, and parts that differ by orders of magnitude."""
    more = np.random.default_rng(4)
    blocks = [more.normal(0, s, 256) for s in (1, 0.02, 1e-4, 1e-20, 100)]
    blocks += [more.uniform(0, 1, 256), more.uniform(-5, -4, 256), more.standard_t(2, 256)]
    blocks += [np.zeros(256), np.full(256, 0.75), np.full(256, -3.0), np.arange(-128, 128) / 8]
    blocks += [np.repeat(10.0 ** more.integers(-6, 3, 16), 16) * more.normal(0, 1, 256) for _ in range(8)]
    blocks += [np.where(np.arange(256) < 32, 0, more.normal(0, 1, 256)), np.where(np.arange(256) == 77, 1e4, 1e-3)]
    return np.concatenate(blocks).astype(np.float32)


def scalar_edges():
    """For F16 and BF16: subnormals, ties to even, the edges of overflow."""
    exponents = 2.0 ** np.arange(-26, 17)
    near = np.concatenate([exponents * f for f in (1, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 1.999999)])
    more = np.array([65504, 65519.996, 65520, 65536, 1e38, 3.4028235e38, 1e-45, 2.9802322e-08, 2.980233e-08])
    return np.concatenate([near, -near, more, -more, np.array([np.inf, -np.inf])]).astype(np.float32)


def random_blocks(kind, count):
    """Random bytes whose halves (scales and minima) are finite."""
    elements, size = GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (count, size), dtype=np.uint8)
    halves = {Type.F16: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
              Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}.get(kind, [])
    for at in halves:
        half = data[:, at].astype(np.uint16) | data[:, at + 1].astype(np.uint16) << 8
        half[(half & 0x7C00) == 0x7C00] ^= 0x4000
        data[:, at], data[:, at + 1] = half & 255, half >> 8
    if kind in (Type.F32, Type.BF16):  # an exponent of all ones would be infinite
        data[:, -1] &= 0xBF
    return data.reshape(-1)


def compiled_library():
    import llama_cpp
    import pathlib
    return ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))


def compiled(library, name, data, out):
    function = getattr(library, name)
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    n = (data if data.dtype == np.float32 else out).size
    function(data.ctypes.data, out.ctypes.data, n)
    return out


def main(path):
    library = compiled_library()
    compared = 0
    with open(path, "wb") as file:
        def section(operation, kind, floats, blocks):
            floats = np.ascontiguousarray(floats, np.float32).reshape(-1)
            blocks = np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)
            file.write(struct.pack("<4I", operation, int(kind), floats.size, blocks.size))
            file.write(floats.tobytes() + blocks.tobytes())

        kinds = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0,
                 Type.Q4_K, Type.Q5_K, Type.Q6_K]
        for kind in kinds:
            elements, size = GGML_QUANT_SIZES[kind]
            blocks = random_blocks(kind, 1024 // elements if elements < 256 else 12)
            floats = quants.dequantize(blocks, kind) if kind != Type.F32 else blocks.view(np.float32)
            if elements > 1:
                other = compiled(library, "dequantize_row_" + kind.name.replace("_K", "$").lower().replace("$", "_K"),
                                 blocks, np.empty(floats.size, np.float32))
                assert other.tobytes() == floats.astype(np.float32).tobytes(), kind
                compared += 1
            section(0, kind, floats, blocks)
        for kind in [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]:
            floats = rows_of_floats() if GGML_QUANT_SIZES[kind][0] > 1 else scalar_edges()
            with np.errstate(over="ignore"):
                blocks = floats if kind == Type.F32 else quants.quantize(floats, kind)
            blocks = np.ascontiguousarray(blocks).view(np.uint8).reshape(-1)
            if GGML_QUANT_SIZES[kind][0] > 1:
                other = compiled(library, f"quantize_row_{kind.name.lower()}_ref", floats, np.empty_like(blocks))
                assert other.tobytes() == blocks.tobytes(), kind
                compared += 1
            section(1, kind, floats, blocks)
        for kind in [Type.Q4_K, Type.Q5_K, Type.Q6_K]:
            floats = rows_for_k()
            blocks = np.zeros(floats.size // 256 * GGML_QUANT_SIZES[kind][1], np.uint8)
            section(1, kind, floats, compiled(library, f"quantize_row_{kind.name.lower().replace('_k', '_K')}_ref",
                                              floats, blocks))
            compared += 1
    print(f"{path} written; {compared} sections equal to libggml-base's")


if __name__ == "__main__":
    main(sys.argv[1])
