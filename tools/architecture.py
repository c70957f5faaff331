"""Draw the house into docs/architecture.md: its folders, and which of them import which.

python tools/architecture.py           # write the page
python tools/architecture.py --check   # fail where the page is not what the code says
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from pathlib import Path

from perception.atomic import write_atomically

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by tools/architecture.py -->\n", "<!-- /drawn -->\n"


def room(module: str) -> str:
    """The folder that a module lies in, two parts deep; files at the top of a package stand for the package."""
    parts = module.split(".")
    return ".".join(parts[:2]) if (REPOSITORY.joinpath(*parts[:2])).is_dir() else parts[0]


def imports(path: Path) -> set[str]:
    """Modules of this repository that a file imports anywhere in it, also for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.split(".")[0] in ("perception", "deploy")}


def arrows() -> dict[tuple[str, str], int]:
    """(importing folder, imported folder) -> number of files that do."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for package in ("perception", "deploy"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            own = room(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
            for other in {room(name) for name in imports(path)} - {own}:
                found[own, other] += 1
    return dict(found)


def drawn(found: dict[tuple[str, str], int]) -> str:
    """A Mermaid diagram; a package's own files are drawn as the package."""
    rooms = sorted({name for arrow in found for name in arrow})
    lines = ["```mermaid", "flowchart TD"]
    for package in ("deploy", "perception"):
        inside = [f"    {name.replace('.', '_')}[{name}]" for name in rooms if name.split(".")[0] == package]
        lines += [f"  subgraph {package}_package[{package}]", *inside, "  end"]
    # The files at the top of a package are what everything stands on: arrows to them would hide all others.
    shown = {arrow: count for arrow, count in found.items() if "." in arrow[1]}
    lines += [f"  {a.replace('.', '_')} -->|{n}| {b.replace('.', '_')}" for (a, b), n in sorted(shown.items())]
    return "\n".join([*lines, "```\n"])


def page(text: str) -> str:
    """The page's text with the picture between its two comments made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + drawn(arrows()) + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if arguments.check and old != new:
        sys.exit(f"{PAGE}: is not what the code says; run python tools/architecture.py")
    write_atomically(PAGE, new.encode())


if __name__ == "__main__":
    main()
