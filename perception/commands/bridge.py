"""From other frameworks: import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perception.commands.common import Json, Out, app, report


@app.command(epilog="Example: perception import-mmdet3d centerpoint_pillar02.py centerpoint.pth --out runs/centerpoint")
def import_mmdet3d(
    config: Annotated[Path, typer.Argument(help="Configuration of mmdet3d, a Python file; it is read, not run.")],
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of mmdet3d, a .pth file.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Import a trained network of mmdet3d: OUT is a run like those that `train` writes.

    Served: CenterPoint and PointPillars on nuScenes, on pillars. mmdet3d need not be installed.
    """
    from perception.mmdet3d.importing import import_checkpoint

    ours, network = import_checkpoint(config, checkpoint, out)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    report({"run": str(out), "name": ours.name, "parameters": parameters}, as_json)
    if not as_json:
        print(f"{out}: {ours.name}, {parameters:,} parameters")
