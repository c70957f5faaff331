"""Drives, bundles and results in object stores: s3://BUCKET/KEY and gs://BUCKET/KEY wherever a path is given.

What is read is mirrored below the user's cache; sensor files are fetched when they are read. What commands write is
written below the cache and uploaded when they end. fsspec's clients transfer and retry. They are configured as for any
client of the store, such as by AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from perception.errors import InputError
from perception.io.cache import user_cache

STORES = {"s3": "s3fs", "gs": "gcsfs"}  # with the packages of their clients
LATER = ("samples", "sweeps")  # folders of a dataroot whose files are fetched when they are read
READ, WRITTEN = "stores", "outputs"  # folders of the cache


def is_remote(path: Path) -> bool:
    """Whether a path names an object store; as a path, s3://BUCKET has lost a slash."""
    return path.parts[:1] in [(f"{store}:",) for store in STORES]


def mirror_of(path: Path, root: str = READ) -> Path:
    """Where the content of a path lies on this machine."""
    return user_cache() / root / path.parts[0][:-1] / Path(*path.parts[1:]) if is_remote(path) else path


def with_addresses(text: str) -> str:
    """The text with addresses of the store instead of paths in the mirror."""
    return re.sub(rf"{re.escape(str(user_cache()))}/(?:{READ}|{WRITTEN})/({'|'.join(STORES)})/", r"\1://", text)


def origin_of(path: Path) -> Path:
    """The inverse of `mirror_of`, for other machines, whose mirrors lie elsewhere."""
    return Path(with_addresses(str(path)))


@contextmanager
def _client(local: Path) -> Iterator[tuple[Any, str]]:
    """fsspec's client of the store of a mirrored path, and its address BUCKET/KEY there; errors become InputError."""
    url = with_addresses(str(local))
    store, _, address = url.partition("://")
    try:
        import fsspec

        yield fsspec.filesystem(store, use_listings_cache=False), address
    except FileNotFoundError:
        raise InputError(f"{url}: there is no such bucket, folder or object; check the address") from None
    except ImportError:
        raise InputError(f"{store}://: its client is not installed; pip install {STORES[store]}") from None
    except Exception as error:  # clients raise errors of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"{url}: cannot be read or written ({reason}); check address, credentials and free space"
        raise InputError(message) from None


def fetch(path: Path) -> Path:
    """Return `mirror_of` after making the mirror equal to the store, without sensor files."""
    local = mirror_of(path)
    if is_remote(path):
        objects = refresh(local)
        if not objects:
            raise InputError(f"{with_addresses(str(local))}: there is no such object or folder; check the address")
        for file in [each for each in local.rglob("*") if each.is_file()]:
            name = file.relative_to(local)
            if name.as_posix() not in objects and name.parts[0] not in LATER:
                file.unlink(missing_ok=True)
                with suppress(OSError):  # the folder is not empty
                    file.parent.rmdir()
    return local


def refresh(local: Path) -> Collection[str]:
    """Fetch the objects at or below a mirrored path that are newer than their files; returns the names of all.

    A file appears when it is whole.
    """
    times = _times(local)
    files = {name: local / name for name in times}
    stale = [name for name, file in files.items() if not file.is_file() or file.stat().st_mtime < times[name]]
    user_cache().mkdir(parents=True, exist_ok=True)
    in_cache = tempfile.TemporaryDirectory(prefix="fetching-", dir=user_cache())
    with in_cache as folder, _client(local) as (client, address):
        parts = [f"{folder}/{number}" for number in range(len(stale))]
        client.get([f"{address}/{name}".removesuffix("/.") for name in stale], parts)
        for name, part in zip(stale, parts, strict=True):
            os.utime(part, (times[name], times[name]))
            files[name].parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, files[name])
    return times.keys()


