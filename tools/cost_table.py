"""Write docs/recipes.md: what it costs to train configs/nuscenes, and what their published twins score.

    python tools/cost_table.py --data DIR

DIR is nuScenes or a part of it. Sizes, operations, memory and the loader are measured on this machine's CPU, which
takes minutes. The speed of GPUs is computed from the options.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from deploy.engines.onnxruntime import OnnxRuntimeEngine
from deploy.golden import synthetic_frame
from deploy.onnx_export import run, to_onnx
from perception.config import Config, find_config, load_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.files import write_atomically
from perception.frame import Conditions
from perception.model import PerceptionModel
from perception.sensors.inputs import InputSpec, prepare
from perception.training.loader import FrameDataset

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
ADAM_BYTES = 16  # of a parameter: itself, its gradient and two moments, in float32
PASSES = 3  # forward, and twice as much backward
TRAFFIC = 4  # an activation is written and read forward, and again with its gradient backward


@dataclass(frozen=True)
class Twin:
    """What was published for the same kind of network."""

    name: str
    scores: tuple[float, float]  # mAP and NDS on nuScenes val
    remark: str


TWINS = {
    "centerpoint": Twin(
        "CenterPoint on pillars, mmdet3d", (48.7, 59.6), "the same network; 20 epochs of CBGS, 32 frames a step"
    ),
    "lidar": Twin(
        "PillarNeSt-T", (58.8, 65.6), "the same encoder, trunk and deblocks; 15 + 5 epochs, the last without GT-paste"
    ),
    "camera": Twin(
        "BEVDet-Tiny, one frame", (30.8, 40.4), "Swin-T; its R50 39.8 NDS, with depth supervision and a past frame 48.3"
    ),
    "fusion": Twin(
        "CUDA-BEVFusion, R50, INT8", (67.7, 70.8), "LiDAR in sparse voxels; Horizon's BEVFusion on pillars 58.3 / 64.2"
    ),
}


@dataclass(frozen=True)
class Cost:
    """Measured for one frame."""

    parameters: int
    training_flops: int  # forward, dense head
    deployed_flops: int
    activation_bytes: int  # kept for the backward pass in bf16
    disk_bytes: float
    loader_seconds: float  # on one core, files in the page cache
    latency: float  # s, deployed, ONNX Runtime on this CPU


def training_size(config: Config, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
    """Parameters, forward operations, and bytes of the tensors that are kept for the backward pass."""
    torch.manual_seed(config.seed)
    model = PerceptionModel(config).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # views share their storage
        return tensor

    counter = FlopCounterMode(display=False)
    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16), counter:
        outputs = model(inputs)  # held, so that nothing that is kept is freed
    size = sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)
    del outputs
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops(), size


def deployed_graph(config: Config, inputs: dict[str, np.ndarray]) -> tuple[int, OnnxRuntimeEngine]:
    """Operations of the exported network, and its engine."""
    torch.manual_seed(config.seed)
    model = PerceptionModel(config).deployed(Conditions())
    outputs, flops = run(model, dict(inputs))
    return flops, OnnxRuntimeEngine(to_onnx(model, inputs, list(outputs)).SerializeToString())


def loading(config: Config, tables: NuScenesTables, options: argparse.Namespace) -> tuple[float, float]:
    """Bytes on disk and seconds on one core of a training sample; LiDAR and cameras apart, each where its files are."""
    data, model = config.data.model_copy(update={"class_balanced": False}), config.model
    bytes_, seconds = 0.0, 0.0
    for sensor, other, selectors in (("lidar", "camera", options.lidar_scenes), ("camera", "lidar", options.scenes)):
        if getattr(model, sensor) is None:
            continue
        tokens = tables.samples(selectors=selectors.split(","))
        alone = config.model_copy(update={"data": data, "model": model.model_copy(update={other: None})})
        files = [file for token in tokens for file in files_of(alone, tables, token)]
        bytes_ += sum((tables.dataroot / file).stat().st_size for file in files) / len(tokens)
        seconds += statistics.median(_seconds(alone, tables, tokens) for _ in range(options.rounds))
    return bytes_, seconds


def files_of(config: Config, tables: NuScenesTables, token: str) -> list[str]:
    """Files of a keyframe's sensors that the configuration reads and that are there."""
    spec, keyframe = InputSpec.of(config), tables.recordings[token]
    files = []
    if spec.lidar is not None:
        sweeps = tables.recordings.chain(keyframe[tables.rig.sensors.lidars[0]], spec.sweeps)
        files += [recording.file for recording in sweeps]
    if spec.camera is not None:
        files += [keyframe[name].file for name in tables.rig.sensors.cameras]
    return [file for file in files if (tables.dataroot / file).exists()]


