"""Prometheus' own tool reads the metrics of a drive."""

import shutil
import subprocess
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from kitti import bundle_of_kitti, drive_of_kitti, topics_of_kitti
from live import driving, free_port

from deploy.live.intake import Intake
from deploy.live.metrics import Metrics
from deploy.live.outputs import Output
from deploy.recordings.topics import load_topics
from deploy.runtime import Runtime
from perception.rig import load_rig


@pytest.mark.slow("drives the recording, and may be the first to export")
def test_promtool_finds_nothing_wrong(tmp_path: Path) -> None:
    """Neither in the format nor in names, units and help: it also lints."""
    promtool, port, scrapes = shutil.which("promtool"), free_port(), list[bytes]()
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install promtool)")

    def scrape() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            scrapes.append(answer.read())

    def serve(stack: ExitStack, intake: Intake) -> list[Output]:
        served = Metrics(str(port), intake)
        stack.callback(served.close)
        scrape()  # before the first frame
        stack.callback(scrape)
        return [served]

    topics = load_topics(topics_of_kitti(), load_rig(topics_of_kitti().with_name("rig.yaml")))
    runtime = Runtime(bundle_of_kitti(), checks=False, threads=1)
    driving(drive_of_kitti(0.1035), tmp_path, runtime, topics, rate=2.0, more=serve)
    assert len(scrapes) == 2
    for each in scrapes:
        done = subprocess.run([promtool, "check", "metrics"], input=each, capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")
