"""From the start of a process to the first PNG on disk, by phase, and its memory.

    python benchmarks/cold_start.py [BUNDLE] [--golden] [--json]

The default bundle is the untrained one of the published size that cpu_latency.py creates. Every
measurement is a separate process. Cold: nothing has been verified or compiled before. Warm: a
process before it has. The file system's cache is warm in both. With --golden, a copy of the bundle
without golden numbers takes turns with it: the difference is the cost of comparing them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from environment import environment
from prepared import full_size_bundle

from runtime.bundle import GOLDEN, read_manifest, save_manifest

PROMPT = "a bird on a branch"
MEMORY = "peak memory"
PHASES = ("interpreter", "import", "verify", "compile and generate", "write PNG")

# The steps of `galip-edge generate`, each timed. perf_counter is the same clock in all processes of
# a machine.
_CHILD = """
import resource, sys, time
times = [float(sys.argv[1]), time.perf_counter()]
def tick(): times.append(time.perf_counter())
from pathlib import Path
from runtime.images import ImageMetadata, save_png
from runtime.pipeline import Pipeline
tick()
pipeline = Pipeline.from_bundle(sys.argv[2])
tick()
image = pipeline.generate(sys.argv[3])[0]
tick()
save_png(image, Path(sys.argv[4]), ImageMetadata(sys.argv[3], 0, 0, "benchmark", ""))
tick()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(*(b - a for a, b in zip(times, times[1:])), memory)
"""


def phases(bundle: Path, cache: str) -> tuple[list[float], int]:
    """Seconds of each phase in a new process, and its peak memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _CHILD, str(time.perf_counter()), str(bundle), PROMPT]
        done = subprocess.run(
            [*command, f"{folder}/image.png"],
            env={**os.environ, "GALIP_EDGE_CACHE": cache},
            check=True,
            capture_output=True,
            text=True,
        )
    *seconds, kibibytes = done.stdout.split()
    return [float(each) for each in seconds], int(kibibytes) * 1024


def command_line(bundle: Path, cache: str) -> float:
    """Seconds of the whole `galip-edge generate`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "galip_edge", "generate", PROMPT]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--model", str(bundle), "--out", folder],
            env={**os.environ, "GALIP_EDGE_CACHE": cache},
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - start


def without_golden(bundle: Path, folder: Path) -> Path:
    """A copy of `bundle` in `folder` that has no golden numbers (format 2)."""
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    (copy / GOLDEN).unlink()
    manifest = read_manifest(bundle)
    files = {name: entry for name, entry in manifest.files.items() if name != GOLDEN}
    save_manifest(copy, replace(manifest, files=files, golden=None))
    return copy


def measure(bundles: dict[str, Path], runs: int) -> dict[str, dict[str, float]]:
    """Medians in seconds, and of peak memory in bytes, by kind of start.

    Args:
        bundles: by suffix of the kind, such as the empty one; they take turns.
        runs: processes of each kind.
    """
    found: dict[str, dict[str, list[float]]] = {}

    def note(kind: str, name: str, seconds: float) -> None:
        found.setdefault(kind, {}).setdefault(name, []).append(seconds)

    for turn in range(runs):
        for suffix, bundle in sorted(bundles.items(), reverse=turn % 2 == 1):
            kinds = [f"{kind}{suffix}" for kind in ("cold", "warm")]
            with tempfile.TemporaryDirectory() as cache:
                for kind in kinds:
                    seconds, memory = phases(bundle, cache)
                    for name, value in zip(PHASES, seconds, strict=True):
                        note(kind, name, value)
                    note(kind, "all phases", sum(seconds))
                    note(kind, MEMORY, memory)
            with tempfile.TemporaryDirectory() as cache:
                for kind in kinds:
                    note(kind, "galip-edge generate, to its exit", command_line(bundle, cache))
    return {
        kind: {name: statistics.median(values) for name, values in by_name.items()}
        for kind, by_name in found.items()
    }


def print_table(results: dict[str, dict[str, float]], env: dict[str, Any]) -> None:
    """Markdown."""
    print(f"{env['cpu']}, {env['cores']} cores, OpenVINO {env['openvino']}; medians\n")
    print(f"| | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for name in results["cold"]:
        unit, factor = ("MB", 1e-6) if name == MEMORY else ("ms", 1e3)
        cells = (f"{by_name[name] * factor:.0f} {unit}" for by_name in results.values())
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="default: an untrained one")
    parser.add_argument("--runs", type=int, default=7, help="processes of each kind")
    parser.add_argument("--golden", action="store_true", help="measure without golden numbers too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    bundles = {"": args.bundle or full_size_bundle()}
    with tempfile.TemporaryDirectory() as folder:
        if args.golden:
            bundles[", no golden numbers"] = without_golden(bundles[""], Path(folder))
        results, env = measure(bundles, args.runs), environment()
    if args.json:
        print(json.dumps({"environment": env, "seconds": results}, indent=1))
    else:
        print_table(results, env)


if __name__ == "__main__":
    main()
