"""Tables and plots of what bench/quality has measured. A part without cells is left out.

    quality_tables.py --self-test
"""

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from comparing import run, say
from quality_figures import State, interval_95, mean_and_spread

REAL_GAIN = 0.05  # nats a token over unseen rows: from there on a candidate is a good one


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + ["| " + " | ".join(row) + " |" for row in rows]


def figure(values, form="{:.4f}"):
    """Mean and, of several, the standard deviation behind it."""
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    return form.format(mean) + ("" if spread is None else " ± " + form.format(spread))


def percent(values):
    return figure([100 * v for v in values], "{:.0f} %")


def grouped(cells, n_key):
    """Results by the first n_key parts of what names them: those of all seeds together."""
    groups = defaultdict(list)
    for cell, result in cells.items():
        groups[tuple(cell.split("/")[1:][:n_key])].append(result)
    return groups


# ---- the parts: lines of a table, and series to plot ----


def side_name(side):
    return "attune" if side == "attune" else {"1": "PEFT, one pass", "3": "PEFT, three passes"}[side.split("-")[1]]


def best_rates(cells):
    """Of each persona and number of passes the rate with the lowest loss on the most rows: there all were tried."""
    tried = defaultdict(list)
    for cell, result in cells.items():
        parts = cell.split("/")
        if parts[2].startswith("peft"):
            _, persona, side, n, seed, rate = parts
            if seed == "1":
                tried[persona, side].append((-int(n), result["loss"], rate))
    return {key: min(entries)[2] for key, entries in tried.items()}


def curves(cells):
    rates, points = best_rates(cells), defaultdict(list)
    for cell, result in cells.items():
        _, persona, side, *rest = cell.split("/")
        if side == "attune" or (side != "base" and rest[2] == rates[persona, side]):
            points[persona, side, int(rest[0])].append(result)
    rows, series = [], defaultdict(list)
    for (persona, side, n), of_seeds in sorted(points.items()):
        base = cells[f"curves/{persona}/base"]
        name = side_name(side) + (f", {rates[persona, side]}" if side != "attune" else "")
        rows.append([persona, str(n), name, f"{base['loss']:.4f}", figure([r["loss"] for r in of_seeds]),
                     figure([r["loss_none"] for r in of_seeds]) if side == "attune" else "",
                     percent([r["style"] for r in of_seeds]), f"{100 * base['style']['base']:.0f} %",
                     f"{100 * base['style']['persona']:.0f} %"])
        for what in ("loss", "style"):
            series[f"{persona}: {what}"].append({"line": side_name(side), "x": n,
                                                 "y": [r[what] for r in of_seeds]})
    head = ["persona", "rows", "", "base", "loss", "unmerged", "answers in style", "base's", "the persona's own"]
    return table(head, rows), series


def forgetting(cells):
    rows, series = [], defaultdict(list)
    for (persona,), _ in grouped(cells, 1).items():
        base = cells[f"forgetting/{persona}/base"]
        nights = defaultdict(list)
        for cell, result in cells.items():
            if cell.startswith(f"forgetting/{persona}/") and not cell.endswith("/base"):
                nights[int(cell.split("/")[3])].append(result)
        rows.append([persona, "base", "", f"{base['reference']:.4f}", "", f"{base['unseen']:.4f}", ""])
        for night, of_seeds in sorted(nights.items()):
            rises = [r["reference"] / base["reference"] - 1 for r in of_seeds]
            rows.append([persona, str(night), f"{sum(r['published'] for r in of_seeds)} of {len(of_seeds)}",
                         figure([r["reference"] for r in of_seeds]), figure([100 * r for r in rises], "{:+.2f} %"),
                         figure([r["unseen"] for r in of_seeds]), figure([r["first"] for r in of_seeds])])
            for what in ("reference", "unseen", "first"):
                series[f"{persona}: loss"].append({"line": what, "x": night, "y": [r[what] for r in of_seeds]})
    return table(["persona", "night", "published", "everyday rows", "rise", "unseen rows", "the first night's judges"],
                 rows), series


