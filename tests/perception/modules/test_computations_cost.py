"""What modules cost: their parameters, and the multiplications at each cell while they are not folded."""

import math

import pytest
from computations import CASES, fixed, make, trained
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from perception.modules.computation.computation import Site
from perception.modules.computation.kinds import KINDS

CONV = nn.Conv2d(256, 256, 3, padding=1, bias=False)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("low_rank", {"rank": 8}, 8 * 256 * 9 + 8 * 256),
        ("sparse_delta", {"share": 0.01}, round(0.01 * 589_824)),
        ("prompt", {"size": 8, "channels": 0}, 256 * 8 * 8),
        ("prompt", {"size": 8, "channels": 4}, 4 * 8 * 8 + 256 * 4 * 9),
        ("series_adapter", {}, 65_536 + 2 * 2 * 256),
        ("parallel_adapter", {}, 65_536),
        ("bottleneck", {"reduction": 16}, 8_192),
        ("rescale", {}, 256),
        ("scale_shift", {}, 512),
        ("film", {"conditions": 7}, 2 * 256 * 7),
        ("hypernetwork", {"conditions": 7, "rank": 4, "hidden": 8}, 4 * 256 * 9 + 7 * 8 + 8 * 256 * 4),
    ],
)
def test_parameters_of_a_module_at_a_convolution_of_256_channels(kind, options, expected):
    assert sum(p.numel() for p in KINDS[kind](CONV, **options).parameters()) == expected


def test_a_batch_norm_of_256_channels_has_1024_numbers():
    module = KINDS["batch_norm"](nn.BatchNorm2d(256))
    assert sum(t.numel() for t in module.state_dict().values() if t.is_floating_point()) == 1024


# Multiplications outside of convolutions and matrix products, which torch's counter passes over: at each cell the
# normalisations of the series adapter, and for each frame the generator of the hypernetwork.
UNCOUNTED = {"series_adapter": 2 * 4}
PER_FRAME = {"hypernetwork": 7 * 8 + 8 * 4 * 2}


SCALES = ("batch_norm", "rescale", "scale_shift", "film")


@pytest.mark.parametrize("case", sorted(CASES.keys() - set(SCALES)))
def test_the_stated_multiplications_are_those_that_torch_counts(case):
    for kind in KINDS[CASES[case][0]].layers:
        layer, x, z = fixed(kind, **({"stride": 2} if kind in (nn.Conv2d, nn.ConvTranspose2d) else {}))
        x = x[:1]  # of a prompt all frames share one convolution
        site = Site(x, layer(x), layer, z)
        module = trained(case, layer)
        with FlopCounterMode(display=False) as counter:
            module(site)
        # A transposed convolution multiplies at each cell of its input.
        at_inputs = kind is nn.ConvTranspose2d and case in ("low_rank", "sparse_delta")
        cells = math.prod((x if at_inputs else site.y).shape[2:])
        stated = cells * (module.multiply_adds(layer) - UNCOUNTED.get(case, 0)) + PER_FRAME.get(case, 0)
        assert counter.get_total_flops() == 2 * stated


@pytest.mark.parametrize("case", SCALES)
def test_scales_multiply_each_channel_once(case):
    for kind in KINDS[CASES[case][0]].layers:
        assert make(case, fixed(kind).layer).multiply_adds(fixed(kind).layer) == 4
