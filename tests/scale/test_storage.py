"""Drives, bundles and results in an object store."""

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
from commands import one_line_error, refuses, succeeds
from infos import old_infos, open_tiny, write_infos
from object_store import Breaking, Store, serve
from replays import SAME, small
from tiny import write_scenes, write_tiny

from perception.datasets.infos import Infos
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.io.stores import fetch, mirror_of, read_file, sync_folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with serve(tmp_path_factory.mktemp("cache")) as store:
        yield store


@pytest.fixture(scope="module")
def drives(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Also in the store, beside the bundle."""
    root = tmp_path_factory.mktemp("drives") / "tiny"
    write_scenes(root, 2, 4)
    store.upload(root, "drives")
    store.upload(small(), "bundle")
    return root


def test_a_replay_reads_from_it_and_writes_to_it(store: Store, drives: Path, tmp_path: Path) -> None:
    options = ("--fault", "drop:lidar@0-0.6", "--json")
    given = ("replay", f"{store.url}/drives", "--bundle", f"{store.url}/bundle", *options)
    for jobs in (0, 2):
        assert json.loads(succeeds(*given, "--out", f"{store.url}/out{jobs}", "--jobs", jobs))["frames"] == 8
    succeeds("replay", drives, "--bundle", small(), "--out", tmp_path / "here", *options)
    here = {each.name: each.read_bytes() for each in (tmp_path / "here").iterdir()}
    for jobs in (0, 2):
        there = store.objects(f"out{jobs}")
        assert there.keys() == here.keys()
        assert {name: there[name] for name in SAME} == {name: here[name] for name in SAME}


def test_only_files_of_selected_scenes_are_fetched(store: Store, drives: Path) -> None:
    url = store.url
    store.upload(drives, "other")
    succeeds("replay", f"{url}/other", "--bundle", small(), "--out", f"{url}/one", "--scenes", "scene-0001")
    local = mirror_of(Path(f"{url}/other"))
    assert len([*local.glob("samples/LIDAR_TOP/*")]) == 4
    assert len([*drives.glob("samples/LIDAR_TOP/*")]) == 8


def frames_and_files(root: Path) -> tuple[dict[str, int], Collection[Path]]:
    """The frames of the tiny drive, and the files of the one between its first and second keyframe."""
    tables = NuScenesTables(root, "v1.0-tiny")
    moments = dict(tables.moments(tables.samples()[0]))
    recording = tables.recording(next(each for each in moments if each.startswith(f"{tables.samples()[1]}@")), Reads())
    assert isinstance(recording.lidars, dict)
    return moments, [recording.lidars[0][0].path, *(each.path for each in recording.pictures.values())]


def test_the_frames_of_a_drive_do_not_depend_on_what_was_fetched(store: Store, tmp_path: Path) -> None:
    """Those between keyframes are whose files the store has, although they are fetched when they are read."""
    write_tiny(root := tmp_path / "tiny", 3, between=True)
    whole, files = frames_and_files(root)
    store.upload(root, "between")
    local = fetch(Path(f"{store.url}/between"))
    assert not [*local.glob("s*/*/*")]
    moments, there = frames_and_files(local)
    assert moments == whole
    assert [each.relative_to(local) for each in there] == [each.relative_to(root) for each in files]
    for path in there:
        read_file(path)
        assert frames_and_files(local)[0] == whole
    lost = next(
        path for path in (root / "sweeps" / "CAM_FRONT").iterdir() if not (local / path.relative_to(root)).exists()
    )
    lost.unlink()
    store.remove(f"between/{lost.relative_to(root).as_posix()}")
    left = frames_and_files(local)[0]
    assert left == frames_and_files(root)[0]
    assert len(left) == len(whole) - 1


def test_infos_are_opened_before_a_file_of_theirs_was_fetched(store: Store, tmp_path: Path) -> None:
    write_tiny(root := tmp_path / "tiny")
    write_infos(root / "infos.pkl", old_infos(open_tiny(root)))
    store.put("alone/infos.pkl", (root / "infos.pkl").read_bytes())
    store.upload(root, "infos")
    infos = Infos(fetch(Path(f"{store.url}/infos/infos.pkl")))
    assert infos.frame(infos.samples()[0]).points is not None
    with one_line_error("infos.pkl", says="none of the 21 files that it names is there"):
        Infos(fetch(Path(f"{store.url}/alone/infos.pkl")))


def test_a_refused_replay_leaves_no_verdict_of_before(store: Store, drives: Path, tmp_path: Path) -> None:
    url = store.url
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates:\n  - {metric: dropped, at_most: 0}\n")
    given = ("replay", f"{url}/drives", "--bundle", f"{url}/bundle", "--out", f"{url}/judged", "--gates", gates)
    succeeds(*given)
    assert {"verdict.json", "replay.json"} <= store.objects("judged").keys()
    store.put("bundle/manifest.json", b"{}")
    refuses(*given)
    store.upload(small(), "bundle")
    left = store.objects("judged")
    assert "verdict.json" not in left
    assert b"<error" in left["junit.xml"]


def test_a_broken_connection_is_retried(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = store.url
    contents = {f"{i}.bin": os.urandom(200_000) for i in range(8)}
    for name, content in contents.items():
        store.put(f"large/{name}", content)
    proxy = Breaking(store.address, every=2, after=100_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    fsspec.filesystem("s3").clear_instance_cache()
    local = fetch(Path(f"{url}/large"))
    assert {each.name: each.read_bytes() for each in local.iterdir()} == contents
    with sync_folder(Path(f"{url}/put")) as folder:
        folder.mkdir(parents=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    proxy.close()
    monkeypatch.undo()
    assert proxy.broken > 0
    fsspec.filesystem("s3").clear_instance_cache()
    assert store.objects("put") == contents


def test_what_changed_in_the_store_is_fetched_again(store: Store) -> None:
    folder = Path(f"{store.url}/changing")
    store.put("changing/samples/later", b"later")
    for i in range(2):
        time.sleep(i)  # a store's times of change are whole seconds
        store.put("changing/same-size", str(i).encode())
        store.put(f"changing/only-{i}", b"only")
        local = fetch(folder)
        assert (local / "same-size").read_bytes() == str(i).encode()
        assert [each.name for each in local.iterdir() if each.name.startswith("only")] == [f"only-{i}"]
        store.remove(f"changing/only-{i}")
        assert read_file(local / "samples" / "later") == b"later"
    with pytest.raises(FileNotFoundError):
        read_file(local / "samples" / "absent")


def test_objects_that_stand_for_folders_are_none(store: Store) -> None:
    """As consoles make them; nor has a name a place in a folder that has nothing between two slashes."""
    for name in ("made/", "made/v1/", "made/v1/empty/", "made/samples/"):
        store.put(name, b"")
    for name in ("made/a.txt", "made/v1/b.txt", "made/samples/c", "made/v1//twice.txt"):
        store.put(name, name.encode())
    for _ in range(2):
        local = fetch(Path(f"{store.url}/made"))
        found = {each.relative_to(local).as_posix(): each.read_bytes() for each in local.rglob("*") if each.is_file()}
        assert found == {"a.txt": b"made/a.txt", "v1/b.txt": b"made/v1/b.txt"}


def test_a_name_that_leaves_its_folder_is_not_fetched(store: Store) -> None:
    store.put("hostile/inside", b"inside")
    store.put("hostile/a/../../outside", b"outside")
    local = fetch(Path(f"{store.url}/hostile"))
    assert [each.name for each in local.iterdir()] == ["inside"]
    with pytest.raises(FileNotFoundError):
        read_file(local / "a" / ".." / ".." / "outside")
    assert not (local.parent / "outside").exists()


def test_mistakes_are_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    url = store.url
    with one_line_error(rf"{url}/nothing: there is no such object or folder"):
        fetch(Path(f"{url}/nothing"))
    assert f"{url}/absent" in refuses("replay", f"{url}/absent", "--bundle", small(), "--out", f"{url}/out")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    with one_line_error(rf"{url}/x: cannot be read or written .* check address, credentials and free space"):
        fetch(Path(f"{url}/x"))
    monkeypatch.undo()
    fsspec.filesystem("s3").clear_instance_cache()


def simulated(root: object) -> str:
    drives = f"{root}/simulated"
    succeeds("simulate", drives, "--scenes", 4, "--samples", 1, "--conditions", "clear-day-boston", "--occupancy")
    return drives


def trained_and_scored(root: object, drives: str) -> None:
    assert refuses("simulate", drives).startswith(f"perception: {drives} already holds a v1.0-sim log")
    training = ("train", "configs/tiny.yaml", "--data", drives, "--out", f"{root}/run", "--steps", 1)
    succeeds(*training)
    assert "holds a trained run already" in refuses(*training)
    succeeds("export", f"{root}/run", "--out", f"{root}/exported")
    succeeds("verify", f"{root}/exported")
    succeeds("evaluate", f"{root}/exported", "--data", drives, "--out", f"{root}/scores")


@pytest.fixture(scope="module")
def every_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every step from drives to a bundle in a folder, for all stores to be compared with."""
    root = tmp_path_factory.mktemp("steps")
    trained_and_scored(root, simulated(root))
    return root


def test_every_step_from_drives_to_a_bundle_writes_to_it(store: Store, every_step: Path) -> None:
    """The files that it writes to a folder, and for drives their bytes; what was written does not stay here."""
    drives = simulated(store.url)
    assert not mirror_of(Path(drives)).exists()
    trained_and_scored(store.url, drives)
    for name in ("simulated", "run", "exported", "scores"):
        there = store.objects(name)
        files = [each for each in (every_step / name).rglob("*") if each.is_file() and "tfevents" not in each.name]
        here = {each.relative_to(every_step / name).as_posix(): each.read_bytes() for each in files}
        assert here.keys() == {each for each in there if "tfevents" not in each}
        if name == "simulated":
            assert here == there


def test_what_a_command_changes_and_removes_changes_in_the_store(store: Store) -> None:
    path = Path(f"{store.url}/changed")
    for names in (("kept", "old", "folder/old", "manifest.json"), ("kept", "new")):
        with sync_folder(path) as folder:
            for name in ("old", "folder/old", "manifest.json"):
                (folder / name).unlink(missing_ok=True)
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(name.encode())
        assert store.objects("changed") == {name: name.encode() for name in names}
    for name in names:
        store.remove(f"changed/{name}")
    with sync_folder(path) as folder:
        assert not folder.exists()


def test_what_describes_other_files_is_put_after_them(store: Store) -> None:
    """A transfer that fails leaves no description, not even that of before."""
    described = ("v1.0-sim/scene.json", "checkpoints/step-000001/checkpoint.json", "manifest.json")
    store.put("marked/manifest.json", b"before")
    with one_line_error("marked: cannot be read or written"), sync_folder(Path(f"{store.url}/marked")) as folder:
        for name in (*described, "a"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(name.encode())
        (folder / "z").symlink_to("/proc/self/mem")  # a file that cannot be read
    assert not {*described} & store.objects("marked").keys()
    (folder / "z").unlink()
    with sync_folder(Path(f"{store.url}/marked")):
        pass
    assert store.objects("marked").keys() == {*described, "a"}


def test_an_interrupted_command_goes_on_here_and_what_others_read_is_of_the_store(store: Store) -> None:
    path = Path(f"{store.url}/interrupted")
    store.put("interrupted/before", b"before")
    with suppress(KeyboardInterrupt), sync_folder(path) as folder:
        (folder / ".unfinished").write_bytes(b"here")
        raise KeyboardInterrupt
    assert [each.name for each in fetch(path).iterdir()] == ["before"]
    with sync_folder(path) as folder:
        assert sorted(each.name for each in folder.iterdir()) == [".unfinished", "before"]
    assert store.objects("interrupted") == {"before": b"before"}


def test_what_cannot_be_written_to_it_is_one_line_before_the_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no such bucket; what needs a folder of this machine; several machines do not train into it."""
    absent = "s3://absent"
    with one_line_error(f"{absent}/.*: there is no such bucket"), sync_folder(Path(f"{absent}/run")):
        raise AssertionError
    for command in (("sign", f"{store.url}/bundle", "--key", "key.pem"), ("demo", "--out", f"{store.url}/demo")):
        assert "is in an object store; copy it here" in refuses(*command)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with (
        one_line_error("a folder that all of them see, not an object store"),
        sync_folder(Path(f"{store.url}/run")),
    ):
        raise AssertionError
