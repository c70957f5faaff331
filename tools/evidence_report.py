"""Write the evidence as a table, a plot and a JSON file, from the existing rows."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from evidence_plan import CLAIMED, COMBINATIONS, TARGETS, WAYS

mpl.use("Agg")
from matplotlib import pyplot as plt

from perception.files import write_atomically

MOST_PARAMETERS, LEAST_RECOVERED, MOST_TIME, LEAST_PICKED = 0.02, 0.95, 0.7, 0.9
TAGGED = "composed: routed by tags"
MEASURES = ("mAP", "NDS", "mIoU")
DOMAINS = ("source", "rain", "fog", "night", "singapore", "rain+night", "rain+singapore")  # in the order of the report
Rows = list[dict[str, Any]]


def read(out: Path) -> Rows:
    return [json.loads(path.read_text()) for path in sorted((out / "rows").glob("*.json"))]


def score(scores: dict[str, float]) -> float:
    """A score of both tasks: the mean of NDS and the map's mean IoU."""
    return (scores["NDS"] + scores["mIoU"]) / 2


def summarise(rows: Rows) -> Rows:
    """An entry per domain and way: means and deviations over seeds, recovered gain, forgetting."""
    by_key = {(row["seed"], row["domain"], row["way"]): row for row in rows}
    entries = []
    for domain, way in dict.fromkeys((row["domain"], row["way"]) for row in rows):
        seeds = sorted(seed for seed, d, w in by_key if (d, w) == (domain, way))
        own = [by_key[seed, domain, way] for seed in seeds]
        entry: dict[str, Any] = {"domain": domain, "way": way, "seeds": seeds, "share": own[0].get("share")}
        for measure in MEASURES:
            entry[measure] = spread([row["target"][measure] for row in own])
        gains, recovered, forgotten, sources = [], [], [], []
        for seed, row in zip(seeds, own, strict=True):
            before, full = by_key.get((0, domain, "zero-shot")), by_key.get((seed, domain, "full fine-tune"))
            source = by_key.get((0, "source", "zero-shot"))
            if before:
                gains.append(score(row["target"]) - score(before["target"]))
                possible = score(full["target"]) - score(before["target"]) if full else 0.0
                if possible > 0:  # otherwise there is no gain to recover
                    recovered.append(gains[-1] / possible)
            if source and "source" in row:
                forgotten.append(score(source["target"]) - score(row["source"]))
                sources.append(row["source"])
            elif source and row.get("base_unchanged"):
                forgotten.append(0.0)
                sources.append(source["target"])
        entry |= {"gain": spread(gains), "recovered": spread(recovered), "forgetting": spread(forgotten)}
        for measure in MEASURES:
            entry[f"source {measure}"] = spread([s[measure] for s in sources])
        entries.append(entry)
    return sorted(entries, key=lambda e: (DOMAINS.index(e["domain"]), e["way"] != "zero-shot", -(e["gain"] or [0])[0]))


def spread(values: list[float]) -> list[float] | None:
    """The mean and, if there are several values, the standard deviation."""
    if not values:
        return None
    return [statistics.mean(values), statistics.stdev(values)] if len(values) > 1 else [values[0]]


def write_report(out: Path) -> None:
    """Write rows.json, evidence.json, evidence.md and evidence.png to the folder."""
    rows = [row for row in read(out) if row["domain"] != "routing"]
    routed = [row for row in read(out) if row["domain"] == "routing"]
    entries = summarise(rows)
    times = json.loads((out / "times.json").read_text())["seconds_per_step"] if (out / "times.json").exists() else {}
    for entry in entries:
        entry["seconds_per_step"] = times.get(entry["way"])
    write_atomically(out / "rows.json", (json.dumps(read(out), indent=1) + "\n").encode())
    write_atomically(out / "evidence.json", (json.dumps(entries, indent=1) + "\n").encode())
    words = "\n".join([*claims(entries), *routing(routed), "", table(entries)])
    write_atomically(out / "evidence.md", words.encode())
    plot(entries, out / "evidence.png")


