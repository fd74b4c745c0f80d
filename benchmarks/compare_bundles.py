"""Two bundles against each other: text encoder and generator, in turns in one process.

    python benchmarks/compare_bundles.py OLD NEW [--runs 60]

Prints medians in milliseconds, the median of the ratios NEW/OLD turn by turn, and the fidelity
that each bundle's conversion measured. Every turn has a new prompt, and the order alternates.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from contenders import SEED
from cpu_latency import prompt_of

from runtime import Pipeline
from runtime.noise import draw_noise

BURN_IN = 5


def measure(pipelines: list[Pipeline], runs: int) -> list[tuple[list[float], list[float]]]:
    """Seconds of text encoder and generator in each turn, by bundle."""
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in pipelines]
    numbers = list(range(len(pipelines)))
    for turn in range(-BURN_IN, runs):
        prompt = prompt_of(turn % 100)
        for number in numbers if turn % 2 else numbers[::-1]:
            pipeline = pipelines[number]
            noise = draw_noise(SEED, prompt, 0, pipeline.manifest.noise_dim)[None]
            start = time.perf_counter()
            sentence = pipeline.encode([prompt])
            encoded = time.perf_counter()
            pipeline.synthesize(sentence, noise)
            end = time.perf_counter()
            if turn >= 0:
                found[number][0].append(encoded - start)
                found[number][1].append(end - encoded)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bundles", type=Path, nargs=2, metavar="BUNDLE")
    parser.add_argument("--runs", type=int, default=60, help="turns, at most 95 (prompts differ)")
    args = parser.parse_args()
    pipelines = [Pipeline.from_bundle(bundle) for bundle in args.bundles]
    found = measure(pipelines, args.runs)
    for bundle, pipeline, (text, generator) in zip(args.bundles, pipelines, found):
        last = pipeline.manifest.fidelity[-1]
        print(
            f"{bundle}: text {statistics.median(text) * 1e3:.2f} ms, "
            f"generator {statistics.median(generator) * 1e3:.2f} ms; "
            f"{last['image_psnr_db']:.1f} dB, worst image {last['image_worst_psnr_db']:.1f}, "
            f"least cosine {last['sentence_cosine']:.5f}"
        )
    old, new = (list(map(sum, zip(*seconds))) for seconds in found)
    ratio = statistics.median(b / a for a, b in zip(old, new))
    print(f"second / first, both stages: {ratio:.3f}")


if __name__ == "__main__":
    main()
