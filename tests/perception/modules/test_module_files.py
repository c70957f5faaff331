"""Modules on disk: what is saved comes back, and what does not fit or is damaged is refused and changes nothing."""

import hashlib
import json
import math
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import one_line_error, succeeds
from networks import FOG, KIND_NAMES, Layers, assert_same, config, disturb, inputs, model, spec
from safetensors.torch import load_file, save
from torch import nn
from vocabulary import CONDITIONS

from perception.checkpoint import load_model, resume, save_model
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.modules.bank import Bank
from perception.modules.files import read_record
from perception.training.combine import combine


def tensors(network: nn.Module, module: str) -> dict[str, torch.Tensor]:
    of_module = f".computations.{module}."
    return {k.replace(of_module, "."): v.clone() for k, v in network.state_dict().items() if of_module in k}


def layers() -> tuple[Layers, Bank]:
    torch.manual_seed(0)
    network = Layers()
    return network, Bank(network, CONDITIONS)


def saved(folder: Path, kind: str = "low_rank", name: str = "m", **options: Any) -> tuple[Layers, Path]:
    """A file of a module that has learned something, and the network that it is from."""
    network, bank = layers()
    bank.add(spec(name, kind, "*", **options))
    disturb(network, name)
    bank.save(name, folder / name, "fog in simulated drives", {"mAP": 0.25, "error": math.nan})
    return network, folder / f"{name}.json"


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_what_is_saved_comes_back_bit_for_bit_by_any_path_and_under_any_name(tmp_path, kind, monkeypatch):
    """With one fingerprint of the base, which takes long."""
    network, _ = saved(tmp_path, kind)
    other, bank = layers()
    taken = []
    monkeypatch.setattr(Bank, "base_hash", lambda bank, take=Bank.base_hash: taken.append(take(bank)) or taken[-1])
    paths = [tmp_path / name for name in ("m", "m.json", "m.safetensors")]
    assert bank.load(*paths, rename=dict(zip(paths[1:], "no", strict=True))) == [*bank.modules] == ["m", "n", "o"]
    assert len(taken) == 1
    assert tensors(network, "m")
    for name, module in bank.modules.items():
        assert_same(tensors(other, name), tensors(network, "m"))
        assert (module.options(), module.when) == (spec("m", kind).options(), ("fog",))
    for again, message in ((None, "a module called 'm' is there already"), ("4x", "'4x' is no name for a module")):
        with pytest.raises(InputError, match=f"m.json: {message}"):
            bank.load(paths[1], rename={paths[1]: again} if again else {})
    with pytest.raises(InputError, match=r"m.json: a module called 'm' is there already"):
        layers()[1].load(paths[1], paths[1])


def test_the_record_says_what_the_module_is(tmp_path):
    network, words = saved(tmp_path, rank=2, alpha=0.5)
    layer_of = {
        "conv": ("Conv2d", [4, 2, 3, 3]),
        "up": ("ConvTranspose2d", [4, 4, 2, 2]),
        "head.linear": ("Linear", [6, 4]),
    }
    assert json.loads(words.read_text()) == {
        **{"format": 1, "name": "m", "kind": "low_rank", "options": {"rank": 2, "alpha": 0.5}},
        "slots": [{"name": name, "layer": layer, "shape": shape} for name, (layer, shape) in layer_of.items()],
        **{"when": ["fog"], "domain": "fog in simulated drives", "metrics": {"mAP": 0.25, "error": None}},
        "base": Bank(network, CONDITIONS).base_hash(),
        "sha256": hashlib.sha256(words.with_suffix(".safetensors").read_bytes()).hexdigest(),
    }
    files = load_file(words.with_suffix(".safetensors"))
    assert set(files) == {f"{slot}/{ab}.weight" for slot in layer_of for ab in "ab"}


def edit(words: Path, **changes: Any) -> None:
    """Change fields of the record; None takes one away."""
    content = json.loads(words.read_text()) | changes
    words.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edited(**changes: Any) -> Callable[[Path], None]:
    return partial(edit, **changes)


def with_weights(change: Callable[[bytes], bytes], told: bool = True) -> Callable[[Path], None]:
    """Other bytes in the safetensors file; `told`: the record has their sha256."""

    def damage(words: Path) -> None:
        file = words.with_suffix(".safetensors")
        file.write_bytes(change(file.read_bytes()))
        if told:
            edit(words, sha256=hashlib.sha256(file.read_bytes()).hexdigest())

    return damage


def with_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    return lambda words: with_weights(lambda _: save(change(load_file(words.with_suffix(".safetensors")))))(words)


