"""A page in headless Chromium, opened from a file: what a reader sees, without a network."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
    done = subprocess.run(
        [*command, f"file://{folder / 'page.html'}{fragment}"], capture_output=True, text=True, timeout=60, check=True
    )
    note = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert note, done.stderr
    return Visit(json.loads(html.unescape(note[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line])
