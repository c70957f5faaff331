"""Sign a bundle after its export, or a plan that a device compiled. No torch here."""

from __future__ import annotations

from pathlib import Path

from deploy.bundle import ENGINES, Bundle
from deploy.integrity import SUMS_SIGNATURE
from deploy.signature import signer
from deploy.targets import find_target
from deploy.verify import verify_bundle
from perception.errors import InputError
from perception.io.files import write_atomically


def sign(path: Path, key: Path, target: str | None = None) -> dict[str, str]:
    """Verify the bundle in folder `path`, then sign it or its plans for `target`.

    Verification shows that everything fits together, not that the bundle is the one that you exported. Therefore a plan
    is signed only if this key has signed the bundle.

    Args:
        key: the private key (PEM).

    Returns:
        The signed file, and the id of the key.
    """
    of_key = signer(key)
    bundle = Bundle.load(path)
    verify_bundle(bundle)
    if target is None:
        write_atomically(path / SUMS_SIGNATURE, of_key.sign(bundle.sums.data))
        return {"signed": str(bundle.sums.path), "key": of_key.id}
    if find_target(target).compiler == "onnxruntime":
        raise InputError(f"{target}: has no plan to sign; its network is the bundle's own")
    bundle.require_signed_by(of_key)
    for part in (bundle, *bundle.routes.values()):
        plan = part.plan(target)
        write_atomically(plan.path.with_suffix(".sig"), of_key.sign(plan.record_data))
    return {"signed": str(path / ENGINES / f"{target}.json"), "key": of_key.id}
