"""ROS 2 over zenoh, as rmw_zenoh_cpp speaks it, without an installed ROS.

Keys, liveliness tokens and attachments are those of rmw_zenoh's design document and sources (ros2/rmw_zenoh,
docs/design.md, attachment_helpers.cpp, liveliness_utils.cpp). Like there, ROS_DOMAIN_ID and ZENOH_SESSION_CONFIG_URI
configure the session, and so does ZENOH_CONFIG_OVERRIDE (`key=value;key=value`). By default a router is found at
tcp/localhost:7447, and nothing listens to other machines.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import count
from typing import Any, TypeVar

from deploy.live.source import Damage, Playback, Receive
from deploy.recordings import ros
from deploy.recordings.messages import RecordingInfo
from perception.errors import InputError, install_hint

NODE = "tessera"
_DEFAULT = """{mode: "peer", connect: {endpoints: ["tcp/localhost:7447"]}, listen: {endpoints: ["tcp/localhost:0"]},
scouting: {multicast: {enabled: false}}}"""
_LATCHED_QOS, _QOS = ":1:,1:,:,:,,", "::,1:,:,:,,"  # reliable, depth 1; the first one transient local
_GID = 16  # bytes at the end of an attachment, by which rmw_zenoh tells publishers apart
_REMEDY = "start the router (ros2 run rmw_zenoh_cpp rmw_zenohd), or name another in ZENOH_SESSION_CONFIG_URI"
_ANSWER = 1.0  # s, within which a router or a peer of this machine answers
_DISCOVERY, _SETTLED = 10.0, 1.0  # s, at most, and without a change
T = TypeVar("T")


def _is_latched(topic: str) -> bool:
    """Whether a late subscriber gets the topic's last message, for example static transforms in any namespace."""
    return topic.rpartition("/")[2] == "tf_static"


def _settled(found: Callable[[], T]) -> T:
    """Return what a network offers once it stops changing; waits for at most ten seconds."""
    end, last, since = time.monotonic() + _DISCOVERY, found(), time.monotonic()
    while time.monotonic() < end and (not last or time.monotonic() - since < _SETTLED):
        time.sleep(0.05)
        before, last = last, found()
        since = since if last == before else time.monotonic()
    return last


