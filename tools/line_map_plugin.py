"""Plugin of pytest for tools/line_map.py: what each test and each fixture takes and executes."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from line_map import FOLDER, recorder

_FOLDER = Path(os.environ[FOLDER])
RECORDER = recorder()

_contexts: list[str] = []
_fixture_seconds: list[float] = []  # of wider scope, within the test that runs


def _write(**row: Any) -> None:
    with (_FOLDER / f"{os.getpid()}.tests.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def _name(definition: Any, request: Any) -> str:
    return f"{definition.baseid}::{definition.argname}[{getattr(request, 'param_index', 0)}]"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _contexts[:] = [item.nodeid]
    _fixture_seconds[:] = []
    RECORDER.switch(item.nodeid)
    start = time.perf_counter()
    failed = item.session.testsfailed
    try:
        return (yield)
    finally:
        seconds = time.perf_counter() - start - sum(_fixture_seconds)
        _write(
            test=item.nodeid,
            seconds=round(max(0.0, seconds), 3),
            fixtures=getattr(item, "wider_fixtures", []),
            passed=item.session.testsfailed == failed,
        )
        RECORDER.switch("between tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    request = item._request  # type: ignore[attr-defined]
    try:
        return (yield)
    finally:
        wider = [d for d in request._fixture_defs.values() if d.scope != "function"]
        item.wider_fixtures = sorted({_wider(d) for d in wider})  # type: ignore[attr-defined]


_names: dict[int, str] = {}


def _wider(definition: Any) -> str:
    return _names.get(id(definition), f"{definition.baseid}::{definition.argname}[0]")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Iterator[Any]:
    if fixturedef.scope == "function":
        return (yield)
    name = _names[id(fixturedef)] = _name(fixturedef, request)
    _contexts.append(name)
    RECORDER.switch(name)
    start, inner = time.perf_counter(), len(_fixture_seconds)
    try:
        return (yield)
    finally:
        seconds = time.perf_counter() - start - sum(_fixture_seconds[inner:])
        _fixture_seconds.append(seconds)
        _write(fixture=name, seconds=round(seconds, 3))
        _contexts.pop()
        RECORDER.switch(_contexts[-1] if _contexts else "between tests")


def pytest_sessionfinish() -> None:
    RECORDER.write()
