"""Post-hoc adaptation: trains a new module, or the head of a new task, on the frozen base of a checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from rich.console import Console
from rich.progress import track
from torch import nn

from perception.checkpoint import load_model, newest, provenance, save_model
from perception.config import Config, parse_config
from perception.datasets.keyframes import Keyframes, Reads
from perception.errors import InputError
from perception.io.distributed import rank
from perception.io.section import Contents, Section, load_section
from perception.model import PerceptionModel, batch_inputs
from perception.modules.memories import memories_of
from perception.modules.spec import AnyModule, Module
from perception.sensors import sensor_facts
from perception.sensors.inputs import prepare
from perception.tasks import TaskConfigs
from perception.tasks.network import FittedNetwork
from perception.training import optimize
from perception.training.loader import batch_labels
from perception.training.loop import describe_keyframes, fit

# Factor of the rate for a new task's own modules, which start from a trained network, its head from random weights. At
# the head's rate they follow its first gradients so far that the trunk's features grow by orders of magnitude.
MODULE_RATE = 0.1


def with_module(config: Config, module: Mapping[str, Any], **training: Any) -> Config:
    """The configuration with one more module and with changed training settings."""
    content = config.model_dump(mode="json")
    content["modules"].append(dict(module))
    content["train"] = _further_training(content["train"], training)
    return parse_config(content, f"module {module.get('name')}")


def _further_training(train: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """The `train` section of a checkpoint for a further training, without what only the earlier one needs."""
    length = {"epochs": None} if "steps" in training else {}
    rate = {"base_batch": None} if "learning_rate" in training else {}
    norms = {"norm_momentum": None} if train["norm_momentum"] == 0 else {}  # a module's own still need statistics
    return {**train, "validation": None, "rates": {}, **length, **rate, **norms, **training}


def adapt(
    checkpoint: Path,
    module: Mapping[str, Any],
    tables: Keyframes,
    split: str | None,
    selectors: Sequence[str],
    run: Path,
    resume: bool = False,
    **training: Any,
) -> Path:
    """Train a new module on the frozen base of a checkpoint; returns the new checkpoint.

    The base and the earlier modules do not change. Writes the model with all modules to RUN/checkpoints, and the new
    module to RUN/modules/NAME.safetensors and NAME.json.

    Args:
        module: its name, kind, slots and options, as in a configuration; trained on the frames that have all the
            conditions in its `when`, and for the tasks in it alone.
        tables: drives of any rig, which the new checkpoint is for.
        selectors: scenes or keyframes of the split to train on; empty for all.
        resume: continue from the newest checkpoint of the run; the other arguments must be the same as before.
        training: overrides of the checkpoint's `train` section, such as steps=300.
    """
    _require_untrained(run, resume)
    base, config = load_model(checkpoint, tables.rig)
    config = with_module(config, module, **training)
    spec: Module = config.modules[-1]
    config = with_sensors(config, spec)
    tokens = optimize.with_conditions(tables, tables.samples(split, selectors), spec.when)
    base.reconfigure(_with_options_kept(config, base))
    optimize.require_reachable(base, spec.name)
    optimize.post_hoc(base, [spec.name])
    own = tuple(task for task in base.tasks if task in spec.when)  # the module changes no other output
    last = fit(base, tables, tokens, run, resume, provenance(checkpoint).data, own or None)
    if rank() == 0:
        base.bank.save(spec.name, run / "modules" / spec.name, domain=", ".join(spec.when))
    return last


def with_sensors(config: Config, spec: Module) -> Config:
    """The configuration of a training whose frames have the sensors that a module requires, or lack them.

    A memory that runs where a sensor is missing keeps what was seen before that: its clips begin with all sensors, and
    outages take them away (`Clips`).
    """
    lacks = optimize.lacking(spec.when)
    dropped = () if memories_of(spec) else lacks
    drops = {sensor: float(sensor in dropped) for sensor in sensor_facts() if sensor in spec.when or lacks}
    train = config.train.model_copy(update={"drop": config.train.drop | drops})
    return config.model_copy(update={"train": train})


def _with_options_kept(config: Config, base: PerceptionModel) -> Config:
    """The configuration for new modules beside a learned router, which are routed by their conditions.

    The router keeps its options, else its weights for all frames would change. One that has none is left out: it
    changes nothing, and no names of options mean all modules.
    """
    if config.routing is None:
        return config
    base.chooser.update()  # the modules of a task that is replaced are gone
    names = tuple(base.chooser.names)
    routing = config.routing.model_copy(update={"modules": names}) if names else None
    return config.model_copy(update={"routing": routing})


class Addition(Section):
    """The file of `perception adapt --config`: a head of a new task with modules of its own, or one module alone."""

    # task -> options of its head
    tasks: Annotated[dict[str, Any], Contents(lambda: TaskConfigs)] = Field(default={})
    # modules of the new task, or one module without a task
    modules: tuple[Annotated[dict[str, Any], Contents(lambda: AnyModule)], ...] = Field(default=(), strict=False)


def read_task(path: Path) -> dict[str, Any]:
    """Configuration of the head of a new task and of its own modules; InputError as in `load_section`."""
    return load_section(Addition, path, "the task").model_dump()


def read_module(path: Path) -> dict[str, Any]:
    """The module of a file that has it alone; InputError as in `load_section`, and for any other content."""
    content = load_section(Addition, path, "the module")
    if content.tasks or len(content.modules) != 1 or not content.modules[0].get("name"):
        raise InputError(f"{path}: write one module with a name under `modules`; a head in `tasks` needs --task NAME")
    return content.modules[0]


def add_task(
    checkpoint: Path,
    task: str,
    content: Mapping[str, Any],
    tables: Keyframes,
    split: str | None,
    selectors: Sequence[str],
    run: Path,
    resume: bool = False,
    **training: Any,
) -> Path:
    """Train the head of a new task on the frozen base of a checkpoint; returns the new checkpoint.

    Base, modules and other heads do not change, nor do their outputs. A task that was added before is replaced. Writes
    the whole model to RUN/checkpoints, and head and own modules to RUN/modules/TASK.safetensors and TASK.json.

    Args:
        task: its name in `perception.tasks.TASKS`.
        content: `tasks` with the configuration of its head, and `modules` that run only for this task.
        tables: drives with the names of the checkpoint's taxonomy and of the new task (`config.extend_taxonomy`).
        checkpoint, split, selectors, resume, training: as in `adapt`. A head that is fitted in closed form takes each
            keyframe once, whatever the number of steps, and cannot resume.
    """
    _require_untrained(run, resume)
    model, _ = load_model(checkpoint, tables.rig)
    bank, replaced = model.bank, None
    if task in bank.heads:
        replaced = model.head(task)
        bank.delete(task)
    bank.add_head(task, content.get("tasks", {}).get(task) or {}, str(checkpoint))
    own = [
        {**module, "when": [*dict.fromkeys([*module.get("when", ()), task])]} for module in content.get("modules", ())
    ]
    given = model.config.model_dump(mode="json")
    given["fusions"] = bank.fusions
    given["modules"] = [module.model_dump(mode="json") for module in bank.modules.values()] + own
    rates = {f"*.computations.{module['name']}.*": MODULE_RATE for module in own}
    given["train"] = _further_training(given["train"], {"rates": rates, **training})
    model.reconfigure(_with_options_kept(parse_config(given, str(checkpoint)), model))
    for module in own:
        optimize.require_reachable(model, module["name"])
    tokens = [t for t in tables.samples(split, selectors) if model.tasks[task].labelled(tables.recording(t))]
    if not tokens:
        raise InputError(f"{tables.dataroot}: no keyframe of the split has labels for the task {task}")
    earlier = provenance(checkpoint).data
    if isinstance(model.head(task), FittedNetwork):
        if resume:
            raise InputError(f"{task}: this head is fitted at once, without steps to resume; leave out --resume")
        last = fit_head(model, task, tables, tokens, run, earlier, replaced)
    else:
        optimize.train_added_task(model, task, [module["name"] for module in own])
        last = fit(model, tables, tokens, run, resume, earlier, (task,))
    if rank() == 0:
        bank.save(task, run / "modules" / task)
    return last


def _require_untrained(run: Path, resume: bool) -> None:
    if newest(run) is not None and not resume:
        raise InputError(f"{run}: holds a trained run already; add --resume to continue it, or choose another --out")


def fit_head(
    model: PerceptionModel,
    task: str,
    tables: Keyframes,
    tokens: Sequence[str],
    run: Path,
    earlier: Sequence[str] = (),
    replaced: nn.Module | None = None,
) -> Path:
    """Fit the head of a task to these keyframes, and write the model to RUN/checkpoints; returns the new checkpoint."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # of torchrun
        raise InputError(
            f"{task}: this head is fitted in one process; start perception adapt without accelerate launch"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head: Any = model.head(task)
    head.start(replaced)
    head.to(device)
    spec, arrays = model.config.spec, None
    for token in track(tokens, "keyframes", console=Console(stderr=True)):
        frame = tables.frame(token, Reads(spec.grid.reference, lidar=False, truth=tuple(model.tasks[task].truth)))
        arrays = prepare(frame, spec, into=arrays)
        inputs = {name: value.to(device) for name, value in batch_inputs([arrays]).items()}
        labels = batch_labels([{task: model.tasks[task].labels(frame)}])[task]
        head.observe(inputs, labels, tables.scene(token))
    for line in head.fit():
        print(line, file=sys.stderr)
    model.to("cpu").requires_grad_(False).eval()
    last = run / "checkpoints" / "step-000000"
    save_model(last, model.config, model, (*earlier, describe_keyframes(tables, tokens)))
    return last
