"""Files of gates."""

from pathlib import Path

import pytest
from refusals import one_line_error
from vocabulary import NUSCENES

from deploy.replay.gates import Gates
from perception.section import load_section


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gates: []", "gates: tuple should have at least 1 item"),
        ("{}", "gates: field required"),
        ("gates: [{metric: mAP}]", "at_least: field required"),
        (
            "gates: [{metric: MAP, at_least: 1}]",
            "'MAP' is none of mAP, NDS, AP, AMOTA, IoU, points, scene_obstacle_recall, ",
        ),
        ("gates: [{metric: AMOTA, class: car, at_least: 1}]", "AMOTA has no class 'car'; it is of all classes"),
        ("gates: [{metric: AMOTA, condition: rain, at_least: 1}]", "AMOTA is of all frames; give no condition"),
        ("gates: [{metric: AMOTA, range: [0, 10], at_least: 1}]", "AMOTA has no ranges; give none"),
        ("gates: [{metric: difference, of: AMOTA, at_most: 0.1}]", "AMOTA is not compared with a baseline"),
        ("gates: [{metric: mAP, class: car, at_least: 1}]", "mAP has no class 'car'; it is of all classes"),
        ("gates: [{metric: IoU, range: [0, 15], at_least: 1}]", "rings of 10 m"),
        ("gates: [{metric: NDS, range: [30, 10], at_least: 1}]", r"a range is \[from, to\]"),
        ("gates: [{metric: latency, stage: think, at_most: 1}]", "'think' is none of read, preprocess"),
        ("gates: [{metric: latency, at_most: fast}]", "at_most: input should be a valid number"),
        ("gates: [{metric: difference, of: NDS, at_most: 2}]", "less than or equal to 1"),
        ("gates: [{metric: NDS, at_leest: 1, at_least: 1}]", "at_leest: is not a known key"),
        ("{gates: [{metric: NDS, at_least: 0}], common: 90}", "common: input should be less than or equal to 1"),
        ("{gates: [{metric: NDS, at_least: 0}], resamples: 9}", "resamples: is not a known key"),
        ("gates: [", "not valid YAML"),
        (None, "cannot read the gates"),
    ],
)
def test_gates_that_cannot_be_used_are_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "gates.yaml"
    if text is not None:
        path.write_text(text)
    with one_line_error(message, at=path):
        load_section(Gates, path, "the gates")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gates: [{metric: AP, class: tank, at_least: 1}]", "AP has no class 'tank'; car, truck"),
        ("gates: [{metric: IoU, class: car, at_least: 1}]", "IoU has no class 'car'; drivable_area"),
        ("gates: [{metric: NDS, condition: hail, at_least: 1}]", "hail: unknown condition; choose from clear, rain"),
    ],
)
def test_names_that_the_taxonomy_lacks_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    gates = load_section(Gates, path, "the gates")
    with one_line_error(f"^gates.0: {message}"):
        gates.require_taxonomy(NUSCENES)


def test_the_gates_of_the_documentation_are_valid(tmp_path: Path) -> None:
    from deploy.replay import gates as module

    assert module.__doc__
    (tmp_path / "gates.yaml").write_text(module.__doc__.split("\n\n", 1)[1])
    assert {gate.metric for gate in load_section(Gates, tmp_path / "gates.yaml", "the gates").gates} == {
        "NDS", "AP", "IoU", "AMOTA", "latency", "dropped", "difference", "agreement",
    }  # fmt: skip
