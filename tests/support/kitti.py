"""KITTI's real drive as a recording that the library `rosbags` writes, and the network of KITTI for its car."""

import subprocess
import sys
from pathlib import Path

from commands import succeeds
from mmdet3d_networks import trained_kitti
from once import once
from repository import ROOT, recorded

from perception.mmdet3d.importing import import_pointpillars

SWEEPS = 24
# The area that is nearest to the car, so that a frame takes a tenth of the time.
_SMALLER = (("69.12", "20.48"), ("39.68", "10.24"), ("max_pillars: 16000", "max_pillars: 4000"))


def drive_of_kitti(period: float, jitter: float = 0.0005, *options: object) -> Path:
    """The folder of a rosbag2 of the drive; times in seconds, further options as in kitti_bag.py."""
    data = recorded("kitti_raw", "poses.txt")
    writer = recorded("kitti_raw", "../../tools/kitti_bag.py") / "../../tools/kitti_bag.py"
    given = [str(each) for each in ("--period", period, "--jitter", jitter, *options)]

    def write(out: Path) -> None:
        subprocess.run([sys.executable, str(writer), str(out), *given], check=True, stdout=subprocess.DEVNULL)

    assert data.exists()
    return once("_".join(("kitti-drive", *given)), write)


def topics_of_kitti() -> Path:
    return recorded("kitti_raw", "topics.yaml") / "topics.yaml"


def bundle_of_kitti() -> Path:
    """PointPillars of KITTI on a small grid, exported for the car of the drive with the statistics of its recording."""
    rig = recorded("kitti_raw", "rig.yaml") / "rig.yaml"
    text = (ROOT / "configs" / "kitti" / "pointpillars.yaml").read_text().replace("rig: pandaset_64", f"rig: {rig}")
    for old, new in _SMALLER:
        text = text.replace(old, new)

    def imported(out: Path) -> None:
        out.mkdir()
        (out / "small.yaml").write_text(text)
        import_pointpillars(out / "small.yaml", trained_kitti(), out / "run")

    measured = ("--calibrate", drive_of_kitti(0.1035), "--topics", topics_of_kitti())
    run = once("kitti-run", imported) / "run"
    return once("kitti-bundle", lambda out: succeeds("export", run, "--out", out, *measured))
