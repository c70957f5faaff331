"""Ctrl-C during a training: the current step ends, and its state is saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from perception.io.distributed import processes


class Stopped(KeyboardInterrupt):
    """A training that stopped on request, after this step was saved."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"stopped after step {step} of {steps}")


class InterruptRequest:
    """Whether the user pressed Ctrl-C while it is entered as a context; a second Ctrl-C raises KeyboardInterrupt.

    With several processes, and outside the main thread, Ctrl-C raises KeyboardInterrupt as usual.
    """

    def __init__(self) -> None:
        self.requested = False
        self._handles = processes() == 1 and threading.current_thread() is threading.main_thread()
        self._before: Any = None

    def __enter__(self) -> InterruptRequest:
        # A shell starts background jobs with SIGINT ignored; they stay so.
        self._handles &= signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._handles:
            self._before = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, self._before)

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # `print` may have been interrupted itself, and must not be entered twice.
        os.write(2, b"\nStopping after this step; press Ctrl-C again to stop at once.\n")


def ignore_interrupt(_worker: int) -> None:
    """Ignore Ctrl-C in a loader's worker: the training decides when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
