"""Drives whose conditions change, and how what the runtime believes follows them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deploy.runtime import Runtime
from perception.frame import Conditions, Frame, Prediction


class Driven:
    """A predictor that runs the runtime with given conditions, and records what it believes.

    Args:
        conditions: for every frame instead of its tags; None: the tags.
    """

    def __init__(self, runtime: Runtime, conditions: Conditions | None) -> None:
        self.runtime, self.conditions = runtime, conditions
        self.driven: list[tuple[Frame, Conditions]] = []  # frames, and the believed conditions

    def __call__(self, frame: Frame) -> Prediction:
        seen = self.runtime.step(frame if self.conditions is None else replace(frame, conditions=self.conditions))
        self.driven.append((replace(frame, points=None, cameras={}), seen.conditions))
        return seen.prediction

    def summary(self) -> dict[str, Any]:
        """How the believed weather and light, which select the modules, followed the tags.

        `as tagged`: share of frames with the weather and light of their tags. `delay, s`: longest time from a change of
        the tags until it is believed; None if it never is. `switches`: changes of the belief.
        """
        delays: list[float | None] = []
        switches = changes = right = 0
        for kind in ("weather", "light"):
            for (before, was), (frame, believed) in zip(self.driven, self.driven[1:], strict=False):
                if before.scene != frame.scene:
                    continue
                old, new = (each.get(kind) for each in (was, believed))
                switches += old is not None and old != new
                if before.conditions.get(kind) != frame.conditions.get(kind):
                    changes += 1
                    delays.append(self._delay(frame, kind))
        for frame, believed in self.driven:
            right += all(frame.conditions.get(kind) == believed.get(kind) for kind in ("weather", "light"))
        longest = None if None in delays or not delays else max(each for each in delays if each is not None)
        return {
            "as tagged": right / len(self.driven),
            "delay, s": longest,
            "switches": switches,
            "changes": changes,
        }

    def _delay(self, first: Frame, kind: str) -> float | None:
        """The time (s) from the first frame under a new condition until it is believed; None: never."""
        tag = first.conditions.get(kind)
        for frame, believed in self.driven:
            if frame.scene == first.scene and frame.timestamp >= first.timestamp:
                if frame.conditions.get(kind) != tag:
                    return None
                if believed.get(kind) == tag:
                    return 1e-6 * (frame.timestamp - first.timestamp)
        return None
