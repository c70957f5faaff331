"""Replays that must not be compared are refused with one line, and `perception judge` judges anew those that may."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judged import gates, only, record
from junitparser import Error, JUnitXml
from pages import page_data
from refusals import one_line_error
from typer.testing import CliRunner

from deploy.cli import app
from deploy.replay.page_data import with_verdict
from deploy.replay.verdict import judge
from perception.errors import InputError
from perception.page.single_file import as_script

FRAMES, SCENES = 20, 2
AGREE = {"metric": "agreement", "of": "detections", "at_least": 0.5}
LINE = {"conditions": ["clear"], "ego": [0.0, 0.0], "blind": False, "not_finite": {}}
BOX = {
    "translation": [5.0, 0.0, 0.0], "size": [2.0, 4.0, 2.0], "rotation": [1.0, 0.0, 0.0, 0.0], "velocity": [0.0, 0.0],
    "detection_name": "car", "detection_score": 0.9, "attribute_name": "",
}  # fmt: skip
ANNOTATED = [0, 5.0, 0.0, 0.0, 2.0, 4.0, 2.0, 0.0, 0.0, 0.0, -1, 1.0, 5]
PAGE = f'<script id="data" type="application/json">{as_script({"verdict": None, "scene": "</script><!--"})}</script>'


def annotated(boxes: list[list[float]]) -> dict[str, Any]:
    return {"detection": {"truth": {"boxes": boxes, "bike_racks": []}}}


def replay(out: Path, frames: range = range(FRAMES), away: float = 0.0, **settings: Any) -> Path:
    """A finished replay of frames with one car each, seen so many metres away from where it is."""
    out.mkdir()
    lines = [
        LINE
        | {"token": f"t{i}", "scene": f"scene-{i * SCENES // FRAMES}", "timestamp": i, "tasks": annotated([ANNOTATED])}
        for i in frames
    ]
    (out / "statistics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    box = BOX | {"translation": [5.0 + away, 0.0, 0.0]}
    results = {
        f"t{i}": [BOX | {"sample_token": f"t{i}"} if not away else box | {"sample_token": f"t{i}"}] for i in frames
    }
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    (out / "results.json").write_text(json.dumps({"meta": meta, "results": results}))
    (out / "report.html").write_text(f"<p>before</p>{PAGE}<p>after</p>")
    return record(out, **settings)


def test_a_replay_is_not_compared_with_itself(tmp_path: Path) -> None:
    run = replay(tmp_path / "run")
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "other").mkdir()
    for baseline in (run, tmp_path / "link", tmp_path / "other" / ".." / "run"):
        with pytest.raises(InputError, match="is the replay that is judged; give the folder of another one"):
            judge(run, baseline, gates(AGREE))
    assert not (run / "verdict.json").exists()


def test_a_verdict_says_what_it_compared(tmp_path: Path) -> None:
    """Not what was replayed: of 20 frames of 2 scenes the baseline has 10 of 1."""
    run, baseline = replay(tmp_path / "run"), replay(tmp_path / "baseline", range(10))
    verdict = judge(run, baseline, gates(AGREE, common=0.5))
    written = json.loads((run / "verdict.json").read_text())
    assert (written["frames"], written["scenes"]) == (10, 1)
    assert (written["replayed"], written["common"]) == (20, 0.5)
    title = "PASS: 10 frames of 1 scene, common with the baseline (50% of this replay's 20)"
    assert verdict.table().title == title


def test_too_few_common_frames_are_refused(tmp_path: Path) -> None:
    run, baseline = replay(tmp_path / "run"), replay(tmp_path / "baseline", range(10))
    few = "has 10 of the 20 frames of this replay (50%, at least 90% are needed)"
    with one_line_error(exactly=f"{baseline}: {few}; replay the same drives, or set a lower `common` in the gates"):
        judge(run, baseline, gates(AGREE))
    assert judge(baseline, run, gates(AGREE)).passed  # a baseline of more drives has all frames


DRIVE = {"name": "scene-0", "frames": 10}


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ({"faults": ("drop:all",)}, {}, "was replayed with faults drop:all, this replay with none"),
        ({}, {"faults": ("drop:all",)}, "was replayed with faults none, this replay with drop:all"),
        ({"conditions": ("rain", "night")}, {}, "with conditions rain, night, this replay with the drive's tags"),
        ({"conditions": ()}, {}, "with conditions none known, this replay with the drive's tags"),
        (
            {"selection": {"start": 0.0, "end": 4.0, "every": 2}},
            {},
            "with selection 0 s to 4 s, every 2, this replay with 0 s to the end, every 1",
        ),
        ({"topics_sha256": "ab"}, {}, "with topics ab, this replay with none"),
        (
            {"drives": (DRIVE | {"sensors_sha256": "a"},)},
            {"drives": (DRIVE | {"sensors_sha256": "b"},)},
            "scene-0 had other sensor data",
        ),
    ],
)
def test_a_baseline_of_something_else_is_refused(
    theirs: dict[str, Any], ours: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run, baseline = replay(tmp_path / "run", **ours), replay(tmp_path / "baseline", **theirs)
    with one_line_error(at=f"{baseline}: ", says=message):
        judge(run, baseline, gates(AGREE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": annotated([])}, "frame t3 has another annotation than in this replay"),
        ({"tasks": {"detection": {"truth": None}}}, "frame t3 has another annotation"),
        ({"ego": [1.0, 0.0]}, "frame t3 has another vehicle pose"),
        ({"conditions": ["rain"]}, "frame t3 has another condition"),
        ({"scene": "other"}, "frame t3 has another scene"),
    ],
)
def test_a_baseline_with_another_truth_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    run, baseline = replay(tmp_path / "run"), replay(tmp_path / "baseline")
    lines = [json.loads(line) for line in (baseline / "statistics.jsonl").read_text().splitlines()]
    lines[3] |= change
    (baseline / "statistics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=message):
        judge(run, baseline, gates(AGREE))


def test_a_baseline_that_does_not_say_what_it_is_of_is_refused(tmp_path: Path) -> None:
    run, baseline = replay(tmp_path / "run"), replay(tmp_path / "baseline")
    (baseline / "replay.json").unlink()
    with pytest.raises(InputError, match=r"baseline: holds no finished replay \(no readable replay.json\)"):
        judge(run, baseline, gates(AGREE))


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Any]:
    def run(*arguments: str | Path) -> Any:
        return CliRunner().invoke(app, ["judge", *map(str, arguments)])

    return run


def test_a_finished_replay_is_judged_again(command: Callable[..., Any], tmp_path: Path) -> None:
    """By other gates each time: files, report and exit code are those of the last verdict; the replay stays."""
    run, baseline = replay(tmp_path / "run", away=1.5), replay(tmp_path / "baseline")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "report.html"}
    file = tmp_path / "gates.yaml"
    difference = "{metric: difference, of: mAP, at_most: %g}"
    for text, code, outcome in (
        ("{metric: AP, class: car, at_least: 0.9}", 1, "fail"),
        ("{metric: AP, class: car, at_least: 0.1}", 0, "pass"),
        (difference % 0.9, 3, "inconclusive"),  # two scenes
        (f"{difference % 0.9}, {{metric: NDS, at_least: 0.99}}", 1, "fail"),
    ):
        file.write_text(f"gates: [{text}]")
        done = command(run, "--baseline", baseline, "--gates", file, "--json")
        assert done.exit_code == code, done.output
        verdict = json.loads((run / "verdict.json").read_text())
        assert json.loads(done.stdout.splitlines()[0]) == verdict
        assert verdict["outcome"] == outcome
        assert page_data(run / "report.html") == {"verdict": verdict, "scene": "</script><!--"}
        page = (run / "report.html").read_text()
        assert (page.startswith("<p>before</p>"), page.endswith("<p>after</p>")) == (True, True)
    assert {name: (run / name).read_bytes() for name in before} == before
    assert isinstance(command(run).exception, InputError)
    assert isinstance(command(tmp_path / "none", "--gates", file).exception, InputError)


def test_junit_calls_inconclusive_an_error(tmp_path: Path) -> None:
    run, baseline = replay(tmp_path / "run", away=1.5), replay(tmp_path / "baseline")
    case = only(judge(run, baseline, gates({"metric": "difference", "of": "NDS", "at_most": 0.01})))
    suites = JUnitXml.fromfile(str(run / "junit.xml"))
    assert (suites.tests, suites.failures, suites.errors, suites.skipped) == (1, 0, 1, 0)
    (found,) = [result for suite in suites for each in suite for result in each.result]
    assert (type(found), found.type, found.message) == (Error, "inconclusive", case.reason)


def test_a_page_without_data_stays_as_it_is(tmp_path: Path) -> None:
    assert with_verdict("<p>no data</p>", {}) == "<p>no data</p>"
    run = replay(tmp_path / "run")
    (run / "report.html").unlink()
    judge(run, Path(shutil.copytree(run, tmp_path / "again")), gates(AGREE))
    assert not (run / "report.html").exists()
