"""What a vehicle accepts: signing keys, the release of a bundle, and plans that ran before. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from perception.errors import InputError
from perception.io.files import write_atomically

# The highest release that ran is stored outside of the bundles and for all of them, because the signature of an old
# bundle stays valid. A device that compiles a plan has no private key to sign it: such a plan is accepted once for a
# network and a target, if none ran before; from then on only that plan runs, or a signed one.

STATE = "release.json"
HOME = Path(".local", "state", "perception")  # at home: of a vehicle without a folder of its own


@dataclass(frozen=True)
class Ran:
    """Releases and plans that ran on a vehicle."""

    release: int = 0  # the highest
    plans: Mapping[str, str] = field(default_factory=dict)  # target and network -> sha256 of the latest plan's record


@dataclass(frozen=True)
class Trust:
    """What a vehicle accepts.

    Attributes:
        keys: public keys (PEM, `deploy.signature`); a signature by any one of them is enough.
        state: folder that stores what ran. None: it is `HOME`, and no unsigned plan runs.
        allow_older: whether to accept an older release. The stored release does not change then.
        opened: plans that were accepted without a signature, and are stored when they have run.
    """

    keys: tuple[Path, ...]
    state: Path | None
    allow_older: bool = False
    opened: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def file(self) -> Path:
        return (self.state or Path.home() / HOME) / STATE

    def require_signed(self, record: Path, content: bytes) -> str:
        """The id of the key that signed `content`; raises like `deploy.signature.require_signed`."""
        from deploy.signature import require_signed  # without a key no cryptography is needed

        return require_signed(record, content, *self.keys)

    def require_current(self, file: Path, release: int, expires: datetime | None) -> None:
        """Raise InputError if the manifest `file` has expired, or its release is older than one that ran."""
        now = datetime.now(timezone.utc)
        if expires is not None and expires <= now:
            end, today = (f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M}" for time in (expires, now))
            raise InputError(f"{file}: expired at {end} UTC, and the clock says {today}; take a newer release")
        highest = self.ran().release
        if release < highest and not self.allow_older:
            raise InputError(
                f"{file}: is release {release}, but release {highest} ran here before, says {self.file}; take "
                "a newer release, or run this one with --allow-older"
            )

    def require_plan(self, record: Path, content: bytes, place: str, bundle: Path) -> None:
        """Raise InputError unless the plan of this record is signed or is the one that ran here in its place."""
        digest = hashlib.sha256(content).hexdigest()
        if record.with_suffix(".sig").is_file():
            self.require_signed(record, content)
            if self.state is not None:
                self._store(0, {}, {place: digest})  # so that no unsigned one can take its place
            return
        sign = f"sign it with `perception sign {bundle} --target {record.stem} --key PRIVATE`"
        if self.state is None:
            raise InputError(
                f"{record}: is not signed; {sign}, or give --state FOLDER, which remembers the plans that ran here"
            )
        if self.ran().plans.get(place, digest) != digest:
            raise InputError(
                f"{record}: is not signed, and another plan ran here before, says {self.file}; {sign}, or remove "
                "that plan there"
            )
        self.opened[place] = digest

    def ran(self) -> Ran:
        """Read what ran here. InputError if it cannot be read."""
        try:
            content = json.loads(self.file.read_bytes())
            release, plans = content["release"], content.get("plans", {})
        except FileNotFoundError:
            return Ran()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            release, plans = None, None
        if not isinstance(release, int) or isinstance(release, bool) or not isinstance(plans, dict):
            raise InputError(f'{self.file}: does not say what ran here; write {{"release": N}} into it, the highest')
        return Ran(release, plans)

    def accept(self, release: int) -> None:
        """Store that this release ran, and the plans. InputError if they cannot be stored; they must not run then."""
        self._store(release, self.opened, {})

    def _store(self, release: int, unsigned: Mapping[str, str], signed: Mapping[str, str]) -> None:
        def joined(before: Ran) -> Ran:
            return Ran(max(release, before.release), {**unsigned, **before.plans, **signed})

        if joined(self.ran()) == self.ran():
            return
        folder = self.file.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot keep what ran ({error.strerror}); choose another --state") from None
        with _lock(folder):
            content = asdict(joined(self.ran()))  # another process may have stored more
            write_atomically(self.file, json.dumps(content).encode())


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Release:
    """Release information that the exporter states."""

    number: int = 0  # a vehicle that has run a higher one refuses this bundle (`deploy.trust`)
    expires: datetime | None = None  # from then on vehicles refuse it
    license: str = ""  # of the network, its modules and the golden frame: an SPDX identifier or a text
    sign: Path | None = None  # private key (PEM, `deploy.signature`)


def parse_expiry(text: str) -> datetime:
    """Parse a date (as midnight) or a time, in UTC unless it names a zone. InputError if it is neither."""
    try:
        time = datetime.fromisoformat(text.removesuffix("Z"))
        return time.replace(tzinfo=time.tzinfo or timezone.utc).astimezone(timezone.utc)
    except (ValueError, OverflowError):  # in UTC it may be after the year 9999
        raise InputError(
            f"--expires {text}: not a date such as 2027-06-30 or a time such as 2027-06-30T12:00"
        ) from None
