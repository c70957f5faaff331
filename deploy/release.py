"""How a bundle is released: its number, how long it serves, and who signs it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from perception.errors import InputError


@dataclass(frozen=True)
class Release:
    """What the exporter states of a bundle."""

    number: int = 0  # counts up: a vehicle that has run a higher one refuses this (`deploy.trust`)
    expires: datetime | None = None  # from then on vehicles refuse it
    license: str = ""  # of the network, its modules and the golden frame: an SPDX identifier or a text
    sign: Path | None = None  # private key (PEM, `deploy.signature`)
    signed_plans: bool = False  # refuse plans that were not signed, also those that a device compiled (`deploy.permit`)


def parse_expiry(text: str) -> datetime:
    """A date (its beginning) or a time, of UTC where it names no other zone; InputError where it is none."""
    try:
        time = datetime.fromisoformat(text.removesuffix("Z"))
    except ValueError:
        raise InputError(
            f"--expires {text}: not a date such as 2027-06-30 or a time such as 2027-06-30T12:00"
        ) from None
    return time.replace(tzinfo=time.tzinfo or timezone.utc).astimezone(timezone.utc)
