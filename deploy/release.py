"""The release of a bundle: number, expiry, licence and signing key. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from perception.errors import InputError


@dataclass(frozen=True)
class Release:
    """Release information that the exporter states."""

    number: int = 0  # a vehicle that has run a higher one refuses this bundle (`deploy.trust`)
    expires: datetime | None = None  # from then on vehicles refuse it
    license: str = ""  # of the network, its modules and the golden frame: an SPDX identifier or a text
    sign: Path | None = None  # private key (PEM, `deploy.signature`)
    signed_plans: bool = False  # refuse unsigned plans, also those compiled on the device (`deploy.permit`)


def parse_expiry(text: str) -> datetime:
    """Parse a date (as midnight) or a time, in UTC unless it names a zone. InputError if it is neither."""
    try:
        time = datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        raise InputError(
            f"--expires {text}: not a date such as 2027-06-30 or a time such as 2027-06-30T12:00"
        ) from None
    return time.replace(tzinfo=time.tzinfo or timezone.utc).astimezone(timezone.utc)
