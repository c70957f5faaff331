"""The text form of blocks, for configurations and the command line: stack(rain, average(0.7*night, 0.3*fog)).

block   = module | type "(" member {"," member} ")"
type    = "stack" | "parallel" | "average" | "fuse"
member  = [number "*"] block                             numbers in an average only: before all members or none
"""

from __future__ import annotations

import re

from perception.errors import InputError
from perception.modules.aggregation.composition import NAME, Average, Block, Composition, Fuse, Parallel, Stack

TYPES: dict[str, type[Composition]] = {block.word(): block for block in (Stack, Parallel, Average, Fuse)}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TOKEN = re.compile(rf"{NAME.pattern}|{_NUMBER.pattern}|\S|$")


def parse_block(text: str) -> Block:
    """The block with this text form: parse_block(str(block)) == block.

    Raises:
        InputError: the text is no block; the message marks the fault between >>> and <<<.
    """
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
