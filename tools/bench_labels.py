"""How few labels? KITTI's network on PandaSet with 1 to 16 labelled frames: head alone, module and full fine-tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from bench_pandaset import CAR, Bench
from benchmark import SHARED
from matplotlib import rc_context
from matplotlib.figure import Figure

from perception.checkpoint import load_model
from perception.training import optimize

DRIVE, LABELLED = "002", 16  # frames from the first one on
WAYS = {"head": "head alone", "module": "module", "full": "full fine-tune"}
# The head's points are large, to be seen where the module's lie on them.
STYLES: dict[str, dict[str, Any]] = {
    "head": {"color": "tab:gray", "markersize": 10},
    "module": {"color": "tab:blue"},
    "full": {"color": "tab:red"},
}

Row = dict[str, Any]  # of a number of frames and a way


def labels(
    data: Path = SHARED / "pandaset",
    weights: Path = SHARED / "pointpillars_kitti" / "pointpillars.safetensors",
    out: Annotated[Path, typer.Option(help="Folder of the runs; commands that ended are not repeated.")] = Path(
        "runs/labels"
    ),
    steps: Annotated[int, typer.Option(help="Of each training, whatever the number of frames.", min=1)] = 80,
    frames: Annotated[str, typer.Option(help="Numbers of labelled frames, of 16.")] = "1,2,4,8,16",
    ways: Annotated[str, typer.Option(help="Only these.")] = ",".join(WAYS),
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...", min=1)] = 3,
    picture: Annotated[Path | None, typer.Option(help="Picture of the result to write, such as labels.svg.")] = None,
) -> dict[str, Any]:
    """What each way gains with so many labelled frames, what it costs, and what is left of the source.

    `closed` is the share of the gap: AP of cars on held-back frames above that of the network as imported, relative to
    the full fine-tune's with 16 frames (its median). `share` are parameters that train, relative to the network's;
    `cpu_seconds_per_step` processor-seconds of the command. On simulated sweeps of KITTI's LiDAR `source_ap` is the AP
    of cars, `source_kept` the share of the imported network's sure detections that this one has, and `source_new` the
    share of its own that the imported one has not. Medians of the seeds; `range` has the lowest and the highest.
    """
    counts, chosen = _numbers(frames), _ways(ways)
    bench = Bench(data, weights, out, steps)
    imported = bench.scores("zero_shot", bench.kitti)
    # The seeds one after the other, so that what is stopped has whole ones.
    grid = [(count, way) for count in counts for way in chosen]
    found: dict[tuple[int, str], list[Row]] = {}
    for seed in range(seeds):
        for count, way in dict.fromkeys([(LABELLED, "full"), *grid]):
            found.setdefault((count, way), []).append(_measure(bench, way, count, seed))
    zero, full = imported[CAR]["ap"], float(np.median([row["ap"] for row in found[LABELLED, "full"]]))
    result = {
        "seeds": seeds,
        "steps": steps,
        "imported": {"ap": zero, "source_ap": imported["source"]["ap"]},
        "frames": {str(count): {way: _summary(found[count, way], zero, full) for way in chosen} for count in counts},
    }
    if picture is not None:
        _draw(result, picture)
    return result


def choose(count: int, seed: int) -> list[int]:
    """The numbers of the labelled frames, spread over the first 16 of the drive; a seed moves them."""
    spacing = LABELLED // count
    first = spacing // 2 + seed * max(spacing // 3, 1)
    return sorted((first + i * LABELLED // count) % LABELLED for i in range(count))


def closed(ap: float, source: float, full: float) -> float:
    """The share of the gap between the source and the full fine-tune that an AP closes."""
    return (ap - source) / (full - source)


def _numbers(text: str) -> list[int]:
    numbers = [int(each) if each.isdigit() else 0 for each in text.split(",")]
    if not all(1 <= each <= LABELLED for each in numbers):
        raise typer.BadParameter(f"--frames {text}: write numbers from 1 to {LABELLED}, such as 1,2,4")
    return numbers


def _ways(text: str) -> list[str]:
    ways = text.split(",")
    if unknown := set(ways) - WAYS.keys():
        raise typer.BadParameter(f"--ways {text}: {', '.join(sorted(unknown))} is none of {', '.join(WAYS)}")
    return ways


def _measure(bench: Bench, way: str, count: int, seed: int) -> Row:
    """A training's figures, but the share of the gap."""
    name = f"{way}_{count}_{seed}"
    scenes = ",".join(f"{DRIVE}:{frame}-{frame + 1}" for frame in choose(count, seed))
    seconds = bench.train(way, name, scenes, seed)
    run = bench.out / name
    scores = bench.scores(name, run)
    kept: Row = bench.module(run) if way == "module" else {"trained_share": _trained_share(run)}
    return {
        "ap": scores[CAR]["ap"],
        "share": kept["trained_share"],
        "cpu_seconds_per_step": seconds,
        "source_ap": scores["source"]["ap"],
        "source_kept": scores["source"]["kept"],
        "source_new": scores["source"]["new"],
        **({"base_unchanged": kept["base_unchanged"]} if way == "module" else {}),
    }


def _trained_share(run: Path) -> float:
    """The share of a network's parameters whose rate was not 0."""
    model, config = load_model(run)
    optimize.joint(model)
    optimize.freeze(model, config.train.rates)
    trained = sum(parameter.numel() for _, parameter in optimize.parameters(model))
    return trained / sum(parameter.numel() for parameter in model.parameters())


def _summary(rows: Sequence[Row], source: float, full: float) -> Row:
    """Medians of the seeds, and the range of what differs."""
    table = {name: [row[name] for row in rows] for name in rows[0] if name != "base_unchanged"}
    table = {"closed": [closed(ap, source, full) for ap in table["ap"]], **table}
    kept = {"base_unchanged": all(row["base_unchanged"] for row in rows)} if "base_unchanged" in rows[0] else {}
    return {
        **{name: float(np.median(values)) for name, values in table.items()},
        **kept,
        "range": {name: [min(values), max(values)] for name, values in table.items() if name != "share"},
    }


def _draw(result: Mapping[str, Any], picture: Path) -> None:
    """Curves of each way against the number of frames: the share of the gap closed, and what is left of the source."""
    counts = [int(each) for each in result["frames"]]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = {
        "closed": ("share of the gap closed on PandaSet", 0.0),
        "source_ap": ("car AP on KITTI's LiDAR (simulated)", result["imported"]["source_ap"]),
        "source_kept": ("share of the source's detections kept", 1.0),
    }
    for axes, (name, (title, imported)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.axhline(imported, color="black", linewidth=0.8, linestyle=":", label="as imported")
        for way in result["frames"][str(counts[0])]:
            rows = [result["frames"][str(count)][way] for count in counts]
            middle = np.array([row[name] for row in rows])
            low, high = np.array([row["range"][name] for row in rows]).T
            spread = (middle - low, high - middle)
            axes.errorbar(counts, middle, spread, label=WAYS[way], marker="o", capsize=3, **STYLES[way])
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("labelled frames")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=1 + len(WAYS), fontsize=8)
    # Equal results give equal files.
    with rc_context({"svg.hashsalt": "labels", "svg.fonttype": "none"}):
        figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)
