"""An S3-compatible server and one of Google's storage on this machine, and a way to a server that breaks."""

import os
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlparse

import boto3
import requests
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

BUCKET = "fleet"


class Store(ABC):
    """A bucket as a client sees it that is not of this package.

    Attributes:
        scheme: of its addresses.
        endpoint: environment variable with the server's address.
    """

    scheme: str
    endpoint: str

    def __init__(self, address: str) -> None:
        self.address, self.url = address, f"{self.scheme}://{BUCKET}"

    @abstractmethod
    def put(self, key: str, content: bytes) -> None: ...

    @abstractmethod
    def remove(self, key: str) -> None: ...

    @abstractmethod
    def keys(self, prefix: str) -> list[str]: ...

    @abstractmethod
    def content(self, key: str) -> bytes: ...

    def upload(self, folder: Path, prefix: str) -> None:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def objects(self, prefix: str) -> dict[str, bytes]:
        return {key.removeprefix(f"{prefix}/"): self.content(key) for key in self.keys(f"{prefix}/")}


class S3(Store):
    scheme, endpoint = "s3", "AWS_ENDPOINT_URL"

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._client = boto3.client("s3", endpoint_url=address)
        self._client.create_bucket(Bucket=BUCKET)

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def remove(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)

    def keys(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [each["Key"] for page in pages for each in page.get("Contents", [])]

    def content(self, key: str) -> bytes:
        return self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


class Google(Store):
    scheme, endpoint = "gs", "STORAGE_EMULATOR_HOST"

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._ask("POST", "/storage/v1/b", json={"name": BUCKET})

    def _ask(self, method: str, path: str, **given: object) -> requests.Response:
        answer = requests.request(method, f"{self.address}{path}", timeout=60, **given)
        answer.raise_for_status()
        return answer

    def put(self, key: str, content: bytes) -> None:
        path = f"/upload/storage/v1/b/{BUCKET}/o"
        self._ask("POST", path, params={"uploadType": "media", "name": key}, data=content)

    def remove(self, key: str) -> None:
        self._ask("DELETE", f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}")

    def keys(self, prefix: str) -> list[str]:
        found = self._ask("GET", f"/storage/v1/b/{BUCKET}/o", params={"prefix": prefix}).json()
        return [each["name"] for each in found.get("items", [])]

    def content(self, key: str) -> bytes:
        return self._ask("GET", f"/download/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}?alt=media").content


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


STORES = {"s3": (_moto, S3), "gs": (_emulator, Google)}


@contextmanager
def served(cache: Path, scheme: str = "s3") -> Iterator[Store]:
    """A store; the environment has its address, and `cache` as the user's cache."""
    opened, client = STORES[scheme]
    with opened() as address:
        changed = {
            client.endpoint: address,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it looks for credentials of another service
            "XDG_CACHE_HOME": str(cache),
        }
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield client(address)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


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
        while True:
            try:
                taken, _ = self._server.accept()
            except OSError:
                return  # closed
            self._connections += 1
            left = self._after if self._connections % self._every == 0 else None
            there = socket.create_connection((self._to.hostname, self._to.port))
            threading.Thread(target=self._copy, args=(taken, there, left), daemon=True).start()
            threading.Thread(target=self._copy, args=(there, taken, left), daemon=True).start()

    def _copy(self, source: socket.socket, to: socket.socket, left: int | None) -> None:
        try:
            while content := source.recv(1 << 12):
                to.sendall(content if left is None else content[:left])
                left = None if left is None else left - len(content)
                if left is not None and left <= 0:
                    self.broken += 1
                    break
        except OSError:
            pass
        for each in (source, to):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
