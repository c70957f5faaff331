"""Bundles: plan, export, build, verify, sign; and the whole way at once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from deploy.commands.trust import AllowOlder, Keys, State, trust_in
from perception.commands.common import Json, Out, Scenes, Version, app, console_for, names, report
from perception.errors import InputError

Routes = Annotated[
    str, typer.Option(help="Several sets of conditions that one graph shall serve: base,rain,boston+rain,boston+night.")
]

Sign = Annotated[Path | None, typer.Option(help="Private key (Ed25519, PEM) to sign with.")]


def _routes(conditions: str, routes: str) -> list[list[str]]:
    """Of `rain,boston`, which is one route, or of `boston,boston+rain`, which are two; `base`: nothing is known."""
    if conditions and routes:
        raise InputError("--conditions is for one route, --routes for several; give one of them")
    return [[fact for fact in route.split("+") if fact != "base"] for route in names(routes)] or [names(conditions)]


@app.command(epilog="Example: perception plan runs/a --routes base,rain")
def plan(
    checkpoint: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints.")],
    conditions: Annotated[str, typer.Option(help="Fold the modules for these, such as rain,boston.")] = "",
    routes: Routes = "",
    as_json: Json = False,
) -> None:
    """Show what an export will do with the modules at every slot, and what they will cost."""
    from dataclasses import asdict

    from deploy.plan import plan as run
    from deploy.plan import table

    planned = run(checkpoint, _routes(conditions, routes))
    report(asdict(planned), as_json, table(planned))


class PrecisionName(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


@app.command(
    epilog="Example: perception export runs/a --out runs/a/bundle --conditions rain --precision int8 --calibrate drives"
)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints.")],
    out: Out,
    conditions: Annotated[str, typer.Option(help="Fold the modules for these, such as rain,boston.")] = "",
    routes: Routes = "",
    apart: Annotated[
        bool, typer.Option("--apart", help="A network for each of the routes, which costs memory, but no time.")
    ] = False,
    precision: Annotated[PrecisionName, typer.Option(help="Of the layers that bear it.")] = PrecisionName.fp32,
    calibrate: Annotated[
        Path | None, typer.Option(help="Drives to measure the range of activations on, for int8: as --data elsewhere.")
    ] = None,
    version: Version = None,
    scenes: Scenes = "",
    license: Annotated[str, typer.Option(help="Of the network and its data: an SPDX identifier or a text.")] = "",
    release: Annotated[int, typer.Option(min=0, help="Counts up: what ran a higher one refuses this.")] = 0,
    expires: Annotated[str, typer.Option(help="Refuse it from then on: 2027-06-30, or a time of UTC.")] = "",
    signed_plans: Annotated[
        bool, typer.Option("--signed-plans", help="Refuse unsigned plans, also those that a device compiles itself.")
    ] = False,
    sign: Sign = None,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to a bundle: ONNX, manifest, modules, golden inputs and outputs.

    Keys: openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem
    """
    from deploy.export import export as run
    from deploy.precision.frames import Drives
    from deploy.release import Release, parse_expiry
    from perception.mmdet3d.foreign_config import refuse_export

    refuse_export(checkpoint)
    if calibrate is None and (version or scenes):
        raise InputError(
            "--version and --scenes say which drives to calibrate on; name their dataroot with --calibrate"
        )
    drives = Drives(calibrate, version, names(scenes)) if calibrate else None
    console = console_for(as_json)
    stated = Release(release, parse_expiry(expires) if expires else None, license, sign, signed_plans)
    bundle = run(
        checkpoint, out, _routes(conditions, routes), console=console, release=stated, precision=precision.value,
        calibration=drives, apart=apart,
    )  # fmt: skip
    report(bundle.manifest.model_dump(mode="json"), as_json)


@app.command(epilog="Example: perception build runs/a/bundle --target rtx-ampere")
def build(
    bundle: Annotated[Path | None, typer.Argument(help="An exported bundle.", show_default=False)] = None,
    target: Annotated[str, typer.Option(help="What to compile for; --list shows the choice.")] = "",
    dla: Annotated[bool, typer.Option("--dla", help="Place on the target's DLA what it can run.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the build package, where the device compiles itself. Default: beside the bundle."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Show all targets and what each accepts.")] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Compile a plan that can take the weights of a later bundle.")
    ] = False,
    refit_from: Annotated[
        Path | None,
        typer.Option(help="Instead of compiling, take the plan of this bundle, built with --refit, with new weights."),
    ] = None,
    sign: Sign = None,
    as_json: Json = False,
) -> None:
    """Compile a bundle's graph to an engine for a target, or write a package with which the target compiles it."""
    if show:
        from deploy.targets import TARGETS, table

        return report({"targets": [each.described() for each in TARGETS.values()]}, as_json, table())
    if bundle is None or not target:
        raise InputError("build takes a bundle and its --target; `perception build --list` shows the targets")
    if refit_from is not None:
        if refit or dla or out:
            raise InputError("--refit-from compiles nothing; --refit, --dla and --out have no meaning beside it")
        from deploy.build import refit as run_refit

        record = run_refit(bundle, refit_from, target, console_for(as_json), sign)
        report(record.model_dump(mode="json"), as_json)
        return
    from deploy.build import build as run

    built = run(bundle, target, console_for(as_json), dla, out, sign, refit)
    report(built.model_dump(mode="json"), as_json)


@app.command(epilog="Example: perception verify runs/a/bundle --key public.pem")
def verify(
    bundle: Annotated[Path, typer.Argument(help="An exported bundle, or a build package with one in it.")],
    key: Keys = None,
    state: State = None,
    allow_older: AllowOlder = False,
    as_json: Json = False,
) -> None:
    """Check everything in a bundle: hashes, signature, release, graph, golden frame, engines. Works on the vehicle."""
    from rich.table import Table

    from deploy.verify import verify as check

    verified = check(bundle, trust_in(key, state, allow_older))
    shown = Table(title=f"{bundle} is whole", show_header=False)
    for line in verified.items():
        shown.add_row(*line)
    report(verified, as_json, shown)


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
    report(signed, as_json, f"{signed['signed']}: signed by the key {signed['key']}")


@app.command(epilog="Example: perception demo --out runs/demo")
def demo(out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("runs/demo")) -> None:
    """Simulate, train, evaluate, export, compile and replay, in minutes, ending in a report to open."""
    from deploy.demo import demo as run

    run(out)
