"""Gates that are refused, replays that must not be compared, and the commands `judge` and `replay` with a verdict."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import one_line_error
from exported import QUIET, bundle
from junitparser import Error, JUnitXml
from pages import page_data
from replays import gates, record
from typer.testing import CliRunner
from vocabulary import NUSCENES

from deploy.cli import app
from deploy.recordings.choice import Selection
from deploy.replay import gates as module
from deploy.replay.gates import Gates
from deploy.replay.report import with_verdict
from deploy.replay.run import replay as replay_drives
from deploy.replay.settings import Settings, Source
from deploy.replay.verdict import judge
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.io.section import load_section
from perception.page import as_script
from perception.tasks.detection.devkit import open_devkit, score_tracks


def load(text: str, folder: Path) -> Gates:
    (folder / "gates.yaml").write_text(text)
    return load_section(Gates, folder / "gates.yaml", "the gates")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gates: []", "gates: tuple should have at least 1 item"),
        ("{gates: [{metric: NDS, at_least: 0}], common: 90}", "common: input should be less than or equal to 1"),
        ("metric: mAP", "a gate on mAP has one limit, `at_least`"),
        ("metric: MAP, at_least: 1", "'MAP' is none of mAP, NDS, AP, AMOTA, IoU, points, explained, "),
        ("metric: AMOTA, condition: rain, at_least: 1", "AMOTA is of all frames; give no condition"),
        ("metric: difference, of: AMOTA, at_most: 0.1", "AMOTA is not compared with a baseline"),
        ("metric: mAP, class: car, at_least: 1", "mAP has no class 'car'; it is of all classes"),
        ("metric: IoU, range: [0, 15], at_least: 1", "rings of 10 m"),
        ("metric: NDS, range: [30, 10], at_least: 1", r"a range is \[from, to\]"),
        ("metric: latency, stage: think, at_most: 1", "'think' is none of read, admit, check, preprocess"),
        ("metric: NDS, at_least: .nan", "at_least: input should be a finite number"),
        ("metric: AP, class: tank, at_least: 1", "^gates.0: AP has no class 'tank'; car, truck"),
        ("metric: NDS, condition: hail, at_least: 1", "^gates.0: hail: unknown condition; choose from clear, rain"),
    ],
)
def test_gates_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    """In the file or, by names that a bundle's taxonomy lacks, in its place among the gates."""
    with one_line_error(message, at="" if message[0] == "^" else tmp_path / "gates.yaml"):
        load(f"gates: [{{{text}}}]" if text[0] == "m" else text, tmp_path).require_taxonomy(NUSCENES)


def test_the_gates_of_the_documentation_are_valid(tmp_path: Path) -> None:
    assert {gate.metric for gate in load(str(module.__doc__).split("\n\n", 1)[1], tmp_path).gates} == {
        "NDS", "AP", "IoU", "AMOTA", "latency", "dropped", "difference", "agreement",
    }  # fmt: skip


FRAMES, SCENES = 20, 2
AGREE = gates({"metric": "agreement", "of": "detections", "at_least": 0.5})
LINE = {"conditions": ["clear"], "ego": [0.0, 0.0], "sensors": "a", "blind": False, "not_finite": {}}
BOX = {
    "translation": [5.0, 0.0, 0.0], "size": [2.0, 4.0, 2.0], "rotation": [1.0, 0.0, 0.0, 0.0], "velocity": [0.0, 0.0],
    "detection_name": "car", "detection_score": 0.9, "attribute_name": "",
}  # fmt: skip
ANNOTATED = [0, 5.0, 0.0, 0.0, 2.0, 4.0, 2.0, 0.0, 0.0, 0.0, -1, 1.0, 5]
PAGE = f'<script id="data" type="application/json">{as_script({"verdict": None, "scene": "</script><!--"})}</script>'


def annotated(boxes: list[list[float]]) -> dict[str, Any]:
    return {"detection": {"truth": {"boxes": boxes, "bike_racks": []}}}


