"""Time, memory and disk of `galip-edge convert`, step by step.

    python benchmarks/conversion.py CHECKPOINT [--clip CLIP] [--precision int8] [--json]
    python benchmarks/conversion.py CHECKPOINT [--clip CLIP] --against CHECKOUT [--runs 1]

The command runs in a separate process, and its output is removed afterwards. With --against,
another checkout of galip-edge, such as an older version, converts the same checkpoint in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from environment import environment

HERE = Path(__file__).resolve().parents[1]
# "    37 s  exporting the generator to ONNX"
_LINE = re.compile(r"^ *\d+ s  (?P<step>.*?)(: \d+/\d+)?$")
_POLL_SECONDS = 0.1
_FIGURES = ("seconds", "cpu_seconds", "peak_memory", "peak_disk", "bundle")


def measure(checkpoint: Path, clip: Path | None, precision: str, checkout: Path) -> dict[str, Any]:
    """Convert with the code of `checkout`, in a temporary folder that holds all it writes."""
    command = [sys.executable, "-m", "galip_edge", "convert", str(checkpoint), f"--{precision}"]
    steps: list[tuple[str, float]] = []
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        command += ["-o", f"{folder / 'bundle'}", *(["--clip", str(clip)] if clip else [])]
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout), "TMPDIR": str(folder / "tmp")},
        )
        disk = _DiskWatch(folder, process.pid)
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            found = _LINE.match(line.rstrip())
            if found and (not steps or steps[-1][0] != found["step"]):
                steps.append((found["step"], time.monotonic() - start))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds, peak_disk = time.monotonic() - start, disk.peak()
        bundle = _size(folder / "bundle")
    if process.returncode:
        raise SystemExit("".join(lines))
    ends = [begin for _, begin in steps[1:]] + [seconds]
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory": usage.ru_maxrss * 1024,
        "peak_disk": peak_disk,
        "bundle": bundle,
        "steps": [
            {"step": step, "seconds": end - begin} for (step, begin), end in zip(steps, ends)
        ],
    }


class _DiskWatch:
    """Largest size of what a process keeps in a folder, until `peak` is called.

    Files that are deleted but still mapped into memory occupy the disk, too.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self._folder, self._process = folder, process
        self._peak, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self._peak = max(self._peak, _size(self._folder) + self._deleted())

    def _deleted(self) -> int:
        try:
            maps = Path(f"/proc/{self._process}/maps").read_text(encoding="utf-8")
        except OSError:
            return 0
        sizes: dict[str, int] = {}
        for line in maps.splitlines():
            addresses, _, _, _, inode, *path = line.split(maxsplit=5)
            if path and path[0].startswith(str(self._folder)) and path[0].endswith(" (deleted)"):
                begin, end = (int(address, 16) for address in addresses.split("-"))
                sizes[inode] = max(sizes.get(inode, 0), end - begin)
        return sum(sizes.values())

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


def in_turns(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Medians of the runs of each checkout, and the steps of its last run."""
    checkouts = {"this version": HERE}
    if args.against:
        checkouts = {str(args.against): args.against.resolve(), **checkouts}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for _ in range(args.runs):
        for name, checkout in checkouts.items():
            print(f"converting with {name}", file=sys.stderr)
            clip = args.clip and args.clip.resolve()
            found = measure(args.checkpoint.resolve(), clip, args.precision, checkout)
            runs[name].append(found)
    return {
        name: {
            **{figure: statistics.median(run[figure] for run in all_runs) for figure in _FIGURES},
            "steps": all_runs[-1]["steps"],
        }
        for name, all_runs in runs.items()
    }


def print_tables(results: dict[str, dict[str, Any]]) -> None:
    """Markdown."""
    print("| | time | CPU time | peak memory | temporary files and bundle | bundle |")
    print("|---|---|---|---|---|---|")
    for name, r in results.items():
        sizes = " | ".join(f"{r[f] / 1e9:.2f} GB" for f in ("peak_memory", "peak_disk", "bundle"))
        print(f"| {name} | {r['seconds']:.0f} s | {r['cpu_seconds']:.0f} s | {sizes} |")
    print("\n| step | seconds |\n|---|---|")
    for step in results["this version"]["steps"]:
        print(f"| {step['step']} | {step['seconds']:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--clip", type=Path, help="CLIP weights, for an original checkpoint")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns")
    parser.add_argument("--runs", type=int, default=1, help="conversions of each")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    args = parser.parse_args()
    env, results = environment(), in_turns(args)
    if args.json:
        found = {"environment": env, "precision": args.precision, "results": results}
        print(json.dumps(found, indent=1))
        return
    print(f"{env['cpu']}, {env['cores']} cores, {', '.join(env['instruction_sets'])}\n")
    print_tables(results)


if __name__ == "__main__":
    main()
