"""Function aggregation: how several modules at one slot combine, in blocks that nest.

    Stack("rain", "night")                       night reads the output with the delta of rain
    Parallel("rain", "night")                    both read the layer's output; their deltas are summed
    Average("rain", "night", weights=[0.7, 0.3]) as Parallel, each delta times its weight; without weights, the mean
    Fuse("rain", "night")                        as Parallel, with attention over the deltas (`AttentionFusion`)

The text form of the same blocks, in error messages and in configurations, is `stack(rain, night)` and
`average(0.7*rain, 0.3*night)`, which `parse_block` reads:

    block   = module | type "(" member {"," member} ")"
    type    = "stack" | "parallel" | "average" | "fuse"
    member  = [number "*"] block                         numbers in an average only: before all members or none

A block contains modules and blocks of the other three types, to any depth; a block directly in one of its own type and
a repeated module are errors. Blocks are validated when they are built: an error marks the fault between >>> and <<<.

Only modules that read the layer's output (adapters, rescale, scale and shift, FiLM) depend on their place in a Stack;
prompts and weight deltas are computed from the layer's input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from perception.errors import InputError
from perception.io.section import MODULE_NAME
from perception.modules.computation.computation import Affine, Site

NAME = re.compile(MODULE_NAME)


class Composition:
    """A block of members, which are names of modules or blocks of other types."""

    min_members = 1

    def __init__(self, *members: Block) -> None:
        self.members = members
        if len(members) < self.min_members:
            raise InputError(f"{self!r}: {self.word()} needs {self.min_members} or more members")
        used: set[str] = set()
        for i, member in enumerate(members):
            fault = self._fault(member) or _find_repeated(names(member), used)
            if fault:
                raise InputError(f"{self._mark(i)}: {fault}")
            used |= set(names(member))

    @classmethod
    def word(cls) -> str:
        """The type's name in the text form."""
        return cls.__name__.lower()

    def _fault(self, member: object) -> str | None:
        if isinstance(member, str):
            return None if NAME.fullmatch(member) else "a module's name is a letter, then letters, digits, _ and -"
        if not isinstance(member, Composition):
            return f"a member is a name or a block, not {type(member).__name__}"
        if type(member) is type(self):
            return f"{self.word()} cannot stand directly in {self.word()}; write its members in its place"
        return None

    def _texts(self) -> list[str]:
        return [str(member) for member in self.members]

    def _mark(self, wrong: int) -> str:
        parts = [f">>>{text}<<<" if i == wrong else text for i, text in enumerate(self._texts())]
        return f"{self.word()}({', '.join(parts)})"

    def __repr__(self) -> str:
        return f"{self.word()}({', '.join(self._texts())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composition) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


Block = str | Composition


class Stack(Composition):
    """Sequential: each member reads the output with the deltas of those before it."""


class Parallel(Composition):
    """The members' deltas are summed."""


class Fuse(Composition):
    """Attention over the members' deltas; each slot has the attention by `key`."""

    min_members = 2

    @property
    def key(self) -> str:
        """Name of the block's attention at a slot, independent of the order of members."""
        return "+".join(sorted(self._texts())).replace(".", ",")  # the name of a submodule has no dots


class Average(Composition):
    """The weighted sum of the members' deltas; the weights need not sum to one, and are 1 / N each by default.

    A member that is not at a slot, or not routed, has a delta of zero; the other weights do not change.
    """

    def __init__(self, *members: Block, weights: Sequence[float] | None = None) -> None:
        self.weights: tuple[float, ...] | None = None  # while the members are checked
        super().__init__(*members)
        even = (1 / len(members),) * len(members)
        values = even if weights is None else tuple(map(float, weights))
        if len(values) != len(members):
            raise InputError(f"{self!r}: {len(members)} members, {len(values)} weights")
        for i, weight in enumerate(values):
            if not math.isfinite(weight):
                raise InputError(f"{self._mark(i)}: its weight {weight} is not a finite number")
        self.weights = values if values != even else None

    @property
    def shares(self) -> tuple[float, ...]:
        return self.weights or (1 / len(self.members),) * len(self.members)

    def _texts(self) -> list[str]:
        texts = super()._texts()
        if self.weights is None:
            return texts
        return [f"{weight!r}*{text}" for weight, text in zip(self.weights, texts, strict=True)]


def _find_repeated(members: Sequence[str], used: set[str]) -> str | None:
    repeated = used & set(members)
    return f"module {min(repeated)!r} is in the block twice" if repeated else None


def names(block: Block) -> list[str]:
    """The modules in a block, in order."""
    return [name for member in block.members for name in names(member)] if isinstance(block, Composition) else [block]