def _seconds(config: Config, tables: NuScenesTables, tokens: Sequence[str]) -> float:
    """Processor time of a sample whose files are in the page cache."""
    dataset = FrameDataset(tables, tokens, config)  # with an empty cache of frames
    dataset[0]
    dataset = FrameDataset(tables, tokens, config)
    start = time.process_time()
    for position in range(len(tokens)):
        dataset[position]
    return (time.process_time() - start) / len(tokens)


def measured(names: Sequence[str], options: argparse.Namespace) -> dict[str, Cost]:
    cv2.setNumThreads(1)
    tables = NuScenesTables(options.data, options.version or only_version(options.data))
    rows: dict[str, list[float]] = {}
    engines, frames, latencies = {}, {}, {name: [] for name in names}
    for name in names:
        config = load_config(find_config(f"nuscenes/{name}"))
        frames[name] = prepare(synthetic_frame(config.grid.reference, config.rig), InputSpec.of(config))
        tensors = {key: torch.from_numpy(array) for key, array in frames[name].items()}
        parameters, training_flops, activations = training_size(config, tensors)
        flops, engines[name] = deployed_graph(config, frames[name])
        rows[name] = [parameters, training_flops, flops, activations, *loading(config, tables, options)]
    for each in range(options.rounds + 1):  # alternated; the first round warms up
        for name in names:
            start = time.perf_counter()
            engines[name].run(frames[name])
            if each:
                latencies[name].append(time.perf_counter() - start)
    return {name: Cost(*row, statistics.median(latencies[name])) for name, row in rows.items()}  # type: ignore[arg-type]


def frames_per_second(cost: Cost, options: argparse.Namespace) -> tuple[float, str]:
    """Of one GPU, and what bounds it."""
    arithmetic = PASSES * cost.training_flops / (options.peak * 1e12 * options.utilisation)
    memory = TRAFFIC * cost.activation_bytes / (options.bandwidth * 1e12)
    return 1 / max(arithmetic, memory), "arithmetic" if arithmetic > memory else "memory"


def page(costs: dict[str, Cost], options: argparse.Namespace) -> str:
    """The Markdown page."""
    sizes, training, loading_rows, twins = [], [], [], []
    for name, cost in costs.items():
        rate, bound = frames_per_second(cost, options)
        gpu = ADAM_BYTES * cost.parameters + options.batch * cost.activation_bytes
        gpus = options.epoch_samples / (options.gpus * rate) / 60  # minutes
        loader = options.epoch_samples * cost.loader_seconds / options.cores / 60
        hours = options.epochs * max(gpus, loader) / 60
        sizes.append(
            f"| {name} | {cost.parameters / 1e6:.2f} | {cost.training_flops / 1e9:.0f} "
            f"| {cost.deployed_flops / 1e9:.0f} | {cost.activation_bytes / 1e9:.2f} | {gpu / 1e9:.1f} "
            f"| {cost.latency * 1e3:.0f} |"
        )
        training.append(
            f"| {name} | {rate:.0f} ({bound}) | {gpus:.1f} | {loader:.1f} | {hours:.1f} "
            f"| {hours * options.gpus * options.price:.0f} |"
        )
        loading_rows.append(
            f"| {name} | {cost.disk_bytes / 1e6:.1f} | {cost.loader_seconds:.3f} "
            f"| {options.gpus * rate * cost.loader_seconds:.0f} | {options.gpus * rate * cost.disk_bytes / 1e6:.0f} |"
        )
        twin = TWINS[name]
        twins.append(f"| {name} | {twin.name} | {twin.scores[0]} / {twin.scores[1]} | {twin.remark} |")
    return TEMPLATE.format(
        sizes="\n".join(sizes),
        training="\n".join(training),
        loader="\n".join(loading_rows),
        twins="\n".join(twins),
        bought=bought(costs),
        machine=f"{torch.get_num_threads()} threads; torch {torch.__version__}; Python {platform.python_version()}",
        **{key: f"{value:,}" if isinstance(value, int) else value for key, value in vars(options).items()},
    )


