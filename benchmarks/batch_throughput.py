"""Overhead of a batch job over its inference, and its limit without inference.

    python benchmarks/batch_throughput.py [BUNDLE] [--items 1000000] [--json]

The default bundle is the untrained one of the published size that cpu_latency.py creates. In turns,
in one run: inference alone, by `Pipeline.generate_each`; the same as a job of one process that
writes files, and tar shards; and as a job of two processes, each with half of the cores. Then jobs
whose generator is replaced by a constant image, for what reading, files and manifest can do, and
how memory grows over many prompts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from prepared import full_size_bundle
from turns import Variant

from runtime import Job, JobOptions, Pipeline, PipelineOptions, PromptFile
from runtime.bundle import read_manifest
from runtime.images import ImageFormat
from runtime.jobs import worker
from runtime.jobs.executors import ProcessExecutor, SerialExecutor
from runtime.latent import Keyframe, keyframe_latent

COLOURS = ("red", "blue", "green", "white", "black", "brown", "yellow", "orange", "pink", "grey")
# Output format and image format of jobs of constant images.
KINDS = ("folder, png", "tar, png", "tar, jpeg")
# First entries of a job that are not measured: workers load the model.
_FIRST = 0.2
# Memory must not grow from this item on.
_SETTLED = 10_000


def prompt_of(index: int) -> str:
    return f"a small {COLOURS[index % 10]} bird on a branch, image {index}"


def rate(steps: Iterator[Any], count: int) -> float:
    """Items per second, without the first ones."""
    first, started = int(_FIRST * count), 0.0
    for index, _ in enumerate(steps, 1):
        if index == first:
            started = time.perf_counter()
    return (count - first) / (time.perf_counter() - started)


def alone(bundle: str) -> Callable[[int], float]:
    """Inference alone: encode each prompt, generate each image, discard it."""
    pipeline = Pipeline.from_bundle(bundle)
    numbers = itertools.count()

    def run(count: int) -> float:
        # New prompts in each run: the pipeline caches sentence embeddings.
        prompts = map(prompt_of, itertools.islice(numbers, count))
        latents = (keyframe_latent(pipeline, Keyframe(prompt)) for prompt in prompts)
        return rate(pipeline.synthesize_each(latents, count), count)

    return run


def as_job(bundle: str, output_format: str, workers: int) -> Callable[[int], float]:
    """A job in a new folder."""

    def run(count: int) -> float:
        with tempfile.TemporaryDirectory() as name:
            prompts = Path(name, "prompts.txt")
            prompts.write_text("\n".join(map(prompt_of, range(count))))
            executor = SerialExecutor() if workers == 1 else ProcessExecutor(workers)
            options = JobOptions(output_format=output_format, shard_size=max(1, count // 8))
            return rate(
                iter(Job(PromptFile(prompts), bundle, f"{name}/out", options, executor)), count
            )

    return run


class ConstantPipeline:
    """Replaces `Pipeline`: all images are the same."""

    def __init__(self, manifest: Any) -> None:
        self.manifest = manifest
        size = manifest.image_size
        self._image = np.full((size, size, 3), 128, np.uint8)
        self._sentence = np.zeros((1, 1), np.float32)

    @classmethod
    def from_bundle(cls, path: Path, _: PipelineOptions | None = None) -> ConstantPipeline:
        return cls(read_manifest(Path(path)))

    def prepare(self, count: int) -> None:
        pass

    def encode(self, prompts: list[str]) -> Any:
        return self._sentence

    def synthesize_each(self, rows: Iterator[Any], count: int) -> Iterator[Any]:
        for _ in rows:
            yield self._image


def without_model(bundle: str, output_format: str, image: str) -> Callable[[int], dict[str, float]]:
    """A job whose images cost nothing."""
    worker.Pipeline = ConstantPipeline  # type: ignore[assignment, misc]

    def run(count: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as name:
            prompts = Path(name, "prompts.txt")
            with prompts.open("w") as file:
                file.writelines(f"{prompt_of(i)}\n" for i in range(count))
            options = JobOptions(output_format=output_format, image_format=ImageFormat(image))
            start, settled, most = time.perf_counter(), 0, 0
            for index, _ in enumerate(Job(PromptFile(prompts), bundle, f"{name}/out", options), 1):
                if index == _SETTLED:
                    settled = memory()
                elif index % 1000 == 0:
                    most = max(most, memory())
            seconds = time.perf_counter() - start
            most = max(most, memory())
            return {"items_per_second": count / seconds, "growth_bytes": most - settled}

    return run


def memory() -> int:
    """Resident bytes of this process."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def measure(bundle: Path, count: int, runs: int) -> dict[str, float]:
    """Images per second, medians."""
    variants = {
        "inference alone": Variant(alone, str(bundle)),
        "job, files": Variant(as_job, str(bundle), "folder", 1),
        "job, tar shards": Variant(as_job, str(bundle), "tar", 1),
        "job of two processes, files": Variant(as_job, str(bundle), "folder", 2, has_children=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(runs + 1):
        for name, variant in variants.items():
            found = variant.run(count)
            if turn:  # the first one compiled
                rates[name].append(found)
    for variant in variants.values():
        variant.end()
    return {name: statistics.median(values) for name, values in rates.items()}


def measure_constant(bundle: Path, items: int, kinds: list[str]) -> dict[str, dict[str, float]]:
    """Items per second, and growth of memory in bytes."""
    found = {}
    for kind in kinds:
        print(f"constant images: {kind}", file=sys.stderr)
        variant = Variant(without_model, str(bundle), *kind.split(", "))
        found[kind] = variant.run(items)
        variant.end()
    return found


def print_tables(results: dict[str, Any], env: dict[str, Any]) -> None:
    """Markdown."""
    print(f"{env['cpu']}, {env['cores']} cores, OpenVINO {env['openvino']}; medians\n")
    print("| | images/s | of inference alone |\n|---|---|---|")
    rates = results["images_per_second"]
    for name, value in rates.items():
        print(f"| {name} | {value:.2f} | {value / rates['inference alone'] * 100:.1f} % |")
    print(f"\n| {results['items']:,} constant images | items/s | growth of memory |\n|---|---|---|")
    for name, found in results["constant"].items():
        growth = found["growth_bytes"] / 1e6
        print(f"| {name} | {found['items_per_second']:,.0f} | {growth:.0f} MB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="default: an untrained one")
    parser.add_argument("-n", type=int, default=160, help="images of each measurement")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each; 0: none")
    parser.add_argument("--items", type=int, default=100_000, help="constant images")
    parser.add_argument("--constant", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    args = parser.parse_args()
    bundle = args.bundle or full_size_bundle()
    results = {
        "images_per_second": measure(bundle, args.n, args.runs) if args.runs else {},
        "items": args.items,
        "constant": measure_constant(bundle, args.items, args.constant or list(KINDS)),
    }
    if args.json:
        print(json.dumps({"environment": environment(), **results}, indent=1))
    else:
        print_tables(results, environment())


if __name__ == "__main__":
    main()
