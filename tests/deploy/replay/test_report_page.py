"""The report's page in a browser, headless Chromium: what a reader sees, without a network."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import needs_chromium, visit
from exported import bundle

from deploy.replay.latency import STAGES, Latency
from deploy.replay.page_data import with_verdict
from deploy.replay.report import Report
from deploy.replay.verdict import Case, Verdict
from deploy.runtime import Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.scene.scene import Routed

FRAMES, SLOWEST = 120, 37
VERDICT = Verdict(
    (
        Case("mAP", "mAP", True, 0.4, 0.3, "0.4000; at least 0.3"),
        Case("NDS at night", "NDS", False, 0.2, 0.3, "0.2000; at least 0.3"),
        Case("AMOTA", "AMOTA", False, None, 0.3, "not measured: <b>no</b> tracks"),
    ),
    FRAMES, 2, None,
)  # fmt: skip


@pytest.fixture(scope="module")
def page(sim_root: Path) -> str:
    """Of a longer drive: simulated frames again and again, one of them very slow."""
    tables, runtime = NuScenesTables(sim_root, "v1.0-sim"), Runtime(bundle().path)
    frames = [tables.frame(sample, sweeps=runtime.bundle.spec.sweeps) for sample in tables.samples()]
    seen = [runtime.step(frame) for frame in frames]
    report, latency = Report(bundle().manifest, "cpu", FRAMES), Latency()
    for i in range(FRAMES):
        seconds = dict.fromkeys(STAGES, 0.01) | {"engine": 3.0 if i == SLOWEST else 0.05 + 1e-4 * i}
        which = i * len(frames) // FRAMES
        routed = Routed(1.0, "rain since 0.0 s: 1 of 1 frames") if which >= 3 else Routed(0.0, "clear")
        report.add(frames[which], replace(seen[which], route={"wet_road": routed}, seconds=seconds))
        latency.add(frames[which], seconds)
    return with_verdict(report.html(latency.summary()), VERDICT.as_dict())


def test_page_of_a_long_drive_is_small(page: str) -> None:
    assert len(page) < 8e6
    assert len(re.findall(r'"token":"', page)) > 28


@needs_chromium
def test_page_opens_quickly_with_the_verdict_first(page: str, tmp_path: Path) -> None:
    opened = visit(
        page,
        tmp_path,
        """report({
          milliseconds: performance.now(),
          first: document.querySelector("main").innerText.split(String.fromCharCode(10)).filter(Boolean).slice(0, 5),
          top: document.getElementById("verdict").getBoundingClientRect().top,
          loaded: performance.getEntriesByType("resource").filter(each => !each.name.startsWith("data:")).length,
          bars: document.querySelectorAll("#histogram rect").length,
          why: [...document.querySelectorAll("#lanes title")].map(title => title.textContent),
          lanes: document.querySelectorAll("#lanes rect").length,
        });""",
    )
    assert opened.console == []
    assert opened.found["milliseconds"] < 2000
    assert opened.found["first"][0] == "Fail"
    assert opened.found["first"][1] == f"2 of 3 gates failed, {FRAMES} frames of 2 scenes"
    reasons = opened.found["first"][3:5]
    assert reasons == ["NDS at night: 0.2000; at least 0.3", "AMOTA: not measured: <b>no</b> tracks"]
    assert opened.found["top"] < 50
    assert opened.found["loaded"] == 0
    assert opened.found["bars"] >= 8
    assert opened.found["lanes"] > 10
    route = [why for why in opened.found["why"] if why.startswith("wet road")]
    assert set(route) == {"wet road: 0\nclear", "wet road: 1\nrain since 0.0 s: 1 of 1 frames"}


LOOK = """
  const look = () => ({
    counter: document.getElementById("counter").textContent,
    times: document.getElementById("status").innerText,
    marked: [...document.querySelectorAll(".worst a.now")].map(link => link.hash),
    pictures: [...document.querySelectorAll(".camera img")].filter(image => image.naturalWidth > 0).length,
    hash: location.hash,
    facts: document.getElementById("reasoned").innerText,
  });
"""


@needs_chromium
def test_link_of_a_worst_frame_shows_it(page: str, tmp_path: Path) -> None:
    clicked = visit(
        page,
        tmp_path,
        LOOK
        + f"""
        const before = look();
        document.querySelector('.worst a[href="#frame-{SLOWEST + 1}"]').click();
        setTimeout(() => report({{before, after: look()}}), 500);""",
        "--virtual-time-budget=2000",
    )
    assert clicked.console == []
    before, after = clicked.found["before"], clicked.found["after"]
    assert before["counter"] == f"frame 1 of {FRAMES}"
    assert after["counter"] == f"frame {SLOWEST + 1} of {FRAMES}"
    assert "engine 3000" in after["times"]
    assert set(after["marked"]) == {f"#frame-{SLOWEST + 1}"}
    assert after["pictures"] == 6


@needs_chromium
def test_address_of_a_frame_shows_it_and_the_arrow_goes_on(page: str, tmp_path: Path) -> None:
    opened = visit(
        page,
        tmp_path,
        LOOK
        + """
        const before = look();
        document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
        report({before, after: look()});""",
        fragment=f"#frame-{SLOWEST + 1}",
    )
    assert opened.console == []
    assert opened.found["before"]["counter"] == f"frame {SLOWEST + 1} of {FRAMES}"
    assert "off: clear" in opened.found["before"]["facts"]
    number = int(opened.found["after"]["counter"].split()[1])
    assert SLOWEST + 1 < number <= SLOWEST + 6
    assert opened.found["after"]["hash"] == f"#frame-{number}"


@needs_chromium
def test_an_error_on_the_page_would_be_seen(tmp_path: Path) -> None:
    broken = "<body><script>nothing.there()</script></body>"
    assert "nothing is not defined" in visit(broken, tmp_path, "report({});").console[0]