def _times(local: Path) -> Mapping[str, int]:
    """Time of change (s) of each object at (`.`) or below a mirrored path by name, without the content of LATER."""
    with _client(local) as (client, address):
        try:
            entries = [client.info(address)]
        except FileNotFoundError:
            return {}
        if entries[0]["type"] == "directory":
            entries = client.ls(address, detail=True)
        for folder in [each["name"] for each in entries if each["type"] == "directory"]:
            if folder.removeprefix(f"{address}/") not in LATER:
                entries += client.find(folder, detail=True).values()
    return {
        each["name"].removeprefix(address).lstrip("/") or ".": int(
            (each.get("LastModified") or each["mtime"]).timestamp()
        )
        for each in entries
        # Not objects that stand for folders, nor names that have no place in one.
        if each["type"] != "directory" and not {"", ".."} & {*each["name"].split("/")}
    }


def read_file(path: Path) -> bytes:
    """The content of a file, which is fetched from its store if the mirror does not have it.

    Raises:
        FileNotFoundError: neither has it.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if not is_remote(origin_of(path)) or not refresh(path):
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    return path.read_bytes()


def readable_files(folder: Path, names: Collection[str]) -> set[str]:
    """Names of the files of a folder that can be read, locally or from the object store."""
    found = {name for name in names if (folder / name).exists()}
    absent = sorted({*names} - found) if is_remote(origin_of(folder)) else []
    for within, group in groupby(absent, os.path.dirname):
        # Names start with log, sensor and time, so few others have their common prefix.
        prefix = os.path.commonprefix([os.path.basename(name) for name in group])  # noqa: RUF071 - of letters
        with _client(folder) as (client, address):
            listed = client.find(f"{address}/{within}", prefix=prefix)
            found |= {name.removeprefix(f"{address}/") for name in listed} & {*absent}
    return found


@contextmanager
def sync_folder(path: Path) -> Iterator[Path]:
    """The folder on this machine to write to; what is for an object store is uploaded in the end, also after an error.

    It starts with the content of the store, without sensor files, and with what a killed command has left here. What is
    removed here is removed there, hidden files stay here. Of the processes of a training the first one uploads.
    """
    if not is_remote(path):
        yield path
        return
    if os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1"):
        raise InputError(f"{path}: several machines train into a folder that all of them see, not an object store")
    local = mirror_of(path, WRITTEN)
    stored = refresh(local)
    if os.environ.get("RANK", "0") != "0":
        yield local
        return
    with _client(local) as (client, address):  # found out before the work
        client.pipe_file(f"{address}/.writable", b"-")
        client.rm_file(f"{address}/.writable")
    try:
        yield local
    finally:
        files = [each.relative_to(local) for each in sorted(local.rglob("*")) if each.is_file()]
        names = [each.as_posix() for each in files if not any(part.startswith(".") for part in each.parts)]
        put_files(local, names, stored)
    if sys.exc_info()[0] is None:  # some versions of click end it without the exception
        shutil.rmtree(local, ignore_errors=True)


def put_files(folder: Path, names: Collection[str], stored: Collection[str] = ()) -> None:
    """Put files of a mirrored folder into its store. JSON files, which describe the others, are put last.

    Args:
        stored: names of the objects. What has no file is removed, and so are the JSON files that are put anew.
    """
    last = [name for name in names if name.endswith(".json")]
    old = [name for name in stored if name in last or not (folder / name).exists()]
    with _client(folder) as (client, address):
        if old:
            client.rm([f"{address}/{name}" for name in old])
        for batch in ([name for name in names if name not in last], last):
            client.put([str(folder / name) for name in batch], [f"{address}/{name}" for name in batch])


def remove_folder(folder: Path) -> None:
    """Remove a folder here and, if it is mirrored, in its store."""
    if is_remote(origin_of(folder)):
        with _client(folder) as (client, address):
            if client.exists(address):
                client.rm(address, recursive=True)
    shutil.rmtree(folder, ignore_errors=True)
