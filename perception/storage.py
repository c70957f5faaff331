"""Drives, bundles and results in object stores: s3://BUCKET/KEY and gs://BUCKET/KEY wherever a path is given.

What is read is mirrored below the user's cache; files of sensors are fetched when they are read. Writing is in
`perception.stored_output`. Access is configured as for any client of the store, such as by AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
    return below("stores", path) if is_remote(path) else path


def below(root: str, path: Path) -> Path:
    """Where a path in an object store lies below a folder of the cache: `stores` (read), `outputs` (written)."""
    return cache() / root / path.parts[0][:-1] / Path(*path.parts[1:])


def origin_of(path: Path) -> Path:
    """The inverse of `mirror_of`, for other machines, whose mirrors lie elsewhere."""
    there = address_of(path)
    return path if there is None else Path(f"{there[0]}:", *there[1:])


def address_of(path: Path) -> tuple[str, ...] | None:
    """Store, bucket and key of a path in the mirror, or among outputs; None elsewhere."""
    for root in (cache() / "stores", cache() / "outputs"):
        if path.is_relative_to(root):
            return path.relative_to(root).parts
    return None


def with_addresses(text: str) -> str:
    """The text with the addresses of what is in a store, instead of the paths in the mirror."""
    for store in STORES:
        for root in ("stores", "outputs"):
            text = text.replace(f"{cache() / root / store}/", f"{store}://")
    return text


def fetched(path: Path) -> Path:
    """As `mirror_of`, after fetching what has changed in the store, without the files of sensors.

    Raises:
        InputError: there is nothing, or the store cannot be reached.
    """
    if not is_remote(path):
        return path
    local = mirror_of(path)
    objects = attempt(local, lambda: objects_of(local))
    if not objects:
        raise InputError(f"{url_of(local)}: there is no such object or folder; check the address")
    fetch_all(local, objects)
    return local


def fetch_all(local: Path, objects: Mapping[str, dict[str, Any]], unput: bool = False) -> None:
    """Make the mirror of a folder equal to its objects.

    Args:
        unput: keep files that were not fetched.
    """
    files = [each for each in local.rglob("*") if each.is_file()] if local.is_dir() else []
    for file in files:
        name, mark = file.relative_to(local).as_posix(), mark_of(file)
        if name in objects or name.partition("/")[0] in LATER or (unput and not mark.is_file()):
            continue
        for each in (file, mark):
            each.unlink(missing_ok=True)
        with suppress(OSError):  # of a folder that is not empty
            for folder in file.relative_to(local).parents:
                (local / folder).rmdir()
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
        if address_of(path) is None:
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    _fetch(path, attempt(path, lambda: system_of(path).info(url_of(path))))
    return path.read_bytes()


def url_of(local: Path) -> str:
    """Address of a file or folder of the mirror."""
    store, *rest = address_of(local) or ("",)
    return f"{store}://{'/'.join(rest)}"


def mark_of(local: Path) -> Path:
    """The file with the version in which a file of the mirror was fetched."""
    return cache() / "versions" / local.relative_to(cache())


def system_of(local: Path) -> Any:
    """Client of the store of a file or folder of the mirror."""
    store = url_of(local).partition(":")[0]
    try:
        import fsspec

        return fsspec.filesystem(store, use_listings_cache=False)
    except ImportError:
        raise InputError(f"{store}://: its client is not installed; pip install 'tessera-perception[scale]'") from None


def objects_of(local: Path) -> dict[str, dict[str, Any]]:
    """Objects at or below an address, by relative name (. for the address itself), without the content of LATER."""
    system, base = system_of(local), url_of(local).partition("://")[2]
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


def _fetch(local: Path, info: dict[str, Any]) -> None:
    """Fetch an object unless the mirror has it in this version; it appears whole or not at all."""
    if ".." in local.parts:
        raise InputError(f"{local}: an object's name leaves its folder; rename it in the store")
    version = str(info.get("ETag") or info.get("etag") or info["size"])
    mark = mark_of(local)
    if local.is_file() and mark.is_file() and mark.read_text() == version:
        return
    part = mark.with_name(f".{local.name}.{os.getpid()}.part")
    try:
        for folder in (local.parent, mark.parent):
            folder.mkdir(parents=True, exist_ok=True)

        def transfer() -> None:
            system_of(local).get_file(url_of(local), str(part))
            if part.stat().st_size != info["size"]:
                raise ConnectionError(f"{part.stat().st_size} of {info['size']} bytes arrived")

        attempt(local, transfer)
        mark.unlink(missing_ok=True)
        shutil.move(part, local)
        mark.write_text(version)
    except OSError as error:
        raise InputError(f"{local}: cannot write ({error.strerror or error}); make room in the cache") from None
    finally:
        part.unlink(missing_ok=True)


def attempt(local: Path, transfer: Callable[[], Result]) -> Result:
    """Do something with a store, again after errors that may pass."""
    for number in range(ATTEMPTS):
        try:
            return transfer()
        except (FileNotFoundError, InputError):
            raise
        except Exception as error:  # clients of stores raise errors of their own
            if number == ATTEMPTS - 1 or isinstance(error, PermissionError):
                reason = " ".join(str(error).split()) or type(error).__name__
                message = f"{url_of(local)}: cannot be reached ({reason}); check address and credentials"
                raise InputError(message) from None
            time.sleep(WAIT * 2**number)
    raise AssertionError("the last attempt returns or raises")
