"""What the commands share: the application, the types of their options, and how they read and print.

Heavy modules are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perception.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.trust import Trust

app = typer.Typer(
    help="Camera + LiDAR perception built from modules: train on nuScenes, export engines, replay drives.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Root = Annotated[
    Path,
    typer.Option("--data", help="nuScenes dataroot, recorded or simulated; or mmdet3d's nuscenes_infos_*.pkl in one."),
]
Version = Annotated[str | None, typer.Option(help="v1.0-mini, v1.0-trainval, ... Default: the only one there is.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, all else to standard error.")]
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
Scenes = Annotated[str, typer.Option(help="Only these: scene-0103,scene-0916 or keyframes scene-0103:0-4.")]
Key = Annotated[Path | None, typer.Option(help="Public key (Ed25519, PEM): refuse what it has not signed.")]


TRAINING = {"v1.0-mini": "mini_train", "v1.0-trainval": "train", "v1.0-sim": "sim_train"}
VALIDATION = {"v1.0-mini": "mini_val", "v1.0-trainval": "val", "v1.0-sim": "sim_val"}


def report(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))


def console_for(as_json: bool) -> Console:
    from rich.console import Console

    return Console(stderr=as_json)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def trust_in(keys: list[Path] | None, state: Path | None, allow_older: bool) -> Trust | None:
    """What the options of a command say; None without a key."""
    from deploy.trust import Trust

    if not keys:
        if allow_older:
            raise InputError("--allow-older goes with --key; without a key a bundle of any age is taken")
        return None
    return Trust(tuple(keys), state or Path.home() / ".local" / "state" / "perception", allow_older)
