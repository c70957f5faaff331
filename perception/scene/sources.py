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

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from perception.errors import InputError
from perception.frame import Frame
from perception.scene.belief import ERROR_RATE, Origin, Vocabulary, tagged
from perception.scene.daylight import BANDS, Band, Daylight
from perception.scene.geofence import load_geofences
from perception.scene.signals import SignalConfig, Signals, SignalsConfig, SourceConfig
from perception.section import Section, load_section
from perception.tasks.task import Evidence


class Source(ABC):
    """A source of evidence.

    Attributes:
        about: all that its evidence depends on besides the frames, for the provenance of a replay.
    """

    def __init__(self, name: str, error_rate: float = ERROR_RATE, about: str = "") -> None:
        self.name, self.error_rate = name, error_rate
        rate = "" if error_rate == ERROR_RATE else f"wrong in {error_rate:g}"
        more = ", ".join(filter(None, (about, rate)))
        self.about = f"{name} ({more})" if more else name

    @abstractmethod
    def evidence(self, frame: Frame, recognised: Sequence[Evidence]) -> Sequence[Evidence]:
        """Observations at a frame.

        Args:
            recognised: by the tasks in the previous frame.
        """

    def begin(self) -> None:  # noqa: B027 - most sources remember nothing
        """Forget what is remembered of a drive, before another one."""


class _Tags(Source):
    def __init__(self, conditions: Vocabulary, error_rate: float = ERROR_RATE) -> None:
        super().__init__("tags", error_rate)
        self._conditions = conditions

    def evidence(self, frame: Frame, recognised: Sequence[Evidence]) -> Sequence[Evidence]:
        return [tagged(frame.conditions, self._conditions)]


class _Recognised(Source):
    def evidence(self, frame: Frame, recognised: Sequence[Evidence]) -> Sequence[Evidence]:
        return recognised


class _Sun(Source):
    def __init__(self, config: SunConfig, conditions: Vocabulary) -> None:
        if config.kind not in conditions:
            raise InputError(f"{config.kind} is no kind of condition; there are {', '.join(conditions)}")
        bands = ", ".join(f"{'/'.join(filter(None, (b.value, b.rising)))} {b.above:g}" for b in config.bands)
        super().__init__("sun", config.error_rate, "" if config.bands == BANDS else f"{config.kind}: {bands}")
        self._daylight = Daylight(config.kind, conditions[config.kind], config.bands)

    def evidence(self, frame: Frame, recognised: Sequence[Evidence]) -> Sequence[Evidence]:
        return [self._daylight.evidence(frame)]


class _Geofences(Source):
    def __init__(self, config: GeofencesConfig, folder: Path, conditions: Vocabulary) -> None:
        path = folder / config.file
        self._geofences, self._conditions = load_geofences(path, conditions), conditions
        super().__init__("geofences", config.error_rate, f"{path.name} {self._geofences.sha256[:16]}")

    def evidence(self, frame: Frame, recognised: Sequence[Evidence]) -> Sequence[Evidence]:
        found = self._geofences.at(frame.position, frame.location)
        return [{kind: [float(each == value) for each in self._conditions[kind]] for kind, value in found.items()}]


class _Signals(Source):
    def __init__(self, config: SignalsConfig, conditions: Vocabulary) -> None:
        super().__init__("signals", config.error_rate, config.about)
        self._signals = Signals(config, conditions)

    def begin(self) -> None:
        self._signals.begin()

    def evidence(self, frame: Frame, recognised: Sequence[Evidence]) -> Sequence[Evidence]:
        return self._signals.evidence(frame)


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
    def _descend(cls, bands: tuple[Band, ...]) -> tuple[Band, ...]:
        limits = [band.above for band in bands]
        if any(low >= high for high, low in pairwise(limits)):
            raise ValueError("name the bands from the highest to the lowest")
        return bands


class GeofencesConfig(SourceConfig):
    source: Literal["geofences"]
    file: str  # GeoJSON, relative to the YAML file


class EvidenceConfig(Section):
    sources: tuple[
        Annotated[
            TagsConfig | SunConfig | GeofencesConfig | SignalsConfig | RecognisedConfig, Field(discriminator="source")
        ],
        ...,
    ] = Field(min_length=1, strict=False)


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
    return Sources([_Tags(conditions), _Recognised("recognised")])


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
            sources.append(_opened(each, path.parent, conditions))
            if isinstance(each, SignalsConfig):
                for name, signal in each.signals.items():
                    if signals.setdefault(name, signal) != signal:
                        raise InputError(f"the signal {name} is another one in a source above; give it another name")
        except InputError as error:
            raise InputError(f"{path}: sources.{number}: {error}") from None
    return Sources(sources, signals)


def _opened(config: SourceConfig, folder: Path, conditions: Vocabulary) -> Source:
    match config:
        case SunConfig():
            return _Sun(config, conditions)
        case GeofencesConfig():
            return _Geofences(config, folder, conditions)
        case SignalsConfig():
            return _Signals(config, conditions)
        case TagsConfig():
            return _Tags(conditions, config.error_rate)
        case _:
            return _Recognised("recognised", config.error_rate)


def _decides(observations: Sequence[Sequence[float]]) -> bool:
    """Whether any of the observations of one kind finds one value likelier than all others."""
    return any(list(each).count(max(each)) == 1 for each in observations)
