"""README quotes what docs/figures.json records, and the page says where each figure comes from."""

from __future__ import annotations

import copy
import json
import re
import sys

import pytest
from repository import ROOT

sys.path.append(str(ROOT / "tools"))
import figures

RECORD = json.loads(figures.RECORD.read_text())


def test_readme_and_page_are_written_from_the_record() -> None:
    readme = figures.README.read_text()
    assert figures.PAGE.read_text() == figures.page(RECORD)
    assert figures.with_block(readme, figures.quoted(RECORD)) == readme


@pytest.mark.parametrize("section", sorted(RECORD))
def test_every_figure_has_its_command_commit_and_machine(section: str) -> None:
    entry = RECORD[section]
    assert entry["command"] == figures.COMMANDS[section]
    assert re.fullmatch(r"[0-9a-f]{7,40}", entry["commit"]), "measured on a tree that was not committed"
    assert "cores; Python 3." in entry["machine"]
    assert entry["figures"]


def test_a_figure_that_was_changed_by_hand_is_found() -> None:
    for section, entry in RECORD.items():
        for name, value in figures.flat(entry["figures"]):
            if isinstance(value, float) and f"{{{section}.{name}:" in "".join(figures.QUOTED.values()):
                changed = copy.deepcopy(RECORD)
                *keys, last = name.split(".")
                place = changed[section]["figures"]
                for key in keys:
                    place = place[key]
                place[last] = 2 * value + 1
                assert figures.quoted(changed) != figures.quoted(RECORD), (section, name)
                assert figures.page(changed) != figures.page(RECORD)


def test_readme_claims_no_measurement_outside_the_quoted_block() -> None:
    """Scores and speeds in README's prose would go stale unseen; they belong to the record."""
    readme = figures.README.read_text()
    outside = figures.with_block(readme, "")
    claims = re.findall(r"(?:mAP|NDS|IoU|AP|AMOTA|times as fast)\D{0,12}\b0\.\d+|\b\d+\.\d+ times", outside)
    assert not claims


def test_evidence_quoted_in_readme_stands_in_its_page() -> None:
    page = (figures.REPOSITORY / "docs/evidence/evidence.md").read_text()
    quoted = re.findall(r"\d\.\d+ ± \d\.\d+", figures.README.read_text())
    assert quoted
    assert [each for each in quoted if each not in page] == []
