"""The Python runtime beside the C++ runtime, a drive with everything that can be wrong, and networks."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tessera_runtime as native
import torch
from exported import QUIET, checkpoint_of, modular, nano
from once import once
from recorded_engine import add_recorded_plan, golden_runs
from vocabulary import RIG

from deploy.bundle import Bundle
from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.runtime import Runtime
from perception.checkpoint import load_model, save_model
from perception.config import parse_config
from perception.frame import Conditions, Frame
from perception.grid import Reference
from perception.rig import Rig
from perception.sensors import native as native_inputs
from perception.state import NEXT, states_of
from perception.tasks import TASKS
from perception.tasks.task import add_prefix

MODULES: list[dict[str, object]] = [
    {"name": "rain", "kind": "low_rank", "slots": ["trunk.*"], "rank": 2, "when": ["rain"]},
    {"name": "blind", "kind": "rescale", "slots": ["fuse*"], "when": ["no-cameras"]},
    {"name": "tags", "kind": "film", "slots": ["trunk.*"]},
]


native_inputs.NATIVE = None  # else Python would use the library that it is compared with


class Recorded:
    """An engine whose latest inputs and outputs are kept."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.new_state = engine, engine.new_state
        self.latest: dict[str, np.ndarray] = {}
        self.state: Any = None

    def run(self, inputs: Any, state: Any = None) -> Any:
        outputs = self.engine.run(inputs, state)
        self.latest = {f"inputs/{name}": each.copy() for name, each in inputs.items()}
        self.latest |= {f"outputs/{name}": each.copy() for name, each in outputs.items()}
        self.state = state
        return outputs


class Python:
    """The Python runtime, as what the C++ runtime is compared with."""

    def __init__(self, path: Path) -> None:
        self.runtime = Runtime(path, checks=False)
        self.engines = [Recorded(network.engine) for network in self.runtime._networks]
        self.runtime._networks = [
            replace(network, engine=engine)  # type: ignore[type-var]
            for network, engine in zip(self.runtime._networks, self.engines, strict=True)
        ]
        observe = self.runtime.scene.observe

        def observed(frame: Frame) -> Conditions:
            self.believed = observe(frame)
            return self.believed

        self.runtime.scene.observe = observed  # type: ignore[method-assign]

    def step(self, frame: Frame) -> dict[str, np.ndarray]:
        """Arrays by the names of `tessera_get`; `weights` are those of `tessera_weight`."""
        for engine in self.engines:
            engine.latest = {}
        admitted = self.runtime.admit(frame)
        prediction, self.weights = self.runtime.perceive(admitted)
        (engine,) = (engine for engine in self.engines if engine.latest)
        arrays = engine.latest
        if engine.state is not None:
            arrays |= {NEXT + name: each for name, each in engine.state.read().items()}
        self.runtime.remember(admitted, prediction, self.weights)
        outputs = sorted(name.removeprefix("outputs/") for name in arrays if name.startswith("outputs/"))
        arrays["not_finite"] = np.array([prediction.not_finite.get(name, 0) for name in outputs], np.int64)
        for task, result in prediction.results.items():
            arrays |= add_prefix(task, TASKS[task].arrays(result))
        return arrays


def require_equal(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray], where: str) -> None:
    """Every array in every byte."""
    assert expected.keys() == actual.keys(), where
    for name, array in expected.items():
        found = actual[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape), f"{where}: {name}"
        assert found.tobytes() == np.ascontiguousarray(array).tobytes(), f"{where}: {name}"


def compare(path: Path, frames: Iterable[Frame], **given: str) -> int:
    """How many detections both runtimes find in the frames, in equal bytes; the C++ one is opened with `given`."""
    python, compared = Python(path), 0
    with native.Runtime(path, **given) as runtime:
        for frame in frames:
            expected = python.step(frame)
            actual = runtime.step(frame, python.believed.known())
            require_equal(expected, actual, f"{path.name}, frame {frame.token}")
            assert {name: runtime.weight(name) for name in python.weights} == python.weights
            compared += len(expected["detection/scores"])
    return compared


