"""The names of drives and keyframes, by splits and selectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from perception.datasets.files import read_json
from perception.errors import InputError


class Drives:
    """The drives of a data set and their keyframes, by name.

    Args:
        samples: drive -> tokens of its keyframes in order of time.
        splits: reads the splits, each with the names of its drives; none by default.
    """

    def __init__(
        self,
        where: str,
        samples: Mapping[str, list[str]],
        splits: Callable[[], Mapping[str, Sequence[str]]] = dict,
    ) -> None:
        self._where, self._samples, self._splits = where, samples, splits
        self._scene = {token: name for name, tokens in samples.items() for token in tokens}

    def scene(self, token: str) -> str:
        return self._scene[token]

    def scenes(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Names of the drives in a split (None or 'all': all drives), or of the selected ones among them."""
        names = self._drives_of(split)
        chosen = [_parse_selector(selector)[0] for selector in selectors]
        for name in chosen:
            if name not in names:
                where = self._where if split is None else f"split {split} of {self._where}"
                raise InputError(f"{name}: no such scene in {where}; it has {_shorten(names)}")
        return list(dict.fromkeys(chosen)) if selectors else names

    def samples(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Tokens of the keyframes, drive by drive, in order of time.

        Args:
            selectors: names of scenes, or `scene-0103:0-4` for its keyframes 0, 1, 2 and 3.
        """
        names = self.scenes(split, selectors)
        if not selectors:
            return [token for name in names for token in self._samples[name]]
        tokens: dict[str, None] = {}
        for selector in selectors:
            name, start, stop = _parse_selector(selector)
            of_scene = self._samples[name]
            if stop is not None and not start < stop <= len(of_scene):
                last = len(of_scene) - 1
                raise InputError(f"{selector}: {name} has keyframes 0 to {last}; in FIRST-END the end is left out")
            tokens.update(dict.fromkeys(of_scene[start:stop]))
        return list(tokens)

    def _drives_of(self, split: str | None) -> list[str]:
        every = list(self._samples)
        if split in (None, "all"):
            return every
        splits = self._splits()
        if not splits:
            raise InputError(f"{self._where}: has no split {split}; leave out --split, or select drives or frames")
        if split not in splits:
            raise InputError(f"{self._where}: has no split {split}; known are {', '.join([*splits, 'all'])}")
        names = [name for name in every if name in set(splits[split])]
        if not names:
            raise InputError(f"{self._where}: no scene of split {split} is here; it has {_shorten(every)}")
        return names


def read_splits(folder: Path) -> dict[str, list[str]]:
    path = folder / "splits.json"
    splits = read_json(path) if path.exists() else {}
    if not isinstance(splits, dict):
        raise InputError(f"{path}: not an object of split names and lists of names")
    return splits


def _parse_selector(selector: str) -> tuple[str, int, int | None]:
    """('scene-0103', 0, 4) for 'scene-0103:0-4'; the end is None for a whole scene."""
    match = re.fullmatch(r"([^:]+)(?::(\d+)-(\d+))?", selector)
    if match is None:
        raise InputError(f"{selector}: not a selector; write a scene's name, or NAME:FIRST-END for some keyframes")
    name, start, stop = match.groups()
    return name, int(start or 0), None if stop is None else int(stop)


def _shorten(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])}, ... ({len(names)} in all)"
