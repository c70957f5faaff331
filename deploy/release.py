"""The release of a bundle: number, expiry, licence, signing key, and permits for plans. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from deploy.targets import TARGETS, Versions
from perception.errors import InputError
from perception.io.section import Section

# The release of a bundle: number, expiry, licence and signing key. No torch here.


@dataclass(frozen=True)
class Release:
    """Release information that the exporter states."""

    number: int = 0  # a vehicle that has run a higher one refuses this bundle (`deploy.trust`)
    expires: datetime | None = None  # from then on vehicles refuse it
    license: str = ""  # of the network, its modules and the golden frame: an SPDX identifier or a text
    sign: Path | None = None  # private key (PEM, `deploy.signature`)
    signed_plans: bool = False  # refuse unsigned plans, also those compiled on the device (`deploy.release`)


def parse_expiry(text: str) -> datetime:
    """Parse a date (as midnight) or a time, in UTC unless it names a zone. InputError if it is neither."""
    try:
        time = datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        raise InputError(
            f"--expires {text}: not a date such as 2027-06-30 or a time such as 2027-06-30T12:00"
        ) from None
    return time.replace(tzinfo=time.tzinfo or timezone.utc).astimezone(timezone.utc)


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


def default_permits(precision: str, opset: int) -> tuple[Permit, ...]:
    """Permits for all targets that compile such a graph on the device."""
    permitted = []
    for target in TARGETS.values():
        if target.compiler != "tensorrt" or precision not in target.precisions:
            continue
        if target.opsets[0] <= opset <= target.opsets[1]:
            for dla, versions in ((False, target.versions), (True, target.dla_versions)):
                if versions is not None:
                    permitted.append(Permit(target=target.name, dla=dla, first=versions.first, end=versions.end))
    return tuple(permitted)
