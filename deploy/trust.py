"""What a vehicle accepts: signing keys, the release of a bundle, and permits for plans. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from deploy.targets import TARGETS, Versions
from perception.errors import InputError
from perception.io.files import write_atomically
from perception.io.section import Section

# Which bundles a vehicle accepts: those signed by a trusted key and not older than one that ran before.
#
# A vehicle trusts one key or, while one replaces another, two. It stores the highest release that it ever ran in a
# folder of its own, outside of the bundles and for all of them, because the signature of an old bundle stays valid.
# Whoever can write to that folder can roll the vehicle back, and expiry depends on the system's clock. No torch here.

STATE = "release.json"


@dataclass(frozen=True)
class Trust:
    """What a vehicle accepts.

    Attributes:
        keys: public keys (PEM, `deploy.signature`); a signature by any one of them is enough.
        state: folder that stores the highest release that ran.
        allow_older: whether to accept an older release. The stored release does not change then.
    """

    keys: tuple[Path, ...]
    state: Path
    allow_older: bool = False

    def require_signed(self, record: Path, content: bytes, signer: str = "") -> str:
        """The id of the key that signed `content`; raises like `deploy.signature.require_signed`."""
        from deploy.signature import require_signed  # without a key no cryptography is needed

        return require_signed(record, content, *self.keys, signer=signer)

    def require_current(self, file: Path, release: int, expires: datetime | None) -> None:
        """Raise InputError if the manifest `file` has expired, or its release is older than one that ran."""
        now = datetime.now(timezone.utc)
        if expires is not None and expires <= now:
            end, today = (f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M}" for time in (expires, now))
            raise InputError(f"{file}: expired at {end} UTC, and the clock says {today}; take a newer release")
        highest = self.highest()
        if release < highest and not self.allow_older:
            raise InputError(
                f"{file}: is release {release}, but release {highest} ran here before, says {self.state / STATE}; take "
                "a newer release, or run this one with --allow-older"
            )

    def highest(self) -> int:
        """The highest release that ran, or 0. InputError if it cannot be read."""
        file = self.state / STATE
        try:
            release = json.loads(file.read_bytes())["release"]
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError):
            release = None
        if not isinstance(release, int) or isinstance(release, bool):
            raise InputError(f'{file}: does not say the highest release that ran; write {{"release": N}} into it')
        return release

    def accept(self, release: int) -> None:
        """Store that this release ran. InputError if that cannot be written; the release must not run then."""
        if release <= self.highest():
            return
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.state}: cannot keep the release ({error.strerror}); choose another --state"
            ) from None
        with _lock(self.state):
            if release > self.highest():  # another process may have raised it
                write_atomically(self.state / STATE, json.dumps({"release": release}).encode())


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# The release of a bundle: number, expiry, licence and signing key.


@dataclass(frozen=True)
class Release:
    """Release information that the exporter states."""

    number: int = 0  # a vehicle that has run a higher one refuses this bundle (`deploy.trust`)
    expires: datetime | None = None  # from then on vehicles refuse it
    license: str = ""  # of the network, its modules and the golden frame: an SPDX identifier or a text
    sign: Path | None = None  # private key (PEM, `deploy.signature`)
    signed_plans: bool = False  # refuse unsigned plans, also those compiled on the device (`deploy.trust`)


def parse_expiry(text: str) -> datetime:
    """Parse a date (as midnight) or a time, in UTC unless it names a zone. InputError if it is neither."""
    try:
        time = datetime.fromisoformat(text.removesuffix("Z"))
        return time.replace(tzinfo=time.tzinfo or timezone.utc).astimezone(timezone.utc)
    except (ValueError, OverflowError):  # in UTC it may be after the year 9999
        raise InputError(
            f"--expires {text}: not a date such as 2027-06-30 or a time such as 2027-06-30T12:00"
        ) from None


# Permits in a signed manifest for plans that a device compiles itself.
#
# A device has no private key, so it cannot sign the record of a plan that it compiled. A vehicle that trusts keys
# accepts such a plan if the manifest permits its target and compiler, and the plan is of this network. This trusts
# everyone who can write to the bundle's `engines` folder: hashes find damage and mix-ups, and golden frames find a
# plan that computes something else, but neither stops a malicious plan. A bundle without permits (`perception export
# --signed-plans`) accepts signed plans only.


class Permit(Section):
    """A kind of plan that needs no signature of its own."""

    target: str
    dla: bool  # compiled for a DLA
    first: tuple[int, int]  # first permitted version of the target's compiler
    end: tuple[int, int]  # first version that is no longer permitted

    def covers(self, target: str, compiler: str) -> bool:
        """Whether it permits a plan for this target from this compiler, such as `tensorrt 10.3.0 with DLA 0`."""
        name, _, rest = compiler.partition(" ")
        version, _, place = rest.partition(" with ")
        return (
            (self.target, self.dla) == (target, bool(place))
            and target in TARGETS
            and name == TARGETS[target].compiler
            and version in Versions(self.first, self.end)
        )


def default_permits(opset: int) -> tuple[Permit, ...]:
    """Permits for all targets that compile graphs of this opset on the device."""
    permitted = []
    for target in TARGETS.values():
        if target.compiler == "tensorrt" and target.opsets[0] <= opset <= target.opsets[1]:
            for dla, versions in ((False, target.versions), (True, target.dla_versions)):
                if versions is not None:
                    permitted.append(Permit(target=target.name, dla=dla, first=versions.first, end=versions.end))
    return tuple(permitted)
