"""Modules of several kinds, and modules on layers of a network that knows nothing of them."""

import copy
import json

import pytest
import torch
from banks import add, new_bank
from computations import assert_near as close
from computations import randomize
from pydantic import ValidationError
from torch import Tensor, nn
from vocabulary import CONDITIONS

from perception.commands.modules import _kinds
from perception.errors import InputError
from perception.modules.aggregation.merge import Merging, merge_modules
from perception.modules.bank import Bank
from perception.modules.composition import parse_block
from perception.modules.computation.channelwise import BatchNorm
from perception.modules.computation.weight_delta import LowRank
from perception.modules.route import Route
from perception.modules.slot import add_slots
from perception.modules.spec import parse_module


@pytest.fixture
def bank() -> Bank:
    return new_bank()


PARTS = [{"kind": "batch_norm", "slots": ["norm"]}, {"kind": "low_rank", "slots": ["one", "t*"], "rank": 2}]


def union(bank: Bank, name: str, parts: list[dict[str, object]] = PARTS) -> None:
    bank.add(parse_module({"kind": "union", "name": name, "when": ["fog"], "parts": parts}))
    for module in bank.at(name).values():
        randomize(module)


def output(bank: Bank, name: str) -> torch.Tensor:
    bank.activate(parse_block(name))
    return seen(bank)


def seen(bank: Bank) -> torch.Tensor:
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y: torch.Tensor = bank.network(x)
    return y


def test_a_union_computes_what_its_parts_compute_side_by_side_and_folds_into_the_base(bank):
    union(bank, "both")
    norm = BatchNorm.Options(name="both", when=("fog",), slots=("norm",))
    assert bank.modules["both"].single() == (
        norm,
        LowRank.Options(name="both", when=("fog",), slots=("one", "t*"), rank=2),
    )
    assert norm.single() == (norm,)
    add(bank, "norm", "batch_norm", ("norm",))
    add(bank, "rank", "low_rank", ("one", "two"), rank=2)
    row = bank.status()[0]
    assert (row.kind, row.slots, row.folds) == ("batch_norm + low_rank", 3, True)
    assert bank.at("both").keys() == {"norm", "one", "two"}
    for name, part in {"norm": "norm", "one": "rank", "two": "rank"}.items():
        bank.at("both")[name].load_state_dict(bank.at(part)[name].state_dict())
    expected, before = output(bank, "both"), copy.deepcopy(bank.network.state_dict())
    torch.testing.assert_close(expected, output(bank, "parallel(norm, rank)"), rtol=0, atol=0)
    assert not torch.allclose(expected, seen(new_bank()))
    folded = copy.deepcopy(bank)
    folded.fold({name: [Route({"both": 1.0})] for name in bank.slots})
    close(seen(folded), expected)
    assert all(torch.equal(bank.network.state_dict()[key], tensor) for key, tensor in before.items())


def test_two_parts_at_one_slot_and_a_union_of_unions_are_refused(bank):
    keys = bank.network.state_dict().keys()
    with pytest.raises(InputError, match="two parts of 'a' are at two; give each part slots of its own"):
        union(bank, "a", [{"kind": "rescale", "slots": ["two"]}, {"kind": "low_rank", "slots": ["t*"]}])
    with pytest.raises(ValidationError, match="'union'"):
        union(bank, "a", [{"kind": "union", "parts": PARTS}])
    assert bank.network.state_dict().keys() == keys
    assert not bank.modules


def test_a_file_brings_a_union_back_bit_for_bit_unless_its_parts_name_other_slots(bank, tmp_path):
    union(bank, "a")
    bank.save("a", tmp_path / "a", "fog")
    path = tmp_path / "a.json"
    for name in ("a", "mist"):
        other = new_bank()
        assert other.load(path, rename={path: name}) == [name]
        torch.testing.assert_close(output(other, name), output(bank, "a"), rtol=0, atol=0)
        parts = other.modules[name].single()
        assert [(part.name, part.slots) for part in parts] == [(name, ("norm",)), (name, ("one", "two"))]
    assert bank.modules["a"].single()[1].slots == ("one", "t*"), "what is saved stays as it was"
    content = json.loads(path.read_text())
    content["options"]["parts"][1]["slots"] = ["one"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="the slots of its parts are not the slots it lists"):
        new_bank().load(path)


def test_the_mean_of_two_unions_has_parts_of_all_kinds_with_room_for_both(bank):
    union(bank, "a")
    union(bank, "b", [PARTS[0], {**PARTS[1], "rank": 1}])
    missing = merge_modules(bank, "mean", ["a", "b"], Merging("average"))
    assert max(missing.values()) < 1e-12
    norm, rank = bank.modules["mean"].single()
    assert (norm.kind, rank.kind, rank.rank) == ("batch_norm", "low_rank", 3)
    for slot in ("one", "two"):
        product = [bank.at(m)[slot].delta() for m in ("a", "b", "mean")]
        close(product[2], (product[0] + product[1]) / 2)
    variances = [bank.at(m)["norm"].norm.running_var for m in ("a", "b", "mean")]
    close(variances[2], (variances[0] + variances[1]) / 2)