class Zenoh:
    """Messages of ROS 2 nodes, both ways: a source, and where messages are published.

    Messages are CDR with their header of four bytes. The clock has the host's time as of its start, and goes on alike
    when that is set: stamps that go back are then seen to, and no frame waits until an earlier time comes again.
    """

    info = RecordingInfo({}, 0, "live")
    ended = False

    def __init__(self, say: Callable[[str], None] = print) -> None:
        """Open a session; `say` is given a line if no router or peer answers."""
        self._publishers: dict[str, Callable[[bytes], None]] = {}  # by topic
        self._start = time.time_ns() - time.monotonic_ns()
        try:
            import zenoh
            import zenoh.ext
        except ImportError:
            raise InputError(f"zenoh: is not installed; {install_hint('live')}") from None
        self._zenoh: Any = zenoh
        file, domain = os.environ.get("ZENOH_SESSION_CONFIG_URI"), os.environ.get("ROS_DOMAIN_ID", "0")
        try:
            config = zenoh.Config.from_file(file) if file else zenoh.Config.from_json5(_DEFAULT)
            for each in filter(None, os.environ.get("ZENOH_CONFIG_OVERRIDE", "").split(";")):
                key, _, value = each.partition("=")
                config.insert_json5(key.strip(), value)
            config.insert_json5("timestamping/enabled", "true")  # which latched topics need
            self._session: Any = zenoh.open(config)
        except Exception as error:  # ZError, and whatever a configuration causes
            where = file or "tcp/localhost:7447"
            raise InputError(
                f"zenoh: cannot open a session by {where} ({' '.join(str(error).split())[:160]}); {_REMEDY}"
            ) from None
        self._domain, self._zid = domain, str(self._session.info.zid())
        self._open: list[Any] = []  # what ends with the session
        self._heard: list[Callable[[], bool]] = []  # whether somebody listens to a publisher
        self._entities = count(1)
        self._open.append(self._token(f"0/0/NN/%/%/{NODE}"))
        endpoints = re.findall(r"[a-z]+/[^\"]+", config.get_json("connect/endpoints"))  # a list, or one for each mode
        self._unanswered = f"zenoh: nobody answers at {', '.join(endpoints) or 'any address'}; {_REMEDY}"
        end = time.monotonic() + _ANSWER
        while endpoints and not (answered := self._is_answered()) and time.monotonic() < end:
            time.sleep(0.05)
        if endpoints and not answered:
            say(self._unanswered)

    def _is_answered(self) -> bool:
        """Whether the session has a router or a peer."""
        return bool(self._session.info.routers_zid() or self._session.info.peers_zid())

    def topics(self) -> Mapping[str, str]:
        """The topics that other nodes publish, with their types; waits for them for at most ten seconds.

        Raises:
            InputError: neither a router nor a peer answers.
        """
        found = _settled(self._published)
        if not found and not self._is_answered():
            raise InputError(self._unanswered)
        return found

    def advertise(self, topic: str, type_name: str) -> None:
        if topic not in self._publishers:
            self._publishers[topic] = self._publisher(topic, type_name)

    def publish(self, topic: str, type_name: str, data: bytes) -> None:
        """Send a message to the subscribers of a topic."""
        self.advertise(topic, type_name)
        self._publishers[topic](data)

    def wait_for_subscribers(self) -> None:
        """Wait until somebody has subscribed, and for a while to no further topic; at most ten seconds."""
        _settled(lambda: sum(each() for each in self._heard))

    def now(self) -> int:
        return (self._start + time.monotonic_ns()) // 1000

    def _published(self) -> dict[str, str]:
        found = dict[str, str]()
        replies = self._session.liveliness().get(f"@ros2_lv/{self._domain}/*/*/*/MP/**", timeout=0.5)
        for key in (str(reply.ok.key_expr).split("/") for reply in replies if reply.ok is not None):
            if len(key) > 10 and key[2] != self._zid:
                found[key[9].replace("%", "/")] = ros.type_of_dds(key[10].replace("%", "/"))
        return found

    def start(self, topics: Collection[str], receive: Receive, damage: Damage) -> None:
        for topic in topics:
            declare: Any = self._session.declare_subscriber
            if _is_latched(topic):
                history = self._zenoh.ext.HistoryConfig(detect_late_publishers=True)
                declare = partial(self._zenoh.ext.declare_advanced_subscriber, self._session, history=history)
            key = f"{self._domain}{topic}/*/*"
            self._open.append(declare(key, handler=partial(self._receive, topic, receive)))

    def _receive(self, topic: str, receive: Receive, sample: Any) -> None:
        type_name = ros.type_of_dds(str(sample.key_expr).split("/")[-2])
        attachment = b"" if sample.attachment is None else bytes(sample.attachment)
        publisher = attachment[-_GID:] if len(attachment) >= _GID else None
        receive(ros.raw_message(topic, self.now(), bytes(sample.payload), type_name, publisher))

    def _publisher(self, topic: str, type_name: str) -> Callable[[bytes], None]:
        ext, latched = self._zenoh.ext, _is_latched(topic)
        kind, type_hash = ros.dds_type(type_name), ros.type_hash(type_name)
        key = f"{self._domain}{topic}/{kind}/{type_hash}"
        if latched:
            publisher = ext.declare_advanced_publisher(self._session, key, cache=ext.CacheConfig(1))
        else:
            publisher = self._session.declare_publisher(key)
        entity, gid, numbers = next(self._entities), os.urandom(_GID), count(1)
        qos = _LATCHED_QOS if latched else _QOS
        token = f"0/{entity}/MP/%/%/{NODE}/{topic.replace('/', '%')}/{kind}/{type_hash}/{qos}"
        self._open += [publisher, self._token(token)]
        if not latched:  # zenoh's publishers with a cache cannot tell
            self._heard.append(lambda: bool(publisher.matching_status.matching))

        def put(data: bytes) -> None:
            known = ("sequence_number", ext.Int64(next(numbers)), "source_timestamp", ext.Int64(time.time_ns()))
            publisher.put(data, attachment=ext.z_serialize((*known, "source_gid", gid)))

        return put

    def _token(self, entity: str) -> Any:
        return self._session.liveliness().declare_token(f"@ros2_lv/{self._domain}/{self._zid}/{entity}")

    def close(self) -> None:
        self._session.close()


def republish(playback: Playback, zenoh: Zenoh) -> None:
    """Play a recording's ROS 2 messages over zenoh until it ends, as `ros2 bag play`, once somebody listens."""
    try:
        types = {topic: kind for topic, kind in playback.topics().items() if kind in ros.TYPES.types}
        for topic, kind in types.items():
            zenoh.advertise(topic, kind)
        zenoh.wait_for_subscribers()
        playback.start(types, lambda raw: zenoh.publish(raw.topic, raw.type_name, raw.data), print)
        while not playback.ended:
            time.sleep(0.05)
        time.sleep(1)  # what was sent last must arrive
    finally:
        playback.close()
        zenoh.close()
