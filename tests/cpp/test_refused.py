"""A damaged, unsigned or outdated bundle is refused by both runtimes, and each names what is wrong."""

import ctypes
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from shutil import copytree
from typing import Any

import exported
import numpy as np
import onnx
import pytest
import tessera_runtime as native
from both_runtimes import every_task
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from damage import Damage, cut, delete, file, in_json, linked, put
from damage import without as missing
from exported import add_route, bundle, keys, looking, remembering, reseal, rewritten, seal, trusting
from refits import train_further
from safetensors.numpy import load, save

from deploy.bundle import Bundle
from deploy.runtime import Runtime
from deploy.trust import Trust
from perception.errors import InputError

SUMS, GRAPH, GOLDEN, MODULE = "SHA256SUMS", "model.onnx", "golden.safetensors", "modules/rain.json"


def manifest(change: Callable[[Any], object]) -> Damage:
    """A change of the manifest, which the hashes do not follow."""
    return file("manifest.json", in_json(change))


def sealed(change: Callable[[Any], object]) -> Damage:
    """A change of the manifest with new hashes, as a forger would make it."""

    def apply(path: Path) -> None:
        reseal(path, change)

    return apply


def exchanged(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Another content of a file, and its hash."""

    def apply(path: Path) -> None:
        (path / name).write_bytes(change((path / name).read_bytes()))
        seal(path)

    return apply


def unnamed(name: str) -> Damage:
    """SHA256SUMS has no line of this file."""

    def change(path: Path) -> None:
        lines = (path / SUMS).read_text().splitlines(keepends=True)
        (path / SUMS).write_text("".join(line for line in lines if not line.endswith(f"  {name}\n")))

    return change


def naming(name: str) -> Damage:
    """A file that lies outside, of which SHA256SUMS has the hash."""

    def apply(path: Path) -> None:
        secret = path.parent / "secret"
        secret.write_bytes(b"of another")
        digest = hashlib.sha256(b"of another").hexdigest()
        named = name.format(secret.name, secret)
        with (path / SUMS).open("a") as sums:
            sums.write(f"{digest}  {named}\n")

    return apply


def in_a_folder(path: Path) -> None:
    (path / "new").mkdir()
    (path / "new" / "a").write_text("")


def piped(path: Path) -> None:
    (path / GRAPH).unlink()
    os.mkfifo(path / GRAPH)


def trained(content: bytes) -> bytes:
    return train_further(onnx.load_from_string(content)).SerializeToString()


def input_of(change: dict[str, object]) -> Damage:
    return lambda path: rewritten(path, inputs=(bundle().manifest.inputs[0].model_copy(update=change),
                                                *bundle().manifest.inputs[1:])) and None  # fmt: skip


def shifted(path: Path) -> None:
    """The scores of the golden frame are those of another network."""
    first, *others = bundle().golden_frames()
    scores = first.outputs["detection/scores"].copy()
    scores[:, :20] += np.float32(2e-4)
    rewritten(path, golden=[replace(first, outputs=first.outputs | {"detection/scores": scores}), *others])


def overlapping(content: bytes) -> bytes:
    """The last tensor begins a byte earlier, so that it shares one and leaves one."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    last = max((each for name, each in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"])
    last["data_offsets"] = [each - 1 for each in last["data_offsets"]]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[start:]


def signed(key: str, *trusted: str, **content: object) -> Damage:
    """Signed by one key, on a vehicle that trusts others; of "" nobody."""

    def apply(path: Path) -> Trust:
        made = {name: keys(path.parent / name) for name in {key, *trusted} if name}
        rewritten(path, sign=made[key][0] if key else None, **content)
        return trusting(*(made[name][1] for name in trusted))

    return apply


def keyed(content: bytes | None) -> Damage:
    """A vehicle with this file as its key."""

    def apply(path: Path) -> Trust:
        public = path.parent / "public.pem"
        if content is not None:
            public.write_bytes(content)
        return trusting(public)

    return apply


def ran(state: bytes) -> Damage:
    """A vehicle that says this of what ran before."""

    def apply(path: Path) -> Trust:
        trust = signed("owner", "owner", release=3)(path)
        assert isinstance(trust, Trust)
        trust.state.mkdir()
        (trust.state / "release.json").write_bytes(state)
        return trust

    return apply


