"""Progress and logs of a training: a bar on a terminal, else lines; log.csv; and trackers.

Losses stay on the device and are fetched once per interval.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import torch
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from torch import Tensor

from perception.errors import InputError
from perception.io import distributed
from perception.io.files import write_atomically
from perception.io.stores import with_addresses

if TYPE_CHECKING:
    from perception.config import Config


def require_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"train.trackers: {name} is not installed; pip install {name}, or remove it from the list")


def open_trackers(config: Config, run: Path) -> list[GeneralTracker]:
    """Started trackers of the configuration: TensorBoard in RUN/tensorboard, others in a project with its name."""
    trackers: list[GeneralTracker] = []
    for name in config.train.trackers:
        if name == "tensorboard":
            trackers.append(TensorBoardTracker("tensorboard", run))
        elif name == "wandb":
            trackers.append(WandBTracker(config.name, name=run.name, dir=str(run)))
        else:
            trackers.append(MLflowTracker(config.name, run_name=run.name))
    for tracker in trackers:
        tracker.start()
    return trackers


class CsvLog:
    """RUN/log.csv: one row for each log step. A resumed training replaces the rows after its first step."""

    def __init__(self, file: Path, first: int) -> None:
        self.file = file
        self.rows: list[dict[str, object]] = []
        self.columns: list[str] = []
        if first and file.exists():
            with file.open(newline="") as stream:
                reader = csv.DictReader(stream)
                self.columns = list(reader.fieldnames or ())
                # A process that was killed may have left half a row.
                complete = [row for row in reader if None not in row.values() and row["step"].isdigit()]
            self.rows = [{**row} for row in complete if int(row["step"]) <= first]
        self._rewrite()

    def add(self, row: Mapping[str, object]) -> None:
        """Append a row. A new loss term becomes a further column at the end, empty in earlier rows."""
        self.rows.append({**row})
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
        else:
            with self.file.open("a", newline="") as stream:
                csv.DictWriter(stream, self.columns).writerow(row)

    def _rewrite(self) -> None:
        if self.columns:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
            write_atomically(self.file, text.getvalue().encode())


class TrainingLog:
    """Log of a training while it is entered as a context; at its end it prints where the logs are.

    Args:
        first: number of steps done before.
        main: whether this is the main process; other processes log nothing, but raise the same error for a loss that
            is not finite. All processes call `write` after the same steps.
    """

    def __init__(self, config: Config, run: Path, first: int, steps: int, main: bool) -> None:
        self.config, self.run, self.first, self.steps, self.main = config, run, first, steps, main
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._seconds = math.nan  # of a step
        self._loss = math.nan
        self._interval_start = monotonic()

    def __enter__(self) -> TrainingLog:
        self._console = Console(stderr=True, highlight=False)
        shows_bar = self.main and sys.stderr.isatty() and not self._console.is_dumb_terminal
        fields = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True))
        bar = BarColumn(bar_width=None)
        self._progress = Progress(bar, fields, console=self._console, disable=not shows_bar, expand=True)
        self._task = self._progress.add_task("", total=self.steps, completed=self.first, text="")
        self._shows_bar = shows_bar
        if self.main:
            self.run.mkdir(parents=True, exist_ok=True)
        self._trackers = open_trackers(self.config, self.run) if self.main else []
        self._csv = CsvLog(self.run / "log.csv", self.first) if self.main else None
        self._update_bar(self.first)
        self._progress.start()
        self._interval_start = monotonic()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._progress.stop()
        for tracker in self._trackers:
            tracker.finish()
        if self.main and kind is None:
            self._print(f"Losses: {self.run / 'log.csv'}")
            if "tensorboard" in self.config.train.trackers:
                self._print(f"Curves: tensorboard --logdir {self.run / 'tensorboard'}")

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Keep the values of a step, () each, on their device until `write`; the total is called `loss`."""
        self._pending.append((step, values))
        self._seconds = (monotonic() - self._interval_start) / len(self._pending)
        self._update_bar(step)

    def write(self, scalars: Mapping[str, float]) -> None:
        """Log the means of the values since the last call over all processes, and other scalars of the last step."""
        if not self._pending:
            return
        values_of_step = self._fetch()
        self._seconds = (monotonic() - self._interval_start) / len(values_of_step)
        for step, values in values_of_step:
            if not math.isfinite(values["loss"]):
                message = f"{self.run}: the loss at step {step} is {values['loss']}; lower train.learning_rate"
                raise InputError(message)
        samples: dict[str, list[float]] = {}
        for _, values in values_of_step:
            for name, value in values.items():
                samples.setdefault(name, []).append(value)
        means = {name: sum(values) / len(values) for name, values in samples.items()}
        last = values_of_step[-1][0]
        self._loss = means["loss"]
        self._update_bar(last)
        self._track(last, "train", {**means, **scalars})
        memory = _memory_gb()
        if self._csv is not None:
            measured = {"seconds_per_step": self._seconds, "memory_gb": memory}
            row = {"step": last, "loss": means["loss"], **means, **scalars, **measured}
            self._csv.add({name: value if name == "step" else f"{value:.6g}" for name, value in row.items()})
        if self.main and not self._shows_bar:
            terms = " ".join(f"{name} {value:.4g}" for name, value in means.items() if "/" in name)
            rate = f"learning_rate {scalars.get('learning_rate', math.nan):.3g}"
            self._print(f"{self._summary(last)}  {rate}  memory {memory:.1f} GB  {terms}")
        self.restart_clock()

    def write_validation(self, step: int, metric: str, scores: Mapping[str, float]) -> None:
        """Log the scores of a validation, and print the one that the best checkpoint is chosen by."""
        if self.main:
            self._track(step, "validation", scores)
            self._print(f"step {step}/{self.steps}  validation {metric} {scores[metric]:.4g}")

    def restart_clock(self) -> None:
        """Exclude what happened since the last step, such as a validation, from the seconds of a step."""
        self._interval_start = monotonic()

    def _summary(self, step: int) -> str:
        loss = "-" if math.isnan(self._loss) else f"{self._loss:.4g}"
        if math.isnan(self._seconds):
            return f"step {step}/{self.steps}"
        left = timedelta(seconds=round(self._seconds * (self.steps - step)))
        return f"step {step}/{self.steps}  loss {loss}  {self._seconds:.3g} s/step  ETA {left}"

    def _update_bar(self, step: int) -> None:
        self._progress.update(self._task, completed=step, text=self._summary(step))

    def _print(self, line: str) -> None:
        """Print one line above the bar, unwrapped."""
        with_paths = with_addresses(line)
        if self._shows_bar:
            self._console.print(with_paths, soft_wrap=True, markup=False)
        else:
            print(with_paths, file=sys.stderr, flush=True)

    def _track(self, step: int, group: str, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def _fetch(self) -> list[tuple[int, dict[str, float]]]:
        pending, self._pending = self._pending, []
        own = torch.stack([value.float() for _, values in pending for value in values.values()])
        numbers = iter(distributed.mean(own).tolist())
        return [(step, {name: next(numbers) for name in values}) for step, values in pending]


def _memory_gb() -> float:
    """Peak memory in GB: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
