"""What a runtime in any language must know besides the network: sections of the manifest. No torch here.

docs/bundle_format.md says what each number is for. A manifest with other numbers than those of this software is refused
(`deploy.manifest`), so none of them can change in one runtime alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from deploy import golden, state
from perception.grid import Reference
from perception.io.section import Section
from perception.scene import admission
from perception.sensors.camera import picture
from perception.sensors.inputs import PRESENCE, InputSpec
from perception.sensors.lidar.sweeps import OLDEST, ROOF
from perception.sensors.state import RIGID
from perception.tasks.task import Task
from perception.taxonomy import Taxonomy


class PillarRules(Section):
    """How points become pillars; cells are rows (along y) times columns (along x)."""

    rows: int
    columns: int
    cell: float  # m
    x: tuple[float, float]  # m; a point is inside from the first to before the second
    y: tuple[float, float]
    z: tuple[float, float]
    most: int  # pillars
    points: int  # of a pillar: the first ones in the order of the frame
    overflow: Literal["fullest", "first"]  # the pillars that stay if there are more


class SweepRules(Section):
    """Which points a frame has, beside those of the keyframe's sweep."""

    most: int  # earlier sweeps of each LiDAR
    oldest: float  # s before the frame
    own: float  # m from the sensor along x and along y: nearer points are of the vehicle, where the rig has no `own`


class PictureRules(Section):
    """How recorded pictures become the network's."""

    cameras: tuple[str, ...]  # in the order of the input `images`
    height: int
    width: int
    steps: int  # of a pixel, to which places between pixels are rounded


class AdmissionRules(Section):
    """What of a frame is used; what is not counts as missing."""

    rigid: float  # largest entry of R R^T - 1 of a rotation R
    upright: float  # least z of the vehicle's z axis
    far: float  # m or pixels, which no number of a matrix reaches
    narrowest: float  # focal length in sides of the picture
    largest: int  # pixels, side of a picture
    state_rigid: float  # as `rigid`, of the motion between two frames


class Preprocessing(Section):
    """From a frame to the engine's inputs."""

    reference: Reference  # frame of reference of points, boxes and grids
    sweeps: SweepRules | None
    pillars: PillarRules | None
    points: int  # places for single points of the keyframe; 0: no task reads them
    pictures: PictureRules | None
    admission: AdmissionRules

    @staticmethod
    def of(spec: InputSpec) -> Preprocessing:
        grid, sweeps, pillars, pictures = spec.grid, None, None, None
        if spec.lidar is not None:
            rows, columns = grid.shape
            sweeps = SweepRules(most=spec.lidar.sweeps, oldest=OLDEST, own=ROOF)
            pillars = PillarRules(
                rows=rows,
                columns=columns,
                cell=grid.cell,
                x=grid.x,
                y=grid.y,
                z=grid.z,
                most=spec.lidar.max_pillars,
                points=spec.lidar.points_per_pillar,
                overflow=spec.lidar.overflow,
            )
        if spec.camera is not None:
            size, cameras = spec.camera.image, spec.rig.sensors.cameras
            pictures = PictureRules(cameras=cameras, height=size.height, width=size.width, steps=picture.STEPS)
        rules = AdmissionRules(
            rigid=admission.RIGID,
            upright=admission.UPRIGHT,
            far=admission.FAR,
            narrowest=admission.NARROWEST,
            largest=admission.LARGEST,
            state_rigid=RIGID,
        )
        return Preprocessing(
            reference=grid.reference,
            sweeps=sweeps,
            pillars=pillars,
            points=spec.points,
            pictures=pictures,
            admission=rules,
        )


class Steering(Section):
    """From what is known to the inputs `route` and `conditions`."""

    # Fact -> input: it holds where a number of the input is not zero; otherwise no-FACT does.
    sensors: dict[str, str]
    values: tuple[str, ...]  # of the input `conditions`, in its order; empty for a network without it


class GoldenRules(Section):
    """How engines are compared on golden frames, beside the tolerances."""

    around: float = golden.AROUND  # m, where another detection may take the place of one
    state_step: int = state.STEP  # rows and columns from one compared cell of a state to the next
    grey_levels: int = golden.GREY_LEVELS  # by which a pixel of a picture may differ
    rounded: float = golden.ROUNDED  # share of a picture's pixels that may differ more
    close: float = golden.CLOSE  # relative and absolute difference of other numbers


def contract_of(
    spec: InputSpec, tasks: Mapping[str, Task[Any]], inputs: Sequence[str], taxonomy: Taxonomy
) -> dict[str, Any]:
    """The sections of a network's manifest, by name.

    Args:
        inputs: names of the network's.
    """
    sensors = {fact: name for fact, name in PRESENCE.items() if name in inputs}
    values = taxonomy.condition_values if "conditions" in inputs else ()
    return {
        "preprocessing": Preprocessing.of(spec),
        "steering": Steering(sensors=sensors, values=values),
        "postprocessing": {name: task.postprocessing() for name, task in tasks.items()},
        "golden": GoldenRules(),
    }
