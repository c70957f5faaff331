"""Drives, bundles and results in object stores: s3://BUCKET/KEY and gs://BUCKET/KEY wherever a path is given.

What is read is mirrored below the user's cache; files of sensors are fetched when they are read. Results are put into
the store when they are whole. Access is configured as for any client of the store, such as by AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from perception.arrays_on_disk import cache
from perception.errors import InputError

STORES = ("s3", "gs")
ATTEMPTS, WAIT = 5, 0.2  # of a transfer; s before the second one, twice as long before each further one
LATER = ("samples", "sweeps")  # folders of a dataroot whose files are fetched when they are read
THREADS = 16  # transfers at the same time

Result = TypeVar("Result")


def is_remote(path: Path) -> bool:
    """Whether a path names an object store; as a path, s3://BUCKET has lost a slash."""
    return path.parts[:1] in [(f"{store}:",) for store in STORES]


def mirror_of(path: Path) -> Path:
    """Where a path lies on this machine: what is in an object store in the mirror."""
    return _root() / path.parts[0][:-1] / Path(*path.parts[1:]) if is_remote(path) else path


def origin_of(path: Path) -> Path:
    """The inverse of `mirror_of`, for other machines, whose mirrors lie elsewhere."""
    if not path.is_relative_to(_root()):
        return path
    store, *rest = path.relative_to(_root()).parts
    return Path(f"{store}:", *rest)


def fetched(path: Path) -> Path:
    """As `mirror_of`, after fetching what has changed in the store, without the files of sensors.

    Raises:
        InputError: there is nothing, or the store cannot be reached.
    """
    if not is_remote(path):
        return path
    local = mirror_of(path)
    objects = _attempt(local, lambda: _objects(local))
    if not objects:
        raise InputError(f"{_url(local)}: there is no such object or folder; check the address")
    if local.is_dir():
        for file in [each for each in local.rglob("*") if each.is_file()]:
            name = file.relative_to(local).as_posix()
            if name not in objects and name.partition("/")[0] not in LATER:
                file.unlink()  # was removed from the store
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda name: _fetch(local / name, objects[name]), objects))
    return local


def read(path: Path) -> bytes:
    """The content of a file, which is fetched from its store if the mirror does not have it.

    Raises:
        FileNotFoundError: neither has it.
        InputError: it cannot be read, or the store not be reached.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if not path.is_relative_to(_root()):
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    _fetch(path, _attempt(path, lambda: _system(path).info(_url(path))))
    return path.read_bytes()


@contextmanager
def results(out: Path, last: Sequence[str], only: Collection[str] | None = None) -> Iterator[Path]:
    """The folder on this machine to write results to; those for an object store are put there in the end.

    This also happens after an error, since some results describe it.

    Args:
        last: names of files that mark the others as whole: they are removed first and put last, in this order.
        only: names of files to put; None: all.

    Raises:
        InputError: the store cannot be reached or written.
    """
    folder = mirror_of(out)
    try:
        yield folder
    finally:
        _put(folder, last, only)


def _put(folder: Path, last: Sequence[str], only: Collection[str] | None) -> None:
    if not folder.is_relative_to(_root()) or not folder.is_dir():
        return
    system = _system(folder)
    for name in last:
        _attempt(folder, partial(_remove, system, _url(folder / name)))
    files = [each.name for each in folder.iterdir() if each.is_file() and not each.name.startswith(".")]
    files = [name for name in files if only is None or name in only]
    for name in [*sorted({*files} - {*last}), *(each for each in last if each in files)]:
        _attempt(folder, partial(system.put_file, str(folder / name), _url(folder / name)))


def removed(folder: Path) -> None:
    """Remove a folder here and, if it is of the mirror, in its store."""
    if folder.is_relative_to(_root()):
        _attempt(folder, partial(_remove, _system(folder), _url(folder)))
    shutil.rmtree(folder, ignore_errors=True)


def _remove(system: Any, url: str) -> None:
    if system.exists(url):
        system.rm(url, recursive=True)


def _root() -> Path:
    return cache() / "stores"


def _url(local: Path) -> str:
    """Address of a file or folder of the mirror."""
    store, *rest = local.relative_to(_root()).parts
    return f"{store}://{'/'.join(rest)}"


def _system(local: Path) -> Any:
    """Client of the store of a file or folder of the mirror."""
    store = local.relative_to(_root()).parts[0]
    try:
        import fsspec

        return fsspec.filesystem(store, use_listings_cache=False)
    except ImportError:
        raise InputError(f"{store}://: its client is not installed; pip install 'tessera-perception[scale]'") from None


def _objects(local: Path) -> dict[str, dict[str, Any]]:
    """Objects at or below an address, by relative name (. for the address itself), without the content of LATER."""
    system, base = _system(local), "/".join(local.relative_to(_root()).parts[1:])
    if system.isfile(base):
        return {".": system.info(base)}
    found: dict[str, dict[str, Any]] = {}
    for folder, folders, files in system.walk(base, detail=True):
        for name in [each for each in folders if each in LATER and folder.rstrip("/") == base]:
            del folders[name]
        for each in files.values():
            found[each["name"].removeprefix(f"{base}/")] = each
    return found


def _fetch(local: Path, info: dict[str, Any]) -> None:
    """Fetch an object unless the mirror has it in this version; it appears whole or not at all."""
    if ".." in local.parts:
        raise InputError(f"{local}: an object's name leaves its folder; rename it in the store")
    version = str(info.get("ETag") or info.get("etag") or info["size"])
    mark = cache() / "versions" / local.relative_to(_root())
    if local.is_file() and mark.is_file() and mark.read_text() == version:
        return
    part = mark.with_name(f".{local.name}.{os.getpid()}.part")
    try:
        for folder in (local.parent, mark.parent):
            folder.mkdir(parents=True, exist_ok=True)

        def transfer() -> None:
            _system(local).get_file(_url(local), str(part))
            if part.stat().st_size != info["size"]:
                raise ConnectionError(f"{part.stat().st_size} of {info['size']} bytes arrived")

        _attempt(local, transfer)
        mark.unlink(missing_ok=True)
        shutil.move(part, local)
        mark.write_text(version)
    except OSError as error:
        raise InputError(f"{local}: cannot write ({error.strerror or error}); make room in the cache") from None
    finally:
        part.unlink(missing_ok=True)


def _attempt(local: Path, transfer: Callable[[], Result]) -> Result:
    """Do something with a store, again after errors that may pass."""
    for attempt in range(ATTEMPTS):
        try:
            return transfer()
        except (FileNotFoundError, InputError):
            raise
        except Exception as error:  # clients of stores raise errors of their own
            if attempt == ATTEMPTS - 1 or isinstance(error, PermissionError):
                reason = " ".join(str(error).split()) or type(error).__name__
                message = f"{_url(local)}: cannot be reached ({reason}); check address and credentials"
                raise InputError(message) from None
            time.sleep(WAIT * 2**attempt)
    raise AssertionError("the last attempt returns or raises")
