#!/usr/bin/env python3
"""Reference data for tests/test_sketch.c: writes tests/golden/sketch.bin.

Sketches as docs/formats.md describes them, without libsodium: SipHash-2-4 is written here and checked against its
authors' example first. Run: python tests/reference/sketch_vectors.py tests/golden/sketch.bin

Layout, little-endian: number of texts u32, and for each
  key (16 bytes), size of the text u32, text, 64 minima u8, 8 bands i64
"""
import struct
import sys

M = (1 << 64) - 1


def rotate(x, n):
    return (x << n | x >> (64 - n)) & M


def siphash24(key, data):
    k0, k1 = struct.unpack("<QQ", key)
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573

    def mix(times):
        nonlocal v0, v1, v2, v3
        for _ in range(times):
            v0 = (v0 + v1) & M
            v2 = (v2 + v3) & M
            v1 = rotate(v1, 13) ^ v0
            v3 = rotate(v3, 16) ^ v2
            v0 = rotate(v0, 32)
            v2 = (v2 + v1) & M
            v0 = (v0 + v3) & M
            v1 = rotate(v1, 17) ^ v2
            v3 = rotate(v3, 21) ^ v0
            v2 = rotate(v2, 32)

    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) & 255])
    for (word,) in struct.iter_unpack("<Q", padded):
        v3 ^= word
        mix(2)
        v0 ^= word
    v2 ^= 255
    mix(4)
    return v0 ^ v1 ^ v2 ^ v3


def splitmix64(state):
    z = (state + 0x9E3779B97F4A7C15) & M
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
    return z ^ (z >> 31)


def sketch(key, text):
    """text: bytes of UTF-8."""
    points = text[:16384].decode(errors="ignore")  # what is cut at the end is no code point
    shingles = {points[i:i + 5] for i in range(max(1, len(points) - 4))}
    hashes = [siphash24(key, s.encode()) for s in shingles]
    minima = []
    for i in range(64):
        a, b = splitmix64(2 * i) | 1, splitmix64(2 * i + 1)
        minima.append(min((a * x + b) & M for x in hashes))
    bands = [siphash24(key, bytes([j]) + struct.pack("<4Q", *minima[4 * j:4 * j + 4])) >> 1 for j in range(8)]
    return bytes(m & 255 for m in minima) + struct.pack("<8q", *bands)


def main(path):
    assert siphash24(bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5
    zero, key = bytes(16), bytes(17 * i & 255 for i in range(1, 17))
    words = "wann fährt der nächste zug nach köln ab und muss ich umsteigen"
    long = " ".join(f"wort{i * i % 9973} größe" for i in range(300)).encode()
    texts = [(zero, b"a"), (key, b"a"), (zero, b"abcd"), (zero, b"abcde"), (zero, b"abcdef"), (zero, b"aaaaaaaaaaaa"),
             (zero, words.encode()), (key, words.encode()), (key, "日本語の文章です".encode()), (key, "日本語の".encode()),
             (key, "🙂🙃🙂🙃🙂🙃 ok".encode()), (key, long),
             (key, b"a" * 16382 + "€ cut in two".encode()), (key, b"a" * 16381 + "€ whole".encode())]
    out = struct.pack("<I", len(texts))
    for key, text in texts:
        out += key + struct.pack("<I", len(text)) + text + sketch(key, text)
    with open(path, "wb") as file:
        file.write(out)


if __name__ == "__main__":
    main(sys.argv[1])
