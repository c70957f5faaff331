"""Every configuration in the repository loads; every mistake in one is named."""

import pytest
from refusals import one_line_error
from repository import ROOT

from perception.config import load_config
from perception.errors import InputError

FOLDER = ROOT / "configs"
CONFIGS = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("nuscenes/*.yaml")])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_are_valid_and_build(path):
    from perception.model import PerceptionModel

    config = load_config(path)
    model = PerceptionModel(config)
    grid = config.grid.build()
    assert all(n % config.model.trunk.stride == 0 for n in grid.shape)
    assert ("camera" in dict(model.named_children())) == (config.model.camera is not None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nmodle: {}", "modle: is not a known key"),
        ("name: a\nmodel: {trunk: {chanels: [3]}}", "model.trunk.chanels: is not a known key"),
        ("name: a\ntrain: {steps: many}", "train.steps: input should be a valid integer, got 'many'"),
        ("name: a\ntrain: {steps: 0}", "train.steps: input should be greater than 0, got 0"),
        ("name: a\ntrain: {drop_lidar: 1.5}", "train.drop_lidar: input should be less than or equal to 1"),
        ("name: a\ntrain: {steps: 9, epochs: 2}", "train: give `steps` or `epochs`, one of them"),
        ("name: a\ntrain: {steps: null}", "train: give `steps` or `epochs`, one of them"),
        ("name: a\ntrain: {schedule: {kind: step}}", "train.schedule: `milestones` are for the kind `step`"),
        ("name: a\nseed: 1.5", "seed: input should be a valid integer"),
        ("name: a\nmodel: {lidar: null}", "the model needs `lidar`, `camera` or both"),
        ("name: a\nmodel: {trunk: {channels: [3, 4]}}", "channels, blocks and strides must have the same length"),
        ("{}", "name: field required"),
        ("name: [", "not valid YAML"),
        ("just text", "(top level): input should be"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with one_line_error(at=path, says=message):
        load_config(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read the configuration"):
        load_config(tmp_path / "none.yaml")


def test_keys_are_overridden_one_by_one(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: a\ntrain: {steps: 9, batch: 2}")
    config = load_config(path, ["train.batch=8", "data.augment=null", "train.validation.split=val", "seed=3"])
    assert (config.train.batch, config.train.steps, config.seed) == (8, 9, 3)
    assert config.data.augment is None
    assert config.train.validation.split == "val"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.bach=8", "train.bach: is not a known key"),
        ("train.batch=many", "train.batch: input should be a valid integer, got 'many'"),
        ("train.batch", "train.batch: write KEY=VALUE, such as train.batch=8"),
        ("train.batch=[", "train.batch=[: write KEY=VALUE"),
        ("name.first=b", "name.first=b: first would be a key of 'a', which has none"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path, change, message):
    path = tmp_path / "c.yaml"
    path.write_text("name: a")
    with one_line_error(says=message):
        load_config(path, [change])
