"""What a signed manifest lets a device compile by itself.

A device has no private key, so the record of a plan that it compiled bears no signature. Under a key it is accepted
where the manifest permits this target, this compiler and this network. Know what that trusts: the record is then the
word of whoever can write to the bundle's `engines` folder. Its hashes find damage and mix-ups, and the golden frame a
plan that computes something else, but neither stops somebody who puts in a plan that behaves until it should not. A
bundle without permits (`perception export --signed-plans`) accepts signed plans only.
"""

from __future__ import annotations

from deploy.targets import TARGETS, Versions
from perception.section import Section


class Permit(Section):
    """A plan that needs no signature of its own."""

    target: str
    dla: bool  # placed on a DLA, where it can be
    first: tuple[int, int]  # version of the target's compiler
    end: tuple[int, int]  # version before which it is

    def covers(self, target: str, compiler: str) -> bool:
        """Whether it is for a plan of this target and compiler, such as `tensorrt 10.3.0 with DLA 0`."""
        name, _, rest = compiler.partition(" ")
        version, _, place = rest.partition(" with ")
        return (
            (self.target, self.dla) == (target, bool(place))
            and target in TARGETS
            and name == TARGETS[target].compiler
            and version in Versions(self.first, self.end)
        )


def permits(precision: str, opset: int) -> tuple[Permit, ...]:
    """For all targets that compile such a graph on the device itself."""
    permitted = []
    for target in TARGETS.values():
        if target.compiler != "tensorrt" or precision not in target.precisions:
            continue
        if target.opsets[0] <= opset <= target.opsets[1]:
            for dla, versions in ((False, target.versions), (True, target.dla_versions)):
                if versions is not None:
                    permitted.append(Permit(target=target.name, dla=dla, first=versions.first, end=versions.end))
    return tuple(permitted)
