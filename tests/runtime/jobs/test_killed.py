"""Jobs in processes of their own that are killed, at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import plain_model
import pytest
from left import entries, made, orphans, wait_until_written, written

from runtime import Job, JobOptions, PromptFile


@pytest.fixture
def prompts(tmp_path) -> Path:
    """500 items."""
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"bird {i}", "n": 2} for i in range(250)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(prompts, bundle, out, form, workers, milliseconds) -> subprocess.Popen:
    arguments = [prompts, bundle, out, form, workers, milliseconds]
    command = [sys.executable, plain_model.__file__, *map(str, arguments)]
    # A group of its own, to be killed with all of its processes.
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("form", "workers", "kills"),
    [("folder", 1, 20), ("tar", 1, 20), ("parquet", 1, 6), ("folder", 2, 6), ("tar", 2, 6)],
)
def test_a_killed_job_ends_as_if_it_had_not_been(
    form, workers, kills, prompts, bundle, tmp_path, plain_model
):
    for _ in Job(PromptFile(prompts), bundle, tmp_path / "whole", JobOptions(form=form, part=40)):
        pass
    moments, out = random.Random(form), tmp_path / "out"

    def start_and_kill(after: Callable[[], object]) -> None:
        process = start(prompts, bundle, out, form, workers, milliseconds=10 * workers)
        after()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    began = time.perf_counter()
    start_and_kill(lambda: wait_until_written(1, out))
    takes, progress = time.perf_counter() - began, written(out)
    for _ in range(kills - 1):
        seconds = moments.uniform(0.5 * takes, takes + 0.5)
        start_and_kill(lambda seconds=seconds: time.sleep(seconds))
        if form != "parquet":
            assert written(out) >= progress  # nothing is lost
        progress = written(out)
    process = start(prompts, bundle, out, form, workers, milliseconds=0)
    assert process.wait() == 0, process.stderr.read()
    assert made(out) == made(tmp_path / "whole")
    assert not orphans(out)


def worker_processes(of: int) -> list[int]:
    text = Path(f"/proc/{of}/task/{of}/children").read_text()
    children = [int(number) for number in text.split()]
    return [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_a_worker_that_is_killed_is_replaced(prompts, bundle, tmp_path, plain_model):
    for _ in Job(PromptFile(prompts), bundle, tmp_path / "whole", JobOptions(part=40)):
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
    process = galip_edge(*command, "--part", 100, "--json")
    while not list((tmp_path / "out").glob("*/*.png")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "finishing what is in flight" in err
    assert "are left; the same command goes on" in err
    told = json.loads(out)
    assert told["done"] == len(entries(tmp_path / "out")) == 20_000 - told["left"] > 0
    assert not orphans(tmp_path / "out")


def test_the_second_signal_ends_it_at_once(prompts, bundle, tmp_path, plain_model):
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"bird {i}" for i in range(20_000)))
    process = galip_edge(path, "--out", tmp_path / "out", "--model", bundle, "--as", "parquet")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)
    assert process.returncode in (-signal.SIGINT, -signal.SIGTERM, 130)
