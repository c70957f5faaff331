"""The arithmetic of the evidence: gains, what of them is recovered, what is forgotten, spreads over seeds."""

import json

import pytest
from evidence_plan import UNION
from evidence_report import claims, routing, summarise, table, write_report


def scores(nds: float, iou: float) -> dict[str, float]:
    return {"mAP": 0.1, "NDS": nds, "mIoU": iou}


def row(seed: int, domain: str, way: str, target: dict[str, float], **more: object) -> dict[str, object]:
    return {"seed": seed, "domain": domain, "way": way, "target": target, **more}


ROWS = [
    row(0, "source", "zero-shot", scores(0.6, 0.4)),
    row(0, "fog", "zero-shot", scores(0.4, 0.2)),
    row(0, "fog", "full fine-tune", scores(0.5, 0.3), share=1.0, source=scores(0.5, 0.3)),
    row(1, "fog", "full fine-tune", scores(0.6, 0.4), share=1.0, source=scores(0.4, 0.2)),
    row(0, "fog", "low_rank", scores(0.5, 0.25), share=0.02, base_unchanged=True),
    row(1, "fog", "low_rank", scores(0.6, 0.4), share=0.02, base_unchanged=True),
]


def test_gains_what_is_recovered_of_them_and_what_is_forgotten():
    """Gains are over zero-shot, recovered is a share of the same seed's fine-tune."""
    fog = {each["way"]: each for each in summarise(ROWS) if each["domain"] == "fog"}
    full, module = fog["full fine-tune"], fog["low_rank"]
    assert full["gain"] == pytest.approx([0.15, 0.05 * 2**0.5])
    assert module["gain"] == pytest.approx([(0.075 + 0.2) / 2, 0.125 / 2**0.5])
    assert module["recovered"] == pytest.approx([(0.75 + 1.0) / 2, 0.25 / 2**0.5])
    assert fog["zero-shot"]["gain"] == [0.0]
    assert full["forgetting"] == pytest.approx([0.15, 0.1 / 2**0.5])
    assert module["forgetting"] == [0.0, 0.0]
    assert module["source NDS"] == pytest.approx([0.6, 0.0])


def test_the_report_has_a_line_for_each_way_and_a_picture(tmp_path):
    (tmp_path / "rows").mkdir()
    for i, content in enumerate(ROWS):
        (tmp_path / "rows" / f"{i}.json").write_text(json.dumps(content))
    (tmp_path / "times.json").write_text(json.dumps({"seconds_per_step": {"low_rank": 0.25}}))
    write_report(tmp_path)
    lines = (tmp_path / "evidence.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| low_rank")]
    assert all(words in line for words in ("2.00%", "0.250", "0.875 ± 0.177"))
    tables = table(json.loads((tmp_path / "evidence.json").read_text())).splitlines()
    assert lines[-len(tables) :] == tables
    assert (tmp_path / "evidence.png").stat().st_size > 5000


def claimed(share: float, third: float, seconds: float) -> str:
    """The line on a module that recovers all of the gain on two targets and `third` of it on one more."""
    rows = []
    for target, recovered in (("rain", 1.0), ("fog", 1.0), ("singapore", third)):
        own = scores(0.4 + 0.1 * recovered, 0.2 + 0.1 * recovered)
        rows += [row(0, target, "zero-shot", scores(0.4, 0.2)), row(0, target, UNION, own, share=share)]
        rows.append(row(0, target, "full fine-tune", scores(0.5, 0.3), share=1.0))
    times = {"full fine-tune": 1.0, UNION: seconds}
    entries = [each | {"seconds_per_step": times.get(each["way"])} for each in summarise(rows)]
    return next(line for line in claims(entries) if line.startswith(f"- {UNION}:"))


def test_a_claim_holds_only_with_all_its_parts():
    assert claimed(0.02, 0.96, 0.7) == (
        f"- {UNION}: holds: rain 1.00, fog 1.00, singapore 0.96; 2.00% of the parameters, 0.70 of the time"
    )
    for share, third, seconds in ((0.021, 0.96, 0.7), (0.02, 0.94, 0.7), (0.02, 0.96, 0.71)):
        assert claimed(share, third, seconds).startswith(f"- {UNION}: does not hold: rain 1.00")


@pytest.mark.parametrize(("composed", "verdict", "beaten"), [(0.46, "holds", 2), (0.44, "does not hold", 1)])
def test_a_composition_must_beat_the_best_single_module_and_the_base(composed, verdict, beaten):
    ways = {
        "zero-shot": 0.4, "alone: rain": 0.45, "alone: night": 0.41, "composed: routed by tags": composed,
        "merged: average": 0.47, "merged: TIES 0.5": 0.3,
    }  # fmt: skip
    rows = [row(0, "rain+night", way, scores(value, value)) for way, value in ways.items()]
    (line,) = [line for line in claims(summarise(rows)) if line.startswith("- rain+night")]
    assert line.startswith(f"- rain+night: {verdict}: it gains {composed - 0.4:.3f} over the base, alone: rain 0.050; ")
    assert line.endswith(f"so do {beaten} of 3 ways to compose, the best merged: average with 0.070")


def test_routers_are_judged_by_how_often_they_pick_what_the_tags_would():
    rows = [
        {"way": "router: a", "accuracy": 0.88, "load": {"base": 0.5, "rain": 0.5}},
        {"way": "router: b", "accuracy": 0.89, "load": {"base": 1.0, "rain": 0.0}},
        {"way": "router: a", "accuracy": 0.92, "load": {"base": 0.6, "rain": 0.4}},
    ]
    assert routing(rows)[-2:] == [
        "- a: holds: 0.900 ± 0.028; load base 0.55, rain 0.45",
        "- b: does not hold: 0.890; load base 1.00, rain 0.00",
    ]
