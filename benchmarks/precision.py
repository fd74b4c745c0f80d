"""Speed and fidelity of the generator in every precision, and in INT8 by several schemes.

    python benchmarks/precision.py [--checkpoint CKPT] [--captions FILE] [--json]

INT8 is calibrated on captions, and all are compared with float32 on others. Compiled models take
turns in one process. Without a checkpoint it is the untrained one that cpu_latency.py makes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from prepared import Prepared

from convert.calibration import make_samples, read_captions
from convert.export import to_openvino
from convert.fidelity import psnr_db
from convert.quantize import SCHEMES as CHOSEN_SCHEMES
from convert.quantize import Scheme, quantize
from galip_edge.checkpoint import load_checkpoint
from galip_edge.tokenizer import build_tokenizer
from runtime.compiled import (
    CompiledModel,
    CompileOptions,
    for_this_cpu,
    has_bf16,
    supported_precision,
)
from runtime.cpu import available_cores

CHOSEN, MIXED = "INT8", "mixed"
INPUTS = CHOSEN_SCHEMES["mixed"].in_float
SCHEMES: dict[str, Scheme] = {
    CHOSEN: CHOSEN_SCHEMES["int8"],
    MIXED: CHOSEN_SCHEMES["mixed"],
    "noise projection in float": Scheme(in_float=("noise_projection",)),
    "bridge in float": Scheme(in_float=("bridge",)),
    "affine networks in float": Scheme(in_float=("gamma", "beta")),
    "RGB in float": Scheme(in_float=("to_rgb",)),
    "last block and RGB in float": Scheme(in_float=("upsampling.5", "to_rgb")),
    "mixed, and affine networks in float": Scheme(in_float=(*INPUTS, "gamma", "beta")),
    "mixed, and affine networks whole in float": Scheme(
        in_float=(*INPUTS, "gamma", "beta", "hidden", "prompt_predictor")
    ),
    "NNCF's defaults": Scheme(ranges="mean", smooth_convolutions=None),
    "mean ranges": Scheme(ranges="mean"),
    "histogram ranges": Scheme(ranges="histogram"),
    "convolutions not smoothed": Scheme(smooth_convolutions=None),
    "convolutions smoothed by 0.7": Scheme(smooth_convolutions=0.7),
    "matrices smoothed by 0.5": Scheme(smooth_matrices=0.5),
    "nothing smoothed": Scheme(smooth_matrices=None, smooth_convolutions=None),
    "whole weights": Scheme(whole_weights=True),
    "accurate bias": Scheme(accurate_bias=True),
}


def compiled(model: Any, precision: str) -> CompiledModel:
    """For one image, as the runtime compiles it."""
    options = CompileOptions(available_cores(), 1, precision, None)
    return CompiledModel.of(for_this_cpu(model.clone()), options)


def run(generator: CompiledModel, row: tuple[Any, ...]) -> Any:
    """The image (H,W,3) of a row of noise and one of sentence embeddings, in [-1,1]."""
    return generator.row(*(array[0] for array in row)).astype(np.float32) / 127.5 - 1


def measure(
    made: Prepared, captions: list[str], tests: list[str], names: list[str], runs: int
) -> list[dict[str, Any]]:
    """PSNR on `tests` of everything that was calibrated on `captions`, and median seconds."""
    model = load_checkpoint(made.checkpoint).model
    tokenizer = build_tokenizer(model.config.clip)
    generator = to_openvino(made.rewritten_generator())
    samples = make_samples(model, tokenizer, captions).generator
    rows = make_samples(model, tokenizer, tests).generator
    rest = supported_precision("bf16")
    generators = {"float32": compiled(generator, "f32")}
    if has_bf16():
        generators["bfloat16"] = compiled(generator, "bf16")
    for name in names:
        print(f"quantizing: {name}", file=sys.stderr)
        generators[name] = compiled(quantize(generator, samples, SCHEMES[name]), rest)
    wanted = [run(generators["float32"], row) for row in rows]
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    images: dict[str, list[Any]] = {name: [] for name in generators}
    for turn in range(max(runs, len(rows))):
        for name, compiled_generator in generators.items():
            start = time.perf_counter()
            image = run(compiled_generator, rows[turn % len(rows)])
            seconds[name].append(time.perf_counter() - start)
            if turn < len(rows):
                images[name].append(image)
    results = []
    for name, found in images.items():
        each = [psnr_db(image, reference) for image, reference in zip(found, wanted)]
        exact = name == "float32"
        results.append(
            {
                "name": name,
                "generator_s": statistics.median(seconds[name]),
                "psnr_db": None if exact else psnr_db(np.stack(found), np.stack(wanted)),
                "worst_psnr_db": None if exact else min(each),
                "mean_psnr_db": None if exact else statistics.mean(each),
            }
        )
    return results


def print_table(results: list[dict[str, Any]], env: dict[str, Any]) -> None:
    """Markdown."""
    print(f"{env['cpu']}, {env['cores']} cores, {', '.join(env['instruction_sets'])}")
    print(f"OpenVINO {env['openvino']}, NNCF {env['nncf']}\n")
    print("| generator | median | PSNR in dB, all pixels | worst image | mean of images |")
    print("|---|---|---|---|---|")
    for r in results:
        figures = (r[name] for name in ("psnr_db", "worst_psnr_db", "mean_psnr_db"))
        cells = " | ".join("" if value is None else f"{value:.1f}" for value in figures)
        print(f"| {r['name']} | {r['generator_s'] * 1e3:.1f} ms | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, help="default: an untrained one of full size")
    parser.add_argument("--captions", type=Path, help="to calibrate on and to test, one a line")
    parser.add_argument("--samples", type=int, default=300, help="captions to calibrate on")
    parser.add_argument("--tests", type=int, default=40, help="captions to compare on")
    parser.add_argument("--runs", type=int, default=40, help="measurements of each")
    parser.add_argument("--only", action="append", choices=SCHEMES, help="schemes of INT8")
    parser.add_argument("--work", type=Path, help="folder that keeps what is made")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    args = parser.parse_args()
    captions = read_captions(args.captions, args.samples + args.tests)
    tests = captions[:: len(captions) // args.tests][: args.tests]
    rest = [caption for caption in captions if caption not in tests][: args.samples]
    results = measure(
        Prepared(args.checkpoint, work=args.work),
        rest,
        tests,
        args.only or list(SCHEMES),
        args.runs,
    )
    if args.json:
        found = {"environment": environment(), "chosen": CHOSEN, "candidates": results}
        print(json.dumps(found, indent=1))
    else:
        print_table(results, environment())


if __name__ == "__main__":
    main()