def drive(reference: Reference = "ego", rig: Rig = RIG) -> Iterator[Frame]:
    """A drive with everything that can be missing or wrong, a second drive, and times and poses that cannot be."""
    still = [synthetic_frame(reference, rig, seed) for seed in range(3)]
    rain, clear = Conditions(weather="rain", light="night"), Conditions(weather="clear")
    nothing, several = np.zeros((0, 5), np.float32), slice(None, None, 2)
    changes: list[dict[str, Any]] = [
        {}, {}, {"points": None}, {"cameras": {}}, {"points": None, "cameras": {}}, {"points": nothing},
        {"conditions": rain}, {"conditions": rain}, {"conditions": rain}, {"conditions": rain}, {"conditions": clear},
        {"damage": np.nan}, {"damage": np.inf}, {"damage": 1e30}, {"turn": np.nan}, {"turn": 2.0}, {"jump": 900.0},
        {"late": 5.0}, {"late": -2.0}, {"scene": "another"}, {"several": several}, {"flat": True}, {"mirror": True},
        {}, {"points": None}, {"points": None, "jump": 25.0}, {}, {"points": None}, {"points": None, "late": -0.1},
    ]  # fmt: skip
    time = 10_000_000
    for i, change in enumerate(changes):
        frame, pose, own = still[i % 3], np.eye(4), dict(change)
        time += int(1e6 * own.pop("late", 0.3))
        angle = 0.05 * i
        pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        pose[:3, 3] = [600 + 2.0 * i + own.pop("jump", 0.0), 1600 - 0.3 * i, 0.01 * i]
        if "turn" in own:
            pose[0, 0] = own.pop("turn")
        mount = frame.global_from_reference.copy()
        mount[2, 3] = 1.8 if reference == "lidar" else 0.0
        points, sweeps = frame.points, frame.sweep_of_point
        assert points is not None
        if "damage" in own:
            points = points.copy()
            points[::7, i % 5] = own.pop("damage")
        if "several" in own:
            points, sweeps = points[own["several"]], sweeps[own.pop("several")]
        if own.pop("flat", False):
            points = np.repeat(points[:100], 200, axis=0)
            sweeps = np.repeat(sweeps[:100], 200)
        cameras = {
            name: replace(each, global_from_ego=pose, image=each.image[: 900 - 7 * i, : 1600 - 3 * i])
            for name, each in frame.cameras.items()
        }
        if own.pop("mirror", False):
            first = next(iter(cameras))
            cameras[first] = replace(cameras[first], intrinsics=cameras[first].intrinsics * [[-1], [1], [1]])
        sweeps = sweeps if own.get("points", points) is points else sweeps[:0]
        yield replace(
            frame, timestamp=time, token=f"{i}", global_from_ego=pose, global_from_reference=pose @ mount,
            **{"scene": "drive", "points": points, "sweep_of_point": sweeps, "cameras": cameras} | own,
        )  # fmt: skip


def every_task() -> Bundle:
    """Five tasks, modules that are switched and that read conditions, and suppression."""

    def make(out: Path) -> None:
        content = modular("every", MODULES).model_dump(mode="json")
        content["tasks"] |= {
            "points": {"max_points": 3000, "channels": 8},
            "occupancy": {"x": [-12.8, 12.8], "y": [-12.8, 12.8], "cell": 1.6, "z": [-1.0, 5.4], "channels": 8},
            "conditions": {},
        }
        content["tasks"]["detection"]["suppression"] = {"threshold": 0.03, "kind": "circle", "within": "class"}
        config = parse_config(content, "every")
        run = checkpoint_of(config, spread=0.1)
        model: Any = load_model(run)[0]
        torch.manual_seed(0)
        for kind in model.head("conditions").kinds.values():  # as if fitted, with a limit that some frames are beyond
            kind.learned.fill_(True)
            kind.weights.normal_(0, 0.1)
            kind.centres.normal_(0, 0.1)
            kind.per_limit.fill_(0.1)
        save_model(run / "fitted", config, model)
        export(run / "fitted", out, [[], ["rain"], ["rain", "night"]], console=QUIET)

    return Bundle.load(once("bundle-every-task", make))


def rotated() -> Bundle:
    """With NMS by the overlap of rotated boxes, and pillars as mmdet3d chooses them."""

    def make(out: Path) -> None:
        content = nano().model_dump(mode="json") | {"name": "rotated", "modules": []}
        content["model"]["lidar"] |= {"overflow": "first", "max_pillars": 900}
        content["tasks"]["detection"]["suppression"] = {"threshold": 0.02, "kind": "rotated", "total": 50}
        export(checkpoint_of(parse_config(content, "rotated")), out, console=QUIET)

    return Bundle.load(once("bundle-rotated", make))


def with_recorded_plan(
    source: Bundle, path: Path, given: Iterable[Frame], boxes_off: float = 0
) -> list[tuple[Frame, tuple[str, ...]]]:
    """Copies the bundle, with the outputs of its golden frames and of these as the plan of `recorded_engine`.

    Args:
        boxes_off: m along x, in the outputs of the last golden frame.

    Returns:
        The frames, each with the conditions that are believed.
    """
    copied = Bundle.load(shutil.copytree(source.path, path))
    runs = golden_runs(copied)
    golden = len(runs)
    runs[-1]["detection/boxes"][..., 0] += boxes_off
    python, frames = Python(copied.path), []
    for frame in given:
        arrays = python.step(frame)
        runs.append(
            {name.removeprefix("outputs/"): each for name, each in arrays.items() if name.startswith("outputs/")}
        )
        runs[-1] |= {name: arrays[name] for name in states_of(arrays).values()}
        frames.append((frame, python.believed.known()))
    add_recorded_plan(copied, runs, repeated=golden)
    return frames


def write_frames(frames: Iterable[Frame], folder: Path) -> list[str]:
    """Write points and poses for deploy/cpp/examples/run_folder.c; returns the lines of frames.txt."""
    lines = []
    for frame in frames:
        if frame.points is not None:  # else the LiDAR is missing, and so is the file
            frame.points.tofile(folder / f"{frame.token}.bin")
        poses = [*frame.global_from_reference.ravel(), *frame.global_from_ego.ravel()]
        lines.append(" ".join([frame.token, str(frame.timestamp), *map(repr, map(float, poses))]))
    (folder / "frames.txt").write_text("\n".join(lines))
    return lines