def preference(cells):
    rows, series = [], defaultdict(list)
    for (persona, mode), of_seeds in sorted(grouped(cells, 2).items()):
        rows.append([persona, mode, percent([r["win"] for r in of_seeds]), percent([r["style"] for r in of_seeds]),
                     figure([r["loss_kept"] for r in of_seeds]), figure([r["loss_draft"] for r in of_seeds])])
        series["pairs won"].append({"line": mode, "x": persona, "y": [r["win"] for r in of_seeds]})
    return table(["persona", "feedback", "pairs won", "answers in style", "loss of the persona's answers",
                  "of the base's drafts"], rows), series


def taste_won_after(results):
    """After how many of the later nights most answers are the new persona's; None: not yet."""
    later = [n for n in sorted(results) if n > 3 and results[n]["style"] > 0.5]
    return later[0] - 3 if later else None


def taste(cells):
    rows, series = [], defaultdict(list)
    chains = defaultdict(dict)
    for cell, result in cells.items():
        _, pair, *rest = cell.split("/")
        if rest[0] != "base":
            chains[pair, rest[0]][int(rest[1])] = result
    for (pair, seed), results in sorted(chains.items()):
        base = cells[f"taste/{pair}/base"]
        rows.append([pair, seed, "base", "", f"{base['before']:.4f}", f"{base['after']:.4f}", ""])
        won = taste_won_after(results)
        for night, r in sorted(results.items()):
            mark = "the new one wins" if won and night == 3 + won else ""
            rows.append([pair, seed, f"{night}" + (" (new)" if night > 3 else ""), "yes" if r["published"] else "no",
                         f"{r['before']:.4f}", f"{r['after']:.4f}", f"{100 * r['style']:.0f} % {mark}".strip()])
            for what in ("before", "after"):
                series[f"{pair}: loss"].append({"line": what, "x": night, "y": [r[what]]})
    return table(["from-to", "seed", "night", "published", "loss on the old", "loss on the new",
                  "answers in the new style"], rows), series


def noise(cells):
    base, rows, series = cells["noise/base"]["reference"], [], defaultdict(list)
    for cell, r in sorted(cells.items()):
        if cell != "noise/base":
            _, seed, night = cell.split("/")
            rows.append([seed, night, "yes" if r["published"] else "no", f"{r['reference']:.4f}",
                         f"{r['reference'] - base:+.4f}"])
            series["everyday rows: loss less the base's"].append(
                {"line": f"seed {seed}", "x": int(night), "y": [r["reference"] - base]})
    return table(["seed", "night", "published", "everyday rows", "against the base"], rows), series


def share_line(name, k, n):
    low, high = interval_95(k, n)
    return [name, f"{k} of {n}", f"{100 * low:.1f} % to {100 * high:.1f} %"]


def gate(cells):
    bad = [r for cell, r in cells.items() if cell.startswith("gate/bad/")]
    good = [r for cell, r in cells.items() if cell.startswith("gate/good/")]
    real = [r for r in good if r["gain"] >= REAL_GAIN]
    words = [r for r in bad if r["kind"] == "words"]
    others = [r for r in bad if r["kind"] != "words"]
    worse = [r for r in bad if r["published"] and r["gain"] < 0]
    rows = [share_line("bad ones published", sum(r["published"] for r in bad), len(bad)),
            share_line("of those with permuted words", sum(r["published"] for r in words), len(words)),
            share_line("of those with another persona's rows", sum(r["published"] for r in others), len(others)),
            share_line("bad ones published that are worse than the base on unseen rows", len(worse), len(bad)),
            share_line(f"good ones that gain {REAL_GAIN} or more, refused", sum(not r["published"] for r in real),
                       len(real)),
            share_line("good ones that gain less, published", sum(r["published"] for r in good if r not in real),
                       len(good) - len(real))]
    series = {"gain over unseen rows": [{"line": f"{kind}, {'published' if published else 'refused'}", "x": i,
                                         "y": [r["gain"]]}
                                        for kind, of_kind in (("good", good), ("bad", bad))
                                        for i, r in enumerate(of_kind) for published in [r["published"]]]}
    return table(["", "candidates", "95 % interval"], rows), series


PARTS = {"curves": curves, "forgetting": forgetting, "preference": preference, "taste": taste, "noise": noise,
         "gate": gate}

