"""Trained networks that come along, each an exported bundle in a folder with its model card."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def shipped_networks() -> list[str]:
    return sorted(manifest.parent.name for manifest in FOLDER.glob("*/manifest.json"))


def find_network(network: str | Path) -> Path:
    """Resolve the name of a shipped network to its folder, and fetch a run or bundle from an object store."""
    from perception.io.stores import fetch

    shipped = str(network) in shipped_networks() and not Path(network).exists()
    return FOLDER / network if shipped else fetch(Path(network))
