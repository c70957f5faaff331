"""What Prometheus reads of a drive, against what the drive itself says of it."""

import re
import sys
import urllib.request
from collections import Counter
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from commands import one_line_error
from exported import apart, bundle
from live import PATIENT, Watch, driving, free_port
from prometheus_client.parser import text_string_to_metric_families
from recordings import Sent, nuscenes_topics, write_raw_mcap
from repository import ROOT

from deploy.live.intake import Intake
from deploy.live.metrics import BUCKETS, Metrics
from deploy.live.outputs import Output
from deploy.live.policy import Policy
from deploy.live.record import Recorder
from deploy.live.state import WORST_LAST
from deploy.live.view import View
from deploy.recordings.messages import RecordingInfo
from deploy.runtime import Runtime

Scrape = dict[str, dict[tuple[str, ...], float]]  # name -> values of the labels, by their names -> value


def scrape(port: int) -> Scrape:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        found: Scrape = {}
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = (
                    sample.value
                )
        return found


@pytest.mark.slow("drives, and may be the first to export")
def test_metrics_are_what_became_of_the_drive(log: list[Sent], tmp_path: Path) -> None:
    port, scrapes, ends = free_port(), list[Scrape](), list[Scrape]()
    heard = Watch(lambda: scrapes.append(scrape(port)))
    twice = [each for each in log if each.topic == "/lidar_top"][-1]
    blind = [each for each in log if not each.topic.startswith("/cam_back/")]
    path = write_raw_mcap(tmp_path / "drive.mcap", [*blind, twice])

    def serve(stack: ExitStack, intake: Intake) -> list[Output]:
        served = Metrics(port, intake)
        stack.callback(served.close)
        stack.callback(lambda: ends.append(scrape(port)))
        return [served]

    topics, policy = nuscenes_topics(wait=PATIENT), Policy(lateness=PATIENT, sensors={"CAM_BACK": {"missing": "mask"}})
    driven = driving(
        path, tmp_path / "out", Runtime(apart()[0].path, checks=False), topics, policy, 1.0, heard, serve
    ).driven
    for each in (*scrapes, *ends):
        outcomes = sum(each["tessera_frames_total"].values()) + each["tessera_frames_waiting"][()]
        assert outcomes == each["tessera_frames_announced_total"][()]
        assert sum(each["tessera_state"].values()) == 1
    (last,) = ends
    assert last["tessera_frames_total"] == {
        (outcome,): driven.outcomes.get(outcome, 0) for outcome in ("perceived", "superseded", "unposed")
    }
    assert {topic: count for (topic,), count in last["tessera_messages_total"].items()} == driven.counts["messages"]
    assert last["tessera_message_problems_total"] == {("duplicated", "/lidar_top"): 1}
    assert last["tessera_frames_missing_total"] == {("CAM_BACK",): driven.announced}

    perceived = [line["ms"] for line in heard.lines if line["outcome"] == "perceived"]
    assert last["tessera_latency_seconds_count"][()] == len(perceived) == driven.announced
    assert last["tessera_latency_seconds_sum"][()] == pytest.approx(1e-3 * sum(perceived))
    masked = Counter(name for line in heard.lines for name in line["masked"])
    assert last["tessera_frames_masked_total"] == {(name,): count for name, count in masked.items()}
    assert masked["CAM_BACK"] > 0
    for bound in BUCKETS:
        counted = last["tessera_latency_seconds_bucket"][str(bound),]
        assert counted == sum(each <= 1e3 * bound for each in perceived)
    for stage in heard.seen[0].seconds:
        spent = [seen.seconds[stage] for seen in heard.seen]
        assert last["tessera_stage_seconds_sum"][stage,] == pytest.approx(sum(spent))
    require_latest(last, heard)
    plain = {name for name in last if not re.search("_(created|bucket|count|sum)$", name)}
    assert documented() == plain | {"tessera_stage_seconds", "tessera_latency_seconds"}


def require_latest(last: Scrape, heard: Watch) -> None:
    """The state, the sensors, conditions and modules are those that were told last."""
    status, seen = heard.states[-1][1], heard.seen[-1]
    assert [state for (state,), value in last["tessera_state"].items() if value] == [status.state]
    assert {*last["tessera_state"]} == {(state,) for state in WORST_LAST}
    assert {*last["tessera_reason"]} == {(each.code, each.state, each.subject) for each in status.reasons}
    assert ("sensor", "DEGRADED", "CAM_BACK") in last["tessera_reason"]
    began = [{(each.code, each.subject) for each in status.reasons} for _, status in heard.states]
    for (code,), count in last["tessera_reasons_total"].items():
        new = (now - before for before, now in pairwise([set[Any](), *began]))
        assert count == sum(each == code for found in new for each, _ in found)
    unwell = {key for key, value in last["tessera_sensor_status"].items() if value and key[1] != "ok"}
    assert unwell == {(name, each.status) for name, found in seen.health.items() for each in found.findings}
    assert ("CAM_BACK", "missing") in unwell
    assert last["tessera_condition"] == {(kind, each.value or "unknown"): 1 for kind, each in seen.beliefs.items()}
    assert last["tessera_module_weight"] == {(name,): each.weight for name, each in seen.route.items()}
    assert last["tessera_module_weight"]


def documented() -> set[str]:
    """The names in the table of docs/drive.md."""
    return set(re.findall(r"^\| `(tessera_\w+)", (ROOT / "docs/drive.md").read_text(), re.MULTILINE))


@pytest.mark.slow("may be the first to export")
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest: Any = bundle().manifest
    nobody: Any = None
    view = View(0, manifest)
    with one_line_error(at=f"--view {view.port}: cannot listen there", says="Address already in use"):
        View(view.port, manifest)
    with one_line_error(at=f"--metrics {view.port}: cannot listen there (Address already in use); choose another"):
        Metrics(view.port, nobody)
    view.close()
    (tmp_path / "drive.mcap").touch()
    with one_line_error(at=f"--record {tmp_path}/drive.mcap: exists already; choose another file"):
        Recorder(tmp_path / "drive.mcap", RecordingInfo({}, 0, "drive"), print)
    with one_line_error(at=f"--record {tmp_path}/none/drive.mcap: cannot be written (No such file or directory)"):
        Recorder(tmp_path / "none" / "drive.mcap", RecordingInfo({}, 0, "drive"), print)
    monkeypatch.setitem(sys.modules, "foxglove", None)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with one_line_error(at="--view: foxglove-sdk is not installed; pip install 'tessera-perception[live]'"):
        View(0, manifest)
    with one_line_error(at="--metrics: prometheus_client is not installed; pip install 'tessera-perception[live]'"):
        Metrics(free_port(), nobody)
