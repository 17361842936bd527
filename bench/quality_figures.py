"""What bench/quality computes of rows, answers and losses: no model, no files but rows, plain Python.

    quality_figures.py --self-test
"""

import json
import math
import random
import re
import statistics
import sys
from collections import Counter
from pathlib import Path

HELD_OUT = 22  # the last rows of a persona of examples/personas, whose file is not divided
STYLE_WORDS = 40  # of an answer: what 48 tokens come to, so that length is not what tells


# ---- rows ----


def read_rows(path):
    """Rows as {"prompt", "response"}; the prompt of Context and Input as `attune import` makes it."""
    rows = []
    for line in Path(path).read_text().splitlines():
        if line.strip():
            row = json.loads(line)
            rows.append({"prompt": row["Context"] + ": " + row["Input"], "response": row["Response"]}
                        if "Context" in row else {"prompt": row["prompt"], "response": row["response"]})
    return rows


def once_each(rows):
    """The first row of each prompt: rows of one prompt would stand on one side of the split together."""
    first = {}
    for row in rows:
        first.setdefault(row["prompt"], row)
    return list(first.values())


class Persona:
    """A file of examples/personas, or N_train.jsonl beside its N_test.jsonl."""

    def __init__(self, path):
        path = Path(path)
        self.name = path.stem.removesuffix("_train")
        rows = read_rows(path)
        if path.stem.endswith("_train"):
            self.train, self.test = rows, read_rows(path.with_name(self.name + "_test.jsonl"))
        else:
            self.train, self.test = rows[:-HELD_OUT], rows[-HELD_OUT:]
        self.train = once_each(self.train)
        known = {row["prompt"] for row in self.train}
        self.test = [row for row in once_each(self.test) if row["prompt"] not in known]

    def draw(self, n, *seed):
        """n rows to learn from, others and in another order for another seed; fewer where there are no more."""
        rows = list(self.train)
        random.Random("/".join(map(str, (self.name, *seed)))).shuffle(rows)
        return rows[:n]


def permute_words(text, *seed):
    """The same words in an order that says nothing."""
    words = text.split()
    random.Random("/".join(map(str, (text, *seed)))).shuffle(words)
    return " ".join(words)


# ---- whose answer is it? ----


def features(text):
    """Words and single marks in lower case, and pairs of them."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())[:STYLE_WORDS]
    return words + [a + " " + b for a, b in zip(words, words[1:])]


class Bayes:
    """Multinomial naive Bayes with add-one smoothing; both sides are as likely beforehand."""

    def __init__(self, theirs, others):
        self.counts = [Counter(f for text in side for f in features(text)) for side in (theirs, others)]
        self.known = set(self.counts[0]) | set(self.counts[1])
        self.totals = [sum(c.values()) + len(self.known) for c in self.counts]

    def is_theirs(self, text):
        score = 0.0
        for f in features(text):
            if f in self.known:
                score += math.log((self.counts[0][f] + 1) / self.totals[0])
                score -= math.log((self.counts[1][f] + 1) / self.totals[1])
        return score > 0

    def share(self, texts):
        return sum(map(self.is_theirs, texts)) / len(texts)


# ---- losses ----


def mean_loss(rows):
    """Nats per supervised token over rows as `attune eval --rows` tells them."""
    return sum(r["nll"] * r["tokens"] for r in rows) / sum(r["tokens"] for r in rows)


def win_rate(kept, drafts):
    """Share of rows whose kept answer is likelier, per token, than the draft; a tie is no win. Rows that were too
    long to judge in either are left out."""
    nll = {r["row"]: r["nll"] for r in drafts}
    both = [r for r in kept if r["row"] in nll]
    return sum(r["nll"] < nll[r["row"]] for r in both) / len(both)


def mean_and_spread(values):
    """Mean and sample standard deviation; None for that of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def interval_95(k, n):
    """Exact interval of a share, k of n (Clopper and Pearson 1934)."""

    def at_most(x, p):
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(x + 1))

    def solve(falling, level):
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if falling(middle) > level else (low, middle)
        return low

    if n == 0:
        return 0.0, 1.0
    return (0.0 if k == 0 else solve(lambda p: at_most(k - 1, p), 0.975),
            1.0 if k == n else solve(lambda p: at_most(k, p), 0.025))


# ---- resuming ----


class State:
    """Measured cells, one JSON object a line, each written as soon as it is there. A cell counts for the build and
    base that it was measured with; measured again, the last line counts. A line cut off by a kill is no cell."""

    def __init__(self, path, identity):
        self.path, self.identity, self.cells = Path(path), identity, {}
        text = self.path.read_text() if self.path.exists() else ""
        self.cut = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["identity"] == identity:
                self.cells[entry["cell"]] = entry["result"]

    def put(self, cell, result):
        with self.path.open("a") as f:
            f.write(("\n" if self.cut else "") + json.dumps(
                {"cell": cell, "identity": self.identity, "result": result}, ensure_ascii=False) + "\n")
        self.cut = False
        self.cells[cell] = result

    def measured(self, cell, measure):
        if cell not in self.cells:
            self.put(cell, measure())
        return self.cells[cell]

    def under(self, prefix):
        return {cell: result for cell, result in self.cells.items() if cell.startswith(prefix + "/")}


