"""GALIP on a GPU: inference, training step and correctness, in about four minutes.

    python benchmarks/gpu.py                                # on a CUDA machine
    python benchmarks/gpu.py --device cpu --preset small    # rehearsal without one

Needs torch and open_clip, not OpenVINO, NNCF or ONNX. Each part runs in a separate process under
its own time limit and prints JSON lines as they are measured, so a part that hangs or crashes loses
only its remaining measurements. On CUDA, `results/gpu.json` is written for `cpu_latency.py` and
README; a rehearsal prints only. docs/gpu.md describes how to pack and run it.

Exits with 1 if a check of correctness fails or a part ends with an error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the packed folder is not installed

import gpu_parts  # noqa: E402
from gpu_parts import Settings  # noqa: E402

from galip_edge.models import PRESETS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
Part = Callable[[Settings], Iterator[dict[str, Any]]]

# Part -> (function, seconds that it may take).
PARTS: dict[str, tuple[Part, float]] = {
    "inference": (gpu_parts.inference, 150.0),
    "training": (gpu_parts.training, 120.0),
    "correctness": (gpu_parts.correctness, 90.0),
}


def run_part(name: str, arguments: list[str], limit: float) -> list[dict[str, Any]]:
    """Records of a part, from a child process; each is printed as it comes."""
    command = [sys.executable, __file__, *arguments, "--part", name]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(limit, child.kill)
    timer.start()
    records = []
    assert child.stdout is not None
    for line in child.stdout:
        try:
            record = json.loads(line)
        except ValueError:  # a library's own message
            print(line, end="", file=sys.stderr)
            continue
        print(line, end="", flush=True)
        records.append(record)
    timed_out = not timer.is_alive()
    timer.cancel()
    if child.wait():
        reason = f"stopped after {limit:.0f} s" if timed_out else f"exit code {child.returncode}"
        records.append({"part": name, "ended": reason})
        print(json.dumps(records[-1]), flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--preset", default="coco", choices=list(PRESETS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    parser.add_argument(
        "--limit",
        type=float,
        help="factor on the time limits; default: 1, or 6 on a CPU, whose compiler is slow",
    )
    parser.add_argument("--out", type=Path, help="results; default on CUDA: results/gpu.json")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    settings = Settings(args.device, args.preset, not args.no_compile)
    if args.part:
        for record in PARTS[args.part][0](settings):
            print(json.dumps({"part": args.part, **record}), flush=True)
        return
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "preset": args.preset,
        **gpu_parts.describe_device(args.device),
    }
    print(json.dumps(report), flush=True)
    passed_on = ["--device", args.device, "--preset", args.preset]
    passed_on += ["--no-compile"] if args.no_compile else []
    failed = []
    for name in args.parts:
        limit = args.limit or (6.0 if args.device == "cpu" else 1.0)
        records = run_part(name, passed_on, PARTS[name][1] * limit)
        report[name] = [{k: v for k, v in r.items() if k != "part"} for r in records]
        failed += [r for r in records if "ended" in r or "error" in r or r.get("passed") is False]
    out = args.out or (RESULTS if args.device == "cuda" else None)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if failed:
        sys.exit(f"{len(failed)} failed: {json.dumps(failed)}")


if __name__ == "__main__":
    main()
