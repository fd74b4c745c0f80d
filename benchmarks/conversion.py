"""Time, memory and disk of `galip-edge convert`, step by step.

    python benchmarks/conversion.py CHECKPOINT [--clip CLIP] [--precision int8] [--json]

The command runs in a separate process, and its output is removed afterwards. To compare two
versions, run the script of each in turns on the same machine.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from environment import environment

# "    37 s  exporting the generator to ONNX"
_LINE = re.compile(r"^ *\d+ s  (?P<step>.*?)(: \d+/\d+)?$")
_POLL_SECONDS = 0.2


def measure(checkpoint: Path, clip: Path | None, precision: str, folder: Path) -> dict[str, Any]:
    """Convert into `folder`, which is empty."""
    command = [sys.executable, "-m", "galip_edge", "convert", str(checkpoint), f"--{precision}"]
    command += ["-o", str(folder / "bundle"), *(["--clip", str(clip)] if clip else [])]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    steps: list[tuple[str, float]] = []
    lines: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        disk = _DiskWatch(folder)
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            found = _LINE.match(line.rstrip())
            if found and (not steps or steps[-1][0] != found["step"]):
                steps.append((found["step"], time.monotonic() - start))
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit("".join(lines))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ends = [begin for _, begin in steps[1:]] + [seconds]
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_memory": after.ru_maxrss * 1024,
        "peak_disk": disk.peak(),
        "bundle": _size(folder / "bundle"),
        "steps": [
            {"step": step, "seconds": end - begin} for (step, begin), end in zip(steps, ends)
        ],
    }


class _DiskWatch:
    """Largest size of a folder's files, seen by a thread until `peak` is called."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._peak, self._ended = folder, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self._peak = max(self._peak, _size(self._folder))

    def peak(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._peak


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.is_dir() else path.lstat().st_size
        except FileNotFoundError:  # removed meanwhile
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--clip", type=Path, help="CLIP weights, for an original checkpoint")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--work", type=Path, help="folder for the bundle and temporary files")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        found = measure(args.checkpoint, args.clip, args.precision, Path(folder))
    found = {"environment": environment(), "precision": args.precision, **found}
    if args.json:
        print(json.dumps(found, indent=1))
        return
    env = found["environment"]
    print(f"{env['cpu']}, {env['cores']} cores, {', '.join(env['instruction_sets'])}\n")
    print("| step | seconds |\n|---|---|")
    for step in found["steps"]:
        print(f"| {step['step']} | {step['seconds']:.0f} |")
    print(f"| all | {found['seconds']:.0f} ({found['cpu_seconds']:.0f} of CPU) |\n")
    gigabytes = {name: found[name] / 1e9 for name in ("peak_memory", "peak_disk", "bundle")}
    print(", ".join(f"{name} {value:.2f} GB" for name, value in gigabytes.items()))


if __name__ == "__main__":
    main()
