"""Sign a bundle after its export, or a plan that a device compiled. No torch here."""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy.bundle import ENGINES, Bundle, manifest_files
from deploy.manifest import MANIFEST
from deploy.signature import signer
from deploy.targets import find_target
from deploy.verify import verify_bundle
from perception.errors import InputError
from perception.io.files import atomic_folder, write_atomically


def sign(path: Path, key: Path, target: str | None = None) -> dict[str, str]:
    """Verify the bundle in folder `path`, then sign its manifest or its plans for `target`.

    Verification shows that everything fits together, not that the bundle is the one that you exported. Therefore a plan
    is signed only if this key has signed the manifest.

    Args:
        key: the private key (PEM).

    Returns:
        The signed file, and the id of the key.

    Raises:
        InputError: there is no key, verification fails, another key signed the bundle, or there is no such plan.
    """
    of_key = signer(key)
    bundle = Bundle.load(path)
    verify_bundle(bundle)
    if target is None:
        files = manifest_files(bundle.manifest, of_key)
        # A kill between two renames would leave a bundle that nobody accepts.
        with atomic_folder(path, "the signed bundle") as fresh:
            shutil.copytree(path, fresh, dirs_exist_ok=True)
            for name, content in files.items():
                (fresh / name).write_bytes(content)
        return {"signed": str(path / MANIFEST), "key": of_key.id}
    if find_target(target).compiler == "onnxruntime":
        raise InputError(f"{target}: has no plan to sign; its network is the bundle's own")
    bundle.require_signed_by(of_key)
    for part in (bundle, *bundle.routes.values()):
        record = part.plan(target).record
        write_atomically(part.path / ENGINES / f"{target}.sig", of_key.sign(record.to_hashed_json()))
    return {"signed": str(path / ENGINES / f"{target}.json"), "key": of_key.id}
