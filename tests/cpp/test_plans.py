"""Plans of the engines of a bundle: which the C++ runtime runs, and which it refuses in the words of the Python one."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import exported
import pytest
import tessera_runtime as native
from damage import Damage, cut, delete, file, in_json, linked, put
from damage import replace as edit
from damage import without as missing
from exported import bundle, keys, reseal, trusting
from recorded_engine import COMPILER, TARGET
from safetensors.numpy import save

from deploy.bundle import Bundle
from deploy.signature import signer
from deploy.trust import Trust
from perception.errors import InputError

PERMIT = {"target": TARGET, "dla": False, "first": [1, 7], "end": [1, 8]}
ENGINE = f"engines/{TARGET}"


def compiled(damage: Damage = lambda path: None, key: str = "", permits: Sequence[Any] = (), **record: Any) -> Damage:
    """A plan on a vehicle that trusts the owner, who signed the bundle; the plan is signed by this key, or by none."""

    def apply(path: Path) -> Trust:
        made = {name: keys(path.parent / name) for name in ("owner", "stranger")}
        reseal(path, put("builds", [*permits]), made["owner"][0])
        plan = save({f"{i}/{name}": each for i, frame in enumerate(bundle().golden_frames())
                     for name, each in frame.outputs.items()})  # fmt: skip
        wanted = {"target": TARGET, "compiler": "tensorrt_rtx 1.7.1", **record}
        (path / "engines").mkdir()
        made_for = exported.plan_record(path, plan, **wanted)
        Bundle.load(path).add_plan(plan, made_for, signer(made[key][0]) if key else None)
        for suffix in {".json", ".plan", ".sig"} if made_for.target != TARGET else ():
            if (stored := path / f"engines/{made_for.target}{suffix}").exists():
                stored.rename(path / f"{ENGINE}{suffix}")
        damage(path)
        return trusting(made["owner"][1])

    return apply


ACCEPTED: dict[str, Damage] = {
    "signed": compiled(key="owner"),
    "permitted": compiled(permits=[PERMIT]),
    "refitted and signed": compiled(key="owner", onnx_sha256="0" * 64, refittable=True),
    "signed, for a DLA": compiled(key="owner", compiler="tensorrt_rtx 1.7.1 with DLA 0"),
    "permitted, for a DLA": compiled(permits=[PERMIT | {"dla": True}], compiler="tensorrt_rtx 1.7.1 with DLA 0"),
}
PLANS: dict[str, Damage] = {
    "none": lambda path: None,
    "no record": compiled(file(f"{ENGINE}.json", delete)),
    "no plan": compiled(file(f"{ENGINE}.plan", delete), key="owner"),
    "another plan": compiled(file(f"{ENGINE}.plan", cut(-1)), key="owner"),
    "no JSON": compiled(file(f"{ENGINE}.json", cut(-1))),
    "another key": compiled(file(f"{ENGINE}.json", in_json(put("news", 1)))),
    "a key missing": compiled(file(f"{ENGINE}.json", in_json(missing("layers")))),
    "another type": compiled(file(f"{ENGINE}.json", in_json(put("layers", "1")))),
    "another number": compiled(file(f"{ENGINE}.json", edit(b'"layers": 0', b'"layers": 1'))),
    "signed before it changed": compiled(file(f"{ENGINE}.json", edit(b'"layers": 0', b'"layers": 1')), key="owner"),
    "signed by a stranger": compiled(key="stranger"),
    "not signed": compiled(),
    "refitted and not signed": compiled(permits=[PERMIT], onnx_sha256="0" * 64, refittable=True),
    "refitted, though it cannot be": compiled(key="owner", onnx_sha256="0" * 64),
    "of another network": compiled(key="owner", weights_sha256="0" * 64),
    "for another target": compiled(key="owner", target="orin"),
    "by another release": compiled(key="owner", compiler="tensorrt_rtx 1.7.0"),
    "by a release with two numbers": compiled(key="owner", compiler="tensorrt_rtx 1.7"),
    "by another compiler": compiled(key="owner", compiler="tensorrt 1.7.1"),
    "by what is no version": compiled(key="owner", compiler="mine"),
    "permitted for another version": compiled(permits=[PERMIT | {"end": [1, 7]}]),
    "permitted for another target": compiled(permits=[PERMIT | {"target": "rtx-ada"}]),
    "permitted for a DLA": compiled(permits=[PERMIT | {"dla": True}]),
    "permitted without a DLA": compiled(permits=[PERMIT], compiler="tensorrt_rtx 1.7.1 with DLA 0"),
    "outside": compiled(linked("engines"), key="owner"),
}


def run_plan(path: Path, trust: object) -> None:
    plugin = str(Path(os.environ[native.LIBRARY]).with_name("librecorded_engine.so"))
    given: Any = {"keys": trust.keys, "state": trust.state} if isinstance(trust, Trust) else {}
    native.Runtime(path, TARGET, plugin=plugin, **given).close()


@pytest.mark.parametrize("plan", ACCEPTED)
def test_a_plan(plan: str, tmp_path: Path) -> None:
    path = exported.copy_bundle(tmp_path / "bundle")
    trust = ACCEPTED[plan](path)
    Bundle.load(path, trust if isinstance(trust, Trust) else None).plan(TARGET, COMPILER)
    run_plan(path, trust)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "is no engine for this library (it lacks tessera_engine_version or tessera_open_engine)"),
        ("uint64_t tessera_engine_version() { return 0; }", "is an engine for another version of this library; build"),
    ],
)
def test_an_engine_for_another_version_is_refused(more: str, message: str, tmp_path: Path) -> None:
    path, plugin = exported.copy_bundle(tmp_path / "bundle"), tmp_path / "engine.so"
    both = 'const char *tessera_engine_compiler() { return ""; } void *tessera_open_engine() { return nullptr; }'
    (tmp_path / "engine.cpp").write_text(f'#include <cstdint>\nextern "C" {{ {both} {more} }}')
    subprocess.run(["g++", "-shared", "-fPIC", tmp_path / "engine.cpp", "-o", plugin], check=True)
    with pytest.raises(native.Failure) as cpp:
        native.Runtime(path, TARGET, plugin=str(plugin))
    assert str(cpp.value).startswith(f"{plugin}: {message}")


@pytest.mark.parametrize("plan", PLANS)
def test_a_damaged_plan(plan: str, tmp_path: Path) -> None:
    path = exported.copy_bundle(tmp_path / "bundle")
    trust = PLANS[plan](path)
    with pytest.raises(InputError) as python:
        Bundle.load(path, trust if isinstance(trust, Trust) else None).plan(TARGET, COMPILER)
    with pytest.raises(native.Failure) as cpp:
        run_plan(path, trust)
    assert str(cpp.value) == str(python.value)
