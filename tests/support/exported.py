"""Networks with random weights, exported once for all the tests of this process."""

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from once import once
from rich.console import Console
from tiny import write_tiny
from torch import nn
from vocabulary import RIG

from deploy.bundle import ENGINES, Bundle, EngineRecord, write_bundle
from deploy.export import export
from deploy.golden import GoldenFrame, clear_detections, synthetic_frame
from deploy.integrity import SUMS, SUMS_SIGNATURE, sha256
from deploy.manifest import Manifest, contract_of
from deploy.onnx_export import to_onnx
from deploy.precision.calibrate import Drives
from deploy.signature import signer
from deploy.tolerances import Precision
from deploy.trust import Release, Trust
from perception.checkpoint import save
from perception.config import Config, find_config, load_config, parse_config
from perception.frame import Arrays, Frame, Prediction
from perception.model import PerceptionModel
from perception.sensors.inputs import prepare
from perception.tasks.task import part_of

QUIET = Console(quiet=True)


@cache
def folder() -> Path:
    """For what the tests of this process make, which ends with it."""
    path = Path(tempfile.mkdtemp(prefix="exported-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def nano() -> Config:
    """`tiny` with its slots, tasks, module, view and largest numbers of pillars and boxes, but few channels.

    Pictures have 64 x 32 pixels, of which the first two stages of the backbone make features. With subcells the best
    of many random scores are nearly alike.
    """
    content = load_config(find_config("tiny")).model_dump(mode="json")
    model, tasks = content["model"], content["tasks"]
    model["fused_channels"] = 8
    model["lidar"]["channels"] = 8
    model["camera"] |= {"stages": [0, 1], "channels": 8, "image": {"height": 32, "width": 64}}
    model["camera"]["depth"]["bins"] = 8
    model["trunk"] |= {"channels": [8, 8, 16], "up_channels": 8}
    tasks["detection"]["channels"] = tasks["map"]["channels"] = 8
    tasks["detection"]["subcells"] = 1
    return parse_config(content | {"name": "nano"}, "nano")


def checkpoint(configuration: str = "") -> Path:
    """The run `checkpoint_of` a configuration of the repository, or of `nano`; all processes of the tests share it."""
    config = load_config(find_config(configuration)) if configuration else nano()
    return once(f"run-{config.name}", lambda run: save_random(run, config))


def checkpoint_of(config: Config, seed: int = 0, spread: float = 0.05) -> Path:
    """Random weights, with statistics of real activations, so that the outputs vary as a trained network's do.

    Args:
        spread: standard deviation of the modules' parameters.
    """
    save_random(folder() / f"run-{config.name}", config, seed, spread)
    return folder() / f"run-{config.name}"


def save_random(run: Path, config: Config, seed: int = 0, spread: float = 0.05) -> None:
    torch.manual_seed(seed)
    model = PerceptionModel(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0  # take over the statistics of the next batch
                if not module.weight.any():  # timm begins with residual branches that add nothing
                    module.weight.fill_(0.2)
        inputs = prepare(synthetic_frame("ego", RIG, seed=7), config.spec)
        model.train().forward({name: torch.from_numpy(array) for name, array in inputs.items()})
        for name, parameter in model.named_parameters():
            if "computations" in name:  # modules begin as the identity; these shall matter
                parameter.normal_(0, spread)
        heads = model.heads["detection"].branches
        for last in [heads[name][1].layer for name in heads if name.endswith("heatmap")]:
            last.weight.normal_(0, 0.6 * 2**0.5 / last.weight.shape[1] ** 0.5)  # with larger ones, scores tie at 1
            last.bias.fill_(-3.0)
    save(run, 1, config, model.state_dict(), torch.optim.AdamW(model.parameters()).state_dict(), {})


def modular(name: str, modules: list[dict[str, object]], **more: object) -> Config:
    """`nano` with these modules."""
    return parse_config(nano().model_dump(mode="json") | {"name": name, "modules": modules} | more, name)


@cache
def bundle(*conditions: str) -> Bundle:
    """The bundle of `checkpoint()` for these conditions; all processes of the tests share it."""
    name, run = "-".join(("bundle", *conditions)), checkpoint()
    return Bundle.load(once(name, lambda out: export(run, out, [conditions], console=QUIET)))


@cache
def retrained() -> Bundle:
    """The network of `bundle()` with other weights."""

    def make(out: Path) -> None:
        save_random(out.with_name("run-retrained"), nano(), seed=1)
        export(out.with_name("run-retrained"), out, console=QUIET)

    return Bundle.load(once("bundle-retrained", make))


def bundles_of(
    checkpoint: Path,
    out: Path,
    precisions: Sequence[Precision],
    drives: Drives,
    routes: Sequence[Sequence[str]] = ((),),
) -> dict[Precision, Bundle]:
    """A bundle of the checkpoint in the folder `out` for each precision, all of one trace.

    `export` makes FP16 and INT8 of the graph in FP32, and compares that with torch each time.

    Args:
        drives: to calibrate INT8 on.
    """
    traced: list[onnx.ModelProto] = []

    def trace(*given: object) -> onnx.ModelProto:
        traced[:] = traced or [to_onnx(*given)]
        return deepcopy(traced[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.export.to_onnx", trace)
        given = {each: {"precision": each, "calibration": drives if each == "int8" else None} for each in precisions}
        return {each: export(checkpoint, out / each, routes, QUIET, **options) for each, options in given.items()}


MEMORY = {"name": "memory", "kind": "memory"}


def remembering_run() -> Path:
    """`nano` with a memory, whose state has larger cells than the map.

    In INT8 the weights of this seed stay far from the bounds, whichever processor rounds.
    """
    modules = [MEMORY | {"stride": 2}]
    return once("run-memory", lambda run: save_random(run, modular("memory", modules), seed=7, spread=0.1))


@cache
def remembering_at(precision: Precision) -> Bundle:
    """The bundle of `remembering_run`; the drive that INT8 was calibrated on lies beside it."""

    def make(out: Path) -> None:
        write_tiny(out / "drives")
        bundles_of(remembering_run(), out, ("fp32", "fp16", "int8"), Drives(out / "drives", "v1.0-tiny"))

    return Bundle.load(once("memory", make) / precision)


def remembering() -> Bundle:
    return remembering_at("fp32")


@cache
def looking() -> Bundle:
    """The bundle of `nano` with a memory, on a grid ahead of the vehicle alone."""
    content = modular("looking", [MEMORY]).model_dump(mode="json")
    content["grid"]["x"] = [0.0, 51.2]
    del content["tasks"]["map"]
    run = checkpoint_of(parse_config(content, "looking"), seed=1, spread=0.1)
    return Bundle.load(once("looking", lambda out: export(run, out, console=QUIET)))


APART = [[], ["rain"], ["rain", "night"]]


@cache
def apart_checkpoint() -> Path:
    """With modules for rain and for night in the trunk."""
    own = {"kind": "low_rank", "slots": ["trunk.*"], "rank": 2}
    return checkpoint_of(modular("apart", [{"name": name, "when": [name], **own} for name in ("rain", "night")]))


@cache
def apart() -> tuple[Bundle, Path, Path]:
    """A bundle with a network for each of the routes `APART`, signed, and the keys; shared as `bundle` is."""

    def make(out: Path) -> None:
        private, _ = keys(out.parent / "apart-keys")
        export(apart_checkpoint(), out, APART, console=QUIET, apart=True, release=Release(sign=private))

    path = once("bundle-apart", make)
    folder_of_keys = path.parent / "apart-keys"
    return Bundle.load(path), folder_of_keys / "key.pem", folder_of_keys / "public.pem"


def copy_bundle(to: Path, *conditions: str) -> Path:
    """A copy of the bundle that a test may damage."""
    return shutil.copytree(bundle(*conditions).path, to)


def keys(folder: Path) -> tuple[Path, Path]:
    """A new private and its public key, as PEM files in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    private, (key, public) = Ed25519PrivateKey.generate(), (folder / "key.pem", folder / "public.pem")
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key, public


def plan_record(path: Path, plan: bytes, **changed: object) -> EngineRecord:
    """Of a plan that TensorRT compiled on an Orin from the network of the bundle at `path`."""
    digest = sha256(path / "model.onnx")
    record = EngineRecord(
        target="orin", compiler="tensorrt 10.3.0", layers=0, seconds=1.0, plan_bytes=len(plan),
        plan_sha256=hashlib.sha256(plan).hexdigest(), refittable=False, onnx_sha256=digest, weights_sha256=digest,
    )  # fmt: skip
    return record.model_copy(update=changed)


def trusting(*public: Path, allow_older: bool = False) -> Trust:
    """A vehicle that trusts these keys, and keeps what ran beside the first."""
    return Trust(public, public[0].parent / "state", allow_older)


def rewritten(
    path: Path,
    onnx: bytes | None = None,
    sign: Path | None = None,
    golden: tuple[Arrays, Arrays] | list[GoldenFrame] | None = None,
    **manifest: object,
) -> Path:
    """The bundle at `path` with another network, golden frames (or inputs and outputs of one) or manifest.

    Every hash is made anew, as a forger would.
    """
    old = Bundle.load(path)
    kept = ("modules/", "ml_package")
    more = {name: (path / name).read_bytes() for name in old.files if name.startswith(kept)}
    if isinstance(golden, tuple):
        clear = clear_detections(part_of("detection", golden[1]), 1e-4)
        golden = [GoldenFrame("first", *golden, {"detection": clear}), *old.golden_frames()[1:]]
    graph, frames = onnx or old.onnx.read_bytes(), golden or old.golden_frames()
    key = None if sign is None else signer(sign)
    write_bundle(path, graph, frames, old.manifest.model_copy(update=manifest), more, key)
    return path


def seal(path: Path, key: Path | None = None) -> Path:
    """The bundle at `path` with the hashes of the files that are there now, as a forger makes them; signed by a key."""
    (path / SUMS_SIGNATURE).unlink(missing_ok=True)
    files = [each for each in sorted(path.rglob("*")) if each.is_file() and ENGINES not in each.parts]
    names = [each.relative_to(path) for each in files if each.name != SUMS]
    (path / SUMS).write_text("".join(f"{sha256(path / name)}  {name}\n" for name in names))
    if key is not None:
        (path / SUMS_SIGNATURE).write_bytes(signer(key).sign((path / SUMS).read_bytes()))
    return path


def reseal(path: Path, change: Callable[[dict[str, Any]], object], key: Path | None = None) -> Path:
    """The bundle at `path` after a change of its manifest, sealed."""
    content = json.loads((path / "manifest.json").read_text())
    change(content)
    (path / "manifest.json").write_text(json.dumps(content, indent=2))
    return seal(path, key)


def settled(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], None]:
    """A change of a manifest with that of the sections that follow from the others."""

    def edit(content: dict[str, Any]) -> None:
        change(content)
        manifest = Manifest.model_validate_json(json.dumps(content))
        names = [each.name for each in manifest.inputs]
        sections = contract_of(manifest.spec, manifest.heads, names, manifest.taxonomy)
        content |= json.loads(manifest.model_copy(update=sections).model_dump_json())

    return edit


def assert_equal(a: Prediction, b: Prediction) -> None:
    """Equal to the last bit."""
    for field in ("centers", "sizes", "rotations", "velocities", "labels", "attributes", "scores"):
        np.testing.assert_array_equal(getattr(a.results["detection"], field), getattr(b.results["detection"], field))
    np.testing.assert_array_equal(a.results.get("map"), b.results.get("map"))


def without(frame: Frame, sensor: str) -> Frame:
    return replace(frame, cameras={}) if sensor == "camera" else replace(frame, points=None)


# Every kind, in every branch. Export itself refuses a graph that differs from torch, and a fold from the routed.
AFFINE = [
    {"name": "rank", "kind": "low_rank", "slots": ["*"], "rank": 2},
    {"name": "few", "kind": "sparse_delta", "slots": ["lidar.*", "trunk.*"], "when": ["rain"]},
    {"name": "norms", "kind": "batch_norm", "slots": ["lidar.*", "camera.*"], "when": ["rain"]},
    {"name": "series", "kind": "series_adapter", "slots": ["fuse*"], "when": ["rain"]},
    {"name": "parallel", "kind": "parallel_adapter", "slots": ["camera.*", "heads.*"]},
    {"name": "scales", "kind": "rescale", "slots": ["*"]},
    {"name": "shifts", "kind": "scale_shift", "slots": ["camera.*", "trunk.*"], "when": ["rain"]},
    {"name": "film", "kind": "film", "slots": ["heads.*"]},
    {"name": "hyper", "kind": "hypernetwork", "slots": ["trunk.*"]},
    {"name": "dry", "kind": "low_rank", "slots": ["trunk.*"], "when": ["clear"]},
]
PROMPT = {"name": "prompt", "kind": "prompt", "slots": ["heads.map.output"], "size": 4}  # no norm follows this one
NOT_AFFINE = {"name": "bend", "kind": "bottleneck", "slots": ["camera.neck", "trunk.stage0.1", "heads.map"]}
BANK = [
    {"name": "city", "kind": "low_rank", "slots": ["trunk.*"], "rank": 2, "when": ["boston"]},
    {"name": "rain", "kind": "low_rank", "slots": ["trunk.stage1*", "heads.*"], "rank": 2, "when": ["rain"]},
    {"name": "night", "kind": "batch_norm", "slots": ["camera.*"], "when": ["night"]},
    {"name": "film", "kind": "film", "slots": ["heads.map*"], "when": ["map"]},
    {"name": "blind", "kind": "scale_shift", "slots": ["fused"], "when": ["no-cameras"]},
    {"name": "dry", "kind": "rescale", "slots": ["trunk.*"], "when": ["clear"]},
]
ROUTES = [["boston"], ["boston", "rain"], ["boston", "night"]]


def add_route(path: Path, own: Bundle) -> None:
    """Makes another bundle the network for rain of the bundle at `path`."""
    shutil.copytree(own.path, path / "routes" / "rain", ignore=shutil.ignore_patterns(SUMS))
    reseal(path, lambda content: content.update(apart=["rain"]))
