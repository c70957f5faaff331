"""Options shared by the commands that open a bundle: trusted keys, release state, older releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perception.errors import InputError

if TYPE_CHECKING:
    from deploy.trust import Trust

Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--key", help="Public key (Ed25519, PEM) that must have signed the bundle; repeatable, any one is enough."
    ),
]
State = Annotated[
    Path | None,
    typer.Option(
        envvar="PERCEPTION_STATE",
        help="With --key: folder that stores the highest release that ran here. Default: ~/.local/state/perception.",
    ),
]
AllowOlder = Annotated[bool, typer.Option("--allow-older", help="Accept an older release than one that ran here.")]


def make_trust(keys: list[Path] | None, state: Path | None, allow_older: bool) -> Trust | None:
    """The trust that the options describe; None without a key."""
    from deploy.trust import Trust

    if not keys:
        if allow_older:
            raise InputError("--allow-older goes with --key; without a key a bundle of any age is accepted")
        return None
    return Trust(tuple(keys), state or Path.home() / ".local" / "state" / "perception", allow_older)
