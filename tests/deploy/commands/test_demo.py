"""What the demo removes from its folder before it starts; its whole way; and the quick demo, which trains nothing."""

import json
from pathlib import Path

import pytest
from commands import refuses, succeeds

from deploy.commands.demo import Size, demo
from deploy.commands.tour import MARK, SUMMARY, VERSION, WRITTEN, clear, tour
from perception.datasets.nuscenes.dataset import NuScenesTables


def filled(folder: Path, *names: str) -> dict[Path, bytes]:
    """Folders with a file each, and these files."""
    for name in names:
        file = folder / name if Path(name).suffix else folder / name / "file"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return contents(folder)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_drives_or_runs_of_the_user_is_refused_and_stays(tmp_path: Path) -> None:
    """As is one whose summary is of another command."""
    for number, names in enumerate((("drives", "a-run"), ("run",), ("drives", SUMMARY), (SUMMARY,))):
        out = tmp_path / str(number)
        before = filled(out, *names)
        assert f"{out / names[0]}: is not of a demo" in refuses("demo", "--out", out)
        assert contents(out) == before
        (out / "summary.json").write_text("{}")
        assert "is not of a demo" in refuses("demo", "--out", out)


def test_of_an_earlier_demo_only_what_it_wrote_is_removed(tmp_path: Path) -> None:
    """Whether it ended or not: what was made from it, and files beside it, stay; so does what a link leads to."""
    kept = filled(tmp_path / "out", "driven", "drive.mcap")
    clear(tmp_path / "out", "full")
    filled(tmp_path / "elsewhere", "drive")
    for summary in ({MARK: "quick", "seconds": 1.0}, None):
        filled(tmp_path / "out", *(name for name in WRITTEN if name not in (SUMMARY, "replay")))
        (tmp_path / "out" / "replay").symlink_to(tmp_path / "elsewhere")
        if summary is not None:
            (tmp_path / "out" / SUMMARY).write_text(json.dumps(summary))
        clear(tmp_path / "out", "full")
        (tmp_path / "out" / SUMMARY).rename(tmp_path / SUMMARY)
        assert contents(tmp_path / "out") == kept
        assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["drive.mcap", "driven"]
        (tmp_path / SUMMARY).rename(tmp_path / "out" / SUMMARY)
    assert len(contents(tmp_path / "elsewhere")) == 1


@pytest.mark.slow("simulates, trains, adapts, evaluates, exports and replays")
def test_the_whole_way_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = demo(out, Size(drives=2, further=0, steps=2, module_steps=2, keyframes=3))
    assert summary["base_unchanged"]
    assert summary["clear_unchanged"]
    assert summary == json.loads((out / SUMMARY).read_text())
    assert {path.name for path in out.iterdir()} == {*WRITTEN}
    assert succeeds("check", out / "changing", "--bundle", out / "bundle")


@pytest.mark.slow("simulates and replays a drive of 12 s")
def test_modules_of_the_quick_demo_follow_the_weather_of_its_drive(tmp_path: Path) -> None:
    """A few seconds late: what is recognised is smoothed over time."""
    summary = tour(tmp_path / "out")
    switches = {float(time.split()[0]): modules for time, modules in summary["modules"].items()}
    tables = NuScenesTables(tmp_path / "out" / "changing", VERSION)
    samples = tables.samples("sim_train", tables.scenes("sim_train"))
    foggy = [0.5 * i for i, token in enumerate(samples) if tables.conditions(token).get("weather") == "fog"]
    assert [*switches.values()] == ["base", "fog", "base"]
    start, begins, ends = switches
    assert start == 0.0
    assert foggy[0] <= begins < foggy[-1]
    assert foggy[-1] < ends < 0.5 * len(samples)
    assert Path(summary["report"]).exists()
    assert succeeds("check", tmp_path / "out" / "changing", "--bundle", "demo")
