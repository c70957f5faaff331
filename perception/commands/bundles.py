"""What a bundle is worth: verify it, and vouch for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perception.commands.common import AllowOlder, Json, Keys, State, app, console_for, report, trust_in


@app.command(epilog="Example: perception verify runs/a/bundle --key public.pem")
def verify(
    bundle: Annotated[Path, typer.Argument(help="An exported bundle, or a build package with one in it.")],
    key: Keys = None,
    state: State = None,
    allow_older: AllowOlder = False,
    as_json: Json = False,
) -> None:
    """Check everything in a bundle: hashes, signature, release, graph, golden frame, engines. Works on the vehicle."""
    from deploy.verify import table
    from deploy.verify import verify as check

    verified = check(bundle, trust_in(key, state, allow_older))
    report(verified, as_json)
    if not as_json:
        console_for(as_json).print(table(bundle, verified))


@app.command(epilog="Example: perception sign runs/a/bundle --key key.pem --target orin")
def sign(
    bundle: Annotated[Path, typer.Argument(help="An exported bundle.")],
    key: Annotated[Path, typer.Option(help="Private key (Ed25519, PEM).")],
    target: Annotated[str, typer.Option(help="Sign the plan for this target, in a bundle that this key signed.")] = "",
    as_json: Json = False,
) -> None:
    """Verify a bundle, then sign its manifest; or, with --target, a plan that a device compiled.

    Keys: openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem
    """
    from deploy.sign import sign as run

    signed = run(bundle, key, target or None)
    report(signed, as_json)
    if not as_json:
        console_for(as_json).print(f"{signed['signed']}: signed by the key {signed['key']}")