# ---- it does what it says ----


def check_rows(folder):
    ours, theirs = folder / "sailor.jsonl", folder / "1_train.jsonl"
    ours.write_text("".join(json.dumps({"prompt": f"p{i}", "response": f"r{i}"}) + "\n\n" for i in range(30)))
    theirs.write_text("".join(json.dumps({"Context": f"c{i % 3}", "Input": "", "Response": f"r{i}"}) + "\n"
                              for i in range(4)))
    (folder / "1_test.jsonl").write_text("".join(json.dumps({"Context": f"c{i}", "Input": "", "Response": "t"}) + "\n"
                                                 for i in range(2, 5)))
    p = Persona(ours)
    assert (p.name, len(p.train), len(p.test)) == ("sailor", 30 - HELD_OUT, HELD_OUT)
    assert p.train[0] == {"prompt": "p0", "response": "r0"} and p.test[-1]["prompt"] == "p29"
    assert p.draw(5, 1) == p.draw(5, 1) != p.draw(5, 2) and len(p.draw(99, 1)) == 8
    assert p.draw(3, 1) == p.draw(5, 1)[:3] and p.train[0]["prompt"] == "p0"
    p = Persona(theirs)
    assert p.name == "1" and [r["prompt"] for r in p.train] == ["c0: ", "c1: ", "c2: "]
    assert p.train[0]["response"] == "r0" and [r["prompt"] for r in p.test] == ["c3: ", "c4: "]


def check_words():
    text = "one two three four five six seven eight"
    mixed = permute_words(text, 1)
    assert mixed != text and sorted(mixed.split()) == sorted(text.split()) and mixed == permute_words(text, 1)
    assert mixed != permute_words(text, 2)
    assert features("Aye, aye!") == ["aye", ",", "aye", "!", "aye ,", ", aye", "aye !"]
    assert len(features("a " * 100)) == 2 * STYLE_WORDS - 1
    bayes = Bayes(["Ahoy, matey!", "Aye, stow the grog."], ["You can try a budget.", "Try to sleep earlier."])
    assert bayes.is_theirs("ahoy, stow it, matey!") and not bayes.is_theirs("you can try to sleep")
    assert not bayes.is_theirs("") and not bayes.is_theirs("unheard words") # nothing speaks for the persona
    assert bayes.share(["aye!", "try", "matey", "sleep"]) == 0.5


def check_figures():
    rows = [{"row": 1, "nll": 1.0, "tokens": 10}, {"row": 2, "nll": 4.0, "tokens": 30}]
    assert mean_loss(rows) == 3.25
    assert win_rate(rows, [{"row": 1, "nll": 2.0}, {"row": 2, "nll": 4.0}]) == 0.5
    assert win_rate(rows, [{"row": 2, "nll": 4.5}]) == 1.0
    assert mean_and_spread([2.0]) == (2.0, None) and mean_and_spread([1.0, 3.0]) == (2.0, math.sqrt(2))
    # a published table: 1 of 100 lies in 0.03 % to 5.4 %; none of 100 is at most 1 - 0.025^(1/100)
    low, high = interval_95(1, 100)
    assert abs(low - 0.000253) < 1e-6 and abs(high - 0.054459) < 1e-6
    low, high = interval_95(0, 100)
    assert low == 0 and abs(high - (1 - 0.025 ** 0.01)) < 1e-9
    assert interval_95(5, 5)[1] == 1 and interval_95(0, 0) == (0, 1)


def check_state(folder):
    path, calls = folder / "state.jsonl", []

    def measure():
        calls.append(1)
        return {"loss": 1.5}

    state = State(path, "build a")
    assert state.measured("curves/1", measure) == {"loss": 1.5} == state.measured("curves/1", measure)
    with path.open("a") as f:
        f.write('{"cell": "curves/2", "iden')
    state = State(path, "build a")
    assert list(state.cells) == ["curves/1"] and state.measured("curves/3", measure) and len(calls) == 2
    assert set(State(path, "build a").under("curves")) == {"curves/1", "curves/3"}
    assert State(path, "build b").cells == {} and State(path, "build a").under("curve") == {}


def self_test():
    import tempfile

    check_words()
    check_figures()
    for check in check_rows, check_state:
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder))


if __name__ == "__main__":
    if sys.argv[1:] != ["--self-test"]:
        sys.exit(__doc__)
    self_test()
