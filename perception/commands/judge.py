"""A verdict on a replay that is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perception.commands.common import Json, app, console_for, report


@app.command(epilog="Example: perception judge runs/b/replay --baseline runs/a/replay --gates gates.yaml")
def judge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished replay.")],
    baseline: Annotated[Path | None, typer.Option(help="Folder of another replay of the same drives.")] = None,
    gates: Annotated[Path | None, typer.Option(help="YAML file of what must be reached to pass.")] = None,
    as_json: Json = False,
) -> None:
    """Judge a finished replay, also once more by other gates or another baseline, without replaying.

    Writes verdict.json and junit.xml, and the verdict into report.html. Exit code 0 is pass, 1 is fail, 3 is
    inconclusive: the scenes are too few to tell.
    """
    from deploy.replay.gates import Gates
    from deploy.replay.outcome import EXIT_CODES
    from deploy.replay.verdict import judge as run_judge
    from perception.section import load_section

    verdict = run_judge(run, baseline, None if gates is None else load_section(Gates, gates, "the gates"))
    report(verdict.as_dict(), as_json)
    console_for(as_json).print(verdict.table())
    if verdict.outcome != "pass":
        raise typer.Exit(EXIT_CODES[verdict.outcome])
