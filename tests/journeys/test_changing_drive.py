"""A drive from clear into rain and into a tunnel: the route follows, by the drive's tags and by what is recognised."""

from pathlib import Path

import pytest
from browser import needs_chromium, visit
from exported import QUIET, checkpoint_of
from pages import page_data
from routing_table import Driven
from training_runs import small

from deploy.bundle import Bundle
from deploy.export import export
from deploy.golden import differences
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.config import Data
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Conditions
from perception.modules.spec import LowRank
from perception.simulate.simulate import simulate
from perception.training.adapt import add_task

CHANGES = {"rain": 2.75, "night": 5.75}  # s
SAMPLES, VERSION = 18, "v1.0-sim"
ROUTES: list[list[str]] = [[], ["rain"], ["night"], ["rain", "night"]]
# Lamps of the tunnel and wiper strokes: single frames, at 2 Hz.
OUTLIERS = ("blackout:cameras@1.4-1.6", "noise:cameras,levels=90@5.0-5.1", "blur:cameras,pixels=40@8.4-8.6")


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("changing")
    simulate(root, 1, SAMPLES, 0, ["clear-day-boston/rain-day-boston/rain-night-boston"])
    return root


@pytest.fixture(scope="module")
def finished() -> Path:
    """A base and modules with random weights; at the fusion they change the map that conditions are recognised from."""
    modules = tuple(
        LowRank(name=name, rank=2, slots=("fuse*", "trunk.*"), when=(condition,))
        for name, condition in (("wet_road", "rain"), ("dark", "night"))
    )
    return checkpoint_of(
        small().model_copy(update={"name": "changing", "modules": modules, "data": Data(augment=None)})
    )


@pytest.fixture(scope="module")
def recognising(drives: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a recogniser that learned on this very drive: how well it generalises is not asked here."""
    run, tables = tmp_path_factory.mktemp("recognising"), NuScenesTables(drives, VERSION)
    training = {"steps": 160, "batch": 4, "learning_rate": 0.02, "drop_lidar": 0.0, "drop_cameras": 0.0}
    add_task(finished, "conditions", {}, tables, "all", (), run, checkpoint_every=1000, **training)
    return run


@pytest.fixture(scope="module")
def bundle(recognising: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(recognising, tmp_path_factory.mktemp("exported") / "bundle", ROUTES, console=QUIET).path


@pytest.fixture(scope="module")
def untagged(drives: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a replay whose vehicle is told nothing."""
    out, faults = tmp_path_factory.mktemp("untagged"), OUTLIERS
    replay(Source(drives, VERSION), bundle, out, Settings(faults=faults, conditions=Conditions()), console=QUIET)
    return out / "report.html"


def spans(report: Path, kind: str, name: str) -> list[tuple[str, float]]:
    """What was in force, and from when on (s)."""
    (lane,) = [lane for lane in page_data(report)["lanes"] if (lane["kind"], lane["name"]) == (kind, name)]
    return [(span["value"], 0.5 * span["from"]) for span in lane["spans"]]


def require_following(report: Path) -> None:
    """The route, and what is believed: once per change, within 2 s."""
    for kind, module, values in (("weather", "wet_road", ["clear", "rain"]), ("light", "dark", ["day", "night"])):
        believed = [(value, start) for value, start in spans(report, "conditions", kind) if value]
        assert [value for value, _ in believed] == values, believed
        route = spans(report, "route", module)
        assert [value for value, _ in route] == ["0", "1"], route
        assert route[1][1] == believed[1][1]
        assert 0 < route[1][1] - CHANGES[values[1]] <= 2, route


def test_the_route_follows_what_is_recognised_and_no_wiper_stroke(untagged: Path) -> None:
    require_following(untagged)
    assert spans(untagged, "tags", "weather") == [("clear", 0.0), ("rain", 3.0)]
    assert spans(untagged, "tags", "light") == [("day", 0.0), ("night", 6.0)]


def test_the_route_follows_the_tags(drives: Path, bundle: Path, tmp_path: Path) -> None:
    replay(Source(drives, VERSION), bundle, tmp_path, console=QUIET)
    require_following(tmp_path / "report.html")


def test_a_route_that_the_vehicle_is_told_stays(drives: Path, bundle: Path, tmp_path: Path) -> None:
    told = Settings(conditions=Conditions(weather="clear", light="day", city="boston"))
    replay(Source(drives, VERSION), bundle, tmp_path, told, console=QUIET)
    report = tmp_path / "report.html"
    assert spans(report, "route", "wet_road") == spans(report, "route", "dark") == [("0", 0.0)]
    assert spans(report, "tags", "weather") == [("clear", 0.0), ("rain", 3.0)]


def test_the_table_tells_how_the_belief_followed(drives: Path, bundle: Path) -> None:
    """By tags three frames of another condition are believed; the third comes 1 s after the first."""
    tables = NuScenesTables(drives, VERSION)
    for told, expected in (
        (None, {"as tagged": 14 / 18, "delay, s": 1.0, "switches": 2, "changes": 2}),
        (
            Conditions(weather="clear", light="day"),
            {"as tagged": 6 / 18, "delay, s": None, "switches": 0, "changes": 2},
        ),
    ):
        driven = Driven(Runtime(bundle), told)
        for token in tables.samples():
            driven(tables.frame(token, annotations=False))
        assert driven.summary() == expected


def test_what_is_recognised_is_compared_with_the_golden_frame(bundle: Path) -> None:
    allowed, name = Bundle.load(bundle).manifest.tolerances, "conditions/probabilities"
    _, outputs = Bundle.load(bundle).golden()
    other = {**outputs, name: 1 - outputs[name]}
    assert differences(outputs, outputs, allowed) == []
    problems = differences(outputs, other, allowed)
    assert problems
    assert all(text.startswith(f"{name} is off by ") for text in problems)


@needs_chromium
def test_the_page_shows_belief_route_and_switches(untagged: Path, tmp_path: Path) -> None:
    shown = visit(
        untagged.read_text(),
        tmp_path,
        """report({
          names: [...document.querySelectorAll("#lanes text.name")].map(name => name.textContent),
          why: [...document.querySelectorAll("#lanes title")].map(title => title.textContent),
        });""",
    )
    assert shown.console == []
    names, why = shown.found["names"], shown.found["why"]
    assert {"weather by tags", "weather", "wet road, 1 switch", "dark, 1 switch"} <= set(names)
    assert {"weather by tags: clear", "weather by tags: rain", "light by tags: night"} <= set(why)
    rain = next(each for each in why if each.startswith("wet road: 1\nrain since "))
    assert any(each == rain.replace("wet road: 1", "weather: rain") for each in why)


def test_a_trained_run_is_not_overwritten(drives: Path, finished: Path, recognising: Path) -> None:
    with pytest.raises(InputError, match="holds a trained run already"):
        add_task(finished, "conditions", {}, NuScenesTables(drives, VERSION), "all", (), recognising)