def replay(out: Path, frames: range = range(FRAMES), away: float = 0.0, t3: Any = None, **settings: Any) -> Path:
    """A finished replay of frames with one car each, seen so many metres away from where it is.

    Args:
        t3: what is different in the statistics of this frame.
    """
    out.mkdir()
    common = LINE | {"tasks": annotated([ANNOTATED])}
    lines = [common | {"token": f"t{i}", "scene": f"scene-{i * SCENES // FRAMES}", "timestamp": i} for i in frames]
    lines[3] |= t3 or {}
    (out / "statistics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    box = BOX | {"translation": [5.0 + away, 0.0, 0.0]}
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    results = {f"t{i}": [box | {"sample_token": f"t{i}"}] for i in frames}
    (out / "results.json").write_text(json.dumps({"meta": meta, "results": results}))
    (out / "report.html").write_text(f"<p>before</p>{PAGE}<p>after</p>")
    return record(out, **settings)


def test_itself_and_too_few_common_frames_are_refused(tmp_path: Path) -> None:
    """With fewer needed, the verdict says what it compared: of 20 frames of 2 scenes the baseline has 10 of 1."""
    run, baseline = replay(tmp_path / "run"), replay(tmp_path / "baseline", range(10))
    few = "has 10 of the 20 frames of this replay (50%, at least 90% are needed)"
    with one_line_error(exactly=f"{baseline}: {few}; replay the same drives, or set a lower `common` in the gates"):
        judge(run, baseline, AGREE)
    (tmp_path / "link").symlink_to(run)
    for itself in (run, tmp_path / "link", baseline / ".." / "run"):
        with pytest.raises(InputError, match="is the replay that is judged; give another"):
            judge(run, itself, AGREE)
    assert not (run / "verdict.json").exists()
    assert judge(baseline, run, AGREE).passed  # a baseline of more drives has all frames
    verdict = judge(run, baseline, AGREE.model_copy(update={"common": 0.5}))
    written = json.loads((run / "verdict.json").read_text())
    assert [written[name] for name in ("frames", "scenes", "replayed", "common")] == [10, 1, 20, 0.5]
    title = "PASS: 10 frames of 1 scene, common with the baseline (50% of this replay's 20)"
    assert verdict.table().title == title


PART = {"start": 0.0, "end": 4.0, "every": 2}


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"faults": ("drop:all",)}, "was replayed with faults drop:all, this replay with none"),
        ({"conditions": ("rain", "night")}, "with conditions rain, night, this replay with the drive's tags"),
        ({"selection": PART}, "with selection 0 s to 4 s, every 2, this replay with 0 s to the end, every 1"),
        ({"topics_sha256": "ab"}, "with topics ab, this replay with none"),
        ({"evidence": ("tags", "geofences")}, "evidence tags, geofences, this replay with tags, recognised"),
        ({"t3": {"sensors": "b"}}, "frame t3 has another sweep or picture than in this replay"),
        ({"t3": {"tasks": annotated([])}}, "frame t3 has another annotation than in this replay"),
        ({"t3": {"ego": [1.0, 0.0]}}, "frame t3 has another vehicle pose"),
        ({"t3": {"conditions": ["rain"]}}, "frame t3 has another condition"),
    ],
)
def test_a_baseline_of_something_else_is_refused(theirs: Any, message: str, tmp_path: Path) -> None:
    run, baseline = replay(tmp_path / "run"), replay(tmp_path / "baseline", **theirs)
    with one_line_error(at=f"{baseline}: ", says=message):
        judge(run, baseline, AGREE)
    (baseline / "replay.json").write_text('{"schema_version": 2}')
    with one_line_error(r"replay.json: bundle: field required; replay again"):
        judge(run, baseline, AGREE)
    (baseline / "replay.json").unlink()
    with one_line_error(r"baseline: holds no finished replay \(no readable replay.json\)"):
        judge(run, baseline, AGREE)


def test_a_baseline_from_before_classes_had_names_in_ros_is_of_a_like_network(tmp_path: Path) -> None:
    run, older = replay(tmp_path / "run"), NUSCENES.without_ros_classes()
    assert judge(run, replay(tmp_path / "older", taxonomy=older), AGREE).passed
    fewer = older.model_copy(update={"classes": older.classes[:9]})
    with one_line_error(says="its network has other classes or conditions"):
        judge(run, replay(tmp_path / "fewer", taxonomy=fewer), AGREE)


