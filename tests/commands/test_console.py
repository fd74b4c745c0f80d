"""Progress on terminals and in log files."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from galip_edge.commands import console
from galip_edge.commands.console import counting_progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def progress_to(monkeypatch, terminal: bool):
    monkeypatch.setenv("TERM", "xterm")  # rich draws no bar on a dumb one
    file = io.StringIO()
    out = Console(file=file, force_terminal=terminal, width=100)
    monkeypatch.setattr(console, "console", lambda: out)
    return counting_progress(), file


def test_a_log_file_gets_a_line_every_ten_seconds(monkeypatch, clock):
    progress, file = progress_to(monkeypatch, terminal=False)
    with progress:
        task = progress.add_task("checking", total=None)
        for done in range(1, 1201):
            clock[0] += 1 / 32
            progress.update(task, completed=done, total=1200)
    lines = file.getvalue().splitlines()
    assert [line.rpartition(",")[0] for line in lines] == [
        f"checking {done}/1,200" for done in ("320", "640", "960", "1,200")
    ]
    assert "\x1b" not in file.getvalue()


def test_steps_may_be_counted_one_by_one(monkeypatch, clock):
    progress, file = progress_to(monkeypatch, terminal=False)
    with progress:
        task = progress.add_task("drawing", total=4)
        for _ in range(4):
            clock[0] += 11
            progress.advance(task)
    assert [line.split(",")[0] for line in file.getvalue().splitlines()] == [
        f"drawing {n}/4" for n in range(1, 5)
    ]


def test_short_work_prints_nothing_to_a_log_file(monkeypatch, clock):
    progress, file = progress_to(monkeypatch, terminal=False)
    with progress:
        task = progress.add_task("checking", total=2)
        progress.advance(task)
        progress.advance(task)
    assert file.getvalue() == ""


def test_a_terminal_has_a_bar(monkeypatch, clock):
    progress, file = progress_to(monkeypatch, terminal=True)
    with progress:
        task = progress.add_task("checking", total=2)
        clock[0] += 60
        progress.update(task, completed=1, refresh=True)
    assert "━" in file.getvalue()
    assert "1/2" in file.getvalue()
