"""Words that are not this software's are refused: what the network calls 3 must be what the tracker calls 3."""

from pathlib import Path

import pytest
from exported import bundle, copied, rewritten
from hypothesis import given
from hypothesis import strategies as st
from refusals import one_line_error

from deploy.bundle import Bundle
from deploy.route import BankedModule
from deploy.vocabulary import SENSORS, require_vocabulary
from perception.errors import InputError
from perception.frame import ATTRIBUTES, CLASSES, CONDITION_VALUES, MAP_CLASSES
from perception.modules.spec import all_facts
from perception.tasks import TASKS

FIELDS = {
    "classes": CLASSES,
    "attributes": ATTRIBUTES,
    "map_classes": MAP_CLASSES,
    "conditions": CONDITION_VALUES,
}


@pytest.mark.parametrize("field", FIELDS)
def test_another_order_is_refused(tmp_path: Path, field: str) -> None:
    """By who opens the bundle, whose hashes were all made anew."""
    words = FIELDS[field]
    wrong = f"{field}: number 0 is {words[-1]!r}, but {words[0]!r} for this software"
    refusal = f"{tmp_path}/bundle/manifest.json: {wrong}; export the bundle again, with this version"
    with one_line_error(exactly=refusal):
        rewritten(copied(tmp_path / "bundle"), **{field: words[::-1]})
    with pytest.raises(InputError, match="number 0 is "):
        Bundle.load(tmp_path / "bundle")


@given(st.sampled_from(list(FIELDS)), st.data())
def test_any_other_words_are_refused_and_the_first_difference_is_named(field: str, data: st.DataObject) -> None:
    known = FIELDS[field]
    found = tuple(data.draw(st.lists(st.sampled_from((*known, "horse")), max_size=len(known) + 2)))
    manifest = bundle().manifest.model_copy(update={field: found})
    first = next((i for i, pair in enumerate(zip(found, known, strict=False)) if pair[0] != pair[1]), None)
    if first is None and len(found) != len(known):
        first = min(len(found), len(known))
    if first is None:
        require_vocabulary(Path("manifest.json"), manifest)
        return
    with pytest.raises(InputError, match=rf"^manifest\.json: {field}: number {first} is "):
        require_vocabulary(Path("manifest.json"), manifest)


def test_classes_of_a_map_that_is_not_there(tmp_path: Path) -> None:
    manifest = bundle().manifest
    without = manifest.model_copy(update={"tasks": {"detection": manifest.tasks["detection"]}})
    with pytest.raises(InputError, match="map_classes: number 0 is 'drivable_area', but nothing for this software"):
        require_vocabulary(Path("manifest.json"), without)
    require_vocabulary(Path("manifest.json"), without.model_copy(update={"map_classes": ()}))


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
    with pytest.raises(InputError, match=f"{field}: this software does not know 'snow', only clear, rain, fog"):
        require_vocabulary(Path("manifest.json"), bundle().manifest.model_copy(update=change))


def test_all_facts_that_a_module_can_ask_for_are_known() -> None:
    """A task is not asked of a frame."""
    assert {*CONDITION_VALUES, *SENSORS} == {*all_facts()} - {*TASKS}
