"""ROS 2 over DDS by Eclipse Cyclone DDS, without an installed ROS.

Names on the wire are those of ROS 2 (design.ros2.org, "Topic and Service name mapping to DDS"). Types are declared to
DDS as ROS declares them, but their bytes pass unread: the same code decodes what recordings, zenoh and DDS deliver.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import cache
from threading import Event, Thread
from typing import Any

from rosbags.interfaces import Nodetype

from deploy.live.source import Bus, Damage, Receive, is_latched
from deploy.recordings import ros
from perception.errors import InputError

_DEPTH = 64  # messages that wait to be read
_TAKEN = 16  # at once
_LOOK = 0.1  # s between two looks for topics that are published


class DdsBus(Bus):
    """Messages of ROS 2 nodes, both ways; ROS_DOMAIN_ID and CYCLONEDDS_URI configure it, as in ROS 2.

    Raises:
        InputError: cyclonedds is not installed or cannot be used.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication
            from cyclonedds.domain import DomainParticipant
        except ImportError:
            raise InputError("dds: cyclonedds is not installed; pip install 'tessera-perception[live]'") from None
        try:
            self._participant: Any = DomainParticipant(int(os.environ.get("ROS_DOMAIN_ID", "0")))
        except Exception as error:  # DDSException, ValueError
            domain = os.environ.get("ROS_DOMAIN_ID", "0")
            raise InputError(f"dds: cannot join domain {domain} ({_why(error)})") from None
        self._readers: list[Any] = []
        self._writers: list[Any] = []
        self._reliable: dict[str, bool] = {}  # whether a topic's publishers repeat what is lost
        self._types: dict[str, str] = {}
        self._discovery: Any = BuiltinDataReader(self._participant, BuiltinTopicDcpsPublication)
        self._closed, self._thread = Event(), Thread()

    def _published(self) -> Mapping[str, str]:
        for each in self._discovery.take(N=256):
            name = str(getattr(each, "topic_name", ""))
            if name.startswith("rt/") and each.participant_key != self._participant.guid:
                topic = name.removeprefix("rt")
                self._types[topic] = ros.type_of_dds(each.type_name)
                self._reliable[topic] = any("Reliable" in str(policy) for policy in each.qos)
        return dict(self._types)

    def start(self, topics: Collection[str], receive: Receive, damage: Damage) -> None:
        def subscribe() -> None:
            """Subscribe to each topic once it is published, since its type and reliability are not known before."""
            wanted = set(topics)
            while wanted and not self._closed.wait(_LOOK):
                for topic in wanted & self._published().keys():
                    wanted.remove(topic)
                    if (kind := self._types[topic]) not in ros.TYPES.fielddefs:
                        damage(f"{topic}: is not read, because {kind} is none of ROS 2's own types")
                        continue
                    try:
                        self._subscribe(topic, receive)
                    except Exception as error:  # DDSException, or of its making of types
                        damage(f"{topic}: is not read, because it cannot be subscribed to ({_why(error)})")

        self._published()
        self._thread = Thread(target=subscribe, name="dds", daemon=True)
        self._thread.start()

    def _subscribe(self, topic: str, receive: Receive) -> None:
        from cyclonedds.core import Listener
        from cyclonedds.sub import DataReader

        type_name, take = self._types[topic], self._take

        class Arriving(Listener):
            def on_data_available(self, reader: Any) -> None:
                if reader is not None:  # None while it is being made
                    take(topic, type_name, receive, reader)

        qos = _qos(topic, self._reliable[topic])
        self._readers.append(DataReader(self._participant, self._topic(topic, type_name), qos, Arriving()))
        take(topic, type_name, receive, self._readers[-1])  # what was sent before

    def _take(self, topic: str, type_name: str, receive: Receive, reader: Any) -> None:
        while taken := reader.take(N=_TAKEN):
            for each in taken:
                if hasattr(each, "raw"):
                    receive(ros.raw_message(topic, self.now(), each.raw, type_name))

    def _publisher(self, topic: str, type_name: str) -> Callable[[bytes], None]:
        from cyclonedds.pub import DataWriter

        kind = _raw_type(type_name)
        writer = DataWriter(self._participant, self._topic(topic, type_name), _qos(topic, True))
        self._writers.append(writer)

        def put(data: bytes) -> None:
            sample = kind.__new__(kind)
            sample.raw = data
            writer.write(sample)

        return put

    def _subscribers(self) -> int:
        return sum(len(writer.get_matched_subscriptions()) for writer in self._writers)

    def _topic(self, topic: str, type_name: str) -> Any:
        from cyclonedds.topic import Topic

        return Topic(self._participant, f"rt{topic}", _raw_type(type_name))

    def close(self) -> None:
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()
        for reader in self._readers:
            reader.set_listener(None)
        self._readers.clear()
        self._publishers.clear()
        self._writers.clear()


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _qos(topic: str, reliable: bool) -> Any:
    """As ROS 2 nodes offer and expect it."""
    from cyclonedds.core import Policy, Qos
    from cyclonedds.util import duration

    reliability = Policy.Reliability.Reliable(duration(seconds=1)) if reliable else Policy.Reliability.BestEffort
    if is_latched(topic):
        return Qos(reliability, Policy.Durability.TransientLocal, Policy.History.KeepLast(1))
    return Qos(reliability, Policy.Durability.Volatile, Policy.History.KeepLast(_DEPTH))


@cache
def _raw_type(type_name: str) -> Any:
    """The type as DDS knows it, whose samples have CDR in `raw`."""
    own = _idl_type(type_name)

    def deserialize(data: bytes, **_: Any) -> Any:
        sample = own.__new__(own)
        sample.raw = bytes(data)
        return sample

    own.deserialize, own.serialize = staticmethod(deserialize), lambda self, **_: self.raw
    return own


@cache
def _idl_type(type_name: str) -> Any:
    from cyclonedds.idl import make_idl_struct

    fields = {name: _idl_field(description) for name, description in ros.TYPES.fielddefs[type_name][1]}
    # A struct of IDL has at least one member; ROS gives an empty one this.
    fields = fields or {"structure_needs_at_least_one_member": _idl_field((Nodetype.BASE, ("uint8", 0)))}
    return make_idl_struct(type_name.rpartition("/")[2] + "_", ros.dds_type(type_name), fields)


def _idl_field(description: Any) -> Any:
    import cyclonedds.idl.types

    types: Any = cyclonedds.idl.types
    kind, content = description
    if kind == Nodetype.NAME:
        return _idl_type(content)
    if kind == Nodetype.BASE:
        name = {"byte": "uint8", "octet": "uint8", "char": "uint8"}.get(content[0], content[0])
        return {"bool": bool, "string": str}.get(name) or getattr(types, name)
    inner, length = content
    return types.array[_idl_field(inner), length] if kind == Nodetype.ARRAY else types.sequence[_idl_field(inner)]
