"""Every computation function, with layers that it attaches to, inputs and random weights, for the tests of them."""

import copy
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from vocabulary import CONDITION_VALUES, Z

from perception.modules.computation.computation import CONVOLUTIONS, NORMS, ChannelNorm, Computation, Site, inputs
from perception.modules.route import Route
from perception.modules.slot import Slot
from perception.modules.spec import COMPUTATIONS

# All kinds, with options such that a small layer has room for them.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "low_rank": ("low_rank", {"rank": 2, "alpha": 3.0}),
    "sparse_delta": ("sparse_delta", {"share": 0.3}),
    "batch_norm": ("batch_norm", {}),
    "prompt": ("prompt", {"size": 3, "channels": 0}),
    "concatenated": ("prompt", {"size": 3, "channels": 2}),
    "series_adapter": ("series_adapter", {}),
    "parallel_adapter": ("parallel_adapter", {}),
    "bottleneck": ("bottleneck", {"reduction": 2}),
    "rescale": ("rescale", {}),
    "scale_shift": ("scale_shift", {}),
    "film": ("film", {}),
    "hypernetwork": ("hypernetwork", {"rank": 2, "hidden": 8}),
}
AFFINE = [case for case, (kind, _) in CASES.items() if COMPUTATIONS[kind].affine]


class Place(NamedTuple):
    """A layer in evaluation, with an input for it of 2 frames with 2 rows each, and condition vectors or None."""

    layer: Any
    x: Tensor
    z: Tensor | None


def make(case: str, layer: nn.Module) -> Computation:
    """A new module of this case for the layer."""
    kind, options = CASES[case]
    computation: Any = COMPUTATIONS[kind]
    further = {"conditions": len(CONDITION_VALUES)} if computation.conditional else {}
    module: Computation = computation(layer, **further, **options)
    return module


def randomize(module: nn.Module, size: float = 0.5) -> None:
    """Random numbers in place of all weights and statistics."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=size)
    for norm in module.modules():
        if isinstance(norm, NORMS):
            nn.init.normal_(norm.running_mean, std=size)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)


def make_trained(case: str, layer: nn.Module, size: float = 0.5) -> Computation:
    """A module with random weights, in evaluation."""
    module = make(case, layer).eval()
    randomize(module, size)
    return module


def slot_with(layer: nn.Module, route: Route | None = None, **modules: Computation) -> Slot:
    """A slot in evaluation, at a copy of the layer, that runs these modules, by default with weight 1."""
    slot = Slot("s", copy.deepcopy(layer))
    for name, module in modules.items():
        slot.computations[name] = module
    slot.current.route = Route(dict.fromkeys(modules, 1.0)) if route is None else route
    return slot.eval()


def delta_of(module: Computation, place: Place) -> Tensor:
    """What the module adds to the layer's output."""
    delta: Tensor = module(Site(place.x, place.layer(place.x), place.layer, place.z))
    return delta


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-12 of the largest number in float64."""
    size = 1.0 + float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12 * size)


@st.composite
def places(draw: st.DrawFn, *cases: str, frames: int = 2) -> Place:
    """A random layer in float64 that modules of all these cases attach to, and condition vectors of so many frames."""
    kinds = [COMPUTATIONS[CASES[case][0]] for case in cases]
    classes = set.intersection(*(set(kind.layers) for kind in kinds))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    place = _place(
        draw,
        draw(st.sampled_from(sorted(classes, key=lambda c: c.__name__))),
        groups=1 if "hypernetwork" in cases else draw(st.sampled_from([1, 2])),
        centred="parallel_adapter" in cases or draw(st.booleans()),
    )
    assert all(kind.attaches_to(place.layer) for kind in kinds)
    z = draw(st.sampled_from([None, torch.randn(1, Z), torch.randn(frames, Z), torch.eye(Z)[:1]]))
    return place._replace(z=z)


def _place(draw: st.DrawFn, kind: type[nn.Module], groups: int, centred: bool) -> Place:
    channels = {"in": groups * draw(st.integers(1, 3)), "out": groups * draw(st.integers(1, 3))}
    bias = draw(st.booleans())
    if kind is nn.Linear:
        layer: Any = nn.Linear(channels["in"], channels["out"], bias)
        extra = draw(st.sampled_from([(), (3,), (2, 3)]))
        return Place(layer.double().eval(), torch.randn(4, *extra, channels["in"], dtype=torch.float64), None)
    if kind in (*NORMS, ChannelNorm):
        layer = kind(channels["out"], eps=draw(st.sampled_from([1e-5, 1e-3])))
        randomize(layer)
        cells = (5, 4) if kind in (nn.BatchNorm2d, ChannelNorm) else draw(st.sampled_from([(), (5,)]))
        return Place(layer.double().eval(), torch.randn(4, channels["out"], *cells, dtype=torch.float64), None)
    assert kind in CONVOLUTIONS
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 1)] if centred else [(1, 1), (2, 2), (3, 3), (3, 2)]))
    dilation = draw(st.sampled_from([1, 2]))
    options: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": draw(st.sampled_from([1, 2, (2, 1)])),
        "padding": tuple(dilation * (k - 1) // 2 for k in kernel) if centred else draw(st.sampled_from([0, 1, (1, 2)])),
        "dilation": dilation,
        "groups": groups,
        "bias": bias,
    }
    if kind is nn.ConvTranspose2d:
        grows = dilation == 2 or options["stride"] == 2  # the padding of the output must be less than one of them
        options["output_padding"] = draw(st.sampled_from([0, 1])) if grows else 0
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        if not centred and options["stride"] == 1:
            options["padding"] = draw(st.sampled_from(["same", options["padding"]]))
    layer = kind(channels["in"], channels["out"], **options).double().eval()
    return Place(layer, torch.randn(4, channels["in"], 6, 7, dtype=torch.float64), None)


def inputs_like(place: Place, rows: int) -> Tensor:
    """Another random input of this many rows."""
    return torch.randn(rows, *place.x.shape[1:], dtype=place.x.dtype)


def place_of(kind: type[nn.Module], **options: Any) -> Place:
    """One layer of each class, in float64, where a test needs no random one."""
    torch.manual_seed(0)
    if kind is nn.Linear:
        layer: Any = nn.Linear(3, 4)
    elif kind in (*NORMS, ChannelNorm):
        layer = kind(4)
        randomize(layer)
    else:
        layer = kind(2, 4, 3, **{"padding": 1, **options})
    cells = () if kind is nn.Linear else (5,) if kind is nn.BatchNorm1d else (4, 5)
    x = torch.randn(4, inputs(layer), *cells, dtype=torch.float64)
    return Place(layer.double().eval().requires_grad_(False), x, torch.randn(1, Z))
