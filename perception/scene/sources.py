"""Sources of evidence for the conditions of a drive, as a YAML file configures them:

    sources:                            # for each kind of condition the first source that has evidence counts, alone
      - {source: tags}
      - {source: geofences, file: cities.geojson}
      - {source: signals, signals: {...}, rules: [...]}     # perception.scene.signals
      - {source: recognised, error_rate: 0.1}

Without a file: tags, then what the tasks recognised in the previous frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from perception.errors import InputError
from perception.frame import Frame
from perception.io.section import Section, load_section
from perception.scene.belief import ERROR_RATE, Origin, Vocabulary, evidence_of_tags
from perception.scene.geofence import Geofences, load_geofences
from perception.scene.signals import SignalConfig, Signals, SignalsConfig, SourceConfig
from perception.tasks.task import Evidence


class PlainConfig(SourceConfig):
    source: Literal["tags", "recognised"]  # tags: of the data set; recognised: by the network


class GeofencesConfig(SourceConfig):
    source: Literal["geofences"]  # where the vehicle is
    file: str  # GeoJSON, relative to the YAML file


AnyConfig = PlainConfig | GeofencesConfig | SignalsConfig


class EvidenceConfig(Section):
    # for each kind of condition the first one with evidence counts
    sources: tuple[Annotated[AnyConfig, Field(discriminator="source")], ...] = Field(min_length=1, strict=False)


class Source:
    """A source of evidence that is open.

    Attributes:
        about: all that its evidence depends on besides the frames, for the provenance of a replay.
    """

    def __init__(self, config: AnyConfig, folder: Path, vocabulary: Vocabulary) -> None:
        self.origin, self._vocabulary = Origin(config.source, config.error_rate), vocabulary
        self._fences: Geofences | None = None
        self._signals: Signals | None = None
        depends = []
        if isinstance(config, GeofencesConfig):
            self._fences = load_geofences(folder / config.file, vocabulary)
            depends.append(f"{Path(config.file).name} {self._fences.sha256[:16]}")
        elif isinstance(config, SignalsConfig):
            self._signals = Signals(config, vocabulary)
            depends.append(config.about)
        if config.error_rate != ERROR_RATE:
            depends.append(f"wrong in {config.error_rate:g}")
        self.about = f"{config.source} ({', '.join(depends)})" if depends else config.source

    def begin(self) -> None:
        if self._signals is not None:
            self._signals.begin()

    def evidence(self, frame: Frame, recognised: Sequence[Evidence]) -> Sequence[Evidence]:
        """Observations at a frame, from it and what the tasks recognised in the previous frame."""
        if self._signals is not None:
            return self._signals.evidence(frame)
        if self._fences is not None:
            return [evidence_of_tags(self._fences.at(frame.position, frame.location), self._vocabulary)]
        if self.origin.source == "recognised":
            return recognised
        return [evidence_of_tags(frame.conditions, self._vocabulary)]


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
                    chosen[kind], origins[kind] = observations, source.origin
        return [{kind: each} for kind, observations in chosen.items() for each in observations], origins


def load_sources(path: Path | None, vocabulary: Vocabulary) -> Sources:
    """Read the sources of these conditions from a YAML file; None: tags, then what the tasks recognise."""
    if path is None:
        defaults = PlainConfig(source="tags"), PlainConfig(source="recognised")
        return Sources([Source(each, Path(), vocabulary) for each in defaults])
    config = load_section(EvidenceConfig, path, "the sources of evidence")
    sources: list[Source] = []
    signals: dict[str, SignalConfig] = {}
    for number, each in enumerate(config.sources):
        try:
            sources.append(Source(each, path.parent, vocabulary))
            if isinstance(each, SignalsConfig):
                for name, signal in each.signals.items():
                    if signals.setdefault(name, signal) != signal:
                        raise InputError(f"the signal {name} is another one in a source above; give it another name")
        except InputError as error:
            raise InputError(f"{path}: sources.{number}: {error}") from None
    return Sources(sources, signals)


def _decides(observations: Sequence[Sequence[float]]) -> bool:
    return any(list(each).count(max(each)) == 1 for each in observations)
