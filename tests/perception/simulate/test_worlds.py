"""World files: what they change, in which order, and what a wrong one is told."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from courses import WORLDS, courses
from hypothesis import given
from hypothesis import strategies as st
from refusals import one_line_error
from repository import ROOT
from vocabulary import NUSCENES

from deploy.cli import main
from perception.datasets.nuscenes.descriptions import conditions_of
from perception.errors import InputError
from perception.frame import Conditions
from perception.section import shipped_names
from perception.simulate.city import build_city
from perception.simulate.conditions import Course, describe, every, parse
from perception.simulate.map_writer import map_expansion
from perception.simulate.snapshot import Ground, Weather
from perception.simulate.world_files import Worlds
from perception.taxonomy import ObjectClass, Taxonomy

SMALL = {"columns": [1, 2, 1], "rows": [1, 2, 1]}
OWN = {
    "munich": {"kind": "city", "location": "munich-west", "streets": SMALL, "agents": {"cycles": 0.3}},
    "summer": {"kind": "season"},
    "winter": {"kind": "season", "vegetation": {"leaves": ["#6b5c4a"]}, "ground": {"snow": 0.5, "grass": "#8a8468"}},
    "frost": {"kind": "season", "ground": {"snow": [0.1, 0.2]}},
    "sleet": {"kind": "weather", "air": {"rain": 2, "snow": [1, 3]}, "ground": {"snow": 0.25}},
    "rain": {"kind": "weather", "air": {"rain": 1.5}},
}
KINDS = {"weather": ["clear", "rain", "sleet", "snow"], "season": ["summer", "frost", "winter"], "city": ["munich"]}


PAGE = ROOT / "docs" / "own_data.md"


def taxonomy_of(conditions: Mapping[str, object]) -> Taxonomy:
    return Taxonomy.model_validate({"name": "own", "classes": (ObjectClass(name="car"),), "conditions": conditions})


def folder_of(path: Path, files: Mapping[str, object]) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (path / f"{name}.yaml").write_text(text)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "worlds", OWN)


def drawn(course: Course, phase: int = 0, seed: int = 0) -> Weather:
    return course.phases[phase].surroundings.draw(np.random.default_rng(seed))


def test_earlier_kinds_override_later_ones(own: Path) -> None:
    """And what no file has stays as it is in a plain town on a clear day."""
    names = ["clear-summer-munich", "clear-winter-munich", "sleet-winter-munich", "rain-frost-munich"]
    clear, winter, sleet, rain = parse(names, taxonomy_of(KINDS), Worlds(own))
    assert drawn(clear) == Weather()
    grass = drawn(winter).ground_colours[Ground.GRASS]
    assert (drawn(winter).snow_cover, drawn(winter).snow, grass) == (0.5, 0, (0x8A, 0x84, 0x68))
    assert drawn(sleet).ground_colours == drawn(winter).ground_colours
    assert (drawn(sleet).snow_cover, drawn(sleet).rain) == (0.25, 2.0)
    assert 1 <= drawn(sleet).snow <= 3
    assert drawn(rain).rain == 1.5  # not that of the package
    assert 0.1 <= drawn(rain).snow_cover <= 0.2
    assert clear.place.agents.cycles == 0.3
    assert clear.place.agents.walkers == type(clear.place.agents)().walkers
    assert (clear.place.name, clear.place.location) == ("munich", "munich-west")
    assert winter.place.vegetation.leaves == ("#6b5c4a",)
    assert winter.place.streets == clear.place.streets


def test_what_is_drawn_for_one_does_not_depend_on_another() -> None:
    """Rain first, then visibility: the draws of drives that exist."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rain, fog = rng.uniform(5, 40), rng.uniform(40, 150)
        wet, misty, clear = (
            drawn(course, 0, seed) for course in courses(*(f"{w}-night-boston" for w in ("rain", "fog", "clear")))
        )
        assert wet == Weather(rain=rain, night=True)
        assert misty == Weather(visibility=fog, night=True)
        assert clear == Weather(night=True)


def test_seasons_of_a_city_share_its_map(own: Path) -> None:
    summer, winter = parse(["clear-summer-munich", "clear-winter-munich"], taxonomy_of(KINDS), Worlds(own))
    green, bare = build_city(summer.place), build_city(winter.place)
    assert map_expansion(green) == map_expansion(bare)
    assert not np.array_equal(green.static_objects.colours, bare.static_objects.colours)


def test_every_world_file_of_the_package_is_right() -> None:
    kinds: dict[str, list[str]] = {}
    for name in shipped_names("worlds"):
        kind = next(kind for kind in ("weather", "light", "city") if _is_of(name, kind))
        kinds.setdefault(kind, []).append(name)
    assert {*NUSCENES.condition_values} < {*shipped_names("worlds")}
    assert "snow" in kinds["weather"]
    parse(["all"], taxonomy_of(kinds), WORLDS)


def _is_of(value: str, kind: str) -> bool:
    try:
        WORLDS.compose(Conditions(**{kind: value}), taxonomy_of({kind: [value]}))
    except InputError:
        return False
    return True


def test_the_files_of_the_page_are_right(tmp_path: Path) -> None:
    files = dict(re.findall(r"```yaml\n# worlds/(\w+)\.yaml\n(.*?)```", PAGE.read_text(), re.DOTALL))
    assert [*files] == ["munich", "sleet", "winter"]
    taxonomy = taxonomy_of({"weather": ["sleet"], "season": ["winter"], "city": ["munich"]})
    (course,) = parse(["sleet-winter-munich"], taxonomy, Worlds(folder_of(tmp_path / "w", files)))
    assert (drawn(course).snow_cover, drawn(course).wet) == (0.1, 0.8)
    assert course.place.agents.cycles == 0.02