def claims(entries: Rows) -> list[str]:
    """The claims and whether they hold, as lines of text."""
    by_key = {(e["domain"], e["way"]): e for e in entries}
    lines = [
        "### Claims",
        "",
        f"A module of at most {MOST_PARAMETERS:.0%} of the parameters recovers at least {LEAST_RECOVERED:.0%} of the "
        f"full fine-tune's gain on three of {len(TARGETS)} targets at no more than {MOST_TIME} of its time per step:",
        "",
    ]
    full = by_key.get(("rain", "full fine-tune"), {}).get("seconds_per_step")
    for way in (way for way in CLAIMED if WAYS[way].module):
        own = [(target, by_key[target, way]) for target in TARGETS if (target, way) in by_key]
        shares = {target: e["recovered"][0] for target, e in own if e["recovered"]}
        ratio = own[0][1]["seconds_per_step"] / full if own and full and own[0][1]["seconds_per_step"] else None
        holds = sum(s >= LEAST_RECOVERED for s in shares.values()) >= 3 and all(
            e["share"] <= MOST_PARAMETERS for _, e in own
        )
        found = ", ".join(f"{target} {share:.2f}" for target, share in shares.items()) or "nothing measured"
        time = "time not measured" if ratio is None else f"{ratio:.2f} of the time"
        verdict = "holds" if holds and ratio is not None and ratio <= MOST_TIME else "does not hold"
        lines.append(f"- {way}: {verdict}: {found}; {own[0][1]['share']:.2%} of the parameters, {time}" if own else way)
    lines += [
        "",
        "Modules composed as tags route them, for a combination that none saw, beat the base and each alone:",
        "",
    ]
    for combination in COMBINATIONS:
        gains = {e["way"]: e["gain"] for e in entries if e["domain"] == combination and e["gain"]}
        alone = {way: gain for way, gain in gains.items() if way.startswith("alone")}
        composed = {way: gain for way, gain in gains.items() if way.startswith(("composed", "merged"))}
        if alone and TAGGED in composed:
            single, best = max(alone, key=lambda w: alone[w][0]), max(composed, key=lambda w: composed[w][0])
            least = max(0.0, alone[single][0])
            beaten = sum(gain[0] > least for gain in composed.values())
            lines.append(
                f"- {combination}: {'holds' if composed[TAGGED][0] > least else 'does not hold'}: it gains "
                f"{number(composed[TAGGED])} over the base, {single} {number(alone[single])}; so do {beaten} of "
                f"{len(composed)} ways to compose, the best {best} with {number(composed[best])}"
            )
    return lines


def routing(rows: Rows) -> list[str]:
    """How often learned routers without tags pick the module of the tags, and how evenly they use the modules."""
    lines = ["", f"Learned routers pick the module of the tags on {LEAST_PICKED:.0%} of the validation frames:", ""]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        accuracy = spread([row["accuracy"] for row in own])
        verdict = "holds" if accuracy and accuracy[0] >= LEAST_PICKED else "does not hold"
        means = {o: statistics.mean(row["load"][o] for row in own) for o in own[0]["load"]}
        load = ", ".join(f"{option} {share:.2f}" for option, share in means.items())
        lines.append(f"- {way.removeprefix('router: ')}: {verdict}: {number(accuracy)}; load {load}")
    return lines


def table(entries: Rows) -> str:
    """Markdown with a table per domain."""
    head = (
        "way",
        "seeds",
        *MEASURES,
        *(f"source {m}" for m in MEASURES),
        "trained",
        "s/step",
        "recovered",
        "forgetting",
    )
    lines = []
    for domain in dict.fromkeys(entry["domain"] for entry in entries):
        lines += [f"### {domain}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for e in (entry for entry in entries if entry["domain"] == domain):
            share = "" if e["share"] is None else f"{e['share']:.2%}"
            seconds = "" if e["seconds_per_step"] is None else f"{e['seconds_per_step']:.3f}"
            cells = [e["way"], str(len(e["seeds"])), *(number(e[m]) for m in MEASURES)]
            cells += [*(number(e[f"source {m}"]) for m in MEASURES), share, seconds]
            cells += [number(e["recovered"]), number(e["forgetting"])]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def number(values: list[float] | None) -> str:
    return "" if values is None else " ± ".join(f"{v:.3f}" for v in values)


def plot(entries: Rows, path: Path) -> None:
    """Plot the gain of each way on each domain."""
    domains = [d for d in dict.fromkeys(e["domain"] for e in entries) if d != "source"]
    figure, axes = plt.subplots(2, 3, figsize=(16, 12))
    for axis, domain in zip(axes.flat, domains, strict=False):
        own = [e for e in entries if e["domain"] == domain and e["gain"] and e["way"] != "zero-shot"]
        own.sort(key=lambda e: e["gain"][0])
        axis.barh([e["way"] for e in own], [e["gain"][0] for e in own], xerr=[(e["gain"] + [0])[1] for e in own])
        axis.set_title(domain)
        axis.set_xlabel("gain in (NDS + mIoU) / 2")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
