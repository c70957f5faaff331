"""No going back: releases, expiry, and what a vehicle remembers outside its bundles."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import onnx
import pytest
from commands import refuses, succeeds
from exported import bundle, checkpoint, copied, keys, rewritten, trusting
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from refusals import one_line_error
from typer.testing import CliRunner

from deploy.bundle import Bundle
from deploy.cli import app
from deploy.release import parse_expiry
from deploy.runtime import Runtime
from deploy.trust import Trust
from perception.errors import InputError

NOW = datetime.now(timezone.utc).replace(microsecond=0)


def released(path: Path, key: Path, release: int, expires: datetime | None = None) -> Path:
    return rewritten(path if path.exists() else copied(path), sign=key, release=release, expires=expires)


def remembered(public: Path) -> int:
    return trusting(public).highest()


def test_an_older_release_is_refused_unless_told(tmp_path: Path) -> None:
    key, public = keys(tmp_path / "keys")
    old, new = (released(tmp_path / f"release-{n}", key, n) for n in (3, 7))
    for path, highest in ((old, 3), (new, 7), (new, 7)):
        Runtime(path, trust=trusting(public))
        assert remembered(public) == highest
    why = f"is release 3, but release 7 ran here before, says {public.parent}/state/release.json"
    remedy = "take a newer release, or run this one with --allow-older"
    with one_line_error(exactly=f"{old}/manifest.json: {why}; {remedy}"):
        Runtime(old, trust=trusting(public))
    Runtime(old, trust=trusting(public, allow_older=True))
    Runtime(old)  # without a key a bundle of any age is taken
    assert remembered(public) == 7


def test_another_name_is_no_way_back(tmp_path: Path) -> None:
    key, public = keys(tmp_path / "keys")
    trusting(public).accept(7)
    other = rewritten(copied(tmp_path / "bundle"), sign=key, release=6, name="another")
    with pytest.raises(InputError, match="is release 6, but release 7 ran here before"):
        Runtime(other, trust=trusting(public))


def test_a_release_that_does_not_compute_its_golden_frame_is_not_remembered(tmp_path: Path) -> None:
    """Else a broken bundle would keep the vehicle from going on with the one that it has."""
    key, public = keys(tmp_path / "keys")
    model = onnx.load(bundle().onnx)
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    broken = rewritten(copied(tmp_path / "bundle"), onnx=model.SerializeToString(), sign=key, release=9)
    Bundle.load(broken, trusting(public))
    with pytest.raises(InputError, match="does not compute the exported network"):
        Runtime(broken, trust=trusting(public))
    assert remembered(public) == 0
    assert not (public.parent / "state").exists()


def test_a_bundle_expires(tmp_path: Path) -> None:
    key, public = keys(tmp_path / "keys")
    path = released(tmp_path / "bundle", key, 1, NOW + timedelta(hours=1))
    Bundle.load(path, trusting(public))
    released(path, key, 1, NOW - timedelta(seconds=1))
    with one_line_error(at=f"{path}/manifest.json: expired at {NOW - timedelta(seconds=1):%Y-%m-%d %H:%M} UTC"):
        Bundle.load(path, trusting(public))
    Bundle.load(path)
    forged = json.loads((path / "manifest.json").read_text()) | {"expires": "2999-01-01T00:00:00Z"}
    (path / "manifest.json").write_text(json.dumps(forged))
    with pytest.raises(InputError, match="not the signature"):
        Bundle.load(path, trusting(public))


@given(st.lists(st.integers(0, 9), max_size=8), st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_runs_never_falls_below_what_ran(
    tmp_path_factory: pytest.TempPathFactory, releases: list[int], allow_older: bool
) -> None:
    """Against the plain rule: a release runs if none higher did; the highest is what is remembered."""
    state = tmp_path_factory.mktemp("vehicle") / "state"
    trust, ran = Trust((), state, allow_older), [0]
    for release in releases:
        if release < max(ran) and not allow_older:
            with pytest.raises(InputError, match=f"is release {release}, but release {max(ran)} ran"):
                trust.require_current(Path("manifest.json"), release, None)
            continue
        trust.require_current(Path("manifest.json"), release, None)
        trust.accept(release)
        ran.append(release)
        assert Trust((), state).highest() == max(ran)


@pytest.mark.parametrize("content", ["", "{}", "7", '{"release": "7"}', '{"release": true}', '{"release": 1.5}'])
def test_a_memory_that_is_damaged_is_no_way_back(tmp_path: Path, content: str) -> None:
    (tmp_path / "release.json").write_text(content)
    with pytest.raises(InputError, match=r"release\.json: does not say the highest release that ran"):
        Trust((), tmp_path).require_current(Path("manifest.json"), 8, None)


def test_what_cannot_be_remembered_does_not_run(tmp_path: Path) -> None:
    key, public = keys(tmp_path / "keys")
    (public.parent / "state").write_text("in the way")
    with pytest.raises(InputError, match=r"state(/release\.json)?: (cannot keep the release|does not say)"):
        Runtime(released(tmp_path / "bundle", key, 2), trust=trusting(public))


def test_an_export_states_its_release(tmp_path: Path) -> None:
    key, public = keys(tmp_path / "keys")
    stated = ["--release", "5", "--expires", "2999-06-30T12:00+02:00", "--signed-plans", "--sign", str(key)]
    done = CliRunner().invoke(app, ["export", str(checkpoint()), "--out", str(tmp_path / "bundle"), *stated])
    assert done.exit_code == 0, done.output
    manifest = Bundle.load(tmp_path / "bundle", trusting(public)).manifest
    expires = datetime(2999, 6, 30, 10, tzinfo=timezone.utc)
    assert (manifest.release, manifest.expires, manifest.builds) == (5, expires, ())
    assert {permit.target for permit in bundle().manifest.builds} == {"orin", "thor", "drive-orin", "drive-thor"}


def test_what_is_no_date() -> None:
    assert parse_expiry("2027-06-30") == datetime(2027, 6, 30, tzinfo=timezone.utc)
    assert parse_expiry("2027-06-30T12:30Z") == datetime(2027, 6, 30, 12, 30, tzinfo=timezone.utc)
    for text in ("tomorrow", "2027-13-01", "30.6.2027"):
        with pytest.raises(InputError, match=f"--expires {text}: not a date such as 2027-06-30"):
            parse_expiry(text)


def test_commands_keep_the_release_where_they_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At home, with the environment's, and with --state."""
    key, public = keys(tmp_path / "keys")
    verify = ("verify", released(tmp_path / "old", key, 1), "--key", public)
    home, surroundings, told = (tmp_path / name for name in ("home/.local/state/perception", "surroundings", "told"))
    for state in (home, surroundings, told):
        Trust((), state).accept(2)
    monkeypatch.delenv("PERCEPTION_STATE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert f"release 2 ran here before, says {home}/release.json" in refuses(*verify)
    monkeypatch.setenv("PERCEPTION_STATE", str(surroundings))
    assert f"release 2 ran here before, says {surroundings}/release.json" in refuses(*verify)
    assert f"release 2 ran here before, says {told}/release.json" in refuses(*verify, "--state", told)
    succeeds(*verify, "--state", told, "--allow-older")
    succeeds(*verify, "--state", tmp_path / "new")
    assert not (tmp_path / "new").exists()  # to verify is not to run
