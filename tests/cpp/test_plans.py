"""Plans of the engines of a bundle: which both runtimes run, and which they refuse."""

import hashlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import exported
import numpy as np
import pytest
import tessera_runtime as native
from damage import Damage, cut, delete, file, in_json, linked, put
from damage import without as missing
from exported import bundle, keys, plan_record, seal, trusting
from recorded_engine import COMPILER, TARGET, add_recorded_plan, recorded_plan

from deploy.bundle import Bundle
from deploy.golden import synthetic_frame
from deploy.signature import signer
from deploy.trust import Trust
from perception.errors import InputError

ENGINE = f"engines/{TARGET}"
PLUGIN = str(Path(os.environ[native.LIBRARY]).with_name("librecorded_engine.so"))


def recorded(repeated: int = 0) -> bytes:
    """A plan that gives the outputs of the golden frames."""
    return recorded_plan(bundle(), [frame.outputs for frame in bundle().golden_frames()], repeated)


def compiled(damage: Damage = lambda path: None, key: str = "", **record: Any) -> Damage:
    """A plan on a vehicle that trusts the owner, who signed the bundle; the plan is signed by this key, or by none."""

    def apply(path: Path) -> Trust:
        made = {name: keys(path.parent / name) for name in ("owner", "stranger")}
        seal(path, made["owner"][0])
        plan = recorded()
        wanted = {"target": TARGET, "compiler": "tensorrt_rtx 1.7.1", **record}
        (path / "engines").mkdir()
        made_for = plan_record(path, plan, **wanted)
        Bundle.load(path).add_plan(plan, made_for, signer(made[key][0]) if key else None)
        for suffix in {".json", ".plan", ".sig"} if made_for.target != TARGET else ():
            if (stored := path / f"engines/{made_for.target}{suffix}").exists():
                stored.rename(path / f"{ENGINE}{suffix}")
        damage(path)
        return trusting(made["owner"][1])

    return apply


ACCEPTED: dict[str, Damage] = {
    "signed": compiled(key="owner"),
    "not signed, at its first run": compiled(),
    "refitted and signed": compiled(key="owner", onnx_sha256="0" * 64, refittable=True),
    "signed, for a DLA": compiled(key="owner", compiler="tensorrt_rtx 1.7.1 with DLA 0"),
}
# By what both messages say, and the damage.
PLANS: dict[tuple[str, str], Damage] = {
    ("no engine for", "none"): lambda path: None,
    ("no engine for", "no record"): compiled(file(f"{ENGINE}.json", delete)),
    (f"{ENGINE}.plan: the file is missing", ""): compiled(file(f"{ENGINE}.plan", delete), key="owner"),
    (f"{ENGINE}.plan: was changed", ""): compiled(file(f"{ENGINE}.plan", cut(-1)), key="owner"),
    ("not an engine record", "no JSON"): compiled(file(f"{ENGINE}.json", cut(-1))),
    ("not an engine record", "a key missing"): compiled(file(f"{ENGINE}.json", in_json(missing("refittable")))),
    ("not an engine record", "another type"): compiled(file(f"{ENGINE}.json", in_json(put("compiler", 1)))),
    ("not the signature", "changed"): compiled(file(f"{ENGINE}.json", in_json(put("layers", 1))), key="owner"),
    ("not the signature", "by a stranger"): compiled(key="stranger"),
    ("from another network", "refitted, though it cannot be"): compiled(key="owner", onnx_sha256="0" * 64),
    ("from another network", "weights"): compiled(key="owner", weights_sha256="0" * 64),
    ("is of an engine for orin", ""): compiled(key="owner", target="orin"),
    **{("compiled by", compiler): compiled(key="owner", compiler=compiler)
       for compiler in ("tensorrt_rtx 1.7.0", "tensorrt_rtx 1.7", "tensorrt 1.7.1", "mine")},
    ("a link leads out of the bundle", ""): compiled(linked("engines"), key="owner"),
}  # fmt: skip


def run_plan(path: Path, trust: object) -> None:
    given: Any = {"keys": trust.keys, "state": trust.state} if isinstance(trust, Trust) else {}
    native.Runtime(path, TARGET, plugin=PLUGIN, **given).close()