@given(st.lists(st.integers(1, 4), max_size=4))
def test_all_is_every_combination_once(sizes: list[int]) -> None:
    conditions = {f"k{i}": [f"v{i}x{k}" for k in range(size)] for i, size in enumerate(sizes)}
    found = every(taxonomy_of(conditions))
    assert len({*found}) == len(found) == np.prod(sizes, dtype=int)
    assert all([*each] == [*conditions] for each in found)


SCENERY = ["turn left", "construction site", "bus", "truck with trailer", "motorcycle", "parked cars", "many peds"]


@pytest.mark.parametrize("road", ["bus", "construction", "parked", "left", "highway"])
def test_descriptions_are_read_back(tmp_path: Path, road: str) -> None:
    """Scenery that would be read as a condition is left out."""
    kinds = {"weather": ["clear", "rain"], "road": [road, "lane"], "light": ["day", "night"]}
    worlds = Worlds(folder_of(tmp_path / "w", {road: {"kind": "road"}, "lane": {"kind": "road"}}))
    for course in parse(["all", f"clear-lane-day/rain-{road}-night/clear-lane-day"], taxonomy_of(kinds), worlds):
        changes = [(0.75 + k, phase) for k, phase in enumerate(course.phases[1:])]
        parts = describe(course, changes, SCENERY).split("; from ")
        assert len(parts) == len(course.phases)
        for part, phase in zip(parts, course.phases, strict=True):
            assert conditions_of(part, course.place.location, course.taxonomy) == phase.conditions
        said = [word for word in SCENERY if road not in word.split() or phase.conditions["road"] == road]
        assert len(course.phases) > 1 or all(word in parts[0] for word in said)


def test_words_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    worlds = Worlds(folder_of(tmp_path / "w", {"rainy": {"kind": "weather"}}))
    with one_line_error(at="'rainy'", says="weather rainy: it would be read as rain"):
        parse(["rainy"], taxonomy_of({"weather": ["rain", "rainy"]}), worlds)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"kind": "weather", "hail": 1}, "hail: is not a known key"),
        ({"kind": "city"}, "kind: is city, but sleet is of the kind weather in the taxonomy"),
        ({"air": {"rain": 1}}, "kind: field required"),
        ({"kind": "weather", "air": {"rain": [5, 2]}}, "air.rain: [5.0, 2.0] is no interval within 0 and 200"),
        ({"kind": "weather", "air": {"snow": -1}}, "air.snow: [-1.0, -1.0] is no interval"),
        ({"kind": "weather", "ground": {"snow": 1.5}}, "ground.snow: [1.5, 1.5] is no interval within 0 and 1"),
        ({"kind": "weather", "air": {"rain": "much"}}, "air.rain: "),
        ({"kind": "weather", "streets": {"speed": 9.0}}, "`streets` are a city's, whose file has a `location`"),
        ({"kind": "weather", "location": "munich"}, "location: is munich; it must begin with sleet"),
        ({"kind": "weather", "location": "sleet", "streets": {"spacing": [70.0, 99.0]}}, "`spacing`: 70 m between col"),
        ({"kind": "weather", "location": "sleet", "streets": {"columns": [1, 1, 2]}}, "differ in lanes"),
        ({"kind": "weather", "location": "sleet", "streets": {"parking": 2.0}}, "`parking` is 2 m wide"),
        ({"kind": "weather", "vegetation": {"leaves": ["green"]}}, "vegetation.leaves.0: "),
        ("kind: [", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named(own: Path, content: object, says: str) -> None:
    worlds = Worlds(folder_of(own, {"sleet": content}))
    with one_line_error(at=own / "sleet.yaml", says=says):
        parse(["sleet-summer-munich"], taxonomy_of(KINDS), worlds)


def test_courses_that_no_drive_can_take_are_refused(own: Path) -> None:
    folder_of(own, {"bavaria": {"kind": "state", "location": "bavaria"}})
    two = taxonomy_of({"state": ["bavaria"], "city": ["munich"]})
    with one_line_error(says="both are cities, with a `location`"):
        parse(["bavaria-munich"], two, Worlds(own))
    with one_line_error(at="'clear-summer-munich/", says="stays in one city, with the same streets, houses, trees"):
        parse(["clear-summer-munich/clear-winter-munich"], taxonomy_of(KINDS), Worlds(own))
    (thaw,) = parse(["snow-frost-munich/clear-summer-munich"], taxonomy_of(KINDS), Worlds(own))
    assert drawn(thaw, 0).snow_cover > drawn(thaw, 1).snow_cover == 0
    with one_line_error(says="unknown condition 'snow-day-munich': write weather-season-city with one of clear, rain"):
        parse(["snow-day-munich"], taxonomy_of(KINDS), Worlds(own))


def test_the_command_names_the_file_to_add(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taxonomy = taxonomy_of(KINDS | {"city": ["oslo"]}).model_dump(mode="json")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(taxonomy, sort_keys=False))
    for options, says in (
        (("--worlds", own), f"oslo: there is no world file for this city; add one: {own / 'oslo.yaml'}"),
        ((), "oslo: there is no world file for this city; add one: oslo.yaml in a folder, which --worlds names"),
        (("--worlds", tmp_path / "none"), f"{tmp_path / 'none'}: no such folder"),
    ):
        given = (tmp_path / "out", "--taxonomy", tmp_path / "own.yaml", "--conditions", "snow-winter-oslo", *options)
        monkeypatch.setattr("sys.argv", ["perception", "simulate", *map(str, given)])
        with pytest.raises(SystemExit) as done:
            main()
        line = capsys.readouterr().err
        assert (done.value.code, line.count("\n")) == (2, 1)
        assert says in line
    assert not (tmp_path / "out").exists()
