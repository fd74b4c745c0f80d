"""Worker processes."""

import subprocess
import sys

# What the worker process of a job logs, as a warning that quotes a bundle or a prompt would be.
WARNS = """
import logging, multiprocessing
from contextlib import nullcontext
from types import SimpleNamespace
from runtime.jobs import executors

def warn(spec):
    logging.getLogger("runtime.pipeline").warning("first\\nsecond \\x1b[31m")

executors.Worker = warn
executors.open_storage = lambda out: SimpleNamespace(join=nullcontext)
ours, theirs = multiprocessing.Pipe()
ours.close()
executors._serve(SimpleNamespace(out="out"), theirs, multiprocessing.Event())
"""


def test_warnings_of_workers_are_printable_lines():
    result = subprocess.run([sys.executable, "-c", WARNS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "WARNING: first second \\x1b[31m\n"
