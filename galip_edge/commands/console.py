"""Progress and tables for people go to stderr; stdout is for results."""

from __future__ import annotations

import time
from typing import Any

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


def console() -> Console:
    """A rich console on stderr."""
    return Console(stderr=True)


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


def step_progress() -> Progress:
    """A spinner for a few long steps of unknown length."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console(),
    )
