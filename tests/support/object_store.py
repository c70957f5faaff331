"""An S3-compatible server on this machine, and a way to a server that breaks."""

import select
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from urllib.parse import urlparse

import fsspec
import pytest
import requests
from moto.server import ThreadedMotoServer

BUCKET = "fleet"


class Store:
    """A bucket through a connection of its own, which remembers nothing of what it saw."""

    url = f"s3://{BUCKET}"

    def __init__(self, address: str) -> None:
        self.address = address
        self._system = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
        self._system.mkdir(BUCKET)

    def put(self, key: str, content: bytes) -> None:
        self._system.pipe_file(f"{BUCKET}/{key}", content)

    def remove(self, key: str) -> None:
        self._system.rm_file(f"{BUCKET}/{key}")

    def keys(self, prefix: str) -> list[str]:
        return [each.removeprefix(f"{BUCKET}/") for each in self._system.find(f"{BUCKET}/{prefix}")]

    def upload(self, folder: Path, prefix: str) -> None:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def objects(self, prefix: str) -> dict[str, bytes]:
        found = self.keys(f"{prefix}/")
        return {key.removeprefix(f"{prefix}/"): self._system.cat_file(f"{BUCKET}/{key}") for key in found}


@contextmanager
def _moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=60).raise_for_status()  # servers share their memory
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def serve(cache: Path) -> Iterator[Store]:
    """A store; the environment has its address, and `cache` as the user's cache."""
    with _moto() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "XDG_CACHE_HOME": str(cache),
        }.items():
            patch.setenv(name, value)
        yield Store(address)


class Breaking:
    """A proxy whose every nth connection is reset after so many bytes in one direction, as by a network that fails.

    Attributes:
        broken: number of connections that it has reset.
    """

    def __init__(self, address: str, every: int, after: int) -> None:
        self._to, self._every, self._after = urlparse(address), every, after
        self.broken = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            for number in count(1):
                left = self._after if number % self._every == 0 else sys.maxsize
                threading.Thread(target=self._forward, args=(self._server.accept()[0], left), daemon=True).start()

    def _forward(self, taken: socket.socket, left: int) -> None:
        with taken, suppress(OSError), socket.create_connection((self._to.hostname, self._to.port)) as there:
            others, lefts = {taken: there, there: taken}, {taken: left, there: left}
            while True:
                for source in select.select([*others], [], [])[0]:
                    if not (content := source.recv(1 << 12)):
                        return
                    others[source].sendall(content[: lefts[source]])
                    lefts[source] -= len(content)
                    if lefts[source] <= 0:
                        self.broken += 1
                        for each in others:  # an end without a reset would be that of a whole request
                            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return

    def close(self) -> None:
        self._server.close()
