"""The command that compares two evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perception.commands.common import Json, app, names, report


@app.command(
    epilog="Example: perception compare runs/a/evaluation runs/b/evaluation --by condition --out runs/b/compared"
)
def compare(
    before: Annotated[Path, typer.Argument(help="Folder that `perception evaluate` wrote.")],
    after: Annotated[Path, typer.Argument(help="Another one, of the same keyframes.")],
    by: Annotated[
        str, typer.Option(help="Slices that both were evaluated by: condition,range,... Default: all of them.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to write comparison.json and comparison.html to.")] = None,
    as_json: Json = False,
) -> None:
    """Compare two evaluations slice by slice: the difference of each score, with its 95 % interval over scenes."""
    from perception.evaluation.comparison import compare as run
    from perception.evaluation.comparison import comparison_table, write_comparison

    found = run(before, after, names(by))
    if out is not None:
        write_comparison(out, found)
    report(found, as_json, comparison_table(found))
