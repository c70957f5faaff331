"""Drives, bundles and results in an object store."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import refuses, succeeds
from fleet_drives import write_scenes
from object_store import BUCKET, Breaking, client, objects, served, upload
from refusals import one_line_error
from test_player import SAME, small

from perception import storage
from perception.storage import fetched, mirror_of, read, results

URL = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("cache")) as address:
        yield address


@pytest.fixture(scope="module")
def drives(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Also in the store, beside the bundle."""
    root = tmp_path_factory.mktemp("drives") / "tiny"
    write_scenes(root, 2, 4)
    upload(root, "drives")
    upload(small(), "bundle")
    return root


def test_a_replay_reads_from_it_and_writes_to_it(drives: Path, tmp_path: Path) -> None:
    options = ("--fault", "drop:lidar@0-0.6", "--json")
    for jobs in (0, 2):
        out = f"{URL}/out{jobs}"
        given = ("replay", f"{URL}/drives", "--bundle", f"{URL}/bundle", "--out", out, *options, "--jobs", jobs)
        assert json.loads(succeeds(*given))["frames"] == 8
    succeeds("replay", drives, "--bundle", small(), "--out", tmp_path / "here", *options)
    here = {each.name: each.read_bytes() for each in (tmp_path / "here").iterdir()}
    for jobs in (0, 2):
        there = objects(f"out{jobs}")
        assert there.keys() == here.keys()
        assert {name: there[name] for name in SAME} == {name: here[name] for name in SAME}


def test_only_files_of_selected_scenes_are_fetched(drives: Path) -> None:
    upload(drives, "other")
    succeeds("replay", f"{URL}/other", "--bundle", small(), "--out", f"{URL}/one", "--scenes", "scene-0001")
    local = mirror_of(Path(f"{URL}/other"))
    assert len([*local.glob("samples/LIDAR_TOP/*")]) == 4
    assert len([*drives.glob("samples/LIDAR_TOP/*")]) == 8


def test_a_refused_replay_leaves_no_verdict_of_before(drives: Path, tmp_path: Path) -> None:
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates:\n  - {metric: dropped, at_most: 0}\n")
    given = ("replay", f"{URL}/drives", "--bundle", f"{URL}/bundle", "--out", f"{URL}/judged", "--gates", gates)
    succeeds(*given)
    assert {"verdict.json", "replay.json"} <= objects("judged").keys()
    client().put_object(Bucket=BUCKET, Key="bundle/manifest.json", Body=b"{}")
    refuses(*given)
    upload(small(), "bundle")
    left = objects("judged")
    assert "verdict.json" not in left
    assert b"<error" in left["junit.xml"]


def test_a_broken_connection_is_retried(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {f"{i}.bin": os.urandom(200_000) for i in range(8)}
    for name, content in contents.items():
        client().put_object(Bucket=BUCKET, Key=f"large/{name}", Body=content)
    proxy = Breaking(server, every=2, after=100_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    storage._system(mirror_of(Path(URL) / "large")).clear_instance_cache()
    local = fetched(Path(f"{URL}/large"))
    assert {each.name: each.read_bytes() for each in local.iterdir()} == contents
    with results(Path(f"{URL}/put"), ("last",)) as folder:
        folder.mkdir(parents=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    proxy.close()
    monkeypatch.undo()
    assert proxy.broken > 0
    storage._system(local).clear_instance_cache()
    assert objects("put") == contents


def test_what_changed_in_the_store_is_fetched_again(server: str) -> None:
    folder = Path(f"{URL}/changing")
    client().put_object(Bucket=BUCKET, Key="changing/samples/later", Body=b"later")
    for i in range(2):
        client().put_object(Bucket=BUCKET, Key="changing/same-size", Body=str(i).encode())
        client().put_object(Bucket=BUCKET, Key=f"changing/only-{i}", Body=b"")
        local = fetched(folder)
        assert (local / "same-size").read_bytes() == str(i).encode()
        assert [each.name for each in local.iterdir() if each.name.startswith("only")] == [f"only-{i}"]
        client().delete_object(Bucket=BUCKET, Key=f"changing/only-{i}")
        assert read(local / "samples" / "later") == b"later"
    with pytest.raises(FileNotFoundError):
        read(local / "samples" / "absent")


def test_a_half_written_file_is_not_taken_for_whole(server: str) -> None:
    """A process that was killed while it fetched leaves no file at its place; one cut later has no version."""
    client().put_object(Bucket=BUCKET, Key="cut/file", Body=b"whole")
    local = fetched(Path(f"{URL}/cut"))
    version = next(storage.cache().glob("versions/**/cut/file"))
    version.unlink()
    (local / "file").write_bytes(b"who")
    assert (fetched(Path(f"{URL}/cut")) / "file").read_bytes() == b"whole"


def test_a_name_that_leaves_its_folder_is_refused(server: str) -> None:
    client().put_object(Bucket=BUCKET, Key="hostile/inside", Body=b"")
    local = fetched(Path(f"{URL}/hostile"))
    with one_line_error(r"/\.\./\.\./outside: an object's name leaves its folder"):
        storage._fetch(local / ".." / ".." / "outside", {"size": 0})
    assert not (local.parents[1] / "outside").exists()


def test_mistakes_are_one_line(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_line_error(rf"{URL}/nothing: there is no such object or folder"):
        fetched(Path(f"{URL}/nothing"))
    assert f"{URL}/absent" in refuses("replay", f"{URL}/absent", "--bundle", small(), "--out", f"{URL}/out")
    monkeypatch.setattr(storage, "WAIT", 0.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    storage._system(mirror_of(Path(URL) / "x")).clear_instance_cache()
    with one_line_error(rf"{URL}/x: cannot be reached .* check address and credentials"):
        fetched(Path(f"{URL}/x"))
