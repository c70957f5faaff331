"""What the demo removes from its folder before it starts."""

import json
from pathlib import Path

from commands import refuses

from deploy.commands.demo import SUMMARY, WRITTEN, clear


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
    clear(tmp_path / "out")
    filled(tmp_path / "elsewhere", "drive")
    for summary in ({"base_unchanged": True, "clear_unchanged": True, "seconds": 1.0}, None):
        filled(tmp_path / "out", *(name for name in WRITTEN if name not in (SUMMARY, "replay")))
        (tmp_path / "out" / "replay").symlink_to(tmp_path / "elsewhere")
        if summary is not None:
            (tmp_path / "out" / SUMMARY).write_text(json.dumps(summary))
        clear(tmp_path / "out")
        (tmp_path / "out" / SUMMARY).rename(tmp_path / SUMMARY)
        assert contents(tmp_path / "out") == kept
        assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["drive.mcap", "driven"]
        (tmp_path / SUMMARY).rename(tmp_path / "out" / SUMMARY)
    assert len(contents(tmp_path / "elsewhere")) == 1
