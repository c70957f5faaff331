"""A manifest describes exactly the outputs of its tasks, and says how far each of them may be off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exported import bundle, copied, rewritten
from networks import tasks
from refusals import one_line_error
from vocabulary import MAP_CLASSES, NUSCENES

from deploy.manifest import TensorInfo
from deploy.tolerances import LEAST, Tolerances, require_bounded
from perception.errors import InputError
from perception.tasks import TASKS, configured, tasks_of

MAP = "map/probabilities"
OUTPUTS = ("detection/boxes", "detection/scores", "detection/labels", "detection/attributes", MAP)
EXTRA = TensorInfo(name="conditions/probabilities", shape=(1, 7), dtype="float32", unit="probability")


def test_every_task_is_described() -> None:
    assert tuple(output.name for output in bundle().manifest.outputs) == OUTPUTS
    heads = bundle().manifest.heads
    for output in bundle().manifest.outputs:
        name, part = output.name.split("/")
        assert output.unit == next(each.unit for each in heads[name].outputs if each.name == part)


@pytest.mark.parametrize("change", [*range(len(OUTPUTS)), "more", "another order", "renamed", "another task"])
def test_outputs_that_are_not_those_of_the_tasks_are_refused(tmp_path: Path, change: int | str) -> None:
    """Though all hashes hold: what no task reads, nothing would compare."""
    given = bundle().manifest.outputs
    changed = {
        "more": {"outputs": (*given, EXTRA)},
        "another order": {"outputs": given[::-1]},
        "renamed": {"outputs": (*given[:-1], given[-1].model_copy(update={"name": "map"}))},
        "another task": {"tasks": {**bundle().manifest.tasks, **configured({"conditions": {}})}},
    }
    fields: dict[str, Any] = (
        {"outputs": given[:change] + given[change + 1 :]} if isinstance(change, int) else changed[change]
    )
    described = ", ".join(output.name for output in fields.get("outputs", given))
    wanted = ", ".join((*OUTPUTS, EXTRA.name) if change == "another task" else OUTPUTS)
    outputs = f"outputs are {described}, those of its tasks {wanted}; export the bundle again"
    with one_line_error(exactly=f"{tmp_path}/bundle/manifest.json: {outputs}"):
        rewritten(copied(tmp_path / "bundle"), **fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ranked, dense: dense.pop(MAP), rf"no tolerance {MAP}\.carpark_area\.each"),
        (lambda ranked, dense: dense[MAP].pop("walkway"), rf"no tolerance {MAP}\.walkway\.each"),
        (lambda ranked, dense: ranked.pop("detection"), r"no tolerance detection\.center\.each"),
        (
            lambda ranked, dense: dense[MAP].update(moat=dense[MAP]["walkway"]),
            rf"an unknown tolerance {MAP}\.moat\.each",
        ),
        (
            lambda ranked, dense: dense.update({EXTRA.name: {"rain": dense[MAP]["walkway"]}}),
            r"an unknown tolerance conditions/probabilities\.rain\.each",
        ),
        (
            lambda ranked, dense: dense.update({MAP: dict(reversed(dense[MAP].items()))}),
            "tolerances in another order than its outputs",
        ),
    ],
)
def test_tolerances_must_be_those_of_every_output_and_channel(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], message: str
) -> None:
    found = bundle().manifest.tolerances.model_dump()
    change(found["ranked"], found["dense"])
    with pytest.raises(InputError, match=rf"manifest\.json: has {message}; export the bundle again$"):
        rewritten(copied(tmp_path / "bundle"), tolerances=Tolerances.model_validate(found))


def test_a_task_that_the_tolerances_do_not_know_is_refused() -> None:
    found = LEAST.all(tasks())
    more = tasks_of(configured({name: {} for name in TASKS}), tasks()["map"].grid, NUSCENES)
    require_bounded(found, "fp32", tasks(), "here")
    require_bounded(LEAST.all(more), "fp32", more, "here")
    with pytest.raises(InputError, match=r"^here: has no tolerance conditions/probabilities\.boston\.each"):
        require_bounded(found, "fp32", more, "here")
    assert [*found.dense[MAP]] == [*MAP_CLASSES]
