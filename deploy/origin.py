"""Where an exported network comes from: its checkpoint, base, modules and data."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.bundle import MODULES
from deploy.manifest import Origin
from perception.model import PerceptionModel
from perception.modules.files import read_records
from perception.training.checkpoint import provenance


def find_origin(
    model: PerceptionModel, checkpoint: Path, modules: Sequence[str], golden: str, license: str
) -> tuple[Origin, dict[str, bytes]]:
    """The record for the manifest, and the modules' files by their names in the bundle.

    Args:
        model: the checkpoint's model, with its modules at their slots.
        modules: names of the modules in the exported network. What each was trained on is read from RUN/modules, if it
            has a record for this base.
        golden: token of the golden frame.
        license: stated by the exporter.
    """
    base, records, source = model.bank.base_hash(), read_records(checkpoint), provenance(checkpoint)
    known = {name: record for name, record in records.items() if record.base == base}
    domains = {name: known[name].domain if name in known else "" for name in modules}
    with tempfile.TemporaryDirectory() as folder:
        for name, domain in domains.items():
            model.bank.save(name, Path(folder) / name, domain, known[name].metrics if name in known else None)
        files = {f"{MODULES}/{file.name}": file.read_bytes() for file in sorted(Path(folder).iterdir())}
    return Origin(
        checkpoint=source.weights, base=base, modules=domains, data=source.data, golden=golden, license=license
    ), files
