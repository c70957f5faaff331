"""Print lines of code of each part of the repository, and their difference to an earlier commit.

Blank lines, comments and docstrings do not count. `python tools/lines.py [COMMIT]`; without one, the commit before.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tarfile
import tokenize

PYTHON, CPP = (".py",), (".c", ".cpp", ".h", ".hpp")
PARTS = {
    "product": (("perception/", "deploy/"), PYTHON),
    "C++": (("deploy/cpp/", "deploy/ros2/"), CPP),
    "tools": (("tools/",), PYTHON),
    "tests": (("tests/", "deploy/cpp/tests/"), (*PYTHON, *CPP)),
}
NOT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def count_python(text: str) -> int:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        match node:  # a docstring, or another string that nobody reads
            case ast.Expr(value=ast.Constant(value=str()), lineno=first, end_lineno=int(last)):
                lines -= {*range(first, last + 1)}
    return len(lines)


def count_cpp(text: str) -> int:
    without_blocks = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return sum(bool(line.partition("//")[0].strip()) for line in without_blocks.splitlines())


def part_of(file: str) -> str | None:
    """Name of the part that a file belongs to; C++ tests are tests."""
    matches = [name for name, (folders, ends) in PARTS.items() if file.startswith(folders) and file.endswith(ends)]
    return matches[-1] if matches else None


def count(commit: str) -> dict[str, int]:
    """Lines of code of each part at a commit."""
    total = dict.fromkeys(PARTS, 0)
    archive = subprocess.run(["git", "archive", commit], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            part, content = part_of(member.name), files.extractfile(member)
            if part and content:
                counter = count_python if member.name.endswith(".py") else count_cpp
                total[part] += counter(content.read().decode())
    return total


def main() -> None:
    before, now = count(sys.argv[1] if len(sys.argv) > 1 else "HEAD^"), count("HEAD")
    for part, lines in now.items():
        print(f"{lines:7,} lines of code in {part} ({lines - before[part]:+,})")


if __name__ == "__main__":
    main()
