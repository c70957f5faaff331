"""Words that are not this software's are refused: what the network calls 3 must be what the tracker calls 3."""

from pathlib import Path

import pytest
from exported import bundle, copied, rewritten
from refusals import one_line_error
from vocabulary import CONDITION_VALUES

from deploy.route import BankedModule
from deploy.vocabulary import SENSOR_FACTS, require_vocabulary
from perception.errors import InputError
from perception.modules.spec import require_facts
from perception.tasks import TASKS


def test_names_that_a_task_needs_are_not_there() -> None:
    manifest = bundle().manifest
    without = manifest.taxonomy.model_copy(update={"map_layers": ()})
    with pytest.raises(InputError, match=r"^manifest\.json: tasks\.map: the taxonomy nuscenes has no map layers"):
        require_vocabulary(Path("manifest.json"), manifest.model_copy(update={"taxonomy": without}))


def test_other_names_of_outputs_are_refused(tmp_path: Path) -> None:
    """Channels of the map belong to the names by which their tolerances are stated."""
    layers = bundle().manifest.taxonomy.map_layers
    swapped = bundle().manifest.taxonomy.model_copy(update={"map_layers": layers[::-1]})
    with one_line_error(says="another order than its outputs"):
        rewritten(copied(tmp_path / "bundle"), taxonomy=swapped)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"routes": ("base", "boston+snow")}, "routes"),
        ({"apart": ("snow",)}, "apart"),
        ({"banked": (BankedModule(name="ski", asks=("no-lidar", "snow")),)}, "banked.ski.asks"),
    ],
)
def test_a_condition_that_no_frame_can_have(change: dict[str, object], field: str) -> None:
    """Its module would never run, or the network of its route never be chosen, without a word."""
    with pytest.raises(InputError, match=f"{field}: 'snow' is none of clear, rain, fog"):
        require_vocabulary(Path("manifest.json"), bundle().manifest.model_copy(update=change))


def test_all_facts_that_a_module_can_ask_for_are_known() -> None:
    """A task is not asked of a frame."""
    for fact in (*CONDITION_VALUES, *SENSOR_FACTS, *TASKS):
        require_facts([fact, fact], CONDITION_VALUES, "here")
    with pytest.raises(InputError, match=r"^here: 'snow' is none of clear, rain, fog"):
        require_facts(["snow"], CONDITION_VALUES, "here")


@pytest.mark.parametrize("both", [("points", "occupancy"), ("no-cameras", "cameras")])
def test_facts_that_exclude_each_other_are_refused(both: tuple[str, str]) -> None:
    """Their module would never run."""
    with pytest.raises(InputError, match=r"^here: \S+ and \S+ never hold together; add a module for each$"):
        require_facts(["rain", *both], CONDITION_VALUES, "here")
