"""Draw the folders of the code and the imports between them into docs/architecture.md.

python tools/architecture.py           # write the page
python tools/architecture.py --check   # fail if the page is out of date
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from pathlib import Path

from perception.io.files import write_atomically

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by tools/architecture.py -->\n", "<!-- /drawn -->\n"


def folder_of(module: str) -> str:
    """The folder of a module, at most two levels deep; files at the top of a package belong to the package."""
    parts = module.split(".")
    return ".".join(parts[:2]) if (REPOSITORY.joinpath(*parts[:2])).is_dir() else parts[0]


def imports(path: Path) -> set[str]:
    """The modules of this repository that a file imports, also inside functions and for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.split(".")[0] in ("perception", "deploy")}


def count_imports() -> dict[tuple[str, str], int]:
    """(importing folder, imported folder) -> number of importing files."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for package in ("perception", "deploy"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            own = folder_of(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
            for other in {folder_of(name) for name in imports(path)} - {own}:
                found[own, other] += 1
    return dict(found)


def diagram(found: dict[tuple[str, str], int]) -> str:
    """A Mermaid diagram of the imports between folders."""
    folders = sorted({name for arrow in found for name in arrow})
    lines = ["```mermaid", "flowchart TD"]
    for package in ("deploy", "perception"):
        inside = [f"    {name.replace('.', '_')}[{name}]" for name in folders if name.split(".")[0] == package]
        lines += [f"  subgraph {package}_package[{package}]", *inside, "  end"]
    # Everything imports the files at the top of a package, so arrows to them would hide all others.
    shown = {arrow: count for arrow, count in found.items() if "." in arrow[1]}
    lines += [f"  {a.replace('.', '_')} -->|{n}| {b.replace('.', '_')}" for (a, b), n in sorted(shown.items())]
    return "\n".join([*lines, "```\n"])


def page(text: str) -> str:
    """The page's text with a new diagram between its two comments."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + diagram(count_imports()) + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if arguments.check and old != new:
        sys.exit(f"{PAGE}: is out of date; run python tools/architecture.py")
    write_atomically(PAGE, new.encode())


if __name__ == "__main__":
    main()
