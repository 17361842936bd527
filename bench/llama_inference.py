"""llama.cpp's side of bench/compare-inference: one measurement a process, through libllama's C functions.

    llama_inference.py versions
    llama_inference.py quantize BASE OUT
    llama_inference.py decode|prefill|load MODEL [options]
    llama_inference.py continue MODEL --text TEXT --tokens N

Needs llama_cpp (llama-cpp-python). Prints one JSON object. Tokens are random but the same in every run; each
measurement is repeated for --seconds after one run to warm up. Resident memory is that of the process at its largest,
less what Python itself took before the model was opened.
"""

import argparse
import ctypes
import json
import random
import sys
import time
from importlib import metadata

import llama_cpp as ll

LOG = ll.llama_log_callback(lambda level, text, user: None)
FTYPE_Q4_0 = 2  # LLAMA_FTYPE_MOSTLY_Q4_0 of llama.h


def memory_mib(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def check(ok, what):
    if not ok:
        sys.exit(f"llama.cpp: {what} failed")


class Model:
    """A model and a context of `n` tokens, with an adapter applied at run time."""

    def __init__(self, o, n):
        parameters = ll.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = ll.llama_model_load_from_file(str(o.model).encode(), parameters)
        check(self.model, f"opening {o.model}")
        self.vocabulary = ll.llama_model_get_vocab(self.model)
        settings = ll.llama_context_default_params()
        settings.n_ctx = n
        settings.n_batch = settings.n_ubatch = o.batch
        settings.n_threads = settings.n_threads_batch = o.threads
        settings.flash_attn_type = o.flash
        settings.no_perf = True
        self.context = ll.llama_init_from_model(self.model, settings)
        check(self.context, "making a context")
        self.memory = ll.llama_get_memory(self.context)
        if o.adapter:
            adapter = ll.llama_adapter_lora_init(self.model, str(o.adapter).encode())
            check(adapter, f"opening {o.adapter}")
            self.adapters, self.scales = (ll.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
            check(ll.llama_set_adapters_lora(self.context, self.adapters, 1, self.scales) == 0, "setting the adapter")
        self.batch = ll.llama_batch_init(max(o.batch, 1), 0, 1)
        self.limit = o.batch

    def decode(self, tokens, position, logits):
        """Logits of the last token alone, if any."""
        for at in range(0, len(tokens), self.limit):
            part = tokens[at : at + self.limit]
            self.batch.n_tokens = len(part)
            for i, token in enumerate(part):
                self.batch.token[i], self.batch.pos[i] = token, position + at + i
                self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0
                self.batch.logits[i] = 1 if logits and at + i == len(tokens) - 1 else 0
            check(ll.llama_decode(self.context, self.batch) == 0, "llama_decode")
        if logits:
            return ll.llama_get_logits_ith(self.context, -1)  # waits for them
        return ll.llama_synchronize(self.context)

    def forget(self, position):
        ll.llama_memory_seq_rm(self.memory, 0, position, -1)

    def random_tokens(self, n):
        draw = random.Random(7)
        return [draw.randrange(ll.llama_vocab_n_tokens(self.vocabulary)) for _ in range(n)]

    def tokens_of(self, text):
        data = text.encode()
        ids = (ll.llama_token * (len(data) + 8))()
        n = ll.llama_tokenize(self.vocabulary, data, len(data), ids, len(ids), False, False)
        check(n > 0, "tokenizing")
        return list(ids[:n])

    def greedy(self, logits):
        n = ll.llama_vocab_n_tokens(self.vocabulary)
        return max(range(n), key=logits.__getitem__)


def measure(o):
    before = memory_mib("VmRSS")
    model = Model(o, o.depth + o.tokens)
    tokens = model.random_tokens(o.depth + o.tokens)
    at_once = 1 if o.kind == "decode" else o.tokens
    if o.depth:
        model.decode(tokens[: o.depth], 0, False)
    rounds, seconds = -1, 0.0  # the first is to warm up
    while rounds < 1 or seconds < o.seconds:
        model.forget(o.depth)
        begun = time.perf_counter()
        for t in range(o.depth, o.depth + o.tokens, at_once):
            model.decode(tokens[t : t + at_once], t, True)
        if rounds >= 0:
            seconds += time.perf_counter() - begun
        rounds += 1
    return {"tokens_per_s": rounds * o.tokens / seconds, "peak_rss_mib": memory_mib("VmHWM") - before}


def load(o):
    """From nothing to the logits after one token."""
    begun = time.perf_counter()
    ll.llama_backend_init()
    model = Model(o, 512)
    model.decode(model.tokens_of("Hi")[:1], 0, True)
    return {"seconds": time.perf_counter() - begun}


def continue_text(o):
    model = Model(o, 512)
    ids = model.tokens_of(o.text)
    answer, position, logits = [], len(ids), model.decode(ids, 0, True)
    for _ in range(o.tokens):
        answer.append(model.greedy(logits))
        logits = model.decode(answer[-1:], position, True)
        position += 1
    return {"prompt": ids, "ids": answer}


def quantize(o):
    parameters = ll.llama_model_quantize_default_params()
    parameters.nthread = o.threads
    parameters.ftype = FTYPE_Q4_0
    parameters.allow_requantize = True
    done = ll.llama_model_quantize(str(o.model).encode(), str(o.out).encode(), ctypes.byref(parameters))
    check(done == 0, "quantizing")
    return {"path": o.out}


def versions(o):
    return {"llama_cpp_python": metadata.version("llama-cpp-python"),
            "system": ll.llama_print_system_info().decode().strip()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["versions", "quantize", "decode", "prefill", "load", "continue"])
    parser.add_argument("model", nargs="?")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--adapter")
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2048, help="n_batch and n_ubatch")
    parser.add_argument("--flash", type=int, choices=[0, 1], default=0, help="flash attention")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--text", default="")
    o = parser.parse_args()
    ll.llama_log_set(LOG, None)
    what = {"versions": versions, "quantize": quantize, "decode": measure, "prefill": measure, "load": load,
            "continue": continue_text}[o.kind]
    print(json.dumps(what(o)))


if __name__ == "__main__":
    main()