CONV = {"name": "conv", "layer": "Conv2d", "shape": [4, 2, 3, 3]}
NORM = {"name": "conv.norm", "layer": "BatchNorm2d", "shape": [4]}
NOT_READABLE = "m.json: not readable as a module"
NOT_THOSE = r"m.safetensors: 1 tensors are not those .* such as "
REFUSALS = [
    (edited(base="0" * 64), r"m.json: was trained on another base \(000000000000"),
    (edited(slots=[CONV | {"name": "trunk.9"}]), r"m.json: the network has no slot 'trunk.9'"),
    (
        edited(slots=[CONV | {"layer": "Linear"}]),
        r"m.json: slot 'conv' was a Linear \(4, 2, 3, 3\), here it is a Conv2",
    ),
    (edited(slots=[NORM]), r"m.json: low_rank does not attach to slot 'conv.norm', a BatchNorm2d"),
    (edited(format=2, news={}), r"m.json: has format 2, this program reads 1"),
    (edited(base=None), r"m.json: base: field required"),
    (edited(options={"rank": 2, "depth": 3}), r"m.json: low_rank.depth: is not a known key"),
    (edited(when=["snow"]), r"m.json: when: 'snow' is none of"),
    (lambda words: words.write_text(words.read_text()[:99]), NOT_READABLE),
    (lambda words: words.with_suffix(".safetensors").unlink(), r"m.safetensors: cannot be read"),
    (with_weights(lambda b: b[:-1] + bytes([b[-1] ^ 1]), told=False), r"m.safetensors: damaged"),
    (with_weights(lambda b: b[:-9]), r"m.safetensors: not a safetensors file"),
    (with_tensors(lambda t: {k: v for k, v in t.items() if k != "up/a.weight"}), NOT_THOSE + "'up/a.weight'"),
    (with_tensors(lambda t: t | {"up/a.weight": t["up/a.weight"][:1].clone()}), NOT_THOSE + "'up/a.weight'"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSALS)
def test_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(tmp_path, damage, message):
    _, good = saved(tmp_path, "rescale", "good")
    _, bad = saved(tmp_path)
    network, bank = layers()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert bank.load(good) == ["good"]  # all is well with the other file
    bank.delete("good")
    damage(bad)
    with one_line_error(message):
        bank.load(good, bad)
    assert not bank.modules
    assert_same(network.state_dict(), before)


@pytest.mark.parametrize("too_large", ["safetensors", "json"])
def test_a_full_disk_leaves_the_old_pair(tmp_path, too_large):
    """The operating system lets no file grow past a limit, as a full disk does."""
    network, bank = layers()
    bank.add(spec("m", "rescale", "up"))
    bank.save("m", tmp_path / "m")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    disturb(network, "m")
    size = {suffix: (tmp_path / f"m.{suffix}").stat().st_size for suffix in ("safetensors", "json")}
    assert size["safetensors"] < size["json"] - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size[too_large] - 1, hard))
    try:
        with pytest.raises(InputError, match=r"m\.(safetensors|json): cannot write"):
            bank.save("m", tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    bank.save("m", tmp_path / "m")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} != before
    with pytest.raises(InputError, match=r"m.json/modules: cannot make the folder"):
        bank.save("m", tmp_path / "m.json" / "modules" / "m")


@pytest.fixture
def apart(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A checkpoint with one module, and two modules trained on its base elsewhere."""
    network = model()
    network.bank.add(spec("fog", "low_rank", "trunk.*"))
    disturb(network, "fog")
    save_model(tmp_path / "run", config(), network)
    for name, kind, slots in (("night", "rescale", "heads.*"), ("rain", "batch_norm", "trunk.*")):
        network.bank.add(spec(name, kind, slots))
        disturb(network, name)
        network.bank.save(name, tmp_path / name / "modules" / name, f"drives at {name}", {"mAP": 0.5})
    return tmp_path / "run", tmp_path / "night" / "modules" / "night.json", tmp_path / "rain" / "modules" / "rain.json"


def active(network: PerceptionModel, module: str) -> dict[str, torch.Tensor]:
    network.bank.activate(module)
    with torch.no_grad():
        return network(inputs(1), [FOG])


def test_modules_trained_apart_come_together_in_a_checkpoint_and_are_listed(apart, tmp_path):
    run, night, rain = apart
    both = tmp_path / "both"
    told = json.loads(succeeds("modules", run, "--load", f"{night},storm={rain}", "--out", both, "--json"))
    rows = [(row["name"], row["domain"], row["where"], row["metrics"]) for row in told["modules"]]
    assert rows[0] == ("fog", "", ["trunk.*"], {})
    assert rows[1] == ("night", "drives at night", ["heads.*"], {"mAP": 0.5})
    assert rows[2][:2] == ("storm", "drives at rain")
    network, config = load_model(both)
    assert [module.name for module in config.modules] == list(network.bank.modules) == ["fog", "night", "storm"]
    alone, _ = load_model(run)
    alone.bank.load(rain, night)
    for there, here in (("fog", "fog"), ("night", "night"), ("rain", "storm")):
        assert_same(active(alone, there), active(network, here))
    assert network.bank.base_hash() == alone.bank.base_hash() == told["base"]
    record = read_record(both / "modules" / "storm")
    assert (record.name, record.domain, record.metrics) == ("storm", "drives at rain", {"mAP": 0.5})


def test_a_checkpoint_without_training_state_is_not_overwritten_nor_resumed(apart, tmp_path):
    run, night, _ = apart
    with pytest.raises(InputError, match=r"run: holds files already"):
        combine(run, [str(night)], run)
    network, told = load_model(run)
    with pytest.raises(InputError, match=r"run: has no optimizer state"):
        resume(run, told, network, torch.optim.AdamW(network.parameters()))
    (run / "modules").mkdir()
    (run / "modules" / "fog.json").write_text("{")
    with pytest.raises(InputError, match=r"fog.json: not readable as a module"):
        combine(run, [str(night)], tmp_path / "both")
    assert not (tmp_path / "both").exists()
