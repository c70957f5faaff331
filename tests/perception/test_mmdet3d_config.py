"""Flat configurations of mmdet3d are read as Python would have run them, and nothing in them runs."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import one_line_error

from perception.errors import InputError
from perception.mmdet3d.flat_config import read_config
from perception.mmdet3d.pillar_config import sweep_step

plain = st.one_of(st.none(), st.booleans(), st.integers(-999, 999), st.floats(-1e6, 1e6), st.text(max_size=8))
keys = st.sampled_from(["type", "in_channels", "norm_cfg", "a", "b"])
children = st.recursive(plain, lambda child: st.lists(child, max_size=3) | st.dictionaries(keys, child, max_size=3))


def written(folder: Path, text: str) -> Path:
    (folder / "config.py").write_text(text)
    return folder / "config.py"


def dumped(value: object) -> str:
    """As mmengine writes it."""
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={dumped(each)}' for key, each in value.items())})"
    return f"[{', '.join(map(dumped, value))}]" if isinstance(value, list) else repr(value)


@settings(deadline=None)
@given(st.dictionaries(keys, children))
def test_values_are_those_that_python_gives(value: dict[str, object]) -> None:
    text = f"model = {dumped(value)}\nother = ({{'k': (1, -2), 1: []}}, 1e-05)\n"
    expected: dict[str, object] = {}
    exec(text, expected)
    with tempfile.TemporaryDirectory() as folder:
        found = read_config(written(Path(folder), text)).content
    assert found == {"model": value, "other": expected["other"]}


FLAT = "is more than a name and its value: a configuration is read, not run; write a flat one with python -c "
MODEL = "model = dict(type='A')\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("open(MARK, 'w').close()\n", "config.py:1: \"open('/"),
        ("import pathlib\n", f"config.py:1: 'import pathlib' {FLAT}"),
        ("x = pathlib.Path(MARK).touch()\n", FLAT),
        ("x = [open(MARK, 'w') for _ in range(1)]\n", FLAT),
        ("x = f\"{open(MARK, 'w')}\"\n", FLAT),
        ("x = dict(**{'a': open(MARK, 'w')})\n", FLAT),
        ("x = dict(**{'a': 1})\n", FLAT),
        ("x = dict([('a', 1)])\n", FLAT),
        ("x = sum.__class__.__base__.__subclasses__()\n", FLAT),
        ("def f():\n    open(MARK, 'w')\nx = f()\n", f"config.py:1: 'def f():' {FLAT}"),
        ("x = dict(a=(lambda: open(MARK, 'w'))())\n", FLAT),
        ("y = 1\nx = y\n", f"config.py:2: 'x = y' {FLAT}"),
        ("x = 'a' * 10**9\n", FLAT),
        ("x = dict(a={[]: 1})\n", FLAT),
        ("x = " + "[" * 90 + "]" * 90 + "\nx = y = 1\n", f"'x = y = 1' {FLAT}"),
        ("_base_ = ['../_base_/models/a.py']\n", "config.py').dump('flat.py')"),
        ("x = " + "-" * 3000 + "1\n", "config.py"),
        ("model = \n", "config.py: not a Python file (SyntaxError)"),
        ("x = " + "(" * 10**4, "config.py: not a Python file (SyntaxError)"),
        ("\0", "config.py: not a Python file ("),
        ("model = 1\n", "config.py: no `model` here"),
        ("del model\n", FLAT),
    ],
)
def test_what_is_not_flat_is_refused_in_one_line_and_nothing_runs(tmp_path: Path, text: str, message: str) -> None:
    config = written(tmp_path, MODEL + text.replace("MARK", repr(str(tmp_path / "executed"))))
    message = message.replace("config.py:2:", "config.py:3:").replace("config.py:1:", "config.py:2:")
    with one_line_error(says=message):
        read_config(config)
    assert not (tmp_path / "executed").exists()


def test_sweeps_are_those_of_testing(tmp_path: Path) -> None:
    steps = "test_pipeline = [dict(type='LoadPointsFromFile'), dict(type='LoadPointsFromMultiSweeps', sweeps_num=9)]\n"
    loader = sweep_step(read_config(written(tmp_path, MODEL + steps)))
    assert loader["sweeps_num"] == 9
    assert sweep_step(read_config(written(tmp_path, MODEL + "test_pipeline = [dict(type='B')]\n"))) is None
    with pytest.raises(InputError, match="no `test_pipeline` here"):
        sweep_step(read_config(written(tmp_path, MODEL)))
    with pytest.raises(InputError, match=r"absent\.py: cannot read the configuration \(FileNotFoundError\)"):
        read_config(tmp_path / "absent.py")
