"""The defects of tools/mutants.py: drawn with a seed, written by hand, or those of an earlier run."""

from __future__ import annotations

import ast
import json
import random
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from line_map import PRODUCT

LEAD = 80  # characters


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    line: int
    start: int  # of the replaced text in the file, in characters
    before: str
    after: str
    lead: str  # characters before it, by which it is found again after the file has changed elsewhere
    function: str = ""


SWAPS: dict[type, str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.MatMult: "*",
    ast.BitAnd: "|", ast.BitOr: "&", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=",
    ast.NotEq: "==", ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.And: "or", ast.Or: "and",
}  # fmt: skip


class _Places(ast.NodeVisitor):
    """Every place of a file at which a mutant can be made, within functions."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.source, self.found = file, source, list[Mutant]()
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = source.splitlines()
        self._functions: list[str] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._functions.append(node.name)
        for statement in node.body:  # neither decorators nor defaults, which run when the file is imported
            self.visit(statement)
        self._functions.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """What a message says is not mutated."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self._delete(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._delete(node)
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._delete(node)
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._delete(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = isinstance(node.left, ast.JoinedStr) or isinstance(getattr(node.left, "value", None), str)
        if not text and type(node.op) in SWAPS:
            self._between("operator", node.left, node.right, SWAPS[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._between("operator", node.values[0], node.values[1], SWAPS[type(node.op)])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        self._between("comparison", node.left, node.comparators[0], SWAPS[type(node.ops[0])])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self._replace("operator", node, self._text(node.operand))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace("constant", node, str(not node.value))
        elif isinstance(node.value, int | float):
            self._replace("constant", node, repr(node.value + 1))

    def _at(self, line: int, column: int) -> int:
        """Characters before this place; `column` counts bytes."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno or 0, node.end_col_offset or 0)

    def _text(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self.source[start:end]

    def _delete(self, node: ast.stmt) -> None:
        self._replace("statement", node, "pass")

    def _replace(self, kind: str, node: ast.expr | ast.stmt, after: str) -> None:
        start, end = self._span(node)
        self._add(kind, node.lineno, start, self.source[start:end], after)

    def _between(self, kind: str, left: ast.expr, right: ast.expr, after: str) -> None:
        start, end = self._span(left)[1], self._span(right)[0]
        text = self.source[start:end]
        operator = text.strip("() \n")
        if operator and "#" not in text:
            self._add(kind, left.end_lineno or left.lineno, start + text.index(operator), operator, after)

    def _add(self, kind: str, line: int, start: int, before: str, after: str) -> None:
        if self._functions:
            name = f"{self.file}:{line} {kind} {' '.join(before.split())[:60]} -> {after}"
            lead = self.source[max(0, start - LEAD) : start]
            self.found.append(Mutant(name, self.file, line, start, before, after, lead, ".".join(self._functions)))


def places(root: Path, file: str) -> list[Mutant]:
    """The mutants of a file that still are Python."""
    source = (root / file).read_text()
    finder = _Places(file, source)
    finder.visit(ast.parse(source))
    return [mutant for mutant in finder.found if _compiles(change(source, mutant))]


def change(source: str, mutant: Mutant) -> str:
    end = mutant.start + len(mutant.before)
    if source[mutant.start : end] != mutant.before:
        raise ValueError(f"{mutant.name}: the file has changed meanwhile")
    return source[: mutant.start] + mutant.after + source[end:]


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def draw(root: Path, executed: set[tuple[str, int]], count: int, seed: int) -> list[Mutant]:
    """`count` mutants in executed lines, of each folder its share by number of places, at least one of each."""
    rng = random.Random(seed)
    folders: dict[str, list[Mutant]] = defaultdict(list)
    for package in PRODUCT:
        for path in sorted((root / package).rglob("*.py")):
            file = str(path.relative_to(root))
            found = [mutant for mutant in places(root, file) if (file, mutant.line) in executed]
            folders[str(path.parent.relative_to(root))] += found
    total = sum(map(len, folders.values()))
    chosen: list[Mutant] = []
    for folder in sorted(folders):
        rng.shuffle(folders[folder])
        chosen += folders[folder][: max(1, len(folders[folder]) * count // total)]
        del folders[folder][: max(1, len(folders[folder]) * count // total)]
    rest = [mutant for folder in sorted(folders) for mutant in folders[folder]]
    chosen += rng.sample(rest, max(0, count - len(chosen)))
    rng.shuffle(chosen)
    return sorted(chosen[:count], key=lambda mutant: mutant.name)


def read_written(root: Path, path: Path) -> list[Mutant]:
    """The mutants of a YAML file: rows of `file`, `before` (found once in the file), `after` and `why`."""
    mutants = []
    for row in yaml.safe_load(path.read_text()):
        source = (root / row["file"]).read_text()
        if source.count(row["before"]) != 1:
            sys.exit(f"{path}: {row['file']} has `{row['before']}` {source.count(row['before'])} times, not once")
        start = source.index(row["before"])
        line, lead = _line(source, start, row["before"], row["after"]), source[max(0, start - LEAD) : start]
        name = f"{row['file']} by hand: {row['why']}"
        mutants.append(Mutant(name, row["file"], line, start, row["before"], row["after"], lead))
    return mutants


def _line(source: str, start: int, before: str, after: str) -> int:
    """The line of the first character that differs, which may not be the first line of the replaced text."""
    pairs = zip(before, after, strict=False)
    same = next((i for i, (old, new) in enumerate(pairs) if old != new), len(after))
    return source.count("\n", 0, start + min(same, len(before) - 1)) + 1


def earlier(root: Path, result: Path) -> list[Mutant]:
    """The mutants of an earlier result, where they are now."""
    mutants = []
    for row in json.loads(result.read_text()):
        mutant = Mutant(**row["mutant"])
        source, text = (root / mutant.file).read_text(), mutant.lead + mutant.before
        places = [match.start() for match in re.finditer(re.escape(text), source)]
        if not places:
            sys.exit(f"{result}: {mutant.name}: the place has changed; make mutants of these files anew")
        start = min(places, key=lambda place: abs(place + len(mutant.lead) - mutant.start)) + len(mutant.lead)
        mutants.append(replace(mutant, start=start, line=_line(source, start, mutant.before, mutant.after)))
    return mutants