PLOT = """
import json, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
part, plots = json.load(open(sys.argv[1]))
figure, axes = plt.subplots(1, len(plots), figsize=(1 + 4.6 * len(plots), 4.2), squeeze=False)
for axis, (title, points) in zip(axes[0], plots.items()):
    for line in dict.fromkeys(p["line"] for p in points):
        of_line = [p for p in points if p["line"] == line]
        means = [sum(p["y"]) / len(p["y"]) for p in of_line]
        bars = [[m - min(p["y"]) for m, p in zip(means, of_line)], [max(p["y"]) - m for m, p in zip(means, of_line)]]
        axis.errorbar([p["x"] for p in of_line], means, bars, label=line, capsize=3, marker="o",
                      linestyle="none" if part in ("gate", "preference") else "-")
    if part == "curves":
        axis.set_xscale("log", base=2)
        axis.set_xlabel("rows")
    elif part in ("forgetting", "taste", "noise"):
        axis.set_xlabel("night")
    axis.set_title(title, fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
figure.tight_layout()
figure.savefig(sys.argv[2], dpi=130)
"""


def parts_of(state):
    return {name: make(cells) for name, make in PARTS.items() if (cells := state.under(name)) and complete(name, cells)}


def complete(name, cells):
    """Something beside what is compared with: a command that was ended early has the base alone."""
    return any(not cell.endswith("/base") and not cell.startswith("gate/unseen") for cell in cells)


def plot(out, parts, python):
    for name, (_, series) in parts.items():
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            json.dump([name, series], f)
            f.flush()
            run([python, "-c", PLOT, f.name, out / f"{name}.png"])


def write_tables(facts, state, out, python):
    parts = parts_of(state)
    lines = ["{cpu}, {threads} threads; {date}; attune {attune}; {base}.".format(**facts), "",
             "    " + facts["command"]]
    for name, (rows, _) in parts.items():
        lines += ["", f"## {name}", "", *rows]
    text = "\n".join(lines) + "\n"
    (out / "quality.md").write_text(text)
    (out / "quality.json").write_text(json.dumps({"facts": facts, "cells": state.cells}, indent=1) + "\n")
    print(text, end="")
    interpreter = python()
    try:
        run([interpreter, "-c", "import matplotlib"])
    except SystemExit:
        say("no plots: the environment has no matplotlib")
    else:
        plot(out, parts, interpreter)
    say(f"all of it is in {out}")


# ---- it does what it says ----


def self_test():
    with tempfile.TemporaryDirectory() as folder:
        state = State(Path(folder) / "state.jsonl", "x")
        state.put("curves/1/base", {"loss": 2.4, "style": {"base": 0.1, "persona": 0.9}})
        assert parts_of(state) == {}
        for seed in 1, 2:
            state.put(f"curves/1/attune/16/{seed}", {"loss": 2.0 + seed / 10, "loss_none": 2.0, "style": 0.5})
        for rate, loss in (("0.001", 2.3), ("0.002", 2.2)):
            state.put(f"curves/1/peft-1/64/1/{rate}", {"loss": loss, "style": 0.6})
        state.put("curves/1/peft-1/16/1/0.001", {"loss": 1.0, "style": 0.6}) # not of the rate that is best on most
        (lines, series) = parts_of(state)["curves"]
        assert len(lines) == 4 and "| 2.1500 ± 0.0707 | 2.0000 ± 0.0000 | 50 % ± 0 % | 10 % | 90 % |" in lines[2]
        assert "PEFT, one pass, 0.002 | 2.4000 | 2.2000 |" in lines[3]
        assert [p["x"] for p in series["1: loss"]] == [16, 64]
        for number, (published, gain) in enumerate(((True, 0.2), (False, 0.06), (False, 0.01))):
            state.put(f"gate/good/{number}", {"published": published, "gain": gain})
        state.put("gate/bad/1", {"published": False, "gain": 0.0, "kind": "words"})
        lines, _ = parts_of(state)["gate"]
        assert "| bad ones published | 0 of 1 | 0.0 % to 97.5 % |" in lines
        assert any("refused | 1 of 2 |" in line for line in lines)
        night = {"published": True, "before": 2.0, "after": 2.0}
        chain = {n: night | {"style": style} for n, style in enumerate((0.6, 0.1, 0.1, 0.4, 0.7), 1)}
        assert taste_won_after(chain) == 2 and taste_won_after({3: chain[5]}) is None


if __name__ == "__main__":
    if sys.argv[1:] != ["--self-test"]:
        sys.exit(__doc__)
    self_test()
