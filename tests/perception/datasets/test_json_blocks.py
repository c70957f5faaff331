"""Tables and submissions are parsed in blocks; what they hold is what the standard library reads."""

import json
import os
import re
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perception.datasets.nuscenes import tables
from perception.errors import InputError
from perception.tasks.detection.submission_reader import read_samples

# Texts with all that could be taken for the end of a row or a list.
texts = st.text(st.sampled_from('}],{[:" \\\n\u00e9\U0001f697a'), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda own: st.lists(own, max_size=3) | st.dictionaries(texts, own, max_size=3), max_leaves=6
)
objects = st.dictionaries(texts, values, max_size=4)
written = st.fixed_dictionaries(
    {
        "indent": st.sampled_from([None, 0, 2]),
        "separators": st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]),
        "ensure_ascii": st.booleans(),
    }
)
each_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@each_file
@given(content=st.lists(objects, max_size=12), form=written, block=st.integers(1, 60))
def test_rows_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: list[Any], form: dict[str, Any], block: int
) -> None:
    monkeypatch.setattr(tables, "_BLOCK", block + 8)  # the first has the bracket
    (tmp_path / "log.json").write_text(" " + json.dumps(content, **form), encoding="utf-8")
    assert list(tables.rows(tmp_path, "log")) == content


@each_file
@given(content=st.lists(objects, min_size=1, max_size=6), block=st.integers(1, 60), data=st.data())
def test_a_damaged_table_gives_its_first_rows_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: list[Any], block: int, data: st.DataObject
) -> None:
    """Cut anywhere, at most the rows before the cut come, then the error."""
    monkeypatch.setattr(tables, "_BLOCK", block + 8)
    text = json.dumps(content)
    cut = data.draw(st.integers(1, len(text) - 1))
    (tmp_path / "log.json").write_text(text[:cut], encoding="utf-8")
    found = []
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'log.json'}: not valid JSON")):
        found.extend(tables.rows(tmp_path, "log"))
    assert found == content[: len(found)]
    assert len(json.dumps(found)) - 1 <= cut


@pytest.mark.parametrize("number", ["NaN", "Infinity"])
def test_numbers_that_only_the_standard_library_reads(tmp_path: Path, number: str) -> None:
    (tmp_path / "log.json").write_text(f'[{{"a": 1}}, {{"a": {number}}}, {{"a": 2}}]')
    assert str([row["a"] for row in tables.rows(tmp_path, "log")]) == str([1, json.loads(number), 2])


@each_file
@given(
    results=st.dictionaries(texts, st.lists(objects, max_size=3), max_size=5),
    more=st.dictionaries(texts.filter(lambda name: name != "results"), values, max_size=3),
    first=st.booleans(),
    form=written,
)
def test_samples_are_those_of_the_file(
    tmp_path: Path, results: dict[str, Any], more: dict[str, Any], first: bool, form: dict[str, Any]
) -> None:
    """Whatever else is in the file, before or behind the results."""
    content = {"results": results, **more} if first else {**more, "results": results}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content, **form), encoding="utf-8")
    assert list(read_samples(path, set(results))) == list(results.items())


@each_file
@given(results=st.dictionaries(texts, st.lists(objects, max_size=3), max_size=4), data=st.data())
def test_a_submission_that_was_cut_is_one_line(tmp_path: Path, results: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps({"results": results}, ensure_ascii=False).encode()
    path = tmp_path / "results.json"
    path.write_bytes(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(InputError, match="not a nuScenes submission"):
        list(read_samples(path, set(results)))


def test_a_submission_from_a_pipe(tmp_path: Path) -> None:
    """Which cannot be mapped into memory."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=('{"results": {"a": [{"b": 1}]}}',))
    writer.start()
    assert list(read_samples(tmp_path / "pipe", {"a"})) == [("a", [{"b": 1}])]
    writer.join()


@pytest.mark.parametrize("between", ["},{", "}, {", "}\n,{", "} ,\n {"])
def test_a_table_is_not_held_whole(tmp_path: Path, between: str) -> None:
    """However its rows are separated."""
    rows = between.join(['"name": "a row of some length"'] * 600_000)
    path = tmp_path / "log.json"
    path.write_text(f"[{{{rows}}}]")
    found = iter(tables.rows(tmp_path, "log"))
    first, peak = peak_of(lambda: next(found))
    assert first == {"name": "a row of some length"}
    assert sum(1 for _ in found) == 600_000 - 1
    whole, held = peak_of(lambda: json.loads(path.read_bytes()))
    assert whole[0] == first
    assert peak < held / 2


def peak_of(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returns, and the most bytes that it holds meanwhile."""
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak
