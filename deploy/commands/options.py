"""Options shared by commands: trusted keys, release state, older releases; target, and map of topics."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.networks import find_network
from perception.commands.common import yaml_file
from perception.errors import InputError

if TYPE_CHECKING:
    from deploy.trust import Trust

Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--key", help="Public key (Ed25519, PEM) that must have signed the bundle; repeatable, any one is enough."
    ),
]
BundleOption = Annotated[
    Path, typer.Option(callback=find_network, help="An exported bundle, or a network that comes along: demo.")
]
BundleArgument = Annotated[
    Path, typer.Argument(callback=find_network, help="An exported bundle, or a network that comes along: demo.")
]
State = Annotated[
    Path | None,
    typer.Option(
        help="With --key: folder that remembers the highest release and the plans that ran here; plans that are not "
        "signed need it. Default: $PERCEPTION_STATE; without it releases are in ~/.local/state/perception.",
    ),
]
Target = Annotated[str, typer.Option(help="Target whose engine runs; `perception build --list` shows all.")]
TopicsFile = Annotated[
    Path | None, typer.Option(help="Map of the topics of a recording to sensors.", **yaml_file("topics"))
]
GatesFile = Annotated[Path | None, typer.Option(help="Gates of the verdict.", **yaml_file("gates"))]
AllowOlder = Annotated[bool, typer.Option("--allow-older", help="Accept an older release than one that ran here.")]


def make_trust(keys: Sequence[Path] | None, state: Path | None, allow_older: bool) -> Trust | None:
    """The trust that the options describe; None without a key."""
    from deploy.trust import Trust

    if not keys:
        if allow_older or state:
            raise InputError(
                "without a key any release is accepted, and none is remembered; give a key, or leave out the state and "
                "the permission for older releases"
            )
        return None
    usual = os.environ.get("PERCEPTION_STATE")
    return Trust(tuple(keys), state or (Path(usual) if usual else None), allow_older)
