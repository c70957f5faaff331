"""The light that the sun gives, as evidence for a kind of condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perception.errors import InputError
from perception.frame import Frame
from perception.scene.sun import elevation
from perception.section import Section

_FIRST = 946_684_800_000_000  # us, 2000-01-01; earlier stamps are of a clock that does not show UTC
_MINUTE = 60_000_000  # us


class Band(Section):
    """A range of the sun's elevation, from the band before down to `above`."""

    value: str
    above: float = -90.0  # degrees, geometric
    rising: str | None = None  # the value while the sun rises, if the vocabulary has it


# Sunrise and sunset (upper limb on the horizon, refraction of 34') and civil twilight, as almanacs define them.
BANDS = (Band(value="day", above=-50 / 60), Band(value="dusk", above=-6.0, rising="dawn"), Band(value="night"))


class Daylight:
    """Says by the sun's elevation which value of a kind of condition holds.

    In a band whose value the vocabulary does not have, those of the next bands above and below that it does have are
    equally likely.

    Args:
        kind: of condition, such as light.
        values: of that kind.
        bands: from the highest to the lowest.

    Raises:
        InputError: the vocabulary has none of the bands' values.
    """

    def __init__(self, kind: str, values: Sequence[str], bands: Sequence[Band] = BANDS) -> None:
        self.kind, self.values, self.bands = kind, tuple(values), tuple(bands)
        known = {name for band in bands for name in (band.value, band.rising)} & set(values)
        if not known:
            raise InputError(f"{kind} is {', '.join(values)}, and the sun's bands name none of these")

    def evidence(self, frame: Frame) -> Mapping[str, Sequence[float]]:
        """Probabilities of the kind's values; nothing without a position or a time in UTC."""
        if frame.position is None or frame.timestamp < _FIRST:
            return {}
        now = float(elevation(frame.timestamp, *frame.position))
        rises = float(elevation(frame.timestamp + _MINUTE, *frame.position)) > now
        names = [self._name(band, rises) for band in self.bands]
        here = next((i for i, band in enumerate(self.bands) if now >= band.above), None)
        if here is None:
            return {}
        if names[here] is not None:
            likely = {names[here]}
        else:
            above, below = names[:here][::-1], names[here:]
            likely = {name for side in (above, below) if (name := next(filter(None, side), None)) is not None}
        return {self.kind: [float(value in likely) / len(likely) for value in self.values]} if likely else {}

    def _name(self, band: Band, rises: bool) -> str | None:
        """The value of a band in the vocabulary; None if it has none."""
        names = (band.rising, band.value) if rises else (band.value,)
        return next((name for name in names if name in self.values), None)
