"""How often a recogniser calls values unknown that nobody taught it, and is right about those it was taught."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from benchmark import QUIET

from perception.checkpoint import save_model
from perception.config import find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.evaluate import evaluate
from perception.model import PerceptionModel
from perception.predict import TorchPredictor
from perception.simulate.conditions import parse
from perception.simulate.simulate import simulate
from perception.simulate.worlds import Worlds
from perception.taxonomy import Taxonomy, load_taxonomy
from perception.training.adapt import add_task

VERSION = "v1.0-sim"
CITIES = ("boston", "singapore")
TAUGHT = {"weather": ("clear", "rain", "fog", "snow"), "light": ("day", "night")}
KEYFRAMES, SEED = 2, 3  # of each drive


class _Split(NamedTuple):
    """Drives of one city, by what they are for."""

    earlier: list[str]  # those of the other city
    taught: list[str]
    kept: list[str]


def recogniser(
    out: Annotated[Path, typer.Option(help="Folder of the drives and runs.")] = Path("runs/recogniser"),
    drives: Annotated[int, typer.Option(help="In every weather, light and city: a multiple of 32.")] = 32,
) -> dict[str, Any]:
    """For each value: taught by all drives of one city, then by half of the other city's drives without that value.

    `unknown_never_taught`: share of the frames with the value left out whose kind is unknown. `right`, `unknown` and
    `wrong`: of the frames with the other values on the drives that taught nothing. Means over both cities and both
    halves. The network is not trained, since pictures alone are read. Runs that the folder has are not made again.
    """
    tables, base = _drives(out / "drives", drives), out / "base"
    if not base.exists():
        config = load_config(find_config("tiny"), ["model.camera.image.height=96", "model.camera.image.width=256"])
        config = config.model_copy(update={"modules": (), "taxonomy": tables.taxonomy})
        save_model(base / "checkpoints" / "step-000000", config, PerceptionModel(config))
    figures = {}
    for kind, values in TAUGHT.items():
        for value in values:
            each = [_leave_out(out, base, tables, kind, value, i) for i in range(2 * len(CITIES))]
            figures[value] = {name: statistics.mean(one[name] for one in each) for name in each[0]}
    return {**figures, "drives": drives}


def _drives(folder: Path, count: int) -> NuScenesTables:
    """Drives in all conditions, simulated unless they are there."""
    known = load_taxonomy("nuscenes")
    taxonomy = Taxonomy.model_validate(known.model_dump() | {"conditions": {**known.conditions, **TAUGHT}})
    if not folder.exists():
        names = ["-".join(each) for each in itertools.product(*TAUGHT.values(), CITIES)]
        simulate(folder, count, KEYFRAMES, SEED, parse(names, taxonomy, Worlds()))
    return NuScenesTables(folder, VERSION, taxonomy=taxonomy)


def _leave_out(out: Path, base: Path, tables: NuScenesTables, kind: str, value: str, part: int) -> dict[str, float]:
    split = _split(tables, part)
    earlier = out / f"earlier-{part // 2}"
    _fit(base, tables, split.earlier, earlier)
    run = out / f"without-{value}-{part}"
    without = [scene for scene in split.taught if value not in _known(tables, scene)]
    _fit(earlier, tables, without, run)
    own = [scene for scene in (*split.taught, *split.kept) if value in _known(tables, scene)]
    others = [scene for scene in split.kept if value not in _known(tables, scene)]
    answered, right = _scores(run, tables, others, kind)
    return {
        "unknown_never_taught": 1 - _scores(run, tables, own, kind)[0],
        "right": right,
        "unknown": 1 - answered,
        "wrong": answered - right,
    }


def _split(tables: NuScenesTables, part: int) -> _Split:
    """Parts 0 and 1 teach the halves of the second city's drives after the first city's, parts 2 and 3 the reverse."""
    scenes = {city: [s for s in tables.scenes("all") if city in _known(tables, s)] for city in CITIES}
    first, second = CITIES if part < 2 else CITIES[::-1]
    half = len(scenes[second]) // 2
    halves = scenes[second][:half], scenes[second][half:]
    return _Split(scenes[first], halves[part % 2], halves[1 - part % 2])


def _known(tables: NuScenesTables, scene: str) -> Sequence[str]:
    return tables.conditions(tables.samples(selectors=[scene])[0]).known()


def _fit(before: Path, tables: NuScenesTables, scenes: Sequence[str], run: Path) -> None:
    if not run.exists():
        add_task(before, "conditions", {}, tables, "all", scenes, run)


def _scores(run: Path, tables: NuScenesTables, scenes: Sequence[str], kind: str) -> tuple[float, float]:
    """Share of frames whose kind is not unknown, and of those where it is right."""
    predictor = TorchPredictor.load(run)
    scores = evaluate(predictor, tables, "all", scenes, run / "scores", predictor.spec, QUIET)
    return scores["conditions_coverage"][kind], scores["conditions"][kind]
