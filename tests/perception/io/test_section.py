"""YAML of any content is read, or refused in one line of bounded length."""

import resource
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deploy.live.policy import load_policy
from perception.config import load_config
from perception.errors import InputError
from perception.io.section import dump_yaml, overridden, parse_yaml, read_yaml

TEXT = st.text(st.characters(exclude_characters="\x85"))  # PyYAML writes it as a space
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
NESTED = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join([f'*{chr(97 + i)}'] * 9)}]}}\n" for i in range(9)
)
REFUSED = {
    "a date that does not exist": "lateness: 2024-13-01",
    "a time that does not exist": "lateness: 2024-02-30 25:00:00",
    "an integer of 5,000 digits": "lateness: " + "9" * 5000,
    "aliases that explode": NESTED + "lateness: *j",
    "merges that explode": MERGED + "lateness: *j",
    "an alias of itself": "lateness: &a [*a]",
    "deep": "[" * 10_000,
    "a long text": "lateness: " + "x" * 1_000_000,
    "no YAML": "lateness: [",
}


@given(PLAIN)
def test_yaml_is_that_of_the_library(content: object) -> None:
    text = dump_yaml(content)
    assert parse_yaml(text) == yaml.safe_load(text)


@given(PLAIN)
def test_what_is_written_is_read_again(content: object) -> None:
    assert parse_yaml(dump_yaml(content)) == parse_yaml(dump_yaml(content, flow=True)) == content


@pytest.mark.parametrize("text", ["5e-3", "5.e-3", "0.5E-2", ".5e-2", "+50e-4"])
def test_a_number_may_have_no_point(text: str) -> None:
    assert overridden(parse_yaml(f"train: {{weight: {text}}}"), [f"train.rate={text}"]) == {
        "train": {"weight": 0.005, "rate": 0.005}
    }


def test_aliases_are_as_many_values_as_they_stand_for() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: {c: *a}\n<<: {d: *a}") == {"a": [1, 2], "b": {"c": [1, 2]}, "d": [1, 2]}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_section_has_is_one_short_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(REFUSED[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for load in (load_policy, load_config):
        with pytest.raises(InputError) as error:
            load(path)
        assert str(path) in str(error.value)
        assert len(str(error.value).splitlines()) == 1
        assert len(str(error.value)) < 5000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("value", ["2024-13-01", "9" * 5000, "[", "&a [*a]"])
def test_values_on_the_command_line_are_refused_alike(value: str) -> None:
    with pytest.raises(InputError):
        overridden({}, [f"train.steps={value}"])


def test_an_empty_file_has_no_keys(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "file.yaml", "the file") == {}
