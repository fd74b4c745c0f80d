"""Progress and notices on stderr; stdout is for results."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def is_quiet() -> bool:
    """True if --quiet was given."""
    context = click.get_current_context(silent=True)
    return bool(context and (context.find_root().obj or {}).get("quiet"))


def console() -> Console:
    """A rich console on stderr; it prints nothing with --quiet."""
    return Console(stderr=True, quiet=is_quiet())


def notice(text: str) -> None:
    """Print a line on stderr, unless --quiet was given."""
    if not is_quiet():
        click.echo(text, err=True)


# Seconds between two lines of progress where there is no terminal.
_INTERVAL = 10.0


class CountingProgress(Progress):
    """A bar on a terminal; elsewhere, as in a log file, a line every 10 seconds.

    Work that takes less prints no line.
    """

    def start(self) -> None:
        """Show the bar, or begin to count seconds."""
        self._last, self._printed = time.monotonic(), False
        if self.console.is_terminal:
            super().start()

    def stop(self) -> None:
        """Remove the bar."""
        if self.console.is_terminal:
            super().stop()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task, see `rich.progress.Progress.update`."""
        super().update(task_id, **changes)
        self._print_line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count finished steps."""
        super().advance(task_id, advance)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        if self.console.is_terminal:
            return
        task, now = self._tasks[task_id], time.monotonic()
        if now - self._last < _INTERVAL and not (task.finished and self._printed):
            return
        total = "" if task.total is None else f"/{task.total:,.0f}"
        line = f"{task.description} {task.completed:,.0f}{total}, {task.elapsed or 0:.0f} s"
        self.console.print(line, highlight=False)
        self._last, self._printed = now, not task.finished


def counting_progress() -> Progress:
    """Progress of a known number of equal steps."""
    return CountingProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console(),
        transient=True,
    )


class StepReporter:
    """Reports a few long steps: on a terminal with a bar or spinner each, elsewhere in lines.

    `on_step` begins a step; `on_count` reports how much of it is done.
    """

    def __init__(self) -> None:
        self._console = console()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._step, self._start, self._line = "", time.monotonic(), 0.0

    def __enter__(self) -> StepReporter:
        if self._console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(finished_text="✓"),
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close(finished=_[0] is None)

    def close(self, finished: bool = False) -> None:
        """End the display; the last step is marked as done if it is `finished`."""
        if self._progress is not None:
            if finished:
                self._finish()
            self._progress.stop()

    def on_step(self, step: str) -> None:
        """Begin a step, and end the one before."""
        self._step, self._line = step, time.monotonic()
        if self._progress is None:
            self._print(step)
        else:
            self._finish()
            self._task = self._progress.add_task(step, total=None, count="")

    def on_count(self, done: int, total: int) -> None:
        """Report that `done` of `total` are done; a total of 0 is unknown."""
        of = f"{done}/{total}" if total else f"{done}"
        if self._progress is not None:
            assert self._task is not None
            self._progress.update(self._task, completed=done, total=total or None, count=of)
        elif done == total or time.monotonic() - self._line >= _INTERVAL:
            self._line = time.monotonic()
            self._print(f"{self._step}: {of}")

    def _finish(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=1, completed=1)

    def _print(self, line: str) -> None:
        seconds = f"{time.monotonic() - self._start:.0f} s"
        self._console.print(f"{seconds:>6}  {line}", markup=False, highlight=False, soft_wrap=True)