def fuses(block: Block) -> list[Fuse]:
    """The Fuse blocks in a block, itself included."""
    if isinstance(block, str):
        return []
    own = [block] if isinstance(block, Fuse) else []
    return own + [fuse for member in block.members for fuse in fuses(member)]


def deltas(
    block: Block,
    site: Site,
    module: Callable[[str, Site], Tensor | None],
    fusion: Callable[[Fuse, Site, list[Tensor | None]], Tensor | None],
) -> Tensor | None:
    """The delta that the block adds to `site.y`; None if none of its modules runs.

    Args:
        module: name of a module -> its weighted delta; None if it does not run.
        fusion: attention over the deltas of the members of a Fuse block, None for those that do not run.
    """
    if isinstance(block, str):
        return module(block, site)
    if isinstance(block, Stack):
        total: Tensor | None = None
        for member in block.members:
            part = deltas(member, site, module, fusion)
            if part is not None:
                total = part if total is None else total + part
                site = site._replace(y=site.y + part)
        return total
    parts = [deltas(member, site, module, fusion) for member in block.members]
    if isinstance(block, Fuse):
        return fusion(block, site, parts)
    if isinstance(block, Average):
        parts = [part if part is None else share * part for share, part in zip(block.shares, parts, strict=True)]
    running = [part for part in parts if part is not None]
    return sum(running[1:], start=running[0]) if running else None


def fold_block(block: Block, function: Affine, module: Callable[[str, Affine], Affine]) -> Affine:
    """The affine function of a layer with the block's modules folded in by `module`.

    The block must be affine at the slot (`is_affine`), so at most one member of a Fuse block runs.
    """
    if isinstance(block, str):
        return module(block, function)
    if isinstance(block, Stack):
        for member in block.members:
            function = fold_block(member, function, module)
        return function
    shares = block.shares if isinstance(block, Average) else (1.0,) * len(block.members)
    total = function
    for member, share in zip(block.members, shares, strict=True):
        total = total.plus(fold_block(member, function, module), function, share)
    return total


def is_sum(block: Block) -> bool:
    """Whether the block is a plain sum of deltas, without weights and attention."""
    if isinstance(block, str):
        return True
    return not isinstance(block, Average | Fuse) and all(is_sum(member) for member in block.members)


def is_affine(block: Block, attentions: Collection[str]) -> bool:
    """Whether the block is affine at a slot with these keys of attentions, provided that all its modules are."""
    if isinstance(block, str):
        return True
    return not (isinstance(block, Fuse) and block.key in attentions) and all(
        is_affine(member, attentions) for member in block.members
    )


TYPES: dict[str, type[Composition]] = {block.word(): block for block in (Stack, Parallel, Average, Fuse)}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TOKEN = re.compile(rf"{NAME.pattern}|{_NUMBER.pattern}|\S|$")


def parse_block(text: str) -> Block:
    """The block with this text form: parse_block(str(block)) == block."""
    reader = _Reader(text)
    block = reader.block()
    if reader.token:
        raise reader.error("the block ends before this")
    return block


class _Reader:
    """Reads a text token by token; `token` is the next one, and empty at the end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_TOKEN.finditer(text))

    @property
    def token(self) -> str:
        return self.tokens[0][0]

    def take(self, *expected: str) -> str:
        """Consume and return the next token, which must be one of those expected (none: any)."""
        if expected and self.token not in expected:
            raise self.error(f"expected {' or '.join(expected)}")
        return self.tokens.pop(0)[0]

    def error(self, what: str) -> InputError:
        """An error that marks the next token."""
        start, end = self.tokens[0].span()
        place = f"{self.text[:start]}>>>{self.token}<<<{self.text[end:]}"
        return InputError(f"{place}: {what} (character {start + 1})")

    def block(self) -> Block:
        if not NAME.fullmatch(self.token):
            raise self.error("expected the name of a module or a block")
        if self.tokens[1][0] != "(":
            return self.take()
        if self.token not in TYPES:
            raise self.error(f"no such type of block; there are {', '.join(TYPES)}")
        make = TYPES[self.take()]
        members, weights = self.members(weighted=make is Average)
        return Average(*members, weights=weights) if weights else make(*members)

    def members(self, weighted: bool) -> tuple[list[Block], list[float]]:
        """The members in the parentheses of a block, and the weights of a weighted average."""
        members: list[Block] = []
        weights: list[float] = []
        separator = self.take("(")
        while separator != ")":
            number = _NUMBER.fullmatch(self.token)
            if number and not weighted:
                raise self.error("only an average has weights")
            if members and bool(weights) != bool(number):
                raise self.error("an average has weights for all its members or for none")
            if number:
                weights.append(float(self.take()))
                self.take("*")
            members.append(self.block())
            separator = self.take(",", ")")
        return members, weights
