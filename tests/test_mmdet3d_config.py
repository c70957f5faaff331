"""Configurations of mmdet3d are read as Python would have run them, and nothing in them runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.errors import InputError
from perception.mmdet3d.config import read_config, read_model, read_sweeps

plain = st.one_of(st.none(), st.booleans(), st.integers(-999, 999), st.floats(-1e6, 1e6), st.text(max_size=8))
names = st.sampled_from(["type", "in_channels", "norm_cfg", "a", "b"])
values = st.recursive(plain, lambda child: st.lists(child, max_size=3) | st.dictionaries(names, child, max_size=3))


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder / "config.py"


def test_values_are_those_that_python_gives(tmp_path: Path) -> None:
    text = (
        "size = [0.2, 0.2, 8]\nlow, = (1,)\nrange_ = [-51.2, -51.2, -5.0, 51.2]\nroot = 'data/'\n"
        "model = dict(a=size[:2], b=range_[::-1], c=root + 'x', d=sum([128, 128]), e={'k': (1, -2)},"
        " f=len(size) * 2 - 1, g=size[-1] / 4 // 1, h=list((1, 2)), i=tuple([dict(z=None)]), j=True)\nmodel_2 = model\n"
    )
    expected: dict[str, object] = {}
    exec(text, expected)
    found = read_config(written(tmp_path, config=text))
    assert found == {name: value for name, value in expected.items() if name not in ("__builtins__", "low")}


@settings(deadline=None)
@given(values)
def test_any_plain_value_comes_back(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert read_config(written(Path(folder), config=f"value = {value!r}\n")) == {"value": value}


def test_bases_are_merged_key_by_key(tmp_path: Path) -> None:
    base = "model = dict(type='A', norm=dict(eps=1e-3, momentum=0.01), head=dict(a=1, b=2), tasks=[1, 2])\nother = 1\n"
    child = (
        "_base_ = ['./base.py', './data.py']\n"
        "model = dict(norm=dict(eps=1e-5), head=dict(_delete_=True, c=3), tasks=[3],"
        " new=dict(x=dict(_delete_=True, y=1)))\n"
    )
    found = read_config(written(tmp_path, config=child, base=base, data="data = {'n': 2}\n"))
    assert found["model"] == {
        "type": "A",
        "norm": {"eps": 1e-5, "momentum": 0.01},
        "head": {"c": 3},
        "tasks": [3],
        "new": {"x": {"y": 1}},
    }
    assert (found["other"], found["data"]) == (1, {"n": 2})


@pytest.mark.parametrize(
    "text",
    [
        "open(MARK, 'w').close()\n",
        "import pathlib\nx = pathlib.Path(MARK).touch()\n",
        "x = [open(MARK, 'w') for _ in range(1)]\n",
        "x = f\"{open(MARK, 'w')}\"\n",
        "x = dict(**{'a': open(MARK, 'w')})\n",
        "x = sum.__class__.__base__.__subclasses__()\n",
        "def f():\n    open(MARK, 'w')\nx = f()\n",
        "x = dict(a=(lambda: open(MARK, 'w'))())\n",
    ],
)
def test_nothing_in_a_configuration_runs(tmp_path: Path, text: str) -> None:
    text = text.replace("MARK", repr(str(tmp_path / "executed")))
    config = written(tmp_path, config=text + "model = dict(type='A')\n")
    assert read_model(config) == {"type": "A"}
    assert "x" not in read_config(config)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = load()\nmodel = dict(a=x)\n",
            "config.py:1: load(): a configuration is read, not run; write the value itself",
        ),
        ("model = dict(a=other)\n", "config.py:1: other: a configuration is read, not run"),
        ("model = 'a' * 10**9\n", "config.py:1: 10 ** 9"),
        ("model = 'ab' * 3\n", "(ValueError): a configuration is read, not run"),
        ("model = [1][2]\n", "(IndexError): a configuration is read, not run"),
        ("x = 1\n", "config.py: no `model` here"),
        ("model = \n", "config.py: not a Python file (SyntaxError)"),
        ("_base_ = 'config.py'\n", "config.py: is its own `_base_`"),
        ("_base_ = 'absent.py'\n", "absent.py: cannot read the configuration (FileNotFoundError)"),
        (
            "_base_ = 'mmdet9d::_base_/a.py'\n",
            "config.py: its `_base_` mmdet9d::_base_/a.py is not here: mmdet9d is not",
        ),
        ("_base_ = [1]\n", "config.py: `_base_` must be a path or a list of paths"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_model(written(tmp_path, config=text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sweeps_are_those_of_testing(tmp_path: Path) -> None:
    steps = "test_pipeline = [dict(type='LoadPointsFromFile'), dict(type='LoadPointsFromMultiSweeps', sweeps_num=9)]\n"
    assert read_sweeps(written(tmp_path, config=steps)) == 9
    assert read_sweeps(written(tmp_path, config="test_pipeline = [dict(type='LoadPointsFromFile')]\n")) == 0
    with pytest.raises(InputError, match="no `test_pipeline` here"):
        read_sweeps(written(tmp_path, config="model = dict()\n"))
