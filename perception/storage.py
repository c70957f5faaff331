"""Drives, bundles and results in object stores: s3://BUCKET/KEY and gs://BUCKET/KEY wherever a path is given.

What is read is mirrored below the user's cache; files of sensors are fetched when they are read. Results are put into
the store when they are whole. Access is configured as for any client of the store, such as by AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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


def with_addresses(text: str) -> str:
    """The text with the addresses of what is in a store, instead of the paths in the mirror."""
    for store in STORES:
        text = text.replace(f"{_root() / store}/", f"{store}://")
    return text


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
    _fetch_all(local, objects)
    return local


def _fetch_all(local: Path, objects: Mapping[str, dict[str, Any]]) -> None:
    """Make the mirror of a folder equal to its objects."""
    if local.is_dir() and objects:
        for file in [each for each in local.rglob("*") if each.is_file()]:
            name = file.relative_to(local).as_posix()
            if name not in objects and name.partition("/")[0] not in LATER and (mark := _mark(file)).is_file():
                file.unlink()  # was fetched, and removed from the store
                mark.unlink()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda name: _fetch(local / name, objects[name]), objects))


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
def output(path: Path) -> Iterator[Path]:
    """As `results` of a folder to which an earlier command may have written; of several processes the first one puts.

    The folder begins with what is in the store, so that a command can go on there, or refuse to; what has changed is
    put. Afterwards the store alone has it. After a kill this machine has what was written, and goes on with it.
    """
    if not is_remote(path):
        yield path
        return
    local = mirror_of(path)
    _fetch_all(local, _attempt(local, lambda: _objects(local)))
    if os.environ.get("RANK", "0") != "0":  # of a training in several processes
        yield local
        return
    try:
        yield local
    finally:
        changed = [name for name in _files(local) if _is_changed(local / name)]
        _put(local, [name for name in ("manifest.json",) if name in changed], changed)
    shutil.rmtree(local, ignore_errors=True)


@contextmanager
def results(out: Path, last: Sequence[str] = (), only: Collection[str] | None = None) -> Iterator[Path]:
    """The folder on this machine to write results to; those for an object store are put there in the end.

    This also happens after an error, since some results describe it. Hidden files stay here.

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
    names = [name for name in _files(folder) if only is None or name in only]
    put(folder, [name for name in names if name not in last])
    for name in last:
        put(folder, [name] if name in names else [])


def _files(folder: Path) -> list[str]:
    """The files of a folder by relative name, without hidden ones."""
    files = [each.relative_to(folder) for each in sorted(folder.rglob("*")) if each.is_file()]
    return [each.as_posix() for each in files if not any(part.startswith(".") for part in each.parts)]


def _is_changed(local: Path) -> bool:
    """Whether a file of the mirror is not, or no longer, the one of the store."""
    mark = _mark(local)
    return not mark.is_file() or local.stat().st_mtime_ns > mark.stat().st_mtime_ns


def put(folder: Path, names: Sequence[str]) -> None:
    """Put files of a folder of the mirror into its store.

    Raises:
        InputError: the store cannot be reached or written.
    """

    def transfer(name: str) -> None:
        local = folder / name
        _attempt(local, lambda: _system(local).put_file(str(local), _url(local)))

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(transfer, names))


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


def _mark(local: Path) -> Path:
    """The file with the version in which a file of the mirror was fetched."""
    return cache() / "versions" / local.relative_to(_root())


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
    try:
        itself = system.info(base)
    except FileNotFoundError:
        return {}
    if itself["type"] == "file":
        return {".": itself}
    found: dict[str, dict[str, Any]] = {}
    for folder, folders, files in system.walk(base, detail=True, on_error="raise"):
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
    mark = _mark(local)
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
