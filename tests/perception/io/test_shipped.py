"""Files that come with the package are found by name from any folder, and a file at hand goes before them."""

from pathlib import Path

import pytest
from commands import one_line_error, refuses
from repository import ROOT

from perception.config import load_config
from perception.io.shipped import named_file, shipped_files

CONFIGS = ROOT / "configs"


def test_every_file_has_a_name_of_its_own() -> None:
    kinds = ("train", "adapt", "replay", "rig", "taxonomy", "world", "evidence")
    found = [path for kind in kinds for path in shipped_files(kind).values()]
    assert sorted(found) == sorted(CONFIGS.rglob("*.yaml"))


def test_a_name_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_file("train", "tiny") == CONFIGS / "tiny.yaml"
    assert named_file("train", "nuscenes/fusion") == named_file("train", "fusion") == CONFIGS / "nuscenes/fusion.yaml"
    assert load_config(named_file("train", "tiny")).name == "tiny"
    Path("tiny").mkdir()  # a run, perhaps
    assert named_file("train", "tiny") == CONFIGS / "tiny.yaml"
    Path("fusion").write_text("name: mine")
    assert load_config(named_file("train", "fusion")).name == "mine"
    assert named_file("evidence", "own.yaml", tmp_path) == tmp_path / "own.yaml"
    with one_line_error(exactly="gate: no such YAML file"):
        named_file("gates", "gate")
    with one_line_error(says="did you mean nuscenes/lidar?"):
        named_file("train", "nuscenes/lidra")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train tny --data . --out o", "tny: no such YAML file, nor one that comes with the package: camera, "),
        ("train configs/tiny.yaml --data . --out o", "tiny, without suffix, is the one that comes with the package"),
        ("adapt run --task points --config point --data . --out o", "did you mean points?"),
        ("simulate o --rig trukc", "did you mean truck?"),
        ("simulate o --taxonomy nuscene", "did you mean nuscenes?"),
        ("drive b --from zenoh --evidence signal", "did you mean signals?"),
        ("replay d --bundle b --config recognized --out o", "did you mean recognised?"),
        ("judge r --gates s3://bucket/gates.yaml", "is in an object store; copy it here"),
    ],
)
def test_a_name_that_is_unknown_is_one_line(
    command: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refuses(*command.split())
