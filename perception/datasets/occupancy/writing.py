"""Writes the occupancy of recorded drives, as Occ3D lays it out, into a dataroot. numpy and scipy only."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.labels import GRID, occ3d_arrays, occ3d_file
from perception.datasets.occupancy.annotation import annotate
from perception.datasets.occupancy.drive import gather
from perception.errors import InputError
from perception.files import make_folder, write_atomically

_FOLDER = "gts"


def annotate_drives(
    source: Keyframes, selectors: Sequence[str], sweeps: int, out: Path, advance: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Annotate the voxels of keyframes, and make `out` a dataroot that has them beside the recorded data.

    What is annotated is gathered from the same keyframes.

    Args:
        selectors: as in `Drives.samples`.
        sweeps: number of earlier LiDAR sweeps to gather with each keyframe.
        out: the source's dataroot itself, or a folder for a new one, which links to the files of the source.
        advance: called twice for each keyframe.

    Returns:
        Numbers of `drives`, of `keyframes` that are annotated, and of those `without_lidar`.

    Raises:
        InputError: the taxonomy has no point classes, a keyframe has no boxes, no keyframe has points, or `out` is
            another data set.
    """
    if not source.taxonomy.point_classes:
        raise InputError(
            f"taxonomy {source.taxonomy.name}: has no `point_classes`, which are those of voxels; add some"
        )
    counts = {"drives": 0, "keyframes": 0, "without_lidar": 0}
    link_dataroot(source.dataroot, make_folder(out))
    for scene in source.scenes(selectors=selectors):
        samples = [each for each in source.samples(selectors=selectors) if source.scene(each) == scene]
        written = _annotate_drive(source, samples, sweeps, out, advance)
        counts["drives"] += written > 0
        counts["keyframes"] += written
        counts["without_lidar"] += len(samples) - written
    if not counts["keyframes"]:
        raise InputError(f"{source.dataroot}: no LiDAR file of the {counts['without_lidar']} keyframes is there")
    return counts


def _annotate_drive(
    source: Keyframes, samples: Sequence[str], sweeps: int, out: Path, advance: Callable[[], None]
) -> int:
    """The number of keyframes that are annotated."""
    drive, written = gather(source, samples, sweeps, GRID, advance), 0
    for sample in samples:
        frame = source.frame(sample)
        if drive is not None and frame.points is not None:
            content = io.BytesIO()
            np.savez_compressed(content, **occ3d_arrays(annotate(frame, source, drive, GRID)))
            file = occ3d_file(out, source.scene(sample), sample)
            make_folder(file.parent)
            write_atomically(file, content.getvalue())
            written += 1
        advance()
    return written


def link_dataroot(data: Path, out: Path) -> None:
    """Link to all files and folders of a dataroot, but its voxels, from another folder; nothing where both are one.

    Raises:
        InputError: `out` has something else of the same name, or links cannot be made there.
    """
    if out.samefile(data):
        return
    if out.resolve().is_relative_to(data.resolve()):
        raise InputError(f"{out}: is in the dataroot {data}; give that itself as --out, or a folder outside")
    for entry in sorted(data.iterdir()):
        link = out / entry.name
        if entry.name == _FOLDER or (link.exists() and link.samefile(entry)):
            continue
        try:
            link.symlink_to(entry.resolve(), entry.is_dir())
        except OSError as error:
            raise InputError(
                f"{link}: cannot become a link to {entry} ({error.strerror}); choose another --out"
            ) from None