def bought(costs: dict[str, Cost]) -> str:
    """What the larger LiDAR network scores for the time it takes."""
    (first, _), (second, _) = TWINS["centerpoint"].scores, TWINS["lidar"].scores
    fast, slow = costs["centerpoint"], costs["lidar"]
    more = (slow.latency - fast.latency) * 1e3
    return (
        f"On this CPU `lidar` takes {more:.0f} ms more than `centerpoint`, {slow.latency / fast.latency:.1f} times as\n"
        f"long, for {slow.deployed_flops / fast.deployed_flops:.2f} times the operations; its twin's mAP is "
        f"{second - first:.1f} points higher, which is\n{(second - first) / more:.4f} points for a millisecond here."
    )


TEMPLATE = """# Recipes for nuScenes

**No network of this page was trained on a GPU.** Below are the costs of training them, computed from what was measured
on a CPU, and what published networks of the same kind score on nuScenes' val. `python tools/cost_table.py` writes this
page ({machine}).

## What is expected

| configuration | published twin | mAP / NDS | |
|---|---|---|---|
{twins}

## Size

| configuration | parameters, M | forward in training, GFLOP | deployed, GFLOP | kept, GB | GPU, GB | latency, ms |
|---|---|---|---|---|---|---|
{sizes}

- A multiplication and an addition are two operations. Deployed, the regression is computed at the peaks only.
- Kept: what autograd saves for the backward pass of a frame, in bf16, with as many pillars as the configuration allows.
- GPU: that for {batch} frames, and 16 bytes for each parameter; allocator and workspaces come on top.
- Latency: in ONNX Runtime on this CPU, deployed, random weights; medians of alternated rounds.

{bought}

## Time and price on {gpus} GPUs

| configuration | frames/s of a GPU, bound by | min an epoch, GPUs | min, loader | hours, {epochs} epochs | price |
|---|---|---|---|---|---|
{training}

The loader has {cores} cores; hours and price are of the slower of both. An epoch is {epoch_samples} samples: nuScenes'
28,130 keyframes after class-balanced grouping and sampling. On a GPU a frame takes the longer of

- arithmetic: 3 x forward operations / ({peak} TFLOP/s x {utilisation}),
- memory: 4 x what is kept / ({bandwidth} TB/s),

where the defaults are an A100's in bf16. A GPU costs {price} an hour. **These are lower bounds.** Narrow and depthwise
convolutions, normalisations and small kernels do not reach this utilisation: MIT's BEVFusion reports 25 h on 8 A6000
for its LiDAR branch. Time a hundred steps before you rent, and divide by what you measure: `--utilisation`. `--peak`,
`--bandwidth`, `--gpus`, `--cores`, `--batch`, `--epochs`, `--epoch-samples` and `--price` are options, too.

## Loader

| configuration | MB read a sample | s a sample on one core | cores that feed {gpus} GPUs | MB/s they read |
|---|---|---|---|---|
{loader}

With the files in the page cache, the configuration's augmentation and all labels: LiDAR on the keyframes
{lidar_scenes}, cameras on {scenes}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="nuScenes, or a part of it")
    parser.add_argument("--version", help="default: the only one")
    parser.add_argument("--scenes", default="scene-0103:0-4", help="keyframes with their pictures")
    parser.add_argument("--lidar-scenes", default="scene-0103:6-7", help="keyframes with their LiDAR sweeps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--cores", type=int, default=128, help="of the loader, for all GPUs")
    parser.add_argument("--batch", type=int, default=4, help="frames of a GPU")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--epoch-samples", type=int, default=123_600)
    parser.add_argument("--peak", type=float, default=312.0, help="TFLOP/s of a GPU")
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the peak that is reached")
    parser.add_argument("--bandwidth", type=float, default=2.0, help="TB/s of a GPU's memory")
    parser.add_argument("--price", type=float, default=2.0, help="of a GPU for an hour")
    options = parser.parse_args()
    write_atomically(PAGE, page(measured([*TWINS], options), options).encode())


if __name__ == "__main__":
    main()