def broken_signature(path: Path) -> Trust:
    trust = signed("owner", "owner")(path)
    (path / "SHA256SUMS.sig").write_bytes(bytes(64))
    return trust


PAST = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(hours=1)
CURVE = (
    ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)
PRIVATE = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
OUT_OF_IT = ("../{0}", "{1}", "modules/../../{0}", "..\\{0}", "C:\\{0}", "C:{0}", "\\\\host\\{0}", "modules\\rain.json",
             "./model.onnx", "modules//rain.json", "a\0b")  # fmt: skip
FIELDS = [
    ("release", "1"), ("inputs", 0), ("inputs.0.shape", 3), ("inputs.0.shape", ["1"]),
    ("banked", {}), ("expires", "soon"), ("routes", "base"), ("golden", 1), ("preprocessing.pillars.most", 0.5),
    ("news", 1), ("files", {GRAPH: "0"}), ("taxonomy", None), ("steering.values", None), ("golden.close", "near"),
    ("preprocessing.pillars.overflow", "last"),
]  # fmt: skip
# By what both messages name, and the damage.
REFUSED: dict[tuple[str, str], Damage] = {
    **{(name, what): file(name, damage)
       for name in ("manifest.json", SUMS, GRAPH, GOLDEN, MODULE)
       for what, damage in (("deleted", delete), ("longer", lambda path: path.write_bytes(path.read_bytes() + b"\n")))},
    **{(name, "shorter"): file(name, cut(-1)) for name in ("manifest.json", SUMS, GRAPH, GOLDEN, MODULE)},
    **{("a path inside", repr(name)): naming(name) for name in OUT_OF_IT},
    **{("schema", repr(version)): sealed(lambda content, version=version: content.update(schema_version=version))
       for version in (12, 15, "new", None, [1.5, True])},
    **{(key, repr(value)): sealed(put(key, value)) for key, value in FIELDS},
    **{(key, "missing"): sealed(missing(key)) for key in ("golden", "inputs.1.dtype", "preprocessing.pillars.cell")},
    **{(name, "not in SHA256SUMS"): unnamed(name) for name in ("manifest.json", GRAPH, GOLDEN, MODULE)},
    **{(SUMS, repr(line)): file(SUMS, lambda path, line=line: path.open("a").write(line) and None)
       for line in ("\n", "model.onnx\n", f"{'0' * 64}\n", f"{'0' * 64}  \n", f"{'0' * 64} *a\n", f"{'A' * 64}  a\n")},
    ("manifest.json", "200,000 brackets"): exchanged("manifest.json", lambda content: 200_000 * b"["),
    ("manifest.json", "not sealed"): manifest(put("release", 1)),
    ("modules/more", ""): lambda path: (path / "modules" / "more").write_text("") and None,
    ("new/a", ""): in_a_folder,
    ("loop", "a link to itself"): lambda path: (path / "loop").symlink_to("loop"),
    (GRAPH, "a pipe"): piped,
    **{(name, "outside"): linked(name) for name in (SUMS, "manifest.json", GRAPH, MODULE, "modules")},
    (GRAPH, "no graph"): exchanged(GRAPH, lambda content: b"not a graph"),
    ("golden frame", "of another network"): exchanged(GRAPH, trained),
    ("golden frame", "with other scores"): shifted,
    **{("ash", key): sealed(put(key, value)) for key, value in (
        ("routes", ["rain+ash"]), ("apart", ["ash"]), ("banked", [{"name": "wet", "asks": ["no-lidar", "ash"]}]))},
    ("pillar_points", "another shape"): input_of({"shape": (1, 2)}),
    ("pillar_points", "another type"): input_of({"dtype": "uint8"}),
    ("radar", ""): input_of({"name": "radar"}),
    (GOLDEN, "no tensors"): exchanged(GOLDEN, lambda content: b"\xff" * 20),
    (GOLDEN, "BF16"): exchanged(GOLDEN, lambda content: content.replace(b'"F32"', b'"BF16"', 1)),
    (GOLDEN, "tensors that overlap"): exchanged(GOLDEN, overlapping),
    ("preprocessing", "pictures of any size"): sealed(put("preprocessing.admission.largest", 65536)),
    ("is not signed", ""): signed("", "owner"),
    ("SHA256SUMS.sig", "by a stranger"): signed("stranger", "owner"),
    ("SHA256SUMS.sig", "by neither"): signed("stranger", "owner", "new"),
    ("SHA256SUMS.sig", "of zeros"): broken_signature,
    ("expired", ""): signed("owner", "owner", expires=PAST),
    ("expired", "in Tokyo"): signed("owner", "owner", expires=PAST.astimezone(timezone(timedelta(hours=9)))),
    ("release 7", "an older release"): ran(b'{"release": 7}'),
    **{("release.json", repr(state)): ran(state)
       for state in (b"", b"[]", b'{"release": "7"}', b'{"release": true}', b'{"release": 1, "plans": []}')},
    **{("public.pem", f"{content!r:.40}"): keyed(content)
       for content in (None, b"", b"-----BEGIN PUBLIC KEY-----\n-", CURVE, PRIVATE)},
}  # fmt: skip


