"""Compressed rosbag2 recordings, by file and by message, give the frames of the ones that are not."""

from pathlib import Path

import pytest
from recordings import TINY, assert_equal_frames, make_log, nuscenes_topics
from refusals import one_line_error
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from vocabulary import RIG

from deploy.replay.sources.recorded_drive import RecordedDrive
from perception.config import CameraBranch, Lidar
from perception.grid import BevGrid
from perception.sensors.inputs import InputSpec

SPEC = InputSpec(BevGrid(), Lidar(sweeps=1), CameraBranch(), RIG)


def compressed(source: Path, out: Path, mode: CompressionMode, storage: StoragePlugin) -> Path:
    """The messages of a rosbag2 again, as a recorder with compression writes them."""
    writer = Writer(out, version=9, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with Reader(source) as reader, writer:
        there = {
            each.id: writer.add_connection(
                each.topic, each.msgtype, msgdef=each.msgdef.data, rihs01=each.digest, serialization_format="cdr"
            )
            for each in reader.connections
        }
        for connection, time, data in reader.messages():
            writer.write(there[connection.id], time, data)
    return out


@pytest.fixture
def plain(tiny_root: Path, tmp_path: Path) -> Path:
    make_log(tiny_root, TINY, tmp_path / "plain", "sqlite3")
    return tmp_path / "plain"


@pytest.mark.parametrize(
    ("mode", "storage"),
    [
        (CompressionMode.FILE, StoragePlugin.SQLITE3),
        (CompressionMode.FILE, StoragePlugin.MCAP),
        (CompressionMode.MESSAGE, StoragePlugin.SQLITE3),
    ],
)
def test_a_compressed_recording_gives_the_same_frames(
    plain: Path, tmp_path: Path, mode: CompressionMode, storage: StoragePlugin
) -> None:
    small = compressed(plain, tmp_path / "small", mode, storage)
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in (small, plain)]
    assert sizes[0] < sizes[1]
    drives = [RecordedDrive(folder, nuscenes_topics(), SPEC) for folder in (small, plain)]
    assert len(drives[0]) == len(drives[1]) == 3
    for ours, theirs in zip(*(drive.frames() for drive in drives), strict=True):
        assert_equal_frames(ours, theirs)
        assert len(ours.cameras) == 6
    assert drives[0].counts.summary() == drives[1].counts.summary()


def test_a_truncated_archive_is_told_in_one_line(plain: Path, tmp_path: Path) -> None:
    small = compressed(plain, tmp_path / "small", CompressionMode.FILE, StoragePlugin.SQLITE3)
    archive = next(small.glob("*.zstd"))
    archive.write_bytes(archive.read_bytes()[:-100])
    with one_line_error("cannot read the recording"):
        RecordedDrive(small, nuscenes_topics(), SPEC)
