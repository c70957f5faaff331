"""Whatever is in a bundle or in a frame, the C++ runtime refuses it in one line or runs."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tessera_runtime as native
from both_runtimes import drive, every_task, with_recorded_plan
from exported import remembering, seal
from recorded_engine import TARGET

from perception.frame import Frame

MUTATIONS = int(os.environ.get("TESSERA_MUTATIONS", "120"))  # of all tests here
pytestmark = [pytest.mark.slow("exports networks"), pytest.mark.parametrize("network", [remembering, every_task])]
VALUES = [None, True, 0, -1, 1, 2, 7, 0.5, 1e-300, 1e300, 2**31, 2**62, -(2**63), "", "rain", "a\nb", "no-lidar",
          "int64", "uint8", "U8", "F64", [], {}, [0], [2**40, 2**40], json.loads("[" * 150 + "]" * 150)]  # fmt: skip
NUMBERS = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-300, 1e30, 3e38, 1e300, np.nan, np.inf, -np.inf]
WORDS = ["", "base", "rain", "night", "no-lidar", "no-cameras", "lidar", "x" * 5000, "a\nb", "é"]
PARTS: dict[str, list[Any]] = {
    "points": [None], "sweep_of_point": [0, 1, 1023, 1025, 300_000], "cameras": [None], "global_from_ego": [None],
    "global_from_reference": [None], "scene": WORDS, "timestamp": [-(2**63), -1, 0, 1, 2**62 - 1, 2**62, 2**63 - 1],
}  # fmt: skip


def change_json(content: Any, rng: np.random.Generator) -> None:
    """Another value at a random place, no value, or one twice."""
    while True:
        key = rng.choice([*content]) if isinstance(content, dict) else int(rng.integers(len(content)))
        child = content[key]
        if not isinstance(child, dict | list) or not child or rng.random() < 0.1:
            break
        content = child
    if rng.random() < 0.15:
        del content[key]
    elif isinstance(content, list) and rng.random() < 0.3:
        content.append(child)
    else:
        content[key] = [*VALUES, child * 2 if isinstance(child, int | float) else child][rng.integers(len(VALUES) + 1)]


def change_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    start, more = rng.integers(len(content)), rng.choice([0, 0x7F, 0x80, 0xFF, *rng.integers(256, size=4)], 8)
    rest = content[start + rng.integers(9) :] if rng.random() < 0.9 else b""
    return content[:start] + bytes(more.tolist())[: rng.integers(9)] + rest


def change_file(name: str, content: bytes, rng: np.random.Generator) -> bytes:
    """JSON stays JSON in most cases, and so does the header of a safetensors file."""
    if name.endswith((".onnx", ".plan", ".yaml", "SUMS")) or rng.random() < 0.3:
        return change_bytes(content, rng)
    start = 8 + int.from_bytes(content[:8], "little") if name.endswith(".safetensors") else 0
    parsed = json.loads(content[8:start] if start else content)
    change_json(parsed, rng)
    text = json.dumps(parsed, indent=None if start else 2, ensure_ascii=False).encode()
    return len(text).to_bytes(8, "little") + text + content[start:] if start else text


def open_runtime(path: Path) -> native.Runtime:
    return native.Runtime(path, TARGET, plugin=str(Path(os.environ[native.LIBRARY]).with_name("librecorded_engine.so")))


def refusal(call: Callable[[], object]) -> str:
    """What the runtime says, in one line; "" if it does what it is told."""
    try:
        call()
    except native.Failure as error:
        return str(error)
    return ""


def test_a_changed_file_is_refused_in_one_line_that_names_it(network: Callable[[], Any], tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with_recorded_plan(network(), path, list(drive())[:1])
    names = sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file())
    names += ["manifest.json"] * len(names) + ["golden.safetensors"] * 6
    sums = (path / "SHA256SUMS").read_bytes()
    for seed in range(MUTATIONS // 4):
        rng = np.random.default_rng(seed)
        name, seals = str(rng.choice(names)), rng.random() < 0.8
        changed = change_file(name, content := (path / name).read_bytes(), rng)
        (path / name).write_bytes(changed)
        if seals and name != "SHA256SUMS":
            seal(path)
        said = refusal(lambda: open_runtime(path).close())
        unchecked = changed == content or name == f"engines/{TARGET}.json"  # which has no hash, but may be signed
        assert said or seals or unchecked, f"seed {seed}: accepts {name}"
        assert not said or (str(path) in said and "\n" not in said), f"seed {seed}: {said}"
        (path / name).write_bytes(content)
        (path / "SHA256SUMS").write_bytes(sums)


def change_numbers(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    changed = array.copy()
    places = rng.integers(array.size, size=rng.integers(1, 20)) if array.size and rng.random() < 0.9 else slice(None)
    with np.errstate(over="ignore"):
        changed.reshape(-1)[places] = np.float64(rng.choice(NUMBERS)).astype(array.dtype)
    return changed


def change_frame(frame: Frame, rng: np.random.Generator) -> Frame:
    """One part is another; of the points either some numbers, or the number of points, with any bits."""
    name, values = list(PARTS.items())[rng.integers(len(PARTS))]
    changes: dict[str, Any] = {name: values[rng.integers(len(values))]}
    if name == "sweep_of_point":
        count = changes[name]
        changes["points"] = rng.integers(2**32, size=(count, 5), dtype=np.uint32).view(np.float32)
        changes[name] = rng.integers(256, size=count, dtype=np.uint8)
    elif name == "cameras":
        changes[name] = dict(frame.cameras)
        for chosen in rng.choice([*frame.cameras], 2) if frame.cameras else ():
            camera = changes[name].pop(chosen, frame.cameras[chosen])
            part = str(rng.choice(["image", "intrinsics", "ego_from_camera", "global_from_ego"]))
            height, width = rng.choice([0, 1, 2, 15, 63, 65, 700, 32767, 32768], 2)
            image = np.zeros((min(height, 2**21 // max(1, width)), width, 3), np.uint8)
            other = image if part == "image" else change_numbers(getattr(camera, part), rng)
            changes[name][str(rng.choice([chosen, *WORDS]))] = replace(camera, **{part: other})
    elif name not in ("timestamp", "scene"):
        changes[name] = change_numbers(getattr(frame, name), rng)
    return replace(frame, **changes)


def test_after_any_frame_the_next_drive_is_as_in_a_new_runtime(network: Callable[[], Any], tmp_path: Path) -> None:
    good, other = list(drive())[:2]
    with_recorded_plan(network(), tmp_path / "bundle", [good])
    with open_runtime(tmp_path / "bundle") as runtime:
        fresh = {name: array.tobytes() for name, array in runtime.step(good).items()}
        for seed in range(MUTATIONS // 4):
            rng = np.random.default_rng(seed)
            frame = change_frame(change_frame(other, rng), rng)
            said = refusal(partial(runtime.step, frame, list(map(str, rng.choice(WORDS, rng.integers(4))))))
            assert "\n" not in said, f"seed {seed}: {said}"
            runtime.restart()
            found = {name: array.tobytes() for name, array in runtime.step(good).items()}
            assert found == fresh, f"seed {seed}"
