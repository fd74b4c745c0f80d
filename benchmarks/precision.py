"""Speed and fidelity of the generator in every precision, and what each part costs in INT8.

    python benchmarks/precision.py [--checkpoint CKPT] [--clip CLIP] [--captions FILE] [--json]
    python benchmarks/precision.py --parts ...    # the sensitivity search

INT8 is calibrated on captions, and all are compared with float32 on others. Compiled models take
turns in one process. Without a checkpoint it is the untrained one that cpu_latency.py makes.

With --parts, each part of the generator is quantized alone: the squared error that it adds, and the
milliseconds that it saves. The parts that lose most per millisecond are kept in float one after the
other, until that has cost 3 % of the fastest.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from prepared import Prepared

from convert.calibration import generator_samples, read_captions, text_samples
from convert.export import to_openvino
from convert.fidelity import psnr_db
from convert.quantize import GENERATOR_SCHEME, Scheme, quantize
from convert.quiet import quiet
from galip_edge.checkpoint import load_checkpoint
from galip_edge.tokenizer import build_tokenizer
from runtime.compiled import (
    CompiledModel,
    CompileOptions,
    has_bf16,
    supported_precision,
)
from runtime.cpu import available_cores
from runtime.passes import specialize_for_cpu

CHOSEN, NAIVE, HALF = "INT8", "NNCF's defaults", "INT8, half-range weights"
KEPT = GENERATOR_SCHEME.keep_float
SCHEMES: dict[str, Scheme] = {
    CHOSEN: GENERATOR_SCHEME,
    "all in INT8": Scheme(),
    **{f"{part} in float": Scheme(keep_float=(part,)) for part in KEPT},
    "INT8, RGB in float too": Scheme(keep_float=(*KEPT, "to_rgb")),
    "INT8, hidden affine layer in float too": Scheme(keep_float=(*KEPT, "hidden")),
    "INT8, visual projection in float too": Scheme(keep_float=(*KEPT, "visual_projection")),
}
_WITHIN = 1.03
_PREFIX = re.compile(r"^(generator\.)+|\.(module|block|weight|conv)(?=\.|$)")


def compiled(model: Any, precision: str) -> CompiledModel:
    """For one image, as the runtime compiles it."""
    options = CompileOptions(available_cores(), 1, precision, None)
    return CompiledModel.of(specialize_for_cpu(model.clone()), options)


def run(generator: CompiledModel, row: tuple[Any, ...]) -> Any:
    """The image (H,W,3) of a row of noise and one of sentence embeddings, in [-1,1]."""
    return generator.row(*(array[0] for array in row)).astype(np.float32) / 127.5 - 1


def quantized(generator: Any, samples: list[Any], scheme: Scheme) -> Any:
    """A copy in INT8."""
    model = generator.clone()
    quantize(model, samples, scheme)
    return model


def naive(generator: Any, samples: list[Any]) -> Any:
    """A copy in INT8 by NNCF, with its defaults for transformers."""
    import nncf

    with quiet("nncf"):
        return nncf.quantize(
            generator.clone(),
            nncf.Dataset(samples, list),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
        )


def halved(model: Any) -> Any:
    """What a CPU without VNNI makes of a model in INT8, except its convolutions of one pixel."""
    from runtime.passes import halve_weights

    model = model.clone()
    halve_weights(model)
    return model


def in_turns(
    generators: dict[str, CompiledModel], rows: list[Any], runs: int
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Median seconds of each, and its images."""
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    images: dict[str, list[Any]] = {name: [] for name in generators}
    for turn in range(max(runs, len(rows))):
        for name, generator in generators.items():
            start = time.perf_counter()
            image = run(generator, rows[turn % len(rows)])
            seconds[name].append(time.perf_counter() - start)
            if turn < len(rows):
                images[name].append(image)
    return {name: statistics.median(times) for name, times in seconds.items()}, images


def measure(
    generator: Any, samples: list[Any], rows: list[Any], names: Iterable[str], runs: int
) -> list[dict[str, Any]]:
    """PSNR on `rows` of everything that was calibrated on `samples`, and median seconds."""
    rest = supported_precision("bf16")
    generators = {"float32": compiled(generator, "f32")}
    if has_bf16():
        generators["bfloat16"] = compiled(generator, "bf16")
    for name in names:
        print(f"quantizing: {name}", file=sys.stderr)
        if name == NAIVE:
            model = naive(generator, samples)
        elif name == HALF:
            model = halved(quantized(generator, samples, GENERATOR_SCHEME))
        else:
            model = quantized(generator, samples, SCHEMES[name])
        generators[name] = compiled(model, rest)
    seconds, images = in_turns(generators, rows, runs)
    wanted, results = images["float32"], []
    for name, found in images.items():
        each = [psnr_db(image, reference) for image, reference in zip(found, wanted)]
        exact = name == "float32"
        results.append(
            {
                "name": name,
                "generator_s": seconds[name],
                "psnr_db": None if exact else psnr_db(np.stack(found), np.stack(wanted)),
                "worst_psnr_db": None if exact else min(each),
                "mean_psnr_db": None if exact else statistics.mean(each),
            }
        )
    return results


def part_of(operation: Any) -> str:
    """Part of the generator that an operation's weights belong to; the ViT is one."""
    name = _PREFIX.sub("", operation.input_value(1).get_node().get_friendly_name())
    if name.startswith("val_"):
        return "vit"
    found = re.search(r"gamma|beta|shortcut|bridge|noise_projection", name)
    return found.group() if found else name


