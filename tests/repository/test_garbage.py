"""Pauses of the garbage collector end with their block."""

import gc
from contextlib import suppress

import pytest

from perception.garbage import without_collection


class Node:
    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_as_before(collecting: bool) -> None:
    try:
        gc.enable() if collecting else gc.disable()
        with suppress(ValueError), without_collection():
            with without_collection():
                assert not gc.isenabled()
            assert not gc.isenabled()
            raise ValueError("damaged")
        assert gc.isenabled() is collecting
    finally:
        gc.enable()


def test_no_search_for_cycles_in_a_block() -> None:
    gc.collect()
    before = [each["collections"] for each in gc.get_stats()]
    with without_collection():
        made = [Node() for _ in range(50_000)]
        del made
        assert [each["collections"] for each in gc.get_stats()] == before
