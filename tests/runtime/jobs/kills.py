"""Kills jobs at random moments, also while they are extended and updated, and compares the result.

    PYTHONPATH=. python tests/runtime/jobs/kills.py [--kills 200] [--seed 0]

For each output form, with one worker process and with two: a job is killed with all its processes
again and again; halfway its prompt file grows and a row changes. At the end the folder must be byte
for byte that of a job that was never killed, list no image twice, and pass `--verify`.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import plain_model
from left import entries, made, orphans, written

from runtime import Job, JobOptions, PromptFile
from runtime.jobs import worker

FORMS = ("folder", "tar", "parquet")
PART = 40

# Seconds: a job that neither ends nor writes anything for so long fails.
_PATIENCE = 120


@dataclass
class Outcome:
    """What became of a job that was killed."""

    form: str
    workers: int
    kills: int
    before_the_change: int


def write(path: Path, rows: list[dict]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(path)


def start(
    prompts, bundle, out, form, workers, milliseconds, update=False, part=PART
) -> subprocess.Popen:
    arguments = [prompts, bundle, out, form, workers, milliseconds, int(update), part]
    command = [sys.executable, plain_model.__file__, *map(str, arguments)]
    # A separate process group, to be killed as a whole.
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)


def run_here(prompts: Path, bundle: Path, out: Path, form: str, **options) -> Job:
    options = JobOptions(form=form, part=PART, **options)
    job = Job(PromptFile(prompts), bundle, out, options)
    for _ in job:
        pass
    return job


def kill_once(draw: random.Random, out: Path, process: subprocess.Popen, most: int) -> bool:
    """Kill it after a random number of images; whether it had not ended before."""
    wanted = written(out) + draw.randrange(most)
    until = time.monotonic() + _PATIENCE
    before = written(out)
    while written(out) <= wanted and process.poll() is None and written(out) >= before:
        before = written(out)
        assert time.monotonic() < until, "the job is stuck"
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.03))
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert alive or process.returncode == 0, process.stderr.read().decode()
    process.stderr.close()
    return alive


def kill_and_compare(
    form: str, workers: int, kills: int, seed: int, bundle: Path, folder: Path
) -> Outcome:
    """Raises AssertionError if anything is lost, damaged, or there twice."""
    draw = random.Random(f"{seed} {form} {workers}")
    prompts, out, whole = folder / "prompts.jsonl", folder / "out", folder / "whole"
    rows = [{"prompt": f"bird {i}", "n": 2} for i in range(60 + 6 * kills)]
    longer = [*rows, *({"prompt": f"duck {i}", "n": 3} for i in range(40 + 6 * kills))]
    longer[len(rows) // 2] = {"prompt": "a goose", "n": 2}
    done = before_the_change = 0
    for number, each in enumerate((rows, longer)):
        write(prompts, each)
        run_here(prompts, bundle, whole, form, update=number > 0)
        ended = False
        while done < max(1, kills * (number + 1) // 2) and not ended:
            update = number > 0
            process = start(prompts, bundle, out, form, workers, 3 * workers, update)
            ended = not kill_once(draw, out, process, 2 * PART if form == "parquet" else 12)
            done += not ended
        if number == 0:
            before_the_change = done
    last = start(prompts, bundle, out, form, workers, 0, update=True)
    _, error = last.communicate(timeout=10 * _PATIENCE)
    assert last.returncode == 0, error.decode()
    assert_equal(made(out), made(whole))
    listed = [(entry["row"], entry["index"]) for entry in entries(out)]
    assert len(set(listed)) == len(listed) == sum(row["n"] for row in longer)
    assert not orphans(out)
    verified = run_here(prompts, bundle, out, form, verify=True).progress
    assert (verified.lost, verified.done, verified.left) == (0, 0, 0)
    assert made(out) == made(whole)
    return Outcome(form, workers, done, before_the_change)


def assert_equal(found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    others = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
    assert not others, f"{len(others)} files differ, such as {others[:5]}"


def main() -> None:
    from runtime.bundle import default_bundle

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    worker.Pipeline = plain_model.PlainPipeline
    kinds = [(form, workers) for form in FORMS for workers in (1, 2)]
    total = 0
    for form, workers in kinds:
        with tempfile.TemporaryDirectory() as name:
            kills = -(-options.kills // len(kinds))
            began = time.monotonic()
            found = kill_and_compare(
                form, workers, kills, options.seed, default_bundle(), Path(name)
            )
        total += found.kills
        seconds = time.monotonic() - began
        print(  # noqa: T201
            f"{form}, {workers} workers: {found.kills} kills ({found.before_the_change} before "
            f"the extension), equal, nothing twice, verified, {seconds:.0f} s",
            flush=True,
        )
    print(f"{total} kills, all equal")  # noqa: T201


if __name__ == "__main__":
    main()
