"""Trained networks that come along, each an exported bundle in a folder with its model card."""

from __future__ import annotations

from pathlib import Path

from perception.errors import InputError
from perception.io.stores import fetch

FOLDER = Path(__file__).parent


def shipped_networks() -> list[str]:
    return sorted(manifest.parent.name for manifest in FOLDER.glob("*/manifest.json"))


def find_network(network: str | Path) -> Path:
    """The folder of a run or a bundle, given it, its address in an object store, or the name of one that comes along.

    Raises:
        InputError: it is none of these.
    """
    if str(network) in shipped_networks() and not Path(network).exists():
        return FOLDER / network
    path = fetch(Path(network))
    if not path.exists():
        raise InputError(
            f"{network}: is neither a run, nor a bundle, nor one of the networks that come along, "
            f"{', '.join(shipped_networks())}"
        )
    return path
