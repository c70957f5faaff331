"""Compute what training configs/nuscenes/fusion.yaml takes on several GPUs, into docs/scale.md.

    python tools/scale_table.py --data DIR

DIR is nuScenes or a part of it. Operations, memory and the loader are measured on this machine's CPU, which takes a
minute; the speeds of GPUs and networks are options.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from cost_table import PASSES, TRAFFIC, loading, training_size
from torch import nn

from deploy.golden import synthetic_frame
from perception.config import Config, find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.files import write_atomically
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- computed by tools/scale_table.py -->\n", "<!-- /computed -->\n"
STATE_BYTES = 24  # of a parameter: itself, gradient, DDP's copy of it, two moments, average, in float32
COLLECTIVES = 2  # of a synchronised normalisation: one forward, one backward


@dataclass(frozen=True)
class Measured:
    """Of one frame and of the network, on a CPU."""

    parameters: int
    flops: int  # forward
    kept: int  # bytes of activations for the backward pass, in bf16
    norms: int  # batch normalisations
    seconds: float  # of the loader for a sample, on one core


def measure(config: Config, options: argparse.Namespace) -> Measured:
    cv2.setNumThreads(1)
    tables = NuScenesTables(options.data, options.version or only_version(options.data))
    frame = prepare(synthetic_frame(config.grid.reference, config.rig), InputSpec.of(config))
    size = training_size(config, {name: torch.from_numpy(array) for name, array in frame.items()})
    norms = sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in PerceptionModel(config).modules())
    return Measured(*size, norms, loading(config, tables, options)[1])


@dataclass(frozen=True)
class Step:
    """Seconds of a training step on `gpus` GPUs."""

    compute: float
    loader: float
    exchange: float

    @property
    def total(self) -> float:
        return max(self.compute, self.loader) + self.exchange


def step(found: Measured, config: Config, gpus: int, options: argparse.Namespace) -> Step:
    """The terms of the page's formula."""
    frame = max(
        PASSES * found.flops / (options.peak * 1e12 * options.utilisation),
        TRAFFIC * found.kept / (options.bandwidth * 1e12),
    )
    link = options.link if gpus <= options.machine else options.network
    gradients = 2 * (gpus - 1) / gpus * 4 * found.parameters / (link * 1e9)
    waits = COLLECTIVES * found.norms * options.latency * 1e-6 if gpus > 1 else 0.0
    loader = config.train.batch * found.seconds / (options.workers * gpus)
    return Step(config.train.batch / gpus * frame, loader, gradients + waits)


def validation_seconds(found: Measured, config: Config, options: argparse.Namespace) -> float:
    """Of all validations: one GPU predicts while its workers read, the others wait."""
    validation = config.train.validation
    if validation is None or config.train.epochs is None:
        return 0.0
    frame = max(found.seconds / config.data.workers, found.flops / (options.peak * 1e12 * options.utilisation))
    return config.train.epochs / validation.every * options.validated * frame


def tables_of(found: Measured, config: Config, options: argparse.Namespace) -> str:
    steps = config.train.total_steps(options.epoch_samples)
    waiting, rows = validation_seconds(found, config, options), []
    for gpus in options.gpus:
        each = step(found, config, gpus, options)
        hours = (steps * each.total + waiting) / 3600
        memory = STATE_BYTES * found.parameters + config.train.batch / gpus * found.kept
        rows.append(
            f"| {gpus} | {config.train.batch / gpus:g} | {each.compute * 1e3:.0f} | {each.loader * 1e3:.0f} "
            f"| {each.exchange * 1e3:.1f} | {hours:.1f} | {memory / 1e9:.1f} | {hours * gpus * options.price:.0f} |"
        )
    return TEMPLATE.format(
        n=f"{found.parameters / 1e6:.2f} M",
        f=f"{found.flops / 1e9:.0f} GFLOP",
        a=f"{found.kept / 1e9:.2f} GB",
        norms=found.norms,
        s=f"{found.seconds:.3f} s",
        steps=f"{steps:,}",
        batch=config.train.batch,
        epochs=config.train.epochs,
        waiting=f"{waiting / 3600:.2f} h",
        rows="\n".join(rows),
        **{key: f"{value:,}" if isinstance(value, int) else value for key, value in vars(options).items()},
    )


TEMPLATE = """
| | value | |
|---|---|---|
| N | {n} | parameters; measured |
| F | {f} | forward of a frame, a multiplication and an addition are two; counted on a CPU |
| A | {a} | kept of a frame for the backward pass, bf16; measured by autograd's hooks on a CPU |
| B | {norms} | batch normalisations; counted |
| s | {s} | of the loader for a sample on one core, files in the page cache, nothing pasted; measured on a CPU |
| n | {steps} | steps of {batch}: {epochs} epochs of {epoch_samples} samples (28,130 keyframes, class-balanced) |
| peak, u | {peak} TFLOP/s, {utilisation} | an A100 in bf16, and the share of it that is reached; **assumed** |
| m | {bandwidth} TB/s | an A100's memory; assumed |
| w | {workers} | cores of the loader for each GPU; assumed |
| l | {link} GB/s, {network} GB/s | between GPUs of a machine ({machine} GPUs), and between machines; assumed |
| t | {latency} us | of a small exchange; assumed |
| v | {waiting} | all validations: {validated} keyframes each, on one GPU; computed |
| price | {price} | of a GPU for an hour; assumed |

| GPUs, P | frames of a GPU | ms a step: GPU | loader | exchange | hours | GB of a GPU | price |
|---|---|---|---|---|---|---|---|
{rows}
"""


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="nuScenes, or a part of it")
    parser.add_argument("--version", help="default: the only one")
    parser.add_argument("--scenes", default="scene-0103:0-4", help="keyframes with their pictures")
    parser.add_argument("--lidar-scenes", default="scene-0103:6-7", help="keyframes with their LiDAR sweeps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--machine", type=int, default=8, help="GPUs of a machine")
    parser.add_argument("--epoch-samples", type=int, default=123_600)
    parser.add_argument("--validated", type=int, default=6_019, help="keyframes of a validation")
    parser.add_argument("--peak", type=float, default=312.0, help="TFLOP/s of a GPU")
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the peak that is reached")
    parser.add_argument("--bandwidth", type=float, default=2.0, help="TB/s of a GPU's memory")
    parser.add_argument("--workers", type=int, default=16, help="cores of the loader for each GPU")
    parser.add_argument("--link", type=float, default=200.0, help="GB/s between the GPUs of a machine")
    parser.add_argument("--network", type=float, default=20.0, help="GB/s between machines")
    parser.add_argument("--latency", type=float, default=30.0, help="us of a small exchange")
    parser.add_argument("--price", type=float, default=2.0, help="of a GPU for an hour")
    return parser.parse_args()


def main() -> None:
    options, config = options_of(), load_config(find_config("nuscenes/fusion"))
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    computed = tables_of(measure(config, options), config, options)
    write_atomically(PAGE, (before + BEGIN + computed + "\n" + END + rest.split(END)[1]).encode())


if __name__ == "__main__":
    main()
