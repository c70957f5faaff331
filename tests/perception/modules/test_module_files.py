"""Modules on disk: what is saved comes back, and what does not fit or is damaged is refused and changes nothing."""

import hashlib
import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import one_line_error, succeeds
from networks import FOG, Layers, assert_same, config, disturb, inputs, model, spec
from safetensors.torch import load_file, save
from torch import nn
from vocabulary import CONDITIONS

from perception.errors import InputError
from perception.model import PerceptionModel
from perception.modules.bank import Bank
from perception.modules.computation.kinds import KINDS
from perception.modules.module_record import read_record
from perception.training.checkpoint import load_model, resume, save_model
from perception.training.combine import combine


def tensors(network: nn.Module, module: str) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items() if f".computations.{module}." in k}


def layers(seed: int = 0) -> tuple[Layers, Bank]:
    torch.manual_seed(seed)
    network = Layers()
    return network, Bank(network, CONDITIONS)


def saved(folder: Path, kind: str = "low_rank", name: str = "m", **options: Any) -> tuple[Layers, Path]:
    """A file of a module that has learned something, and the network that it is from."""
    network, bank = layers()
    bank.add(spec(name, kind, "*", **options))
    disturb(network, name)
    bank.save(name, folder / name, "fog in simulated drives", {"mAP": 0.25, "error": math.nan})
    return network, folder / f"{name}.json"


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("suffix", ["", ".json", ".safetensors"])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, kind, suffix):
    network, _ = saved(tmp_path, kind)
    other, bank = layers()
    assert bank.load(tmp_path / f"m{suffix}") == ["m"]
    assert tensors(network, "m")
    assert_same(tensors(network, "m"), tensors(other, "m"))
    assert bank.modules["m"].options() == spec("m", kind).options()
    assert bank.modules["m"].when == ("fog",)


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
    assert set(load_file(words.with_suffix(".safetensors"))) == {
        f"{slot}/{ab}.weight" for slot in layer_of for ab in "ab"
    }


def test_a_module_loads_under_another_name_and_not_under_one_that_is_taken(tmp_path):
    network, words = saved(tmp_path)
    bank = Bank(network, CONDITIONS)
    bank.modules["m"] = spec("m", "low_rank", "*")
    with pytest.raises(InputError, match=r"m.json: a module called 'm' is there already"):
        bank.load(words)
    assert bank.load(words, rename={words: "n"}) == ["n"]
    assert [key.replace(".n.", ".m.") for key in tensors(network, "n")] == list(tensors(network, "m"))
    with pytest.raises(InputError, match=r"m.json: '4x' is no name for a module"):
        bank.load(words, rename={words: "4x"})
    with pytest.raises(InputError, match=r"m.json: a module called 'm' is there already"):
        layers()[1].load(words, words)


