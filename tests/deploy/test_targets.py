"""What each target takes, and the table that shows it."""

import json
from pathlib import Path

import pytest
from commands import refuses, succeeds
from exported import QUIET, bundle
from hypothesis import given
from hypothesis import strategies as st

from deploy.build import build
from deploy.targets import TARGETS, Versions, find_target, same_compiler
from perception.errors import InputError

NAMES = ["cpu", "rtx-ampere", "rtx-ada", "rtx-blackwell", "orin", "thor", "drive-orin", "drive-thor"]


@pytest.mark.parametrize(
    ("version", "inside"),
    [("10.2.9", False), ("10.3.0", True), ("10.13.3.9", True), ("11.0.0", False), ("9.9", False), ("unknown", False)],
)
def test_versions(version: str, inside: bool) -> None:
    assert (version in Versions((10, 3), (11, 0))) is inside


def test_the_table_shows_every_target() -> None:
    targets = json.loads(succeeds("build", "--list", "--json"))["targets"]
    assert [target["target"] for target in targets] == NAMES == list(TARGETS)
    by_name = {target["target"]: target for target in targets}
    assert {name for name in NAMES if by_name[name]["dla_cores"]} == {"orin", "drive-orin"}
    assert {name for name in NAMES if by_name[name]["compiles_on"] == "the device"} == {*NAMES[4:]}
    assert by_name["drive-thor"]["compute_capabilities"] == [10.1, 11.0]
    shown = succeeds("build", "--list")
    for target in TARGETS.values():
        assert target.name in shown
        assert str(target.versions) in shown


def test_every_target_takes_what_is_exported() -> None:
    for target in TARGETS.values():
        target.require_acceptable(bundle().manifest.precision, bundle().manifest.opset)


def test_a_target_refuses_what_its_compiler_does_not_take() -> None:
    with pytest.raises(InputError, match="orin: takes fp32, fp16, int8, but the bundle is fp8"):
        find_target("orin").require_acceptable("fp8", 18)
    with pytest.raises(InputError, match="orin: takes ONNX opsets 9 to 20, but the bundle has 21"):
        find_target("orin").require_acceptable("fp32", 21)


@pytest.mark.parametrize("target", [name for name in NAMES if "orin" not in name])
def test_a_dla_is_refused_where_there_is_none(target: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{target}: has no DLA; leave out --dla \(orin and drive-orin have one\)$"):
        build(bundle().path, target, QUIET, dla=True, out=tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_a_package_is_only_for_targets_that_compile_themselves(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cpu: compiles here, into the bundle; --out is for"):
        build(bundle().path, "cpu", QUIET, out=tmp_path / "package")


def test_build_needs_a_bundle_and_a_target() -> None:
    for arguments in ([], [str(bundle().path)], ["--target", "cpu"]):
        takes = "build takes a bundle and its --target; `perception build --list` shows the targets"
        assert refuses("build", *arguments) == f"perception: {takes}\n"


def numbered(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(0, 20)] * count)


@given(numbered(3), st.lists(st.integers(0, 200), max_size=2), st.lists(st.integers(0, 200), max_size=2))
def test_one_release_of_a_compiler_is_one_however_many_numbers_it_tells(
    release: tuple[int, ...], more: list[int], others: list[int]
) -> None:
    """trtexec says 10.3.0, Python's module 10.3.0.30."""
    one, other = (".".join(map(str, (*release, *numbers))) for numbers in (more, others))
    assert same_compiler(f"tensorrt {one}", f"tensorrt {other}")
    assert not same_compiler(f"tensorrt {one}", f"tensorrt_rtx {other}")


@given(numbered(3), numbered(3), st.integers(0, 200))
def test_another_patch_is_another_compiler(a: tuple[int, ...], b: tuple[int, ...], build: int) -> None:
    one, other = (".".join(map(str, version)) for version in (a, b))
    assert same_compiler(f"tensorrt {one}", f"tensorrt {other}.{build}") == (a == b)


def test_versions_that_are_no_numbers() -> None:
    assert same_compiler("tensorrt 10.3", "tensorrt 10.3.0")
    assert same_compiler("tensorrt of mine", "tensorrt of mine")
    assert not same_compiler("tensorrt of mine", "tensorrt 10.3.0")
