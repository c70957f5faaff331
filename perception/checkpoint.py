"""Checkpoints: folders of safetensors and JSON, written atomically.

RUN/checkpoints/step-000500/
    model.safetensors       parameters and buffers; with `train.ema` their average
    training.safetensors    optimizer moments and random state; with `train.ema` also the weights that train
    checkpoint.json         configuration, step, schedule, training data, sha256 of the two files
RUN/checkpoints/best/       with `train.validation`, the model with the highest score, which no training resumes from
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perception.config import Config, InitFrom, parse_config
from perception.errors import InputError
from perception.io.files import atomic_folder
from perception.io.section import Section, parse_section
from perception.model import PerceptionModel
from perception.rig import Rig

_WEIGHTS = "weights."  # prefix of the weights that train, beside their average
_MAX_KEYS_SHOWN = 6  # in an error message
# Keys of a configuration that may change when a training resumes. All others must be those of the checkpoint.
CHANGEABLE = (
    "train.steps",
    "train.epochs",
    "train.log_every",
    "train.checkpoint_every",
    "train.validation.every",
    "train.validation.unit",
    "train.validation.batch",
    "train.trackers",
)
KEPT = 2  # number of newest checkpoints of a run that are kept


class _Facts(Section):
    """The keys of checkpoint.json that every checkpoint has, and those that only one to resume from has."""

    model_config = ConfigDict(extra="ignore")
    config: dict[str, Any]
    sha256: dict[Literal["model.safetensors", "training.safetensors"], str]
    data: list[str] = Field(default_factory=list)
    step: int = 0
    schedule: dict[str, Any] = Field(default_factory=dict)
    optimizer: list[dict[str, Any]] = Field(default_factory=list)

    @field_validator("sha256")
    @classmethod
    def _require_model(cls, hashes: dict[str, str]) -> dict[str, str]:
        if "model.safetensors" not in hashes:
            raise ValueError("has no hash of model.safetensors")
        return hashes


def newest(run: Path) -> Path | None:
    """The run's newest complete checkpoint; None without one. Incomplete ones have another name."""
    steps = _by_step(run / "checkpoints")
    return steps[-1] if steps else None


def _by_step(folder: Path) -> list[Path]:
    """Complete checkpoints, the newest last; beyond a million steps the names are longer and do not sort as text.

    Folders of other names, such as a copy step-000500-keep, belong to the user.
    """
    found = {path: re.fullmatch(r"step-([0-9]{1,18})", path.name) for path in folder.glob("step-*")}
    return sorted((path for path, match in found.items() if match), key=lambda path: int(path.name[5:]))


def save(
    run: Path,
    step: int,
    config: Config,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    schedule: dict[str, Any],
    data: Sequence[str] = (),
    averaged: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the checkpoint of this step, then delete all but the newest ones.

    Args:
        model: its state; `optimizer` and `averaged` alike.
        schedule: JSON-able state of learning-rate schedule and loss scaler.
        averaged: the model with the average of its weights, which is the one to load.
    """
    final = run / "checkpoints" / f"step-{step:06d}"
    moments = {f"{i}.{name}": value for i, entry in optimizer["state"].items() for name, value in entry.items()}
    trained = {} if averaged is None else {f"{_WEIGHTS}{name}": value for name, value in model.items()}
    tensors = {
        "model.safetensors": averaged or model,
        "training.safetensors": moments | trained | {"random": torch.get_rng_state()},
    }
    content = {"step": step, "schedule": schedule, "optimizer": optimizer["param_groups"], "data": list(data)}
    _write(final, config, tensors, content, "; the earlier ones are unharmed: free some space, --resume")
    for old in _by_step(final.parent)[:-KEPT]:
        old.rename(old.with_name(f".{old.name}.old"))  # so that no half of it is left under its name
    for unfinished in final.parent.glob(".step-*"):  # also of a process that was killed
        shutil.rmtree(unfinished)
    return final


def save_best(run: Path, step: int, config: Config, model: nn.Module, data: Sequence[str], score: float) -> None:
    """Replace RUN/checkpoints/best by the model of this step; arguments as in `save`."""
    content = {"step": step, "score": score, "data": list(data)}
    _write(run / "checkpoints" / "best", config, {"model.safetensors": model.state_dict()}, content)


def save_model(folder: Path, config: Config, model: PerceptionModel, data: Sequence[str] = ()) -> None:
    """Write the model with the current modules of its bank, as a checkpoint that training cannot resume from."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds files already; choose another --out")
    bank = model.bank
    config = config.model_copy(update={"modules": tuple(bank.modules.values()), "fusions": tuple(bank.fusions)})
    _write(folder, config, {"model.safetensors": model.state_dict()}, {"data": list(data)})


