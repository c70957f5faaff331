"""The middlewares by name."""

from __future__ import annotations

from deploy.live.dds import DdsBus
from deploy.live.source import Bus
from deploy.live.zenoh import ZenohBus
from perception.errors import InputError

BUSES: dict[str, type[Bus]] = {"zenoh": ZenohBus, "dds": DdsBus}


class Buses:
    """Those of a process, each opened once; all are closed with the block."""

    def __init__(self) -> None:
        self._opened: dict[str, Bus] = {}

    def open(self, name: str, option: str) -> Bus:
        """The middleware of a name. InputError if there is none, its package is not installed or it cannot be used.

        Args:
            option: of the command, for the message.
        """
        if name not in BUSES:
            raise InputError(f"{option} {name}: is none of {', '.join(BUSES)}")
        if name not in self._opened:
            self._opened[name] = BUSES[name]()
        return self._opened[name]

    def __enter__(self) -> Buses:
        return self

    def __exit__(self, *_: object) -> None:
        for bus in self._opened.values():
            bus.close()
