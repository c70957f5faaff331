"""Initial weights from an earlier run."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from perception.errors import InputError
from perception.recipe import InitFrom
from perception.training import checkpoint


def initialise(model: nn.Module, source: InitFrom) -> None:
    """Load parameters and buffers of some parts of a run into the model; the others do not change.

    Raises:
        InputError: no or a damaged checkpoint, a part that matches nothing, or one whose tensors differ from the run's
            in names or shapes.
    """
    own, theirs = model.state_dict(), checkpoint.weights(Path(source.run))
    for part in source.parts:
        if not any(fnmatchcase(name, part) for name in own):
            raise InputError(f"init_from.parts: {part} matches no tensor of the model; there are such as {min(own)}")
    chosen = {name for name in [*own, *theirs] if any(fnmatchcase(name, part) for part in source.parts)}
    for name in sorted(chosen):
        if name not in theirs:
            raise InputError(f"{source.run}: has no {name}; choose the parts that it has in init_from.parts")
        if name not in own:
            raise InputError(f"{source.run}: has {name}, which the model lacks; choose other init_from.parts")
        if own[name].shape != theirs[name].shape:
            shapes = f"{tuple(theirs[name].shape)}, that of the model {tuple(own[name].shape)}"
            raise InputError(f"{source.run}: {name} has the shape {shapes}; choose other init_from.parts")
    model.load_state_dict({name: theirs[name] for name in chosen}, strict=False)
