"""Images per second over threads, streams, number and size of images; memory, which stays flat.

    python benchmarks/scaling.py [BUNDLE] [--json]

The default bundle is the untrained one of the published size that cpu_latency.py creates. All
settings take turns in one run (`turns.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environment import environment
from prepared import Prepared, full_size_bundle
from turns import Variant, peak_memory

from runtime.cpu import available_cores

PROMPT = "a small red bird with a yellow beak, sitting on a rock near the sea"


def generating(bundle: str, threads: int, streams: int) -> Callable[[int], tuple[float, int]]:
    """A function from a number of images to seconds, and to the peak memory so far in bytes."""
    from runtime import Pipeline, PipelineOptions

    pipeline = Pipeline.from_bundle(bundle, PipelineOptions(threads, streams))
    pipeline.generate(PROMPT, n=max(streams, 1))

    def run(n: int) -> tuple[float, int]:
        start = time.perf_counter()
        for _ in pipeline.generate_each(PROMPT, n=n):
            pass  # not kept, as a job would not
        seconds = time.perf_counter() - start
        return seconds, peak_memory()

    return run


def over_settings(bundle: Path, n: int, runs: int) -> list[dict[str, float]]:
    """Throughput of every sensible pair of threads and streams."""
    cores = available_cores()
    counts = sorted({1, 2, 4, cores // 2, cores} & set(range(1, cores + 1)))
    settings = {
        (threads, streams): Variant(generating, str(bundle), threads, streams)
        for threads in counts
        for streams in sorted({1, max(1, threads // 2), threads, 2 * threads})
    }
    seconds: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    for _ in range(runs):
        for setting, variant in settings.items():
            seconds[setting].append(variant.run(n)[0])
    return [
        {
            "threads": threads,
            "streams": streams,
            "images_per_second": n / statistics.median(seconds[threads, streams]),
            "peak_memory_bytes": variant.end(),
        }
        for (threads, streams), variant in settings.items()
    ]


def over_counts(bundle: Path, most: int) -> list[dict[str, float]]:
    """Throughput with default options, from one image on."""
    variant = Variant(generating, str(bundle), 0, 0)
    results = []
    for n in (1, 2, 4, 8, 16, 64, 256, 1000):
        if n <= most:
            variant.run(n)  # the streams for this number are compiled now
            seconds, peak = variant.run(n)
            results.append({"n": n, "images_per_second": n / seconds, "peak_memory_bytes": peak})
    variant.end()
    return results


def over_sizes(sizes: list[int], n: int, runs: int) -> list[dict[str, float]]:
    """Published dimensions, untrained, at other image sizes: one image, and many in parallel."""
    variants = {
        size: Variant(generating, str(Prepared(image_size=size).bundle("int8")), 0, 0)
        for size in sizes
    }
    seconds: dict[int, dict[int, list[float]]] = {size: {1: [], n: []} for size in sizes}
    for count in (1, n):
        for _ in range(runs + 1):
            for size, variant in variants.items():
                seconds[size][count].append(variant.run(count)[0])
    return [
        {
            "image_size": size,
            # The first run of each compiled.
            "image_s": statistics.median(seconds[size][1][1:]),
            "images_per_second": n / statistics.median(seconds[size][n][1:]),
            "peak_memory_bytes": variant.end(),
        }
        for size, variant in variants.items()
    ]


def print_tables(results: dict[str, Any], env: dict[str, Any]) -> None:
    """Markdown."""
    print(f"{env['cpu']}, {env['cores']} cores, OpenVINO {env['openvino']}\n")
    print("| threads | streams | images/s | peak memory |\n|---|---|---|---|")
    for r in results["settings"]:
        memory = r["peak_memory_bytes"] / 1e6
        print(
            f"| {r['threads']} | {r['streams']} | {r['images_per_second']:.2f} | {memory:.0f} MB |"
        )
    print("\n| n, options chosen by it | images/s | peak memory so far |\n|---|---|---|")
    for r in results["counts"]:
        memory = r["peak_memory_bytes"] / 1e6
        print(f"| {r['n']} | {r['images_per_second']:.2f} | {memory:.0f} MB |")


def print_sizes(results: list[dict[str, float]]) -> None:
    """Markdown."""
    print("\n| size | one image | images/s, many | peak memory |\n|---|---|---|---|")
    for r in results:
        memory = r["peak_memory_bytes"] / 1e6
        print(
            f"| {r['image_size']} px | {r['image_s'] * 1e3:.0f} ms "
            f"| {r['images_per_second']:.1f} | {memory:.0f} MB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="default: an untrained one")
    parser.add_argument("-n", type=int, default=16, help="images of each measurement of a setting")
    parser.add_argument("--most", type=int, default=1000, help="largest number of images")
    parser.add_argument(
        "--size", type=int, action="append", help="images of untrained models, in pixels"
    )
    parser.add_argument("--runs", type=int, default=5, help="measurements of each setting")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    args = parser.parse_args()
    bundle = args.bundle or full_size_bundle()
    results = {
        "settings": over_settings(bundle, args.n, args.runs),
        "counts": over_counts(bundle, args.most),
        "sizes": over_sizes(args.size or [64, 128, 224, 256], args.n, args.runs),
    }
    if args.json:
        print(json.dumps({"environment": environment(), **results}, indent=1))
    else:
        print_tables(results, environment())
        print_sizes(results["sizes"])


if __name__ == "__main__":
    main()