def record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The record after this change."""

    def edit(words: Path) -> None:
        content = json.loads(words.read_text())
        change(content)
        words.write_text(json.dumps(content))

    return edit


def edited(**changes: Any) -> Callable[[Path], None]:
    return record(lambda content: content.update(changes))


def with_slot(**changes: Any) -> Callable[[Path], None]:
    return record(lambda content: content["slots"][0].update(changes))


def with_weights(change: Callable[[bytes], bytes], told: bool = True) -> Callable[[Path], None]:
    """Other bytes in the safetensors file; `told`: the record has their sha256."""

    def edit(words: Path) -> None:
        file = words.with_suffix(".safetensors")
        file.write_bytes(change(file.read_bytes()))
        if told:
            edited(sha256=hashlib.sha256(file.read_bytes()).hexdigest())(words)

    return edit


def with_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    return lambda words: with_weights(lambda _: save(change(load_file(words.with_suffix(".safetensors")))))(words)


NOT_READABLE = "m.json: not readable as a module"
REFUSALS = {
    "another base": (edited(base="0" * 64), r"m.json: was trained on another base \(000000000000"),
    "unknown slot": (with_slot(name="trunk.9"), r"m.json: the network has no slot 'trunk.9'"),
    "other layer": (with_slot(layer="Linear"), r"m.json: slot 'conv' was a Linear \(4, 2, 3, 3\), here it is a Conv2d"),
    "other shape": (with_slot(shape=[4, 2, 1, 1]), r"m.json: slot 'conv' was a Conv2d \(4, 2, 1, 1\), here it is"),
    "a slot that the kind does not fit": (
        with_slot(name="conv.norm", layer="BatchNorm2d", shape=[4]),
        r"m.json: low_rank does not attach to slot 'conv.norm', a BatchNorm2d",
    ),
    "later format": (edited(format=2, news={}), r"m.json: has format 2, this program reads 1"),
    "format of a wrong type": (edited(format="1"), r"m.json: format:"),
    "no format": (record(lambda content: content.pop("format")), NOT_READABLE),
    "no base": (record(lambda content: content.pop("base")), r"m.json: base: field required"),
    "unknown kind": (edited(kind="magic"), r"m.json: .*'magic'"),
    "unknown option": (edited(options={"rank": 2, "depth": 3}), r"m.json: low_rank.depth: extra inputs"),
    "unknown key": (edited(colour="red"), r"m.json: colour: extra inputs"),
    "no slots": (edited(slots=[]), r"m.json: slots: "),
    "unknown fact": (edited(when=["snow"]), r"m.json: when: 'snow' is none of"),
    "a list": (lambda words: words.write_text("[]"), NOT_READABLE),
    "half a JSON": (lambda words: words.write_text(words.read_text()[:99]), NOT_READABLE),
    "no text": (lambda words: words.write_bytes(b"\xff\xfe\x00"), NOT_READABLE),
    "no JSON": (lambda words: words.unlink(), NOT_READABLE),
    "no weights": (lambda words: words.with_suffix(".safetensors").unlink(), r"m.safetensors: cannot be read"),
    "a flipped bit": (with_weights(lambda b: b[:-1] + bytes([b[-1] ^ 1]), told=False), r"m.safetensors: damaged"),
    "truncated": (with_weights(lambda b: b[:-9], told=False), r"m.safetensors: damaged"),
    "truncated, and the record says so": (with_weights(lambda b: b[:-9]), r"m.safetensors: not a safetensors file"),
    "empty weights": (with_weights(lambda _: b""), r"m.safetensors: not a safetensors file"),
    "another rank": (edited(options={"rank": 3, "alpha": None}), r"m.safetensors: 6 tensors are not those"),
} | {
    f"a tensor {what}": (with_tensors(change), rf"m.safetensors: 1 tensors are not those .* such as '{key}'")
    for what, key, change in (
        ("missing", "up/a.weight", lambda t: {k: v for k, v in t.items() if k != "up/a.weight"}),
        ("too many", "up/c", lambda t: t | {"up/c": torch.zeros(1)}),
        ("of another shape", "conv/a.weight", lambda t: t | {"conv/a.weight": t["conv/a.weight"][:1].clone()}),
        ("of another type", "conv/a.weight", lambda t: t | {"conv/a.weight": t["conv/a.weight"].float()}),
    )
}


@pytest.mark.parametrize(("damage", "message"), REFUSALS.values(), ids=REFUSALS)
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


@pytest.mark.parametrize("too_large", ["the tensors", "the words"])
def test_a_full_disk_leaves_the_old_pair(tmp_path, too_large):
    """The operating system lets no file grow past a limit, as a full disk does."""
    network, bank = layers()
    bank.add(spec("m", "rescale", "up"))
    bank.save("m", tmp_path / "m")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    disturb(network, "m")
    tensors_size, words_size = ((tmp_path / f"m.{suffix}").stat().st_size for suffix in ("safetensors", "json"))
    assert tensors_size < words_size - 1
    limit = tensors_size - 1 if too_large == "the tensors" else words_size - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
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


def test_ten_modules_load_with_one_fingerprint_of_the_base(tmp_path, monkeypatch):
    """It is what takes long, and need not be taken for each."""
    paths = [saved(tmp_path / f"{i}")[1] for i in range(10)]
    bank, taken = layers()[1], []
    monkeypatch.setattr(Bank, "base_hash", lambda bank, take=Bank.base_hash: taken.append(take(bank)) or taken[-1])
    bank.load(*paths, rename={path: f"m{i}" for i, path in enumerate(paths)})
    assert (len(taken), len(bank.modules)) == (1, 10)


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


def test_modules_trained_apart_come_together_in_a_checkpoint(apart, tmp_path):
    run, night, rain = apart
    combine(run, [str(night), f"storm={rain}"], tmp_path / "both")
    network, told = load_model(tmp_path / "both")
    assert [module.name for module in told.modules] == list(network.bank.modules) == ["fog", "night", "storm"]
    alone, _ = load_model(run)
    alone.bank.load(rain, night)
    for there, here in (("fog", "fog"), ("night", "night"), ("rain", "storm")):
        assert_same(active(alone, there), active(network, here))
    assert network.bank.base_hash() == alone.bank.base_hash()
    record = read_record(tmp_path / "both" / "modules" / "storm")
    assert (record.name, record.domain, record.metrics) == ("storm", "drives at rain", {"mAP": 0.5})


def test_a_checkpoint_without_training_state_is_not_overwritten_nor_resumed(apart, tmp_path):
    run, night, _ = apart
    with pytest.raises(InputError, match=r"run: holds files already"):
        combine(run, [str(night)], run)
    network, told = load_model(run)
    with pytest.raises(InputError, match=r"run: holds a model without the state of a training"):
        resume(run, told, network, torch.optim.AdamW(network.parameters()))
    network.bank.merge("fog")
    with pytest.raises(InputError, match="unmerge first"):
        save_model(run.parent / "merged", told, network)
    (run / "modules").mkdir()
    (run / "modules" / "fog.json").write_text("{")
    with pytest.raises(InputError, match=r"fog.json: not readable as a module"):
        combine(run, [str(night)], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_the_command_lists_modules_with_what_is_known_of_them(apart, tmp_path):
    run, night, _ = apart
    told = json.loads(succeeds("modules", run, "--load", night, "--out", tmp_path / "both", "--json"))
    assert told["base"] == model().bank.base_hash()
    fog, dark = told["modules"]
    assert (fog["name"], fog["domain"], fog["where"]) == ("fog", "", ["trunk.*"])
    assert (dark["name"], dark["domain"], dark["metrics"]) == ("night", "drives at night", {"mAP": 0.5})
