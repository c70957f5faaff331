"""What a bundle says of where it comes from, and the modules that it brings along."""

import hashlib
from pathlib import Path

import pytest
import torch
from exported import QUIET, keys, trusting
from networks import config, disturb, model, spec
from vocabulary import RIG

from deploy.bundle import Bundle
from deploy.export import export
from deploy.golden import synthetic_frame
from deploy.manifest import Origin
from deploy.release import Release
from deploy.verify import verify
from perception.errors import InputError
from perception.modules.module_record import read_record
from perception.training.checkpoint import save_model


def test_a_bundle_says_where_it_comes_from_and_brings_its_modules(tmp_path: Path) -> None:
    network = model()
    base = network.bank.base_hash()
    for name, kind, slots in (("fold", "low_rank", "trunk.*"), ("stay", "bottleneck", "heads.*")):
        network.bank.add(spec(name, kind, slots))
        disturb(network, name)
    network.bank.add(spec("dry", "rescale", "trunk.*").model_copy(update={"when": ("clear",)}))  # no route runs it
    run = tmp_path / "run"
    save_model(run, config(), network, ["v1.0-sim: 6 keyframes of 2 scenes", "v1.0-fog: 3 keyframes of 1 scenes"])
    network.bank.save("fold", run / "modules" / "fold", "fog over the sea", {"mAP": 0.25})
    other = model()
    other.bank.add(spec("stay", "bottleneck", "heads.*"))
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.bank.save("stay", run / "modules" / "stay", "of another base")  # of which nothing must be believed

    key, public = keys(tmp_path)
    out = tmp_path / "bundle"
    bundle = export(run, out, [["fog"]], QUIET, release=Release(license="CC-BY-NC-SA-4.0", sign=key))
    assert (bundle.manifest.folded, bundle.manifest.inline) == (("fold",), ("stay",))
    assert bundle.manifest.modules == ("fold", "stay", "dry")
    assert bundle.manifest.origin == Origin(
        checkpoint=hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
        base=base,
        modules={"fold": "fog over the sea", "stay": ""},
        data=("v1.0-sim: 6 keyframes of 2 scenes", "v1.0-fog: 3 keyframes of 1 scenes"),
        golden=synthetic_frame("ego", RIG).token,
        license="CC-BY-NC-SA-4.0",
    )
    told = verify(out, trusting(public))
    assert told["modules"] == "fold (fog over the sea), stay (domain not known)"
    assert told["trained on"] == "v1.0-sim: 6 keyframes of 2 scenes; v1.0-fog: 3 keyframes of 1 scenes"
    assert told["license"] == "CC-BY-NC-SA-4.0"
    assert told["golden frames"].startswith("synthetic-0 and others: ")

    assert sorted(file.name for file in (out / "modules").iterdir()) == [
        "fold.json", "fold.safetensors", "stay.json", "stay.safetensors",
    ]  # fmt: skip
    assert read_record(out / "modules" / "fold").metrics == {"mAP": 0.25}
    again = model()
    assert again.bank.load(*(out / "modules" / name for name in ("fold", "stay"))) == ["fold", "stay"]
    trained = network.state_dict()
    assert all(torch.equal(trained[key], tensor) for key, tensor in again.state_dict().items())
    assert Bundle.load(out, trusting(public)).manifest == bundle.manifest


def test_a_key_that_cannot_sign_is_said_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pem: cannot read the key"):
        export(tmp_path / "no run", tmp_path / "bundle", console=QUIET, release=Release(sign=tmp_path / "none.pem"))
