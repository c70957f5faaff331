"""Drives, bundles and results in object stores: s3://BUCKET/KEY and gs://BUCKET/KEY wherever a path is given.

What is read is mirrored below the user's cache; files of sensors are fetched when they are read. What commands write is
written below the cache and put into the store in the end. Access is configured as for any client of the store, such as
by AWS_ENDPOINT_URL.

fsspec's clients transfer. Versions, retries of single files and their order are kept here (docs/libraries.md).
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from perception.errors import InputError
from perception.io.cache import user_cache

STORES = ("s3", "gs")
ATTEMPTS, WAIT = 5, 0.2  # of a transfer; s before the second one, twice as long before each further one
LATER = ("samples", "sweeps")  # folders of a dataroot whose files are fetched when they are read
MARKS = ("v1.0-*/*", "*checkpoint.json", "manifest.json")  # files by which drives, runs and bundles count as whole
THREADS = 16  # transfers at the same time
_READ, _WRITTEN = "stores", "outputs"  # folders of the cache

Result = TypeVar("Result")
Objects = Mapping[str, dict[str, Any]]  # what the store says of each, by name below a folder; . for the address itself


# ----- where what is in a store lies on this machine -----


def is_remote(path: Path) -> bool:
    """Whether a path names an object store; as a path, s3://BUCKET has lost a slash."""
    return path.parts[:1] in [(f"{store}:",) for store in STORES]


def mirror_of(path: Path, root: str = _READ) -> Path:
    """Where a path lies on this machine: what is in an object store in the mirror."""
    return user_cache() / root / path.parts[0][:-1] / Path(*path.parts[1:]) if is_remote(path) else path


def origin_of(path: Path) -> Path:
    """The inverse of `mirror_of`, for other machines, whose mirrors lie elsewhere."""
    there = _address(path)
    return path if there is None else Path(f"{there[0]}:", *there[1:])


def with_addresses(text: str) -> str:
    """The text with the addresses of what is in a store, instead of the paths in the mirror."""
    for store in STORES:
        for root in (_READ, _WRITTEN):
            text = text.replace(f"{user_cache() / root / store}/", f"{store}://")
    return text


def _address(local: Path) -> tuple[str, ...] | None:
    """Store, bucket and key of a path in the mirror, or among outputs; None elsewhere."""
    for root in (user_cache() / _READ, user_cache() / _WRITTEN):
        if local.is_relative_to(root):
            return local.relative_to(root).parts
    return None


def _url(local: Path) -> str:
    store, *rest = _address(local) or ("",)
    return f"{store}://{'/'.join(rest)}"


def _mark(local: Path) -> Path:
    """The file with the version in which a file of the mirror was fetched."""
    return user_cache() / "versions" / local.relative_to(user_cache())


# ----- reading -----


def fetch(path: Path) -> Path:
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


def read_file(path: Path) -> bytes:
    """The content of a file, which is fetched from its store if the mirror does not have it.

    Raises:
        FileNotFoundError: neither has it.
        InputError: it cannot be read, or the store not be reached.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if _address(path) is None:
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    _fetch(path, _attempt(path, lambda: client(path).info(_url(path))))
    return path.read_bytes()


def existing(folder: Path, names: Iterable[str]) -> set[str]:
    """Those of the files below a folder that are here or, if it is of the mirror, in the store: `read_file` reads them.

    Raises:
        InputError: the store cannot be reached.
    """
    asked = {*names}
    found = {name for name in asked if (folder / name).exists()}
    if _address(folder) is None or found == asked:
        return found
    absent: dict[str, list[str]] = {}
    for name in asked - found:
        absent.setdefault(name.rpartition("/")[0], []).append(name)
    base = _url(folder).partition("://")[2]

    def add_listed(within: str) -> None:
        # Names begin with those of the log and the sensor and with the time: a drive's have few others among them.
        begin = os.path.commonprefix(absent[within]).removeprefix(f"{within}/")  # noqa: RUF071 - of letters
        listed = _attempt(folder, lambda: client(folder).find(f"{base}/{within}", prefix=begin))
        found.update(asked & {name.removeprefix(f"{base}/") for name in listed})

    _in_threads(add_listed, absent)
    return found


def client(local: Path) -> Any:
    """fsspec's client of the store of a file or folder of the mirror."""
    store = _url(local).partition(":")[0]
    try:
        import fsspec

        return fsspec.filesystem(store, use_listings_cache=False)
    except ImportError:
        raise InputError(f"{store}://: its client is not installed; pip install 'tessera-perception[scale]'") from None


def _objects(local: Path) -> Objects:
    """Objects at or below an address, without the content of LATER."""
    system, base = client(local), _url(local).partition("://")[2]
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
        # Without a name are objects that stand for the folder itself, and what has nothing between two slashes.
        for each in (info for name, info in files.items() if name):
            found[each["name"].removeprefix(f"{base}/")] = each
    return found


def _fetch_all(local: Path, objects: Objects, keep_unput: bool = False) -> None:
    """Make the mirror of a folder equal to its objects.

    Args:
        keep_unput: keep files that were not fetched.
    """
    for file in [each for each in local.rglob("*") if each.is_file()] if local.is_dir() else []:
        name, mark = file.relative_to(local), _mark(file)
        if name.as_posix() in objects or name.parts[0] in LATER or (keep_unput and not mark.is_file()):
            continue
        file.unlink(missing_ok=True)
        mark.unlink(missing_ok=True)
        with suppress(OSError):  # of a folder that is not empty
            for folder in name.parents:
                (local / folder).rmdir()
    _in_threads(lambda name: _fetch(local / name, objects[name]), objects)