def test_a_finished_replay_is_judged_again(tmp_path: Path) -> None:
    """By other gates each time: files, report and exit code are those of the last verdict; the replay stays."""
    run, baseline = replay(tmp_path / "run", away=1.5), replay(tmp_path / "baseline")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "report.html"}

    def command(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["judge", *map(str, arguments)])

    file, difference = tmp_path / "gates.yaml", "{metric: difference, of: mAP, at_most: 0.9}"
    for text, code, outcome in (
        ("{metric: AP, class: car, at_least: 0.9}", 1, "fail"),
        ("{metric: AP, class: car, at_least: 0.1}", 0, "pass"),
        (f"{difference}, {{metric: NDS, at_least: 0.99}}", 1, "fail"),
        (difference, 3, "inconclusive"),  # two scenes
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
    suites = JUnitXml.fromfile(str(run / "junit.xml"))  # which calls inconclusive an error
    assert (suites.tests, suites.failures, suites.errors, suites.skipped) == (1, 0, 1, 0)
    (found,) = [result for suite in suites for each in suite for result in each.result]
    assert (type(found), found.type, found.message) == (Error, "inconclusive", verdict["cases"][0]["reason"])
    assert {name: (run / name).read_bytes() for name in before} == before
    assert isinstance(command(run).exception, InputError)
    assert isinstance(command(tmp_path / "none", "--gates", file).exception, InputError)
    assert with_verdict("<p>no data</p>", {}) == "<p>no data</p>"
    for text, given in (("gates: [{metric: NSD}]", baseline), (f"gates: [{difference}]", tmp_path / "none")):
        judge(run, baseline, AGREE)
        file.write_text(text)
        assert isinstance(command(run, "--baseline", given, "--gates", file).exception, InputError)
        assert not (run / "verdict.json").exists()  # which says pass
        assert JUnitXml.fromfile(str(run / "junit.xml")).errors == 1
    (run / "report.html").unlink()
    judge(run, baseline, AGREE)
    assert not (run / "report.html").exists()


SCENE = "scene-0001"


def test_exit_code_is_the_verdict(sim_root: Path, tmp_path: Path) -> None:
    def command(out: str, *arguments: str) -> Any:
        given = ["replay", str(sim_root), "--scenes", f"{SCENE}:0-2", "--bundle", str(bundle().path)]
        return CliRunner().invoke(app, [*given, "--out", str(tmp_path / out), *arguments])

    first = command("first")
    assert first.exit_code == 0, first.output
    assert not (tmp_path / "first" / "verdict.json").exists()
    passed = command("second", "--baseline", str(tmp_path / "first"), "--json")
    assert passed.exit_code == 0, passed.output
    (tmp_path / "gates.yaml").write_text("gates: [{metric: latency, at_most: 0.001}, {metric: dropped, at_most: 0}]")
    failed = command("third", "--gates", str(tmp_path / "gates.yaml"), "--fault", "blackout:cameras")
    assert failed.exit_code == 1
    verdict = json.loads((tmp_path / "third" / "verdict.json").read_text())
    assert [case["passed"] for case in verdict["cases"]] == [False, True]
    other = tmp_path / "other"
    shutil.copytree(sim_root, other, copy_function=os.symlink)
    for picture in (other / "samples" / "CAM_FRONT").iterdir():
        picture.unlink()
        picture.write_bytes(next((sim_root / "samples" / "CAM_BACK").iterdir()).read_bytes())
    given = ["replay", str(other), "--scenes", f"{SCENE}:0-1", "--bundle", str(bundle().path)]
    done = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "fourth"), "--baseline", str(tmp_path / "first")])
    assert "has another sweep or picture than in this replay" in str(done.exception)
    shutil.rmtree(tmp_path / "fourth")
    assert isinstance(command("fourth", "--fault", "melt:lidar").exception, InputError)
    assert isinstance(command("fourth", "--baseline", str(tmp_path)).exception, InputError)
    assert not (tmp_path / "fourth").exists()


def test_a_replay_with_a_gate_on_amota_scores_its_tracks(tables: NuScenesTables, tmp_path: Path) -> None:
    """As the devkit scores the same file by itself; a replay of each second frame is not scored."""
    gate, out = gates({"metric": "AMOTA", "at_least": 0.0}), tmp_path / "out"
    arguments = (Source(tables.dataroot, tables.version, [SCENE]), bundle().path, out)
    found = replay_drives(*arguments, gates=gate, console=QUIET)["verdict"]["cases"][0]
    nusc = open_devkit(tables.dataroot, tables.version)
    scored = score_tracks(out / "tracks.json", nusc, tables.samples(selectors=[SCENE]))
    assert json.loads((out / "tracking_metrics.json").read_text()) == scored
    assert found["value"] == scored["amota"]
    replay_drives(*arguments, Settings(selection=Selection(every=2)), gates=gate, console=QUIET)
    assert not (out / "tracking_metrics.json").exists()
