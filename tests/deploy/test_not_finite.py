"""NaN and infinity out of an engine: left out, counted, and a gate that fails."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported import assert_equal, rewritten
from hypothesis import given
from hypothesis import strategies as st
from judged import gates
from onnx import helper
from replays import replayed, small
from tiny import token, write_tiny
from vocabulary import NUSCENES

from deploy.replay.journal import JOURNAL
from deploy.replay.results import Finished
from deploy.runtime import Runtime
from perception.errors import InputError
from perception.frame import Frame, Prediction
from perception.grid import BevGrid
from perception.tasks import tasks_of
from perception.tasks.conditions.task import ConditionsConfig
from perception.tasks.detection.config import DetectionHead
from perception.tasks.map.config import MapHead
from perception.tasks.result import to_prediction
from perception.tasks.task import part_of

FRAMES = 8
BLINDED = ("detection/boxes", "map/probabilities")
TASKS = tasks_of(
    {"detection": DetectionHead(), "map": MapHead(), "conditions": ConditionsConfig()}, BevGrid(), NUSCENES
)


def blinded(path: Path) -> Path:
    """The bundle `small` with a network that gives NaN for boxes and map where it sees no point."""
    shutil.copytree(small(), path)
    model = onnx.load(path / "model.onnx")
    graph = model.graph
    for node in graph.node:
        node.output[:] = [f"{name}_raw" if name in BLINDED else name for name in node.output]
        node.input[:] = [f"{name}_raw" if name in BLINDED else name for name in node.input]
    graph.node.extend(
        [
            helper.make_node("Cast", ["pillar_counts"], ["counts"], to=onnx.TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["counts"], ["points"], keepdims=0),
            helper.make_node("Div", ["points", "points"], ["one_or_nan"]),
            *(helper.make_node("Mul", [f"{name}_raw", "one_or_nan"], [name]) for name in BLINDED),
        ]
    )
    return rewritten(path, onnx=model.SerializeToString())


def test_a_replay_with_nan_finishes_and_fails(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", FRAMES)
    bundle, out = blinded(tmp_path / "bundle"), tmp_path / "out"
    faults, easy = ["drop:lidar@1.0-2.0"], gates({"metric": "dropped", "at_most": 1000})
    verdict = replayed(tmp_path / "tiny", out, bundle=bundle, faults=faults, gates=easy)["verdict"]
    assert not (out / JOURNAL).exists()
    blind = [token("sample", i) for i in (2, 3)]
    finished = Finished.load(out)
    assert finished.not_finite == blind
    counts = {line["token"]: line["not_finite"] for line in finished.lines}
    assert all(counts[each] == {"detection/boxes": 30, "map/probabilities": 6 * 32 * 32} for each in blind)
    results = json.loads((out / "results.json").read_text())["results"]
    assert [len(boxes) for boxes in results.values()].count(0) == len(blind)
    assert results.keys() == counts.keys()
    assert all(results[each] == [] for each in blind)
    assert not verdict["passed"]
    (case,) = (case for case in verdict["cases"] if case["name"] == "finite")
    assert case["reason"].startswith(f"2 of {FRAMES} frames not finite, first {blind[0]}")
    assert [case["passed"] for case in verdict["cases"]].count(False) == 1
    # The route to a single prediction says so, too.
    with pytest.raises(InputError, match="not finite"):
        Runtime(bundle)(Frame("s", 0, "ego", np.eye(4), np.eye(4), None, {}))


@given(data=st.data())
def test_what_is_finite_stays_as_it_is(data: st.DataObject) -> None:
    """As if the network had never given the other boxes; of the map the other cells, of what it recognises all."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    number = data.draw(st.integers(1, 12))
    outputs = {
        "detection/boxes": rng.normal(0, 9, (1, number, 10)).astype(np.float32),
        "detection/scores": -np.sort(-rng.random((1, number), np.float32)),
        "detection/labels": rng.integers(0, 10, (1, number)),
        "detection/attributes": rng.integers(-1, 8, (1, number)),
        "map/probabilities": rng.random((1, 6, 3, 4), np.float32),
        "conditions/probabilities": np.full((1, 7), 0.5, np.float32),
    }
    bad = st.sampled_from([np.nan, np.inf, -np.inf])
    wrong = data.draw(st.sets(st.integers(0, number - 1)))
    for i in wrong:
        column = data.draw(st.integers(0, 10))
        array = outputs["detection/scores"][0] if column == 10 else outputs["detection/boxes"][0, :, column]
        array[i] = data.draw(bad)
    cells = data.draw(st.sets(st.integers(0, 71)))
    outputs["map/probabilities"].reshape(-1)[list(cells)] = data.draw(bad)
    unknown = data.draw(st.booleans())
    outputs["conditions/probabilities"][0, 0] = data.draw(bad) if unknown else 0.5

    found = to_prediction(TASKS, outputs)
    kept = [i for i in range(number) if i not in wrong]
    boxes = {name: outputs[name][:, kept] for name in outputs if name.startswith("detection/")}
    expected_map = outputs["map/probabilities"].copy()
    expected_map.reshape(-1)[list(cells)] = np.nan
    expected = TASKS["detection"].result({name: values[0] for name, values in part_of("detection", boxes).items()})
    assert_equal(found, Prediction({"detection": expected, "map": expected_map[0]}))
    assert (found.results["conditions"] == {}) == unknown
    counts = {
        "detection/boxes": len(wrong),
        "map/probabilities": len(cells),
        "conditions/probabilities": int(unknown),
    }
    assert found.not_finite == {name: count for name, count in counts.items() if count}