def _fetch(local: Path, info: dict[str, Any]) -> None:
    """Fetch an object unless the mirror has it in this version; it appears whole or not at all."""
    if ".." in local.parts:
        raise InputError(f"{local}: an object's name leaves its folder; rename it in the store")
    version = str(info.get("ETag") or info.get("etag") or info["size"])
    mark = _mark(local)
    if local.is_file() and mark.is_file() and mark.read_text() == version:
        return
    part = mark.with_name(f".{local.name}.{os.getpid()}.part")

    def transfer() -> None:
        client(local).get_file(_url(local), str(part))
        if part.stat().st_size != info["size"]:
            raise ConnectionError(f"{part.stat().st_size} of {info['size']} bytes arrived")

    try:
        for folder in (local.parent, mark.parent):
            folder.mkdir(parents=True, exist_ok=True)
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
    for number in range(ATTEMPTS):
        try:
            return transfer()
        except (FileNotFoundError, InputError):
            raise
        except Exception as error:  # clients of stores raise errors of their own
            if number == ATTEMPTS - 1 or isinstance(error, PermissionError):
                reason = " ".join(str(error).split()) or type(error).__name__
                message = f"{_url(local)}: cannot be reached ({reason}); check address and credentials"
                raise InputError(message) from None
            time.sleep(WAIT * 2**number)
    raise AssertionError("the last attempt returns or raises")


def _in_threads(call: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(call, names))


# ----- writing -----


@contextmanager
def sync_folder(path: Path) -> Iterator[Path]:
    """As `upload_results`, to a folder that an earlier command may have written to; of processes the first one uploads.

    The folder begins with what is in the store, so that a command can go on there, or refuse to; what has changed is
    put, files of MARKS last, and what is removed here is removed there. Afterwards the store alone has it. After an
    error or a kill this machine has what was written, and goes on with it.

    Raises:
        InputError: the store cannot be reached or written; or several machines train.
    """
    if not is_remote(path):
        yield path
        return
    if os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1"):
        raise InputError(f"{path}: several machines train into a folder that all of them see, not an object store")
    local = mirror_of(path, _WRITTEN)
    objects = _attempt(local, lambda: _objects(local))
    _fetch_all(local, objects, keep_unput=True)
    if os.environ.get("RANK", "0") != "0":
        yield local
        return
    probe = local / ".writable"  # found out before the work
    _write(local, lambda: client(local).pipe_file(_url(probe), b"-"))
    _attempt(probe, lambda: client(local).rm_file(_url(probe)))
    try:
        yield local
    finally:
        changed = [name for name in _visible_files(local) if _has_changed(local / name)]
        marks = [name for name in changed if any(fnmatchcase(name, pattern) for pattern in MARKS)]
        gone = {name for name in objects if name in marks or not (local / name).exists()}
        _upload(local, changed, marks, gone)
    if sys.exc_info()[0] is None:  # some versions of click end it without the exception
        shutil.rmtree(local, ignore_errors=True)


@contextmanager
def upload_results(out: Path, last: Sequence[str], only: Collection[str] | None = None) -> Iterator[Path]:
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
        if _address(folder) is not None and folder.is_dir():
            names = [name for name in _visible_files(folder) if only is None or name in only]
            _upload(folder, names, last, last)


def _upload(folder: Path, names: Collection[str], last: Sequence[str], gone: Iterable[str]) -> None:
    """Remove what is `gone`, and put files of the mirror into its store."""
    for name in gone:
        _remove(folder / name)
    put_files(folder, [name for name in names if name not in last])
    for name in last:
        put_files(folder, [name] if name in names else [])


def put_files(folder: Path, names: Sequence[str]) -> None:
    """Put files of a folder of the mirror into its store.

    Raises:
        InputError: the store cannot be reached or written.
    """

    def put(name: str) -> None:
        local = folder / name
        _write(local, lambda: client(local).put_file(str(local), _url(local)))

    _in_threads(put, names)


def remove_folder(folder: Path) -> None:
    """Remove a folder here and, if it is of the mirror, in its store."""
    if _address(folder) is not None:
        _remove(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _visible_files(folder: Path) -> list[str]:
    files = [each.relative_to(folder) for each in sorted(folder.rglob("*")) if each.is_file()]
    return [each.as_posix() for each in files if not any(part.startswith(".") for part in each.parts)]


def _has_changed(local: Path) -> bool:
    """Whether a file of the mirror is not, or no longer, the one of the store."""
    mark = _mark(local)
    return not mark.is_file() or local.stat().st_mtime_ns > mark.stat().st_mtime_ns


def _write(local: Path, transfer: Callable[[], None]) -> None:
    try:
        _attempt(local, transfer)
    except FileNotFoundError:
        raise InputError(f"{_url(local)}: there is no such bucket; check the address") from None


def _remove(local: Path) -> None:
    def remove() -> None:
        if client(local).exists(_url(local)):
            client(local).rm(_url(local), recursive=True)

    _attempt(local, remove)