def of_type(dtype: str) -> Damage:
    """A state of this type, before and after."""

    def change(content: Any) -> None:
        for each in (*content["inputs"], *content["outputs"], *content["state"]["pairs"]):
            if each.get("name") in ("state", "next_state", None):
                each["dtype"] = dtype

    return sealed(change)


STATE: dict[str, Damage] = {
    "float64": of_type("float64"),
    "bytes": of_type("uint8"),
    "another shape": sealed(put("state.pairs.0.shape", [1, 8, 128, 128])),
    "another input": sealed(put("state.pairs.0.input", "elapsed")),
    "an input missing": sealed(lambda content: content["inputs"].pop()),
}


def refused(path: Path, damage: Damage, named: str) -> None:
    """Both runtimes refuse a bundle after the damage, in one line that names the bundle and what is wrong."""
    trust = None
    with suppress(InputError):  # `rewritten` opens what it wrote
        trust = damage(path)
    given: Any = {}
    if isinstance(trust, Trust):
        given = {"keys": trust.keys, "state": trust.state, "allow_older": trust.allow_older}
    with pytest.raises(InputError) as python:
        Runtime(path, trust=trust if isinstance(trust, Trust) else None)
    with pytest.raises(native.Failure) as cpp:
        native.Runtime(path, **given)
    for said in (str(python.value), str(cpp.value)):
        assert named in said.replace("/", ".") or named in said  # C++ calls it preprocessing/pillars
        assert str(path.parent) in said
        assert "\n" not in said


@pytest.mark.parametrize(("named", "what"), REFUSED)
def test_a_damaged_bundle(named: str, what: str, tmp_path: Path) -> None:
    refused(exported.copy_bundle(tmp_path / "bundle", "rain"), REFUSED[named, what], named)


@pytest.mark.parametrize("damage", STATE)
def test_a_state_that_does_not_fit(damage: str, tmp_path: Path) -> None:
    refused(copytree(remembering().path, tmp_path / "bundle"), STATE[damage], "state: is not that of the network")


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "more"])
def test_a_longer_file_of_another_route(name: str, tmp_path: Path) -> None:
    path = copytree(exported.apart()[0].path, tmp_path / "bundle")
    refused(path, file(f"routes/rain/{name}", lambda path: path.open("ab").write(b" ") and None), f"routes/rain/{name}")


@pytest.mark.parametrize(
    ("named", "damage"),
    [
        ("../elsewhere", sealed(put("apart", ["../elsewhere"]))),
        ("routes/rain/manifest.json", unnamed("routes/rain/manifest.json")),
    ],
)
def test_another_route_that_is_not_there(named: str, damage: Damage, tmp_path: Path) -> None:
    refused(copytree(exported.apart()[0].path, tmp_path / "bundle"), damage, named)


@pytest.mark.parametrize(("key", "value"), [("kind", "square"), ("within", "frame")])
def test_another_suppression(key: str, value: str, tmp_path: Path) -> None:
    path = copytree(every_task().path, tmp_path / "bundle")
    refused(path, sealed(put(f"results.detection.0.suppression.{key}", value)), "results")


