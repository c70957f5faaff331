"""Post-hoc adaptation: a new module, or a recogniser of conditions, on the frozen base of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perception.config import Config, LearnedRouting, parse_config
from perception.datasets.keyframes import Keyframes
from perception.errors import InputError
from perception.model import PerceptionModel
from perception.modules.spec import Module
from perception.training import settings
from perception.training.checkpoint import load_model, newest, provenance
from perception.training.loop import fit


def with_module(config: Config, module: Mapping[str, Any], **training: Any) -> Config:
    """The configuration with one more module and with other values for some training settings.

    Raises:
        InputError: an unknown kind, option, fact or setting; the message names it.
    """
    content = config.model_dump(mode="json")
    content["modules"].append(dict(module))
    content["train"].update(training)
    return parse_config(content, f"module {module.get('name')}")


def adapt(
    checkpoint: Path,
    module: Mapping[str, Any],
    tables: Keyframes,
    split: str | None,
    selectors: Sequence[str],
    run: Path,
    **training: Any,
) -> Path:
    """Train a new module on the frozen base of a checkpoint, beside its other modules; returns the new checkpoint.

    The base and the earlier modules keep every bit. RUN/checkpoints has the model with all its modules, and
    RUN/modules/NAME.safetensors with NAME.json the new module alone.

    Args:
        checkpoint: a run, or one of its checkpoints.
        module: its name, kind, slots and options, as in a configuration; trained on the frames that have all the
            conditions in its `when`.
        split: of the tables.
        selectors: of the split only these scenes or keyframes; empty for all.
        training: values instead of those in the checkpoint's `train` section, such as steps=300.

    Raises:
        InputError: an unknown kind, slot, option or condition, a name that is taken, no frame under the conditions,
            or RUN already trained.
    """
    _require_untrained(run)
    base, config = load_model(checkpoint)
    config = with_module(config, module, **training)
    spec: Module = config.modules[-1]
    tokens = settings.under(tables, tables.samples(split, selectors), spec.when)
    if not tokens:
        raise InputError(f"{tables.dataroot}: no keyframe of the split is known to have {', '.join(spec.when)}")
    if isinstance(config.routing, LearnedRouting):
        # A new option would change what the router makes of all frames; the new module goes by its conditions.
        routing = config.routing.model_copy(update={"modules": tuple(base.chooser.names)})
        config = config.model_copy(update={"routing": routing})
    base.bank.add(spec)
    base.config = config
    settings.post_hoc(base, [spec.name])
    last = fit(base, tables, tokens, run, earlier=provenance(checkpoint).data)
    base.bank.save(spec.name, run / "modules" / spec.name, domain=", ".join(spec.when))
    return last


def recognise(
    checkpoint: Path,
    tables: Keyframes,
    split: str | None,
    selectors: Sequence[str],
    run: Path,
    **training: Any,
) -> Path:
    """Train a recogniser of weather, light and city beside the base and modules of a checkpoint, which keep every bit.

    RUN/checkpoints has the model with it; one that recognised already learns anew.

    Args:
        checkpoint, split, selectors, training: as of `adapt`.

    Raises:
        InputError: no tagged frame, or RUN already trained.
    """
    _require_untrained(run)
    base, config = load_model(checkpoint)
    tokens = [token for token in tables.samples(split, selectors) if tables.conditions(token).known()]
    if not tokens:
        raise InputError(f"{tables.dataroot}: of no keyframe of the split the conditions are known")
    content = config.model_dump(mode="json") | {"recognise": True}
    content["train"].update(training)
    model = PerceptionModel(parse_config(content, str(checkpoint)))
    kept = {key: value for key, value in base.state_dict().items() if not key.startswith("recogniser.")}
    model.load_state_dict(kept, strict=False)
    settings.recognition(model)
    return fit(model, tables, tokens, run, earlier=provenance(checkpoint).data)


def _require_untrained(run: Path) -> None:
    if newest(run) is not None:
        raise InputError(f"{run}: holds a trained run already; choose another --out")