@pytest.mark.parametrize("plan", ACCEPTED)
def test_a_plan(plan: str, tmp_path: Path) -> None:
    path = exported.copy_bundle(tmp_path / "bundle")
    trust = ACCEPTED[plan](path)
    Bundle.load(path, trust if isinstance(trust, Trust) else None).plan(TARGET, COMPILER)
    run_plan(path, trust)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("int another;", "is no engine for this library (it lacks tessera_engine)"),
        ("int *tessera_engine(void) { static int version = 77; return &version; }", "is an engine for another version"),
    ],
)
def test_a_library_without_an_engine_of_this_version_is_refused(code: str, message: str, tmp_path: Path) -> None:
    path, plugin = exported.copy_bundle(tmp_path / "bundle"), tmp_path / "engine.so"
    (tmp_path / "engine.c").write_text(code)
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "engine.c", "-o", plugin], check=True)
    with pytest.raises(native.Failure) as cpp:
        native.Runtime(path, TARGET, plugin=str(plugin))
    assert str(cpp.value).startswith(f"{plugin}: {message}")


def test_what_an_engine_says_when_it_fails_is_the_message_of_the_call(tmp_path: Path) -> None:
    path = exported.copy_bundle(tmp_path / "bundle")
    loaded, frame = Bundle.load(path), synthetic_frame("ego", bundle().manifest.rig)
    outputs = [each.outputs for each in loaded.golden_frames()]
    add_recorded_plan(loaded, [*outputs, {}, outputs[0]])
    with native.Runtime(path, TARGET, plugin=PLUGIN) as runtime:
        with pytest.raises(native.Failure, match=r"^this run was recorded as one that fails$"):
            runtime.step(frame)
        runtime.step(frame)
    loaded.add_plan(b"short", plan_record(path, b"short", target=TARGET, compiler=COMPILER))
    with pytest.raises(native.Failure, match=f"^{path}/{ENGINE}.plan: its outputs are not as the manifest says$"):
        native.Runtime(path, TARGET, plugin=PLUGIN)


@pytest.mark.parametrize("key", ["owner", ""])
def test_a_forged_plan_does_not_take_the_place_of_one_that_ran(key: str, tmp_path: Path) -> None:
    """Whether that one was signed or was the first that ran. In another folder of a vehicle nothing ran."""
    path = exported.copy_bundle(tmp_path / "bundle")
    trust = compiled(key=key)(path)
    assert isinstance(trust, Trust)
    run_plan(path, trust)
    ran = {name: (path / f"{ENGINE}{name}").read_bytes() for name in (".json", ".plan")}
    digest = hashlib.sha256(ran[".json"]).hexdigest()
    assert trust.ran().plans == {f"{TARGET} of {Bundle.load(path).files['model.onnx']}": digest}
    forged = recorded(1)
    record = plan_record(path, forged, target=TARGET, compiler="tensorrt_rtx 1.7.1")
    Bundle.load(path).add_plan(forged, record)  # without a signature
    for _ in range(2):
        with pytest.raises(native.Failure, match="is not signed, and another plan ran here before"):
            run_plan(path, trust)
        with pytest.raises(InputError, match="is not signed, and another plan ran here before"):
            Bundle.load(path, trust).plan(TARGET)
    run_plan(path, replace(trust, state=tmp_path / "another vehicle"))
    for name, content in ran.items():
        (path / f"{ENGINE}{name}").write_bytes(content)
    run_plan(path, trust)


def test_a_plan_that_fails_its_golden_frames_leaves_the_place_to_another(tmp_path: Path) -> None:
    path = exported.copy_bundle(tmp_path / "bundle")
    trust = compiled()(path)
    assert isinstance(trust, Trust)
    loaded, plan = Bundle.load(path), recorded()
    outputs = {name: np.zeros_like(each) for name, each in bundle().golden_frames()[0].outputs.items()}
    wrong = recorded_plan(bundle(), [outputs])
    loaded.add_plan(wrong, plan_record(path, wrong, target=TARGET, compiler=COMPILER))
    with pytest.raises(native.Failure, match="does not compute the exported network"):
        run_plan(path, trust)
    assert trust.ran().plans == {}
    loaded.add_plan(plan, plan_record(path, plan, target=TARGET, compiler=COMPILER))
    run_plan(path, trust)


@pytest.mark.parametrize(("says", "what"), PLANS)
def test_a_damaged_plan(says: str, what: str, tmp_path: Path) -> None:
    path = exported.copy_bundle(tmp_path / "bundle")
    trust = PLANS[says, what](path)
    with pytest.raises(InputError, match=says):
        Bundle.load(path, trust if isinstance(trust, Trust) else None).plan(TARGET, COMPILER)
    with pytest.raises(native.Failure, match=says):
        run_plan(path, trust)