def without_batch(path: Path) -> None:
    """The detections' outputs have no first axis, as if each were a frame of a batch."""

    def squeezed(content: bytes) -> bytes:
        return save({name: each[0] if ".outputs.detection/" in name or ".compared." in name else each
                     for name, each in load(content).items()})  # fmt: skip

    def describe(content: Any) -> None:
        for output in content["outputs"]:
            del output["shape"][: output["name"].startswith("detection/")]

    exchanged(GOLDEN, squeezed)(path)
    reseal(path, describe)


def reshaped(start: str, inputs: bool, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Tensors of the golden frames whose names start so, and their shapes in the manifest."""
    kind = "inputs" if inputs else "outputs"

    def change_all(content: bytes) -> bytes:
        return save({name: np.ascontiguousarray(change(each)) if f".{kind}.{start}" in name else each
                     for name, each in load(content).items()})  # fmt: skip

    def describe(content: Any) -> None:
        for each in content[kind]:
            if each["name"].startswith(start):
                each["shape"] = [*change(np.zeros(each["shape"])).shape]

    def apply(path: Path) -> None:
        exchanged(GOLDEN, change_all)(path)
        reseal(path, describe)

    return apply


@pytest.mark.parametrize(
    ("made", "damage", "message"),
    [
        (bundle, without_batch, "detections have other shapes than their scores"),
        (
            bundle,
            reshaped("detection/boxes", False, lambda boxes: boxes[..., :3]),
            "detections have other shapes than their scores",
        ),
        (
            bundle,
            reshaped("pillar_", True, lambda pillars: pillars.reshape(-1)[:7]),
            "inputs: pillar_points is none that the bundle's frames give",
        ),
        (bundle, sealed(put("release", 2**63)), "/release: has another type"),  # it would be below 0
        (
            bundle,
            lambda path: add_route(path, every_task()),  # which has inputs of single points
            "/routes/rain/manifest.json: inputs: points is none that the bundle's frames give; export",
        ),
        (
            bundle,
            lambda path: add_route(path, looking()),  # on half the area
            "/routes/rain/manifest.json: preprocessing: is another than that of the bundle's other networks; export",
        ),
        (
            remembering,
            lambda path: add_route(path, looking()),
            "/routes/rain/manifest.json: state: has another shape than that of the bundle's other networks; export",
        ),
    ],
)
def test_a_whole_bundle_that_would_be_read_out_of_range(
    made: Callable[[], Bundle], damage: Damage, message: str, tmp_path: Path
) -> None:
    """By every hash and golden frame of its own."""
    path = copytree(made().path, tmp_path / "bundle")
    damage(path)
    with pytest.raises(native.Failure) as cpp:
        native.Runtime(path)
    assert message in str(cpp.value)
    assert "\n" not in str(cpp.value)


@pytest.mark.parametrize("folder", ["here", "."])
def test_weights_in_another_file_are_not_read(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither from the working directory, where ONNX Runtime looks by itself, nor from another place."""
    path, here = exported.copy_bundle(tmp_path / "bundle"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    model, location = onnx.load(path / GRAPH), os.path.relpath(tmp_path / folder / "weights.bin")
    onnx.save_model(model, path / GRAPH, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path / "weights.bin").rename(location)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = location
    (path / GRAPH).write_bytes(model.SerializeToString())
    seal(path)
    for failure, use in ((InputError, Runtime), (native.Failure, native.Runtime)):
        with pytest.raises(failure, match=r"model\.onnx: ONNX Runtime refuses it: "):
            use(path)


def test_keys_that_are_not_given_are_refused() -> None:
    options = native._sized(native._Options)
    options.bundle, options.key_count = os.fsencode(bundle().path), 1
    library, handle = native.load(), ctypes.c_void_p()
    assert library.tessera_open(ctypes.byref(options), ctypes.byref(handle)) == 3
    assert library.tessera_message(None) == b"tessera_options.keys: is NULL"


def test_with_keys_the_state_s_folder_must_be_given(tmp_path: Path) -> None:
    for state in (None, ""):
        with pytest.raises(native.Failure, match="state: give the folder"):
            native.Runtime(bundle().path, keys=[tmp_path / "public.pem"], state=state)
