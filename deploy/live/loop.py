"""The loop of a driving vehicle: newest -> admit -> perceive -> publish -> remember; golden frames when idle."""

from __future__ import annotations

import time
from threading import Event

from deploy.golden import WrongEngine
from deploy.live.intake import Arrived, Intake
from deploy.live.outputs import Outputs
from deploy.live.policy import Policy
from deploy.live.state import Reason, Supervisor
from deploy.runtime import Runtime

IDLE = 0.02  # s without a frame, after which a golden frame may run


class Loop:
    """Perceives the newest frame again and again.

    Args:
        runtime: one that leaves the golden frames to this loop.
    """

    def __init__(
        self, runtime: Runtime, intake: Intake, supervisor: Supervisor, outputs: Outputs, policy: Policy
    ) -> None:
        self._runtime, self._intake, self._supervisor = runtime, intake, supervisor
        self._outputs, self._policy = outputs, policy
        self._checked = time.monotonic()

    def run(self, stop: Event) -> None:
        """Perceive until no frame will come any more, or `stop` is set."""
        while not stop.is_set() and not self._intake.ended:
            arrived = self._intake.take(IDLE)
            self._outputs.lose(self._intake)
            if arrived is not None:
                self._perceive(arrived)
            since = time.monotonic() - self._checked
            if since > self._policy.golden and (arrived is None or since > 2 * self._policy.golden):
                self._check()
        self._outputs.lose(self._intake)

    def _perceive(self, arrived: Arrived) -> None:
        runtime, outputs, masked = self._runtime, self._outputs, self._policy.masked(self._supervisor.health)
        try:
            with self._supervisor.working():
                frame = runtime.admit(arrived.frame)
                prediction, weights = runtime.perceive(frame, masked)
                visible = frame.without(masked, runtime.bundle.manifest.rig.sensors.lidars)
                outputs.publish(visible, prediction)
                seen = runtime.remember(frame, prediction, weights)
                seconds = time.monotonic() - arrived.time
                outputs.add(visible, seen)
        except Exception as error:  # of the engine; the next frame may do better
            self._supervisor.set(Reason("DOWN", "failed", "", f"a frame could not be perceived ({_why(error)})"))
            self._intake.end(arrived, "failed")
        else:
            self._intake.end(arrived, "perceived")
            self._supervisor.clear("failed")
            self._supervisor.add(seen, seconds)
            outputs.log(frame, masked, seconds)

    def _check(self) -> None:
        """Run a golden frame; an engine that fails it is not trusted from then on."""
        self._checked = time.monotonic()
        try:
            with self._supervisor.working():
                self._runtime.check()
        except WrongEngine as error:
            self._supervisor.set(Reason("UNTRUSTED", "golden", "", str(error)))
        except Exception as error:  # as in a frame, with which the drive goes on
            self._supervisor.set(Reason("UNTRUSTED", "golden", "", f"a golden frame could not run ({_why(error)})"))


def _why(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
