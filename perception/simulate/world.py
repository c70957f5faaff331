"""The world of one drive: the city, the trajectories of agents and ego vehicle, and snapshots at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from perception.simulate.agents import Agent
from perception.simulate.city import City
from perception.simulate.snapshot import CATEGORIES, Snapshot, Solids, Weather
from perception.simulate.traffic import DT

LEAD_IN = 1.0  # s simulated before the first keyframe, for its sweeps
SNAPSHOT_RANGE = 110.0  # m around the ego vehicle


@dataclass(frozen=True)
class World:
    """A city with agents and ego vehicle in motion. Times are seconds from the first keyframe."""

    city: City
    weather: Weather
    agents: list[Agent]
    times: np.ndarray  # (T,) s
    ego_xy: np.ndarray  # (T, 2) m, the middle of the rear axle
    ego_yaw: np.ndarray  # (T,) rad
    xy: np.ndarray  # (T, A, 2) m
    yaw: np.ndarray  # (T, A) rad
    parts: np.ndarray  # (P, 11) of all agents, see Agent.parts
    owners: np.ndarray  # (P,) index of the agent
    weather_changes: tuple[tuple[float, Weather], ...] = ()  # (start s, weather from then on), in order of time

    @cached_property
    def _categories(self) -> np.ndarray:
        """(A,) uint8 index into CATEGORIES."""
        return np.array([CATEGORIES.index(agent.category) for agent in self.agents], np.uint8)

    def with_agents(self, more: Sequence[Agent]) -> World:
        """The same world with further agents, which have the last indices."""
        steps = len(self.times)
        xy = [np.broadcast_to(agent.xy, (steps, 2))[:, None] for agent in more]
        yaw = [np.broadcast_to(agent.yaw, (steps,))[:, None] for agent in more]
        owners = np.arange(len(more)) + len(self.agents)
        return replace(
            self,
            agents=[*self.agents, *more],
            xy=np.concatenate([self.xy, *xy], axis=1),
            yaw=np.concatenate([self.yaw, *yaw], axis=1),
            parts=np.concatenate([self.parts, *(agent.parts for agent in more)]),
            owners=np.concatenate([self.owners, np.repeat(owners, [len(agent.parts) for agent in more])]),
        )

    def _step_at(self, time: float) -> tuple[int, float]:
        """Index of the time step before this time, and the fraction of the way to the next one."""
        at = float(np.clip((time - self.times[0]) / DT, 0, len(self.times) - 1.001))
        return int(at), at - int(at)

    def weather_at(self, time: float) -> Weather:
        return next((weather for start, weather in reversed(self.weather_changes) if start <= time), self.weather)

    def global_from_ego_at(self, time: float) -> np.ndarray:
        """(4, 4) pose of the ego vehicle."""
        k, share = self._step_at(time)
        x, y = self.ego_xy[k] + share * (self.ego_xy[k + 1] - self.ego_xy[k])
        yaw = self.ego_yaw[k] + share * (self.ego_yaw[k + 1] - self.ego_yaw[k])
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        pose[:2, 3] = x, y
        return pose

    def agents_at(self, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions (A, 2) m, headings (A,) rad and velocities (A, 2) m/s of all agents."""
        k, share = self._step_at(time)
        xy = self.xy[k] + share * (self.xy[k + 1] - self.xy[k])
        yaw = self.yaw[k] + share * (self.yaw[k + 1] - self.yaw[k])
        return xy, yaw, (self.xy[k + 1] - self.xy[k]) / DT

    def snapshot_at(self, time: float) -> Snapshot:
        """The solids within SNAPSHOT_RANGE; their `owners` index all agents of the drive, near or not."""
        here = self.global_from_ego_at(time)[:2, 3]
        xy, yaw, velocity = self.agents_at(time)
        near = np.linalg.norm(xy - here, axis=1) < SNAPSHOT_RANGE
        parts, owners = self.parts[near[self.owners]], self.owners[near[self.owners]]
        cos, sin = np.cos(yaw[owners]), np.sin(yaw[owners])
        centers = parts[:, 0:3].copy()
        centers[:, 0] = xy[owners, 0] + cos * parts[:, 0] - sin * parts[:, 1]
        centers[:, 1] = xy[owners, 1] + sin * parts[:, 0] + cos * parts[:, 1]
        moving = Solids(
            centers, parts[:, 3:6], yaw[owners], parts[:, 6:9].astype(np.uint8), parts[:, 9], parts[:, 10], owners,
            self._categories[owners],
        )  # fmt: skip
        static = self.city.static_objects
        close = np.linalg.norm(static.centers[:, :2] - here, axis=1) < SNAPSHOT_RANGE
        velocity_3d = np.concatenate([velocity, np.zeros((len(velocity), 1))], axis=1)
        solids = Solids.concatenate(static[close], moving)
        return Snapshot(solids, self.city.ground, velocity_3d, self.weather_at(time))
