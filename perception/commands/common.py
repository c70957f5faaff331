"""Shared by the commands: the application, the types of options, and printing.

Heavy modules are imported inside the commands, so that --help is fast.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from perception import __version__
from perception.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from perception.rig import Rig


KEEP_MEMORY = "PERCEPTION_KEEP_MEMORY"  # environment variable; 0 leaves malloc as it is
# Parameters of mallopt(3) with their environment variables, which processes started later read, and values in bytes.
_MALLOC = (
    (-3, "MALLOC_MMAP_THRESHOLD_", 1 << 30),
    (-1, "MALLOC_TRIM_THRESHOLD_", (1 << 31) - 1),
    (-2, "MALLOC_TOP_PAD_", 1 << 28),
)


class _Command(TyperCommand):
    """A command that takes each option once, unless it is a list: click would drop all values but the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(order).items():
            if times > 1 and not getattr(option, "multiple", True) and not getattr(option, "is_flag", True):
                raise InputError(f"{option.opts[0]} is given {times} times; give it once")
        left = list(super().parse_args(ctx, args))
        for parameter in self.params:
            if getattr(parameter, "callback", None) is None:
                _require_local(parameter.opts[0], ctx.params.get(parameter.name or ""))
        return left


def _require_local(name: str, value: Any) -> None:
    """Raise InputError for a path in an object store, which would be taken for a folder of this machine."""
    from perception.io.stores import is_remote

    if isinstance(value, Path) and is_remote(value):
        raise InputError(f"{name}: {value} is in an object store; copy it here, or give a path on this machine")


class _Application(typer.Typer):
    def command(self, *names: Any, **options: Any) -> Any:
        return super().command(*names, cls=_Command, **options)


app = _Application(
    help="Camera + LiDAR perception built from modules: train on nuScenes, export engines, replay drives.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"perception {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def from_store(path: Path | None) -> Path | None:
    """A path of an argument, after fetching what is in an object store."""
    from perception.io.stores import fetch

    return None if path is None else fetch(path)


def to_store(ctx: typer.Context, path: Path | None) -> Path | None:
    """A path to write to; what is in an object store is put there when the command ends."""
    from perception.io.stores import sync_folder

    return None if path is None else ctx.with_resource(sync_folder(path))


def yaml_file(kind: str) -> dict[str, Any]:
    """Settings of an argument or option: a YAML file, or the name of one that comes with the package."""

    def complete(incomplete: str) -> list[str]:
        from perception.io.shipped import shipped_files

        return [name for name in shipped_files(kind) if name.startswith(incomplete)]

    def find(name: str) -> Path:
        from perception.io.shipped import named_file

        return named_file(kind, name)

    return {"metavar": "FILE|NAME", "parser": find, "autocompletion": complete}


Root = Annotated[
    Path,
    typer.Option(
        "--data",
        callback=from_store,
        help="Drives: nuScenes or its schema, PandaSet, T4, mmdet3d's nuscenes_infos_*.pkl, or FORMAT=PATH.",
    ),
]
Version = Annotated[str | None, typer.Option(help="v1.0-mini, v1.0-trainval, ... Default: the only one there is.")]
Run = Annotated[Path, typer.Argument(callback=from_store, help="A run, or one of its checkpoints.")]
Out = Annotated[Path, typer.Option("--out", callback=to_store, help="Folder to write.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, all else to standard error.")]
Scenes = Annotated[str, typer.Option(help="Only these: scene-0103,scene-0916 or keyframes scene-0103:0-4.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", help="Address of a Ray cluster whose processes do it: auto, HOST:6379, ray://HOST:10001."),
]
RigOption = Annotated[
    Path | None,
    typer.Option("--rig", help="The vehicle's sensors: nuscenes, truck, shuttle, ... or a file.", **yaml_file("rig")),
]

_TRAINING = {"mini": "mini_train", "trainval": "train", "sim": "sim_train"}
_VALIDATION = {"mini": "mini_val", "trainval": "val", "sim": "sim_val"}


def training_split(version: str) -> str:
    return _TRAINING.get(version.partition("-")[2], "all")


def validation_split(version: str) -> str:
    return _VALIDATION.get(version.partition("-")[2], "all")


def report(result: dict[str, Any], as_json: bool, shown: str | Table | None = None) -> None:
    """Print the result as JSON, or its table or text."""
    from perception.io.stores import with_addresses

    if as_json:
        print(with_addresses(json.dumps(result)))
    elif isinstance(shown, str):
        print(shown)
    elif shown is not None:
        console_for(as_json).print(shown)


def print_trained(last: Path) -> None:
    """Print the checkpoint of a training, in its main process."""
    from perception.io.distributed import rank
    from perception.io.stores import with_addresses

    if rank() == 0:
        print(with_addresses(str(last)))


@contextmanager
def explain_stop() -> Iterator[None]:
    """Run a training; after Ctrl-C print the command that continues it, and exit with code 130."""
    from perception.training.interrupt import Stopped

    try:
        yield
    except Stopped as stopped:
        arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
        command = shlex.join(["perception", *arguments, "--resume"])
        print(f"perception: {stopped} and saved; continue with\n{command}", file=sys.stderr)
        raise typer.Exit(130) from None


def console_for(as_json: bool) -> Console:
    from rich.console import Console

    return Console(stderr=as_json)


def rig_of(chosen: Path | None) -> Rig | None:
    from perception.rig import load_rig

    return None if chosen is None else load_rig(chosen)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def refuse_unused(context: typer.Context, way: str, *used: str) -> None:
    """Raise InputError for an argument on the command line that this way to use the command does not read."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name not in used and source is not None and source.name == "COMMANDLINE":
            raise InputError(f"{parameter.opts[0]} has no effect with {way}; leave it out")


def keep_memory() -> bool:
    """Let malloc keep what is freed, here and in processes started from now on; call it before torch allocates.

    glibc takes blocks over 128 KiB to 32 MiB from the kernel and gives them back when they are freed. A training on a
    CPU frees and takes the same large tensors in every step, so the kernel clears the same pages again and again. With
    higher thresholds the pages stay; the process is larger by what was free. The user's own settings of malloc stay.

    Returns:
        Whether it does: false without glibc, with PERCEPTION_KEEP_MEMORY=0, or where glibc refuses.
    """
    if sys.platform != "linux" or os.environ.get(KEEP_MEMORY) == "0":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    accepted = True
    for parameter, variable, value in _MALLOC:
        if variable not in os.environ:
            os.environ[variable] = str(value)
            accepted &= library.mallopt(parameter, value) == 1
    return accepted
