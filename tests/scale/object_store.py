"""An S3-compatible server on this machine, and a way to it that breaks."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "fleet"


@contextmanager
def served(cache: Path) -> Iterator[str]:
    """The server's address; the environment names it, and `cache` as the user's cache."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    changed = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(cache),
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    client().create_bucket(Bucket=BUCKET)
    try:
        yield address
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        server.stop()


def client() -> "boto3.client":
    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def upload(folder: Path, prefix: str) -> None:
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        client().upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(folder).as_posix()}")


def objects(prefix: str) -> dict[str, bytes]:
    listed = client().list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
    return {
        each["Key"].removeprefix(f"{prefix}/"): client().get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()
        for each in listed
    }


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