def search(generator: Any, samples: list[Any], rows: list[Any], runs: int) -> list[dict[str, Any]]:
    """Each part alone in INT8: what it errs, what it saves, and whether it is kept in float."""
    rest = supported_precision("bf16")
    operations = [
        op
        for op in generator.get_ordered_ops()
        if op.get_type_name() in ("Convolution", "MatMul")
        and op.input_value(1).get_node().get_type_name() == "Constant"
    ]
    parts = list(dict.fromkeys(map(part_of, operations)))
    exact = compiled(generator, "f32")
    wanted = np.stack([run(exact, row) for row in rows])
    floating = compiled(generator, rest)

    def error(images: list[Any]) -> float:
        return float(np.mean(np.square(np.stack(images) - wanted)))

    results = []
    for part in parts:
        print(f"quantizing: {part}", file=sys.stderr)
        others = tuple(other for other in parts if other != part)
        model = _only(generator, samples, operations, others)
        seconds, images = in_turns({"int8": compiled(model, rest), "float": floating}, rows, runs)
        added = max(0.0, error(images["int8"]) - error(images["float"]))
        saved = seconds["float"] - seconds["int8"]
        results.append({"part": part, "squared_error": added, "saved_s": saved})
    return _greedy(results, quantized_seconds=_fastest(generator, samples, rows, runs))


def _only(generator: Any, samples: list[Any], operations: list[Any], others: Any) -> Any:
    """A copy in which no operation of the parts `others` is in INT8."""
    named = {op.get_friendly_name(): part_of(op) for op in operations}
    model = generator.clone()
    for op in model.get_ordered_ops():
        part = named.get(op.get_friendly_name())
        if part is not None:
            weights = op.input_value(1).get_node()
            prefix = "kept" if part in others else "quantized"
            weights.set_friendly_name(f"{prefix}.{weights.get_friendly_name()}")
    quantize(model, samples, Scheme(keep_float=("kept",)))
    return model


def _fastest(generator: Any, samples: list[Any], rows: list[Any], runs: int) -> float:
    model = compiled(quantized(generator, samples, Scheme()), supported_precision("bf16"))
    return in_turns({"int8": model}, rows, runs)[0]["int8"]


def _greedy(results: list[dict[str, Any]], quantized_seconds: float) -> list[dict[str, Any]]:
    """Mark what to keep: most squared error per second first, within the limit."""
    left = (_WITHIN - 1) * quantized_seconds
    shortest = 1e-6
    for row in sorted(
        results, key=lambda r: r["squared_error"] / max(r["saved_s"], shortest), reverse=True
    ):
        cost = max(row["saved_s"], 0.0)
        row["kept"] = cost <= left
        left -= cost if row["kept"] else 0.0
    return results


def print_table(results: list[dict[str, Any]]) -> None:
    """Markdown."""
    print("| generator | median | PSNR in dB, all pixels | worst image | mean of images |")
    print("|---|---|---|---|---|")
    for r in results:
        figures = (r[name] for name in ("psnr_db", "worst_psnr_db", "mean_psnr_db"))
        cells = " | ".join("" if value is None else f"{value:.1f}" for value in figures)
        print(f"| {r['name']} | {r['generator_s'] * 1e3:.1f} ms | {cells} |")


def print_parts(results: list[dict[str, Any]]) -> None:
    """Markdown."""
    print("| part in INT8, all else in float | squared error, 1e-6 | saves | kept in float |")
    print("|---|---|---|---|")
    for r in results:
        kept = "yes" if r["kept"] else ""
        saved = f"{r['saved_s'] * 1e3:.2f} ms"
        print(f"| {r['part']} | {r['squared_error'] * 1e6:.1f} | {saved} | {kept} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, help="default: an untrained one of full size")
    parser.add_argument("--clip", type=Path, help="CLIP weights, for an original checkpoint")
    parser.add_argument("--captions", type=Path, help="to calibrate on and to test, one a line")
    parser.add_argument("--samples", type=int, default=300, help="captions to calibrate on")
    parser.add_argument("--tests", type=int, default=40, help="captions to compare on")
    parser.add_argument("--runs", type=int, default=40, help="measurements of each")
    names = (*SCHEMES, HALF, NAIVE)
    parser.add_argument("--only", action="append", choices=names, help="variants of INT8")
    parser.add_argument("--parts", action="store_true", help="the sensitivity search")
    parser.add_argument("--work", type=Path, help="folder that keeps what is made")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    captions = read_captions(args.captions, args.samples + args.tests)
    tests = captions[:: len(captions) // args.tests][: args.tests]
    rest = [caption for caption in captions if caption not in tests][: args.samples]

    made = Prepared(args.checkpoint, args.clip, work=args.work)
    config = load_checkpoint(made.checkpoint).model.config
    text_encoder, generator = map(to_openvino, made.rewritten())
    tokenizer = build_tokenizer(config.clip)

    def inputs(prompts: list[str]) -> list[Any]:
        sentences = quantize(text_encoder.clone(), text_samples(tokenizer, prompts))
        return generator_samples(prompts, sentences, config.noise_dim)

    samples, rows = inputs(rest), inputs(tests)
    env = environment()
    if args.parts:
        found = {"parts": search(generator, samples, rows, args.runs)}
    else:
        results = measure(generator, samples, rows, args.only or names, args.runs)
        found = {"chosen": CHOSEN, "candidates": results}
    if args.json:
        print(json.dumps({"environment": env, **found}, indent=1))
        return
    print(f"{env['cpu']}, {env['cores']} cores, {', '.join(env['instruction_sets'])}")
    print(f"OpenVINO {env['openvino']}, NNCF {env['nncf']}\n")
    if args.parts:
        print_parts(found["parts"])
    else:
        print_table(found["candidates"])


if __name__ == "__main__":
    main()
