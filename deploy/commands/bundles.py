"""Commands on bundles: export, build, verify and sign."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from deploy.commands.options import AllowOlder, Keys, State, TopicsFile, make_trust
from perception.commands.common import (
    Json,
    Run,
    Scenes,
    Version,
    app,
    console_for,
    from_store,
    names,
    refuse_unused,
    report,
    to_store,
)
from perception.errors import InputError

Sign = Annotated[Path | None, typer.Option(help="Private key (Ed25519, PEM) to sign with.")]


def _routes(conditions: str, routes: str, apart: bool) -> list[list[str]]:
    """The routes, each a list of conditions: --conditions rain,night is one route, --routes base,rain+night two."""
    if conditions and routes:
        raise InputError("--conditions is for one route, --routes for several; give one of them")
    found = [[name for name in route.split("+") if name != "base"] for route in names(routes)] or [names(conditions)]
    if len({frozenset(route) for route in found}) < len(found) or any(len({*route}) < len(route) for route in found):
        raise InputError(f"{routes or conditions}: names a route or a condition twice; name each once")
    if apart and len(found) == 1:
        raise InputError("--apart: one route has one network; name several with --routes")
    return found


def _expiry(text: str) -> datetime | None:
    from deploy.trust import parse_expiry

    time = parse_expiry(text) if text else None
    if time is not None and time <= datetime.now(timezone.utc):
        raise InputError(f"--expires {text}: is past, so that no vehicle would accept the bundle")
    return time


class PrecisionName(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


@app.command(
    epilog="Example: perception export runs/a --out runs/a/bundle --conditions rain --precision int8 --calibrate data",
    rich_help_panel="Deploy",
)
def export(
    context: typer.Context,
    checkpoint: Run,
    out: Annotated[
        Path | None, typer.Option("--out", callback=to_store, help="Folder to write, unless --plan is given.")
    ] = None,
    conditions: Annotated[str, typer.Option(help="Fold the modules for these, such as rain,night.")] = "",
    routes: Annotated[
        str, typer.Option(help="Sets of conditions that one graph serves: base,rain,night,rain+night.")
    ] = "",
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only show what becomes of the modules at every slot, and what they will cost."),
    ] = False,
    apart: Annotated[
        bool, typer.Option("--apart", help="Export one network per route, which takes more memory but no more time.")
    ] = False,
    precision: Annotated[
        PrecisionName, typer.Option(help="Precision of the layers that tolerate it.")
    ] = PrecisionName.fp32,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            callback=from_store,
            help="Drives of the training: the bundle carries what their sensors deliver, for `perception check` and "
            "the health monitor, and int8 is calibrated on them.",
        ),
    ] = None,
    version: Version = None,
    scenes: Scenes = "",
    topics: TopicsFile = None,
    license: Annotated[
        str, typer.Option(help="License of the network and its data: an SPDX identifier or a text.")
    ] = "",
    release: Annotated[
        int, typer.Option(min=0, help="Release number. A vehicle that ran a higher one refuses this bundle.")
    ] = 0,
    expires: Annotated[
        str, typer.Option(help="Vehicles refuse the bundle from this date or UTC time on, such as 2027-06-30.")
    ] = "",
    sign: Sign = None,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to a bundle: ONNX, manifest, modules, golden inputs and outputs.

    Keys: openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem
    """
    chosen = _routes(conditions, routes, apart)
    if plan:
        refuse_unused(context, "--plan", "checkpoint", "conditions", "routes", "plan", "as_json")
        from deploy.plan import plan as make_plan
        from deploy.plan import table

        planned = make_plan(checkpoint, chosen)
        return report(asdict(planned), as_json, table(planned))
    if out is None:
        raise InputError("export takes --out, the folder to write; with --plan it writes nothing")
    from deploy.export import export as run
    from deploy.precision.calibrate import Drives
    from deploy.trust import Release
    from perception.mmdet3d.foreign_config import refuse_export

    refuse_export(checkpoint)
    if calibrate is None and (version or scenes or topics):
        raise InputError("--version, --scenes and --topics are for the drives of --calibrate; name these, too")
    drives = Drives(calibrate, version, names(scenes), topics=topics) if calibrate else None
    console = console_for(as_json)
    release_info = Release(release, _expiry(expires), license, sign)
    bundle = run(
        checkpoint, out, chosen, console=console, release=release_info,
        precision=precision.value, calibration=drives, apart=apart,
    )  # fmt: skip
    report(bundle.manifest.model_dump(mode="json"), as_json)


