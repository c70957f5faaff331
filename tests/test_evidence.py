"""The arithmetic of the evidence: gains, what of them is recovered, what is forgotten, spreads over seeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from evidence_report import summarise, table, write_report


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


def entry(way: str) -> dict[str, object]:
    return next(e for e in summarise(ROWS) if (e["domain"], e["way"]) == ("fog", way))


def test_gain_is_over_zero_shot_and_recovered_is_a_share_of_the_same_seeds_fine_tune():
    assert entry("full fine-tune")["gain"] == pytest.approx([0.15, 0.05 * 2**0.5])
    assert entry("low_rank")["gain"] == pytest.approx([(0.075 + 0.2) / 2, 0.125 / 2**0.5])
    assert entry("low_rank")["recovered"] == pytest.approx([(0.75 + 1.0) / 2, 0.25 / 2**0.5])
    assert entry("zero-shot")["gain"] == [0.0]


def test_forgetting_is_what_the_source_lost():
    assert entry("full fine-tune")["forgetting"] == pytest.approx([0.15, 0.1 / 2**0.5])
    assert entry("low_rank")["forgetting"] == [0.0, 0.0]
    assert entry("low_rank")["source NDS"] == pytest.approx([0.6, 0.0])


def test_the_report_has_a_line_for_each_way_and_a_picture(tmp_path):
    for i, content in enumerate(ROWS):
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "rows" / f"{i}.json").write_text(json.dumps(content))
    (tmp_path / "times.json").write_text(json.dumps({"seconds_per_step": {"low_rank": 0.25}}))
    write_report(tmp_path)
    lines = (tmp_path / "evidence.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| low_rank")]
    assert "2.00%" in line
    assert "0.250" in line
    assert "0.875 ± 0.177" in line
    assert lines == table(json.loads((tmp_path / "evidence.json").read_text())).splitlines()
    assert (tmp_path / "evidence.png").stat().st_size > 5000
