"""An S3-compatible server and one of Google's storage on this machine, and a way to a server that breaks."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

import fsspec
import pytest
import requests
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

BUCKET = "fleet"
STORES = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}  # environment variable with the server's address


class Store:
    """A bucket through a connection of its own, which remembers nothing of what it saw."""

    def __init__(self, scheme: str, address: str) -> None:
        self.scheme, self.address, self.url = scheme, address, f"{scheme}://{BUCKET}"
        self._system = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
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
    yield f"http://{host}:{port}"
    server.stop()


@contextmanager
def _emulator() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@contextmanager
def serve(cache: Path, scheme: str = "s3") -> Iterator[Store]:
    """A store; the environment has its address, and `cache` as the user's cache."""
    with {"s3": _moto, "gs": _emulator}[scheme]() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            STORES[scheme]: address,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it looks for credentials of another service
            "XDG_CACHE_HOME": str(cache),
        }.items():
            patch.setenv(name, value)
        yield Store(scheme, address)


class Breaking:
    """A proxy whose every nth connection ends after so many bytes in one direction.

    Attributes:
        broken: number of connections that it has ended.
    """

    def __init__(self, address: str, every: int, after: int) -> None:
        self._to, self._every, self._after = urlparse(address), every, after
        self.broken, self._connections = 0, 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                taken, _ = self._server.accept()
                self._connections += 1
                left = self._after if self._connections % self._every == 0 else None
                there = socket.create_connection((self._to.hostname, self._to.port))
                for ends in ((taken, there), (there, taken)):
                    threading.Thread(target=self._copy, args=(*ends, left), daemon=True).start()

    def _copy(self, source: socket.socket, to: socket.socket, left: int | None) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 12):
                to.sendall(content if left is None else content[:left])
                left = None if left is None else left - len(content)
                if left is not None and left <= 0:
                    self.broken += 1
                    break
        for each in (source, to):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
