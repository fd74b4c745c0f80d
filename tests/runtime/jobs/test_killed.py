"""Jobs in processes of their own that are killed, at any moment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import plain_batch
import pytest
from kills import kill_and_compare, start
from left import entries, made, orphans, wait_until, wait_until_written

from runtime import Job, JobOptions, PromptFile
from runtime.jobs.writers import OUTPUT_FORMATS

pytestmark = pytest.mark.slow


@pytest.fixture
def prompts(tmp_path) -> Path:
    """500 items."""
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"bird {i}", "n": 2} for i in range(250)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_a_killed_job_ends_as_if_it_had_not_been(
    output_format, workers, bundle, tmp_path, plain_model
):
    """A few of many: the command in kills.py does as many as one likes."""
    found = kill_and_compare(output_format, workers, 2, 1, bundle, tmp_path)
    assert (found.kills, found.during_extension) == (2, 1)


def worker_processes(of: int) -> list[int]:
    text = Path(f"/proc/{of}/task/{of}/children").read_text()
    children = [int(number) for number in text.split()]
    return [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_a_worker_that_is_killed_is_replaced(prompts, bundle, tmp_path, plain_model):
    for _ in Job(PromptFile(prompts), bundle, tmp_path / "whole", JobOptions(shard_size=40)):
        pass
    process = start(prompts, bundle, tmp_path / "out", "folder", 2, milliseconds=20)
    killed = set()
    for count in (20, 120):
        wait_until_written(count, tmp_path / "out")
        victim = worker_processes(process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
    assert len(killed) == 2
    assert process.wait() == 0, process.stderr.read()
    assert made(tmp_path / "out") == made(tmp_path / "whole")
    assert not orphans(tmp_path / "out")


def galip_edge(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "galip_edge", "batch", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_lets_it_finish_what_is_in_flight(number, workers, bundle, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"bird {i}" for i in range(20_000)))
    command = (path, "--out", tmp_path / "out", "--model", bundle, "--workers", workers)
    process = galip_edge(*command, "--shard-size", 100, "--json")
    wait_until(lambda: list((tmp_path / "out").glob("*/*.png")) or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "finishing the images in flight" in err
    assert "left; rerun the same command to resume" in err
    reported = json.loads(out)
    assert reported["done"] == len(entries(tmp_path / "out")) == 20_000 - reported["left"] > 0
    assert not orphans(tmp_path / "out")


def slow_batch(bundle, tmp_path, stderr) -> subprocess.Popen:
    """One whose images take a minute each, once it is at the first one."""
    path = tmp_path / "p.txt"
    path.write_text("a bird\ntwo dogs\n")
    command = [plain_batch.__file__, 60, path, "--out", tmp_path / "out", "--model", bundle]
    process = subprocess.Popen([sys.executable, *map(str, command)], stderr=stderr)
    wait_until(lambda: list((tmp_path / "out" / ".job").glob("held/*.lock")))
    return process


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_it_at_once(second, bundle, tmp_path):
    with (tmp_path / "stderr").open("w") as stderr:
        process = slow_batch(bundle, tmp_path, stderr)
    try:
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "finishing the images in flight" in (tmp_path / "stderr").read_text())
        assert process.poll() is None  # the image of a minute is in flight
        process.send_signal(second)
        assert process.wait(timeout=20) == -second
    finally:
        process.kill()
        process.wait()


def test_two_signals_leave_the_cursor_visible(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal, theirs = os.openpty()
    process = slow_batch(bundle, tmp_path, theirs)
    os.close(theirs)
    shown = b""

    def shows(text: bytes) -> bool:
        nonlocal shown
        shown += os.read(terminal, 1 << 16)
        return text in shown

    hide, show = b"\x1b[?25l", b"\x1b[?25h"
    try:
        wait_until(lambda: shows(b"images/s"))
        process.send_signal(signal.SIGINT)
        wait_until(lambda: shows(b"finishing the images in flight"))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == -signal.SIGINT
        assert 0 <= shown.rindex(hide) < shown.rindex(show)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
