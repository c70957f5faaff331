"""Conditions, active modules and sensor health during a replay, as spans of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perception.frame import Frame
from perception.scene.scene import SceneFrame


class Timeline:
    """Lanes of spans with a constant value, so that memory does not grow with each frame."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str], list[dict[str, Any]]] = {}  # (kind, name) -> spans
        self._scene = ""

    def add(self, number: int, frame: Frame, seen: SceneFrame) -> None:
        """Add the next frame of the replay, as recorded and as perceived."""
        for kind in seen.beliefs:
            self._extend(("tags", kind), number, seen.scene, frame.conditions.get(kind, ""), "")
        for kind, belief in seen.beliefs.items():
            self._extend(("conditions", kind), number, seen.scene, belief.value or "", belief.why)
        for module, routed in seen.route.items():
            self._extend(("route", module), number, seen.scene, f"{routed.weight:g}", routed.why)
        for sensor, health in seen.health.items():
            self._extend(("health", sensor), number, seen.scene, health.words, health.reasons)
        self._scene = seen.scene

    def _extend(self, lane: tuple[str, str], number: int, scene: str, value: str, why: str) -> None:
        """Extend the last span or start a new one. A span ends with its drive and keeps its first reason."""
        spans = self._lanes.setdefault(lane, [])
        if spans and spans[-1]["value"] == value and spans[-1]["to"] == number - 1 and scene == self._scene:
            spans[-1]["to"] = number
        else:
            spans.append({"from": number, "to": number, "value": value, "why": why})

    def join(self, lanes: Sequence[Mapping[str, Any]], first: int) -> None:
        """Append the `lanes` of later drives, whose frames are counted from `first` on."""
        for lane in lanes:
            own = self._lanes.setdefault((lane["kind"], lane["name"]), [])
            own += [{**span, "from": first + span["from"], "to": first + span["to"]} for span in lane["spans"]]

    def lanes(self) -> list[dict[str, Any]]:
        return [{"kind": kind, "name": name, "spans": spans} for (kind, name), spans in self._lanes.items()]
