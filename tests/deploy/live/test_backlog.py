"""Messages that wait: each topic has its own room, whatever others send."""

import gc
import tracemalloc
from collections.abc import Sequence
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.live import backlog as module
from deploy.live.backlog import Backlog, Received
from deploy.recordings import ros
from deploy.recordings.messages import CorruptMessage, RawMessage

MOST_MESSAGES, MOST_BYTES = 4, 20


def raw(topic: str, size: int, type_name: str = "std_msgs/msg/String") -> RawMessage:
    return ros.raw_message(topic, 0, bytes(size), type_name)


def fits(messages: Sequence[RawMessage]) -> bool:
    return len(messages) <= MOST_MESSAGES and sum(len(each.data) for each in messages) <= MOST_BYTES


@given(st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("abc"), st.integers(0, MOST_BYTES)))))
def test_a_topic_keeps_its_latest_messages_that_fit_and_all_are_taken_as_they_came(
    steps: list[tuple[str, int] | None],
) -> None:
    """None takes one. The oracle is one list, of whose topic alone messages are removed."""
    waiting, expected = Backlog(), list[RawMessage]()
    with patch.multiple(module, MOST_MESSAGES=MOST_MESSAGES, MOST_BYTES=MOST_BYTES):
        for step in steps:
            if step is None:
                taken = waiting.take()
                assert (taken.raw if taken else None) is (expected.pop(0) if expected else None)
                continue
            expected.append(raw(*step))
            before = len(expected)
            while not fits(own := [each for each in expected if each.topic == step[0]]):
                expected = [each for each in expected if each is not own[0]]
            assert waiting.add(expected[-1], 0.0) == before - len(expected)
            assert bool(waiting) == bool(expected)


def test_a_flood_costs_its_own_topic() -> None:
    """Transforms are dropped by number, large messages by size, and no sweep is dropped for either."""
    waiting, sweep, large = Backlog(), raw("/points", 1000), raw("/large", module.MOST_BYTES // 3)
    assert waiting.add(sweep, 1.0) == 0
    dropped = sum(waiting.add(raw("/tf", 100), 2.0) for _ in range(10_000))
    assert dropped == 10_000 - module.MOST_MESSAGES
    assert sum(waiting.add(large, 3.0) for _ in range(12)) == 9
    assert waiting.take() == Received(sweep, 1.0, 0)
    assert waiting.add(sweep, 4.0) == 0
    before = iter(waiting.take, None)
    assert sum(1 for _ in iter(lambda: next(before).raw is not sweep, False)) == module.MOST_MESSAGES + 3


def test_types_that_a_sender_invents_take_no_memory() -> None:
    def parse(numbers: range) -> int:
        for number in numbers:
            message = raw("/topic", 4, f"invented/msg/Type{number}")
            for read in (message.decode, message.parse):
                with pytest.raises(CorruptMessage):
                    read(message.data)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = parse(range(200))
        assert parse(range(200, 3000)) - first < 100_000  # bytes
    finally:
        tracemalloc.stop()