ONE, TWO = ({"kind": "low_rank", "slots": [slot], "rank": 2} for slot in ("one", "two"))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (PARTS, [PARTS[0], {"kind": "rescale", "slots": ["one", "t*"]}], "'b' is batch_norm . rescale, and do not mer"),
        (PARTS, [PARTS[0], ONE], r"only one of 'a' and 'b' is at two; .*average\(a, b\)"),
        ([ONE, TWO], [TWO, ONE], "the parts of 'a' and 'b' are at different slots"),
    ],
)
def test_unions_of_other_parts_do_not_merge(bank, first, second, message):
    union(bank, "a", first)
    union(bank, "b", second)
    with pytest.raises(InputError, match=message):
        merge_modules(bank, "mean", ["a", "b"], Merging("average"))
    assert list(bank.modules) == ["a", "b"]


def test_the_command_line_gives_each_kind_the_slots_and_its_options():
    assert _kinds("low_rank", ["a"], {"rank": 4}) == {"kind": "low_rank", "slots": ["a"], "rank": 4}
    both = _kinds("batch_norm+low_rank", ["a"], {"low_rank.rank": 4})
    assert both["parts"] == [{"kind": "batch_norm", "slots": ["a"]}, {"kind": "low_rank", "slots": ["a"], "rank": 4}]
    usual = ["fuse*", "trunk.*", "heads.*"]
    remembering = _kinds("memory+low_rank", [], {})
    assert remembering["parts"] == [{"kind": "memory"}, {"kind": "low_rank", "slots": usual}], "its slot is its own"
    with pytest.raises(InputError, match="KIND one of batch_norm, low_rank"):
        _kinds("batch_norm+low_rank", ["a"], {"rank": 4})


X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class RunningNorm(nn.Conv2d):
    """A convolution whose weight is not what it multiplies with."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Foreign(nn.Module):
    """Freezes its stem whenever it is told to train, as mmdet's ResNet does; two heads share a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        )
        self.odd = RunningNorm(6, 6, 1)
        shared = nn.Conv2d(6, 2, 1)
        self.heads = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
        randomize(self.double())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.odd(self.blocks(self.stem(x)))
        return self.heads["a"](x), self.heads["b"](2 * x)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.stem.requires_grad_(False).eval()
        return self


def bank_of(patterns: tuple[str, ...] = ("*",)) -> tuple[Foreign, Bank]:
    """A foreign network in evaluation mode as it was, and the bank of the same one with slots."""
    plain = Foreign().eval()
    wrapped = copy.deepcopy(plain)
    add_slots(wrapped, patterns=patterns)
    return plain, Bank(wrapped, CONDITIONS)


def same(one: nn.Module, other: nn.Module) -> bool:
    """Both outputs, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one(X), other(X), strict=True))


def test_slots_are_named_after_the_layers_and_none_is_wrapped_twice():
    six = ["stem", "blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1", "heads.a.0"]
    assert list(bank_of()[1].slots) == six
    assert list(bank_of(("blocks.1*", "stem"))[1].slots) == ["stem", "blocks.1.0", "blocks.1.1"]
    plain, bank = bank_of(("stem",))
    add_slots(bank.network)
    assert len(Bank(bank.network, CONDITIONS).slots) == 6
    assert type(bank.slots["stem"].layer) is nn.Conv2d
    assert same(plain, bank.network)


def test_training_moves_the_module_alone_and_without_it_the_network_computes_what_it_did():
    """Also where the network freezes layers of its own; folded it computes what it does with the module."""
    plain, bank = bank_of()
    before = bank.base_hash()
    bank.add(LowRank.Options(name="rain", slots=("*",), rank=2))
    bank.activate("rain")
    bank.train("rain")
    optimizer = torch.optim.SGD([p for p in bank.network.parameters() if p.requires_grad], 0.1)
    bank.network(X)[0].square().sum().backward()
    optimizer.step()
    assert all(c.b.weight.abs().max() > 0 for c in bank.at("rain").values())
    assert bank.base_hash() == before
    expected = bank.network.eval()(X)
    assert not torch.allclose(expected[0], plain(X)[0])
    bank.activate(None)
    assert same(plain, bank.network)
    bank.fold({name: [Route({"rain": 1.0})] for name in bank.slots})
    for one, other in zip(expected, bank.network(X), strict=True):
        close(other, one)
