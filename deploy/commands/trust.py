"""Options of the commands that open a bundle: whom to trust."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perception.errors import InputError

if TYPE_CHECKING:
    from deploy.trust import Trust

Keys = Annotated[
    list[Path] | None,
    typer.Option("--key", help="Public key (Ed25519, PEM): refuse what it has not signed. Twice: either will do."),
]
State = Annotated[
    Path | None,
    typer.Option(
        envvar="PERCEPTION_STATE",
        help="With --key: folder that keeps the highest release that ran here. Default: ~/.local/state/perception.",
    ),
]
AllowOlder = Annotated[bool, typer.Option("--allow-older", help="Take an older release than one that ran here.")]


def trust_in(keys: list[Path] | None, state: Path | None, allow_older: bool) -> Trust | None:
    """The trust that the options state; None without a key."""
    from deploy.trust import Trust

    if not keys:
        if allow_older:
            raise InputError("--allow-older goes with --key; without a key a bundle of any age is taken")
        return None
    return Trust(tuple(keys), state or Path.home() / ".local" / "state" / "perception", allow_older)
