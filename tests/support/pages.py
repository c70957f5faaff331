"""What a reader sees: the report's page, read back or in headless Chromium."""

import base64
import html
import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest


def page_data(path: Path) -> dict[str, Any]:
    content = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    assert content
    return json.loads(content[1])


def picture(uri: str) -> np.ndarray:
    """The picture of a data URI, in the order of OpenCV."""
    content = np.frombuffer(base64.b64decode(uri.split(",", 1)[1]), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_UNCHANGED)


def timeless(out: Path) -> dict[str, Any]:
    """What the report in a replay's folder shows, without times and the frames that are shown for their time alone."""
    data = page_data(out / "report.html")
    worst = [each for each in data["worst"] if each["measure"] != "slowest"]
    shown = [each for each in data["frames"] if each["number"] in {each["number"] for each in worst}]
    times = {"latency", "milliseconds", "bundle"}
    return {name: each for name, each in data.items() if name not in times} | {"frames": shown, "worst": worst}


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium not found: apt-get install chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1600,1000",
    "--enable-logging=stderr", "--v=0",
)  # fmt: skip


@dataclass
class Visit:
    found: dict[str, Any]  # what the probe saw
    console: list[str]


def visit(page: str, folder: Path, probe: str, *flags: str, fragment: str = "") -> Visit:
    """Open the page; when it is loaded, `probe` runs, JavaScript that calls report(object)."""
    script = (
        "<script>const report = found => { const note = document.createElement('pre'); note.id = 'probe';"
        f"note.textContent = JSON.stringify(found); document.body.append(note); }};"
        f"addEventListener('load', () => {{ {probe} }});</script>"
    )
    (folder / "page.html").write_text(page.replace("</body>", f"{script}</body>"))
    command = [str(CHROMIUM), *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    shown, logged = _run([*command, f"file://{folder / 'page.html'}{fragment}"])
    note = re.search(r'<pre id="probe">(.*?)</pre>', shown, re.DOTALL)
    assert note, logged
    return Visit(json.loads(html.unescape(note[1])), [line for line in logged.splitlines() if "CONSOLE" in line])


def _run(command: list[str]) -> tuple[str, str]:
    """What a command writes to its two outputs."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        try:
            shown, logged = process.communicate(timeout=300)
        finally:  # also the browser's own processes, which else draw for ever
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, logged
    return shown, logged
