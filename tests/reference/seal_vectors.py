#!/usr/bin/env python3
"""Reference data for tests/test_seal.c: writes tests/golden/seal.bin.

Sealed texts as docs/formats.md describes them, without libsodium: BLAKE2b from hashlib, XChaCha20-Poly1305 written
here from RFC 8439 and draft-irtf-cfrg-xchacha-03 and checked against the draft's own example first.
Run: python tests/reference/seal_vectors.py tests/golden/seal.bin

Layout, little-endian:
  key (32 bytes), salt (16)
  the derived keys for texts (32), content hashes (32), sketches (16); the check value (64 hexadecimal digits)
  a content hash and its keyed hash (64 digits each)
  number of texts u32, and for each: label, text, blob, each as its size u32 and its bytes
"""
import hashlib
import struct
import sys

M = 0xFFFFFFFF


def rotate(x, n):
    return (x << n | x >> (32 - n)) & M


def quarter(s, a, b, c, d):
    s[a] = (s[a] + s[b]) & M
    s[d] = rotate(s[d] ^ s[a], 16)
    s[c] = (s[c] + s[d]) & M
    s[b] = rotate(s[b] ^ s[c], 12)
    s[a] = (s[a] + s[b]) & M
    s[d] = rotate(s[d] ^ s[a], 8)
    s[c] = (s[c] + s[d]) & M
    s[b] = rotate(s[b] ^ s[c], 7)


def rounds(state):
    s = list(state)
    for _ in range(10):
        for i in range(4):
            quarter(s, i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(s, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return s


def start(key, tail):
    return struct.unpack("<16I", b"expand 32-byte k" + key + tail)


def chacha20(key, nonce, counter, data):
    out = bytearray()
    for at in range(0, len(data), 64):
        state = start(key, struct.pack("<I", counter + at // 64) + nonce)
        stream = struct.pack("<16I", *((a + b) & M for a, b in zip(state, rounds(state))))
        out += bytes(a ^ b for a, b in zip(data[at:at + 64], stream))
    return bytes(out)


def poly1305(key, data):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    h = 0
    for at in range(0, len(data), 16):
        h = (h + int.from_bytes(data[at:at + 16] + b"\1", "little")) * r % (2**130 - 5)
    return ((h + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def xchacha20poly1305(key, nonce, text, label):
    """Ciphertext and tag."""
    mixed = rounds(start(key, nonce[:16]))
    key = struct.pack("<8I", *mixed[:4], *mixed[12:])
    nonce = bytes(4) + nonce[16:]
    cipher = chacha20(key, nonce, 1, text)
    whole = b"".join(part + bytes(-len(part) % 16) for part in (label, cipher))
    whole += struct.pack("<QQ", len(label), len(cipher))
    return cipher + poly1305(chacha20(key, nonce, 0, bytes(32)), whole)


def check_against_the_draft():
    text = (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
            b"sunscreen would be it.")
    made = xchacha20poly1305(bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58)), text,
                             bytes.fromhex("50515253c0c1c2c3c4c5c6c7"))
    assert made[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert made[-16:].hex() == "c0875924c1c7987947deafd8780acf49"


def derived(key, salt, purpose, size):
    return hashlib.blake2b(salt + purpose.encode(), key=key, digest_size=size).digest()


def sized(data):
    return struct.pack("<I", len(data)) + data


def main(path):
    check_against_the_draft()
    key = bytes(7 * i + 3 & 255 for i in range(32))
    salt = bytes(255 - 11 * i for i in range(16))
    text_key = derived(key, salt, "attune store text 1", 32)
    hash_key = derived(key, salt, "attune store hash 1", 32)
    sketch_key = derived(key, salt, "attune store sketch 1", 16)

    def keyed(text):
        return hashlib.blake2b(text, key=hash_key, digest_size=32).hexdigest().encode()

    content = hashlib.sha256(b"a conversation").hexdigest().encode()
    out = key + salt + text_key + hash_key + sketch_key + keyed(b"attune store check 1") + content + keyed(content)
    label = b"018f3a9e-0000-7000-8000-00000000002a/response"
    texts = [(label, b""), (label, b"x"), (label, "Am Fluss, halb sieben: \u00fcber die Br\u00fccke.".encode()),
             (b"a/b", b"with\0a NUL"), (b"", bytes(range(64))), (b"l" * 100, b"block " * 200)]
    out += struct.pack("<I", len(texts))
    for i, (label, text) in enumerate(texts):
        nonce = hashlib.sha256(b"nonce %d" % i).digest()[:24]
        blob = b"\1" + nonce + xchacha20poly1305(text_key, nonce, text, label)
        out += sized(label) + sized(text) + sized(blob)
    with open(path, "wb") as file:
        file.write(out)


if __name__ == "__main__":
    main(sys.argv[1])
