"""Frames read ahead and files written behind: the order, the limits, and exceptions where they belong."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.replay.prefetch import QUEUE_DEPTH, BackgroundWriter, prefetch


class Torn(Exception):
    """What goes wrong."""


def items(number: int, fails: int | None, made: list[int]) -> Iterator[int]:
    for i in range(number):
        if i == fails:
            raise Torn(i)
        made.append(i)
        yield i


def drained(coming: Iterator[int]) -> tuple[list[int], str | None]:
    """What comes, and the exception after it."""
    taken = []
    try:
        for item in coming:
            taken.append(item)
    except Torn as error:
        return taken, str(error)
    return taken, None


@given(number=st.integers(0, 12), fails=st.none() | st.integers(0, 12))
def test_items_come_in_order_and_an_exception_in_its_place(number: int, fails: int | None) -> None:
    made, expected = list[int](), list[int]()
    assert drained(prefetch(items(number, fails, made))) == drained(items(number, fails, expected))
    assert made == expected


def test_no_more_than_a_few_are_made_ahead_and_none_once_the_caller_stops() -> None:
    made: list[int] = []
    coming = prefetch(items(100, None, made))
    assert next(coming) == 0
    time.sleep(0.05)
    assert made == list(range(1 + QUEUE_DEPTH))
    coming.close()  # type: ignore[attr-defined]
    assert made == list(range(1 + QUEUE_DEPTH))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@given(number=st.integers(0, 12), fails=st.none() | st.integers(0, 11))
def test_calls_are_made_in_order_until_one_fails(number: int, fails: int | None) -> None:
    done, asked = list[int](), list[int]()

    def call(i: int) -> None:
        if i == fails:
            raise Torn(i)
        done.append(i)

    def all_calls() -> None:
        with BackgroundWriter() as behind:
            for i in range(number):
                asked.append(i)
                behind.call(call, i)

    if fails is None or fails >= number:
        all_calls()
        assert done == list(range(number))
        return
    with pytest.raises(Torn, match=str(fails)):
        all_calls()
    assert done == list(range(fails))
    assert len(asked) <= fails + 2 + QUEUE_DEPTH


def test_the_caller_waits_and_what_was_asked_for_is_done_when_he_fails() -> None:
    may, done, asked = threading.Semaphore(0), list[int](), list[int]()

    def call(i: int) -> None:
        may.acquire()
        done.append(i)

    def all_calls() -> None:
        with BackgroundWriter() as behind:
            for i in range(10):
                asked.append(i)
                behind.call(call, i)
            raise Torn

    def caller() -> None:
        with pytest.raises(Torn):
            all_calls()

    thread = threading.Thread(target=caller)
    thread.start()
    time.sleep(0.05)
    assert asked == list(range(1 + QUEUE_DEPTH))
    may.release(10)
    thread.join()
    assert done == asked == list(range(10))
