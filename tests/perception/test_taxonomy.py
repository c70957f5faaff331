"""The vocabulary of a data set as data: nuScenes' is the devkit's, wrong ones are refused, names carry no meaning."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.constants import DETECTION_NAMES
from nuscenes.eval.detection.utils import category_to_detection_name, detection_name_to_rel_attributes
from nuscenes.eval.lidarseg.utils import LidarsegClassMapper
from random_boxes import random_boxes
from refusals import one_line_error
from vocabulary import NUSCENES

from perception.config import parse_config
from perception.tasks.detection.columns import BoxColumns
from perception.tasks.detection.scores import DetectionScores, undefined_errors
from perception.taxonomy import Taxonomy, load_taxonomy


def test_nuscenes_is_as_the_devkit_has_it() -> None:
    assert {*NUSCENES.class_names} == {*DETECTION_NAMES}
    ours = NUSCENES.labels_of_categories()
    assert {name: NUSCENES.class_names[label] for name, label in ours.items()} == {
        name: category_to_detection_name(name) for name in ours
    }
    assert {each.name: each.range for each in NUSCENES.classes} == config_factory("detection_cvpr_2019").class_range
    assert {each.name for each in NUSCENES.classes if each.tracked} == {
        *config_factory("tracking_nips_2019").class_names
    }
    mapper = object.__new__(LidarsegClassMapper)
    mapper.ignore_class = mapper.get_ignore_class()
    points = [each.name for each in NUSCENES.point_classes]
    assert {name: i + 1 for i, name in enumerate(points)} | {"ignore": 0} == mapper.get_coarse2idx()
    coarse = {fine: name for fine, name in mapper.get_fine2coarse().items() if name != "ignore"}
    assert {fine: points[i] for fine, i in NUSCENES.point_labels_of_categories().items()} == coarse
    for label, name in enumerate(NUSCENES.class_names):
        possible = [
            a for a, there in zip(NUSCENES.attributes, NUSCENES.possible_attributes(label), strict=True) if there
        ]
        assert {*possible} == {*detection_name_to_rel_attributes(name)}


def written(folder: Path, **changed: object) -> Path:
    path = folder / "taxonomy.yaml"
    path.write_text(yaml.safe_dump({"name": "own", "classes": [{"name": "car"}]} | changed))
    return path


WRONG = {
    "two classes of a name": ({"classes": [{"name": "car"}, {"name": "car"}]}, "classes: 'car' is there twice"),
    "a category of two": (
        {"classes": [{"name": "car"}, {"name": "van", "categories": ["car"]}]}, "category 'car' is of two classes"
    ),
    "two point classes of a name": (
        {"point_classes": [{"name": "road"}, {"name": "road"}]}, "point_classes: 'road' is there twice"
    ),
    "a category of two point classes": (
        {"point_classes": [{"name": "road"}, {"name": "way", "categories": ["road"]}]},
        "point_classes: category 'road' is of two classes",
    ),
    "no class": ({"classes": []}, "classes: tuple should have at least 1 item"),
    "an unknown attribute": (
        {"classes": [{"name": "car", "attributes": ["parked", "moving"]}]}, "attribute 'parked' of car is not among"
    ),
    "one attribute": ({"classes": [{"name": "car", "attributes": ["parked"]}]}, "`attributes` are two"),
    "a condition of two kinds": (
        {"conditions": {"weather": ["snow"], "season": ["snow"]}}, "conditions: 'snow' is there twice"
    ),
    "a sensor as a condition": ({"conditions": {"sight": ["lidar"]}}, "'lidar' stands for something else"),
    "two words": ({"conditions": {"weather": ["heavy-rain"]}}, "conditions.weather.0: string should match"),
    "a kind without values": ({"conditions": {"weather": []}}, "conditions.weather: tuple should have at least 1"),
    "a simulated one that is none": (
        {"conditions": {"weather": ["dry"]}, "simulated": {"always": ["snow"]}}, "simulated: 'snow' is not among"
    ),
    "an unknown devkit": ({"devkit": "kitti"}, "devkit: input should be 'nuscenes' or 'truckscenes'"),
    "an unknown key": ({"colour": "red"}, "colour: is not a known key"),
    "no range": ({"classes": [{"name": "car", "range": 0.0}]}, "classes.0.range: input should be greater than 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_taxonomy_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    changed, message = WRONG[case]
    path = written(tmp_path, **changed)
    with one_line_error(at=path, says=message):
        load_taxonomy(path)


def test_a_configuration_names_it_or_holds_it(tmp_path: Path) -> None:
    path = written(tmp_path, conditions={"weather": ["dry", "snow"]})
    content = {"name": "a", "taxonomy": str(path), "tasks": {"detection": {}, "conditions": {}}}
    config = parse_config(content, "a.yaml")
    assert config.taxonomy == load_taxonomy(path)
    assert parse_config(config.model_dump(mode="json"), "again") == config
    assert parse_config({"name": "a"}, "b").taxonomy == NUSCENES
    snow = {"name": "snow", "kind": "low_rank", "when": ["snow"]}
    assert parse_config(content | {"modules": [snow]}, "a.yaml").modules[0].when == ("snow",)
    with one_line_error(says="modules.snow.when: 'snow' is none of clear, rain"):
        parse_config({"name": "a", "modules": [snow]}, "a.yaml")
    with one_line_error(says="tasks.map: the taxonomy own has no map layers"):
        parse_config(content | {"tasks": {"map": {}}}, "a.yaml")
    with one_line_error(says="the groups, one after the other, must be car"):
        parse_config(content | {"tasks": {"detection": {"groups": [["truck"]]}}}, "a.yaml")
    with one_line_error(at="taxonomy munich: not known; give a YAML file or one of"):
        load_taxonomy("munich")


def test_scores_depend_on_what_classes_are_and_not_on_their_names_or_order() -> None:
    rng = np.random.default_rng(0)
    (truth, found), scenes = (random_boxes(rng, 6), np.zeros(6, np.int64))
    order = rng.permutation(len(NUSCENES.classes))
    renamed = Taxonomy(
        name="other",
        classes=tuple(NUSCENES.classes[i].model_copy(update={"name": f"class {i}"}) for i in order),
        attributes=NUSCENES.attributes,
    )
    where = np.argsort(order)

    def relabelled(boxes: BoxColumns) -> BoxColumns:
        return replace(boxes, labels=where[boxes.labels])

    ours = DetectionScores(truth, found, scenes, NUSCENES).scored()
    theirs = DetectionScores(relabelled(truth), relabelled(found), scenes, renamed).scored()
    np.testing.assert_array_equal(theirs.class_aps, ours.class_aps[:, order])
    np.testing.assert_array_equal(theirs.errors, ours.errors[:, order])
    assert [undefined_errors(each) for each in renamed.classes] == [
        undefined_errors(NUSCENES.classes[i]) for i in order
    ]


def test_without_attributes_the_other_errors_weigh_as_much_as_all() -> None:
    (truth, found), scenes = random_boxes(np.random.default_rng(1), 6), np.zeros(6, np.int64)
    bare = Taxonomy(name="bare", classes=tuple(each.model_copy(update={"attributes": ()}) for each in NUSCENES.classes))
    ours, full = (DetectionScores(truth, found, scenes, each).scored() for each in (bare, NUSCENES))
    assert np.isnan(ours.mean_errors[0, 4])
    np.testing.assert_array_equal(ours.mean_errors[0, :4], full.mean_errors[0, :4])
    share = np.maximum(0, 1 - ours.mean_errors[0, :4]).mean()
    assert ours.nds[0] == pytest.approx((ours.mean_ap[0] + share) / 2, abs=1e-12)
