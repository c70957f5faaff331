"""The file of `perception replay --config`: its page has its keys, and each of them has its effect."""

import json
import re
from pathlib import Path

import pytest
import yaml
from commands import one_line_error, refuses, succeeds
from replays import small
from repository import ROOT
from tiny import write_tiny

from deploy.replay.settings import ReplayFile


def test_the_page_has_all_keys_with_their_defaults() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "replay.md").read_text(), re.MULTILINE | re.DOTALL)
    content = yaml.safe_load(blocks[0])
    assert content.keys() == ReplayFile.model_fields.keys()
    assert ReplayFile.model_validate(content) == ReplayFile()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("strat: 1", "strat: is not a known key"),
        ("start: soon", "start: input should be a valid number"),
        ("every: 1.5", "every: input should be a valid integer"),
        ("conditions: rain", "conditions: input should be a valid tuple"),
    ],
)
def test_a_wrong_key_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "replay.yaml").write_text(text)
    with one_line_error(says):
        ReplayFile.load(tmp_path / "replay.yaml")


@pytest.mark.slow("two replays by the command")
def test_each_key_has_its_effect(tmp_path: Path) -> None:
    write_tiny(tmp_path / "drives", 8)
    config, out = tmp_path / "replay.yaml", tmp_path / "out"
    (tmp_path / "evidence.yaml").write_text("sources: [{source: tags}]\n")
    given = ("replay", tmp_path / "drives", "--bundle", small(), "--config", config, "--out", out)
    config.write_text(
        "conditions: [rain]\nevidence: evidence.yaml\nstart: 1.0\nend: 3.0\nevery: 2\nreal_time: true\nviewer: true\n"
    )
    succeeds(*given)
    used = json.loads((out / "replay.json").read_text())
    assert (used["conditions"], used["evidence"], used["real_time"]) == (["rain"], ["tags"], True)
    assert used["selection"] == {"start": 1.0, "end": 3.0, "every": 2}
    assert used["frames"] == 2, used
    assert (out / "results.mcap").exists()
    for text, says in (
        ("start: 2\nend: 1\n", "start 2, end 1: give seconds with 0 <= start < end"),
        ("conditions: [hail]\n", "hail: unknown condition"),
        ("allow_older: true\n", "an older bundle is accepted anyway without a key"),
        ("keys: [public.pem]\n", str(tmp_path / "public.pem")),
        ("ray: 127.0.0.1:1\nviewer: true\n", "viewer: this needs a single process"),
    ):
        config.write_text(text)
        assert says in refuses(*given)