@app.command(
    epilog="Example: perception build runs/a/bundle --target rtx-ampere",
    rich_help_panel="Deploy",
)
def build(
    context: typer.Context,
    bundle: Annotated[Path | None, typer.Argument(help="An exported bundle.", show_default=False)] = None,
    target: Annotated[str, typer.Option(help="What to compile for; --list shows the choice.")] = "",
    dla: Annotated[bool, typer.Option("--dla", help="Run the layers that the target's DLA supports on it.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the build package, if the target compiles on the device. Default: beside the bundle."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the targets and what each supports.")] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Compile a plan whose weights a later bundle can replace.")
    ] = False,
    refit_from: Annotated[
        Path | None,
        typer.Option(help="Do not compile: use the plan of this bundle, built with --refit, with the new weights."),
    ] = None,
    sign: Sign = None,
    as_json: Json = False,
) -> None:
    """Compile a bundle for a target, or write a build package for a target that compiles on the device."""
    if show:
        refuse_unused(context, "--list", "show", "as_json")
        from deploy.targets import TARGETS, table

        return report({"targets": [each.to_json() for each in TARGETS.values()]}, as_json, table())
    if bundle is None or not target:
        raise InputError("build takes a bundle and its --target; `perception build --list` shows the targets")
    if refit_from is not None:
        if refit or dla or out:
            raise InputError("--refit-from compiles nothing and cannot be combined with --refit, --dla or --out")
        from deploy.build import refit as run_refit

        record = run_refit(bundle, refit_from, target, console_for(as_json), sign)
        report(record.model_dump(mode="json"), as_json)
        return
    from deploy.build import build as run

    built = run(bundle, target, console_for(as_json), dla, out, sign, refit)
    report(built.model_dump(mode="json"), as_json)


@app.command(
    epilog="Example: perception verify runs/a/bundle --key public.pem",
    rich_help_panel="Deploy",
)
def verify(
    bundle: Annotated[
        Path, typer.Argument(callback=from_store, help="An exported bundle, or a build package with one in it.")
    ],
    key: Keys = None,
    state: State = None,
    allow_older: AllowOlder = False,
    as_json: Json = False,
) -> None:
    """Check the files of a bundle: hashes, signature, release, graph, golden frames, engines. Works on the vehicle."""
    from rich.table import Table

    from deploy.verify import verify as check

    verified = check(bundle, make_trust(key, state, allow_older))
    table = Table(title=f"{bundle}: verified", show_header=False)
    for row in verified.items():
        table.add_row(*row)
    report(verified, as_json, table)


@app.command(
    epilog="Example: perception sign runs/a/bundle --key key.pem --target orin",
    rich_help_panel="Deploy",
)
def sign(
    bundle: Annotated[Path, typer.Argument(help="An exported bundle.")],
    key: Annotated[Path, typer.Option(help="Private key (Ed25519, PEM).")],
    target: Annotated[str, typer.Option(help="Sign the plan for this target, in a bundle that this key signed.")] = "",
    as_json: Json = False,
) -> None:
    """Verify a bundle, then sign it or, with --target, a plan that a device compiled.

    Keys: openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem
    """
    from deploy.verify import sign as run

    signed = run(bundle, key, target or None)
    report(signed, as_json, f"{signed['signed']}: signed by the key {signed['key']}")
