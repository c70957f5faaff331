"""Options for what becomes of what a driving vehicle perceives: metrics, live pictures, a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deploy.live.intake import Intake
    from deploy.live.outputs import Output
    from deploy.manifest import Manifest
    from deploy.recordings.messages import RecordingInfo

MetricsPort = Annotated[
    int | None, typer.Option("--metrics", metavar="PORT", help="Serve metrics to Prometheus.", min=1, max=65535)
]
ViewPort = Annotated[
    int | None,
    typer.Option(
        "--view",
        metavar="PORT",
        help="Serve live pictures to Foxglove on this machine; 8765 is usual.",
        min=1,
        max=65535,
    ),
]
Record = Annotated[
    Path | None, typer.Option(metavar="OUT.mcap", help="Record what comes in, as a file for `perception replay`.")
]


def further_outputs(
    metrics: int | None,
    view: int | None,
    record: Path | None,
    manifest: Manifest,
    info: RecordingInfo,
    say: Callable[[str], None],
) -> Callable[[ExitStack, Intake], Sequence[Output]]:
    """What opens the outputs of these options; they end with the stack."""

    def opened(stack: ExitStack, intake: Intake) -> Sequence[Output]:
        from deploy.live.metrics import Metrics
        from deploy.live.record import Recorder
        from deploy.live.view import View

        found: list[Output] = []
        if metrics is not None:
            found.append(served := Metrics(metrics, intake))
            stack.callback(served.close)
        if view is not None:
            found.append(shown := View(view, manifest))
            stack.callback(shown.close)
        if record is not None:
            found.append(recorder := Recorder(record, info, say))
            stack.callback(recorder.close)
            intake.tap = recorder.tap
        return found

    return opened