def _write(
    final: Path, config: Config, tensors: dict[str, Mapping[str, Tensor]], content: dict[str, Any], advice: str = ""
) -> None:
    """Write a safetensors file for each name of `tensors`, and checkpoint.json with configuration, content, sha256."""
    with atomic_folder(final, "the checkpoint", advice) as folder:
        for name, values in tensors.items():
            try:
                save_file({k: v.contiguous() for k, v in values.items()}, folder / name)
            except SafetensorError as error:
                raise OSError(str(error)) from None
        hashes = {name: _sha256(folder / name) for name in sorted(tensors)}
        facts = {"config": config.model_dump(mode="json"), **content, "sha256": hashes}
        (folder / "checkpoint.json").write_text(json.dumps(facts, indent=1))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and JSON of a checkpoint, or of a run's newest one, after verifying the hashes of its files."""
    folder = path if (path / "checkpoint.json").exists() else newest(path)
    if folder is None:
        raise InputError(f"{path}: no checkpoint here; give a run's folder or one in its checkpoints")
    try:
        content = json.loads((folder / "checkpoint.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / 'checkpoint.json'}: not readable as a checkpoint ({error})") from None
    facts = parse_section(_Facts, content, str(folder / "checkpoint.json"))
    for name, sha256 in facts.sha256.items():
        if not (folder / name).exists() or _sha256(folder / name) != sha256:
            raise InputError(f"{folder / name}: missing or damaged (its sha256 is not the recorded one)")
    return folder, content


def require_same_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: object) -> None:
    """Raise InputError that names the keys unless there are exactly the expected tensors and shapes."""
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unexpected:
        raise InputError(
            f"{where}: does not fit the configuration: {len(missing)} keys are missing{_list(missing)}, "
            f"{len(unexpected)} unexpected{_list(unexpected)}"
        )
    for key in sorted(expected):
        found, wanted = tuple(state[key].shape), tuple(expected[key].shape)
        if found != wanted:
            raise InputError(f"{where}: {key} has the shape {found}, the configuration says {wanted}")


def _list(keys: Collection[str]) -> str:
    """The first keys in brackets, for a message."""
    more = f", and {len(keys) - _MAX_KEYS_SHOWN} more" if len(keys) > _MAX_KEYS_SHOWN else ""
    return f" ({', '.join(sorted(keys)[:_MAX_KEYS_SHOWN])}{more})" if keys else ""


def _load_weights(model: nn.Module, found: Mapping[str, Tensor], file: Path) -> None:
    require_same_keys(found, model.state_dict(), file)
    model.load_state_dict(found)


def load_model(path: Path, rig: Rig | None = None) -> tuple[PerceptionModel, Config]:
    """The model of a checkpoint or of a run's newest one, in evaluation mode, and its configuration.

    Args:
        rig: of the vehicle to run it on, instead of the one that it was trained on; the weights fit any.
    """
    folder, content = _read(path)
    if rig is not None:
        content["config"]["rig"] = rig.model_dump(mode="json")
    config = parse_config(content["config"], str(folder / "checkpoint.json"))
    model = PerceptionModel(config)
    file = folder / "model.safetensors"
    _load_weights(model, load_file(file), file)
    return model.eval(), config


def weights(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a checkpoint or of a run's newest one; InputError without one, or if it is damaged."""
    return load_file(_read(path)[0] / "model.safetensors")


def read_config(path: Path) -> Config:
    """The configuration of a checkpoint or of a run's newest one; InputError as in `weights`."""
    folder, content = _read(path)
    return parse_config(content["config"], str(folder / "checkpoint.json"))


class Provenance(NamedTuple):
    """The origin of a model."""

    weights: str  # sha256 of its model.safetensors
    data: tuple[str, ...]  # descriptions of the data of each training; empty if unknown


def provenance(path: Path) -> Provenance:
    """Provenance of a checkpoint or of a run's newest one; InputError as in `weights`."""
    _, content = _read(path)
    return Provenance(content["sha256"]["model.safetensors"], tuple(content.get("data", ())))


def resume(
    run: Path, config: Config, model: nn.Module, optimizer: torch.optim.Optimizer, averaged: nn.Module | None = None
) -> tuple[int, dict[str, Any]]:
    """Load the run's newest checkpoint into model, optimizer and average; returns its step and schedule.

    Raises InputError for a configuration that differs in other keys than `CHANGEABLE`.
    """
    folder, content = _read(run)
    if "training.safetensors" not in content["sha256"]:
        raise InputError(f"{folder}: has no optimizer state; it cannot be resumed")
    before = parse_config(content["config"], str(folder / "checkpoint.json"))  # with the defaults of newer keys
    different = _differences(_trained_by(before), _trained_by(config))
    if different:
        names = ", ".join(CHANGEABLE)
        line = f"{folder}: was trained with another configuration: {different[0]}; --resume may change only {names}"
        raise InputError(f"{line}. To train from these weights with other settings, use init_from")
    file = folder / "training.safetensors"
    tensors = load_file(file)
    torch.set_rng_state(tensors.pop("random"))
    trained = {key.removeprefix(_WEIGHTS): tensors.pop(key) for key in [*tensors] if key.startswith(_WEIGHTS)}
    whole = load_file(folder / "model.safetensors")
    if averaged is not None:
        _load_weights(averaged, whole, folder / "model.safetensors")
    _load_weights(model, whole if averaged is None else trained, file)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": content["optimizer"]})
        return content["step"], content["schedule"]
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder / 'checkpoint.json'}: cannot be resumed ({error})") from None


def _trained_by(config: Config) -> dict[str, Any]:
    return config.model_copy(update={"taxonomy": config.taxonomy.without_ros_classes()}).model_dump(mode="json")


def _differences(a: Any, b: Any, key: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            d for k in sorted(a.keys() | b.keys()) for d in _differences(a.get(k), b.get(k), f"{key}.{k}".strip("."))
        ]
    return [] if a == b or key in CHANGEABLE else [f"{key} was {a!r}, is {b!r}"]


def initialise(model: nn.Module, source: InitFrom) -> None:
    """Load parameters and buffers of some parts of a run into the model; the others do not change."""
    own, theirs = model.state_dict(), weights(Path(source.run))
    for part in source.parts:
        if not any(fnmatchcase(name, part) for name in own):
            raise InputError(f"init_from.parts: {part} matches no tensor of the model; there are such as {min(own)}")
    chosen = {name for name in [*own, *theirs] if any(fnmatchcase(name, part) for part in source.parts)}
    found, wanted = ({name: each[name] for name in each.keys() & chosen} for each in (theirs, own))
    require_same_keys(found, wanted, f"{source.run}, init_from.parts")
    model.load_state_dict(found, strict=False)
