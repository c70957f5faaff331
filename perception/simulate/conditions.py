"""Names of conditions such as `rain-night-CITY`: a value of each kind in the taxonomy's order, each with a world file.

Where a taxonomy's conditions are tags, the kinds are those of the world files, and the tags follow from their values.

`clear-day-CITY/rain-day-CITY` is a drive that starts under the first and ends under the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from perception.datasets.nuscenes.descriptions import DEFAULT_CONDITIONS, conditions_of
from perception.errors import InputError
from perception.frame import Conditions
from perception.simulate.nuscenes_writer import describe_by_tags
from perception.simulate.worlds import Place, Surroundings, Worlds
from perception.taxonomy import Taxonomy


@dataclass(frozen=True)
class Phase:
    conditions: Conditions
    surroundings: Surroundings


@dataclass(frozen=True)
class Extras:
    """What drives have beside the classes' objects and their boxes."""

    obstacles: bool = False  # things of no detection class lie on the road
    occupancy: bool = False  # voxels are annotated
    rate: int = 2  # frames per second, of which 2 are keyframes; the others have no annotations


@dataclass(frozen=True)
class Course:
    """Where a drive is, and its successive phases."""

    place: Place
    phases: tuple[Phase, ...]
    taxonomy: Taxonomy = field(hash=False)  # in whose layout and words it is written
    extras: Extras = Extras()


def parse(names: Sequence[str], taxonomy: Taxonomy, worlds: Worlds, extras: Extras = Extras()) -> list[Course]:
    """The course of a drive for each name, in order; `all` stands for a drive of every combination."""
    if extras.occupancy and not taxonomy.point_classes:
        raise InputError(f"taxonomy {taxonomy.name}: has no point_classes, which voxels are annotated with")
    tagged = taxonomy.descriptions == "tags"
    spoken = taxonomy.model_copy(update={"conditions": worlds.kinds()}) if tagged else taxonomy
    drives: list[tuple[str, list[Conditions]]] = []
    for name in names:
        if name == "all":
            drives += [(name, [conditions]) for conditions in every(spoken)]
        else:
            drives.append((name, [_parse_phase(part, spoken) for part in name.split("/")]))
    if not drives:
        example = "-".join(every(spoken)[0].values())
        raise InputError(f"no conditions given: name at least one, such as {example}, or all")
    found = []
    for name, phases in drives:
        place, parts = _compose(name, phases, spoken, worlds)
        if not tagged:
            _require_readable(name, place, phases, taxonomy)
        found.append(Course(place, parts, taxonomy, extras))
    return found


def every(taxonomy: Taxonomy) -> list[Conditions]:
    """Every combination of a value of each kind, ordered such that consecutive ones differ in most kinds.

    The n-th one takes, of each kind, the value at the sum of n's digit for this kind and for the kind before it (modulo
    the number of values), in the mixed radix of those numbers.
    """
    kinds = list(taxonomy.conditions)
    kinds = [*kinds[:1], *reversed(kinds[1:])]
    total = 1
    for kind in kinds:
        total *= len(taxonomy.conditions[kind])
    found = []
    for n in range(total):
        chosen, rest, before = {}, n, 0
        for kind in kinds:
            values = taxonomy.conditions[kind]
            rest, digit = divmod(rest, len(values))
            chosen[kind], before = values[(digit + before) % len(values)], digit
        found.append(Conditions(**{kind: chosen[kind] for kind in taxonomy.conditions}))
    return found


def _parse_phase(name: str, taxonomy: Taxonomy) -> Conditions:
    values, kinds = name.split("-"), taxonomy.conditions
    if len(values) != len(kinds) or any(v not in known for v, known in zip(values, kinds.values(), strict=True)):
        choices = "; ".join(", ".join(known) for known in kinds.values())
        raise InputError(
            f"unknown condition '{name}': write {'-'.join(kinds) or 'all'} with one of {choices or 'none'}, or all; "
            "with / between them where a drive changes"
        )
    return Conditions(**dict(zip(kinds, values, strict=True)))


def _compose(
    name: str, phases: Sequence[Conditions], taxonomy: Taxonomy, worlds: Worlds
) -> tuple[Place, tuple[Phase, ...]]:
    composed = [worlds.compose(conditions, taxonomy) for conditions in phases]
    places = [place for place, _ in composed]
    if any(place != places[0] for place in places):
        raise InputError(
            f"'{name}': a drive stays in one city, with the same streets, houses, trees and agents; only light, air "
            "and ground may differ between its parts"
        )
    return places[0], tuple(Phase(c, around) for c, (_, around) in zip(phases, composed, strict=True))


def _require_readable(name: str, place: Place, phases: Sequence[Conditions], taxonomy: Taxonomy) -> None:
    """Raise InputError if the reader of the tables would have other conditions from the description."""
    for conditions in phases:
        read = conditions_of(", ".join(_words_for(conditions, place)) or "Clear", place.location, taxonomy)
        if wrong := [kind for kind in conditions if read.get(kind) != conditions[kind]]:
            raise InputError(
                f"'{name}': a description cannot say {wrong[0]} {conditions[wrong[0]]}: it would be read as "
                f"{read.get(wrong[0], 'none')}; choose another word in the taxonomy"
            )


def describe(course: Course, changes: Sequence[tuple[float, Phase]], scenery: Sequence[str]) -> str:
    """A scene's description: the conditions, the scenery that would not be read as a condition, and the changes.

    Args:
        changes: (start, phase) of each phase but the first; s from the first keyframe.
    """
    first = course.phases[0].conditions
    if course.taxonomy.descriptions == "tags":
        return describe_by_tags(
            [(0.0, first), *((start, phase.conditions) for start, phase in changes)], course.taxonomy
        )
    words = _words_for(first, course.place)
    for word in scenery:
        read = conditions_of(", ".join([*words, word]), course.place.location, course.taxonomy)
        words += [word] if read == first else []
    later = [(start, ", ".join(_words_for(phase.conditions, course.place)) or "Clear") for start, phase in changes]
    return (", ".join(words) or "Quiet street") + "".join(f"; from {start:g} s: {text}" for start, text in later)


def _words_for(conditions: Conditions, place: Place) -> list[str]:
    """The words for these conditions: the location says the city, and a clear day goes unsaid."""
    return [value.capitalize() for value in conditions.known() if value not in (*DEFAULT_CONDITIONS, place.name)]


def split(courses: Sequence[Course]) -> tuple[list[int], list[int]]:
    """Scene numbers for training and validation, about 3 : 1, with the same conditions in both where possible."""
    if len(courses) < 2:
        return list(range(len(courses))), []
    remaining: dict[Course, list[int]] = {}
    for number, course in enumerate(courses):
        remaining.setdefault(course, []).append(number)
    validation: list[int] = []
    target = max(1, round(len(courses) / 4))
    while len(validation) < target:
        repeated = [scenes for scenes in remaining.values() if len(scenes) > 1]
        pool = repeated or [scenes for scenes in remaining.values() if scenes]
        count = min(target - len(validation), len(pool))
        stride = len(pool) / count
        for k in range(count):  # spread evenly over the pool
            shift = k % 2 if stride >= 2 else 0  # cities alternate in the pool, so odd steps keep both
            validation.append(pool[(int((k + 0.5) * stride) + shift) % len(pool)].pop())
    return [n for n in range(len(courses)) if n not in validation], sorted(validation)
