"""Sources of evidence for the conditions of a drive, as a YAML file configures them:

    sources:                            # for each kind of condition the first source that has evidence counts, alone
      - {source: tags}
      - {source: sun}
      - {source: geofences, file: cities.geojson}
      - {source: signals, signals: {...}, rules: [...]}     # perception.scene.signals
      - {source: recognised, error_rate: 0.1}

Without a file: tags, then what the tasks recognised in the previous frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from perception.errors import InputError
from perception.frame import Frame
from perception.io.section import Section, load_section
from perception.scene.belief import ERROR_RATE, Origin, Vocabulary, evidence_of_tags
from perception.scene.geofence import Geofences, load_geofences
from perception.scene.signals import SignalConfig, Signals, SignalsConfig, SourceConfig
from perception.tasks.task import Evidence

# The elevation of the sun from time and position. numpy only.
#
# Meeus, "Astronomical Algorithms", 2nd edition, 1998: position of the sun with low accuracy (chapter 25, 0.01
# degrees), sidereal time (12.4), horizontal coordinates (13.6). UTC is taken for UT1 and for dynamical time, which are
# off by less than a second and by about a minute, and the parallax of 0.0024 degrees is left out: together less than
# 0.01 degrees.

_J2000 = 946_728_000_000_000  # us since 1970 of 2000-01-01 12:00
_DAY = 86_400_000_000  # us


def elevation(timestamp: int | np.ndarray, latitude: float | np.ndarray, longitude: float | np.ndarray) -> np.ndarray:
    """Geometric elevation of the sun's centre above the horizon, degrees; the arguments are broadcast.

    Args:
        timestamp: us since 1970-01-01 UTC.
        latitude: degrees north, WGS 84.
        longitude: degrees east.
    """
    days = (np.asarray(timestamp) - _J2000) / _DAY
    t = days / 36525  # Julian centuries
    mean_longitude = 280.46646 + t * (36000.76983 + t * 0.0003032)
    anomaly = np.radians(357.52911 + t * (35999.05029 - t * 0.0001537))
    centre = (
        (1.914602 - t * (0.004817 + t * 0.000014)) * np.sin(anomaly)
        + (0.019993 - t * 0.000101) * np.sin(2 * anomaly)
        + 0.000289 * np.sin(3 * anomaly)
    )
    node = np.radians(125.04 - 1934.136 * t)  # of the moon's orbit, for the nutation
    nutation = -0.00478 * np.sin(node)
    ecliptic = np.radians(mean_longitude + centre - 0.00569 + nutation)  # apparent longitude
    obliquity = np.radians(23.439291 - t * 0.0130042 + 0.00256 * np.cos(node))
    sin_declination = np.sin(obliquity) * np.sin(ecliptic)
    right_ascension = np.arctan2(np.cos(obliquity) * np.sin(ecliptic), np.cos(ecliptic))
    sidereal = 280.46061837 + 360.98564736629 * days + t * t * 0.000387933 + nutation * np.cos(obliquity)
    hour_angle = np.radians(sidereal + longitude) - right_ascension
    phi, cos_declination = np.radians(latitude), np.sqrt(1 - sin_declination**2)
    sine = np.sin(phi) * sin_declination + np.cos(phi) * cos_declination * np.cos(hour_angle)
    return np.degrees(np.arcsin(np.clip(sine, -1, 1)))


# The light that the sun gives, as evidence for a kind of condition.

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
        sides = names[here::-1], names[here:]  # both begin with this band
        likely = {next(filter(None, side), None) for side in sides} - {None}
        return {self.kind: [float(value in likely) / len(likely) for value in self.values]} if likely else {}

    def _name(self, band: Band, rises: bool) -> str | None:
        """The value of a band in the vocabulary; None if it has none."""
        names = (band.rising, band.value) if rises else (band.value,)
        return next((name for name in names if name in self.values), None)


Observed = Sequence[Evidence]


@dataclass(frozen=True)
class Source:
    """A source of evidence.

    Attributes:
        evidence: observations at a frame, from it and what the tasks recognised in the previous frame.
        depends: what its evidence depends on besides the frames and the error rate.
        begin: forgets what is remembered of a drive, before another one; None: nothing is.
    """

    name: str
    error_rate: float
    evidence: Callable[[Frame, Observed], Observed]
    depends: str = ""
    begin: Callable[[], None] | None = None

    @property
    def about(self) -> str:
        """All that its evidence depends on besides the frames, for the provenance of a replay."""
        rate = "" if self.error_rate == ERROR_RATE else f"wrong in {self.error_rate:g}"
        more = ", ".join(filter(None, (self.depends, rate)))
        return f"{self.name} ({more})" if more else self.name


class TagsConfig(SourceConfig):
    source: Literal["tags"]


class RecognisedConfig(SourceConfig):
    source: Literal["recognised"]


class SunConfig(SourceConfig):
    source: Literal["sun"]
    kind: str = "light"
    bands: tuple[Band, ...] = Field(default=BANDS, min_length=1, strict=False)

    @field_validator("bands")
    @classmethod
    def _require_descending_bands(cls, bands: tuple[Band, ...]) -> tuple[Band, ...]:
        limits = [band.above for band in bands]
        if any(low >= high for high, low in pairwise(limits)):
            raise ValueError("name the bands from the highest to the lowest")
        return bands


class GeofencesConfig(SourceConfig):
    source: Literal["geofences"]
    file: str  # GeoJSON, relative to the YAML file


AnyConfig = TagsConfig | SunConfig | GeofencesConfig | SignalsConfig | RecognisedConfig


class EvidenceConfig(Section):
    sources: tuple[Annotated[AnyConfig, Field(discriminator="source")], ...] = Field(min_length=1, strict=False)


class Sources:
    """The sources of a drive, those that count first.

    Attributes:
        about: what each is and depends on.
        signals: of the vehicle, which they need, by name.
    """

    def __init__(self, sources: Sequence[Source], signals: Mapping[str, SignalConfig] | None = None) -> None:
        self._sources, self.signals = tuple(sources), dict(signals or {})
        self.about = tuple(source.about for source in self._sources)

    def begin(self) -> None:
        """Begin a drive: forget what is remembered of the one before."""
        for source in self._sources:
            if source.begin is not None:
                source.begin()

    def observe(self, frame: Frame, recognised: Sequence[Evidence]) -> tuple[Sequence[Evidence], Mapping[str, Origin]]:
        """The observations at a frame, and their origin by kind of condition.

        Of each kind, those of the first source that finds one value likelier than the others; if none does, those of
        the first source that has any.
        """
        chosen: dict[str, list[Sequence[float]]] = {}
        origins: dict[str, Origin] = {}
        for source in self._sources:
            found: dict[str, list[Sequence[float]]] = {}
            for each in source.evidence(frame, recognised):
                for kind, probabilities in each.items():
                    found.setdefault(kind, []).append(probabilities)
            for kind, observations in found.items():
                if kind not in chosen or (not _decides(chosen[kind]) and _decides(observations)):
                    chosen[kind], origins[kind] = observations, Origin(source.name, source.error_rate)
        return [{kind: each} for kind, observations in chosen.items() for each in observations], origins


def default_sources(conditions: Vocabulary) -> Sources:
    """Tags, then what the tasks recognise."""
    configs = TagsConfig(source="tags"), RecognisedConfig(source="recognised")
    return Sources([_open_source(each, Path(), conditions) for each in configs])


def load_sources(path: Path | None, conditions: Vocabulary) -> Sources:
    """Read the sources from a YAML file; None: the default.

    Args:
        conditions: kind -> values that the network knows.

    Raises:
        InputError: a file is missing or damaged, or names a condition that the network does not know.
    """
    if path is None:
        return default_sources(conditions)
    config = load_section(EvidenceConfig, path, "the sources of evidence")
    sources: list[Source] = []
    signals: dict[str, SignalConfig] = {}
    for number, each in enumerate(config.sources):
        try:
            sources.append(_open_source(each, path.parent, conditions))
            if isinstance(each, SignalsConfig):
                for name, signal in each.signals.items():
                    if signals.setdefault(name, signal) != signal:
                        raise InputError(f"the signal {name} is another one in a source above; give it another name")
        except InputError as error:
            raise InputError(f"{path}: sources.{number}: {error}") from None
    return Sources(sources, signals)


def _open_source(config: AnyConfig, folder: Path, conditions: Vocabulary) -> Source:
    opened = partial(Source, config.source, config.error_rate)
    match config:
        case TagsConfig():
            return opened(partial(_tags, conditions))
        case SunConfig(kind=kind, bands=bands):
            if kind not in conditions:
                raise InputError(f"{kind} is no kind of condition; there are {', '.join(conditions)}")
            daylight = Daylight(kind, conditions[kind], bands)
            limits = ", ".join(f"{'/'.join(filter(None, (b.value, b.rising)))} {b.above:g}" for b in bands)
            return opened(partial(_sun, daylight), "" if bands == BANDS else f"{kind}: {limits}")
        case GeofencesConfig(file=file):
            fences = load_geofences(folder / file, conditions)
            return opened(partial(_places, fences, conditions), f"{(folder / file).name} {fences.sha256[:16]}")
        case SignalsConfig():
            signals = Signals(config, conditions)
            return opened(partial(_signals, signals), config.about, signals.begin)
        case RecognisedConfig():
            return opened(_recognised)


# Functions with names, since a scene that is stored is pickled.


def _tags(conditions: Vocabulary, frame: Frame, _: Observed) -> Observed:
    return [evidence_of_tags(frame.conditions, conditions)]


def _sun(daylight: Daylight, frame: Frame, _: Observed) -> Observed:
    return [daylight.evidence(frame)]


def _places(fences: Geofences, conditions: Vocabulary, frame: Frame, _: Observed) -> Observed:
    return [evidence_of_tags(fences.at(frame.position, frame.location), conditions)]


def _signals(signals: Signals, frame: Frame, _: Observed) -> Observed:
    return signals.evidence(frame)


def _recognised(_: Frame, recognised: Observed) -> Observed:
    return recognised


def _decides(observations: Sequence[Sequence[float]]) -> bool:
    """Whether any of the observations of one kind finds one value likelier than all others."""
    return any(list(each).count(max(each)) == 1 for each in observations)
