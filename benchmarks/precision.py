"""Speed and fidelity of each precision, from prompt to image; and the error of each part in INT8.

    python benchmarks/precision.py [--checkpoint CKPT] [--clip CLIP] [--json]
    python benchmarks/precision.py --parts ...    # the sensitivity search

INT8 is calibrated on some captions; other captions are generated and compared with PyTorch in
float32, as images of 8 bits. Statistics are collected once for all variants. Each variant takes
turns with the chosen one, and "time" is the median of their ratios, from prompt to image. Without a
checkpoint, the model is an untrained one of full size.

With --parts, each part of the generator is quantized alone: its squared error, and the milliseconds
that it saves. The parts with the largest error per millisecond are kept in floating point, until
that has cost 3 % of the fastest.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from prepared import Prepared

from convert.calibration import generator_samples, read_captions, text_samples
from convert.export import to_openvino
from convert.quantize import (
    GENERATOR_KEEP_FLOAT,
    TEXT_ENCODER_KEEP_FLOAT,
    apply_statistics,
    quantized_tensors,
)
from convert.statistics import Statistics, Tensor, collect_statistics
from galip_edge.checkpoints.format import load_checkpoint
from galip_edge.tokenizer import build_tokenizer
from runtime.compiled import CompiledModel, CompileOptions, has_bf16, supported_precision
from runtime.cpu import available_cores
from runtime.golden import worst_cosine, worst_psnr_db
from runtime.passes import halve_weights, specialize_for_cpu

CHOSEN = "INT8"
_PARTS = GENERATOR_KEEP_FLOAT
_WITHIN = 1.03
_TOKENS = 77
_PREFIX = re.compile(r"^(generator\.)+|\.(module|block|weight|conv)(?=\.|$)")


@dataclass(frozen=True)
class Variant:
    """How both models are computed.

    Attributes:
        precision: of layers that are not INT8, f32 or bf16.
        text_encoder, generator: parts kept in floating point; None: the whole model.
        halved: weights have half the range, as on a CPU without VNNI.
    """

    precision: str = "bf16"
    text_encoder: tuple[str, ...] | None = TEXT_ENCODER_KEEP_FLOAT
    generator: tuple[str, ...] | None = GENERATOR_KEEP_FLOAT
    halved: bool = False


VARIANTS: dict[str, Variant] = {
    "float32": Variant("f32", None, None),
    "bfloat16": Variant("bf16", None, None),
    CHOSEN: Variant(),
    "INT8, text encoder in float": Variant(text_encoder=None),
    "all in INT8": Variant(text_encoder=(), generator=()),
    **{
        f"INT8, without {part} in float": Variant(generator=tuple(p for p in _PARTS if p != part))
        for part in _PARTS
    },
    "INT8, RGB in float too": Variant(generator=(*_PARTS, "to_rgb")),
    "INT8, hidden affine layer in float too": Variant(generator=(*_PARTS, "hidden")),
    "INT8, visual projection in float too": Variant(generator=(*_PARTS, "visual_projection")),
    "INT8, half-range weights": Variant(halved=True),
}


@dataclass(frozen=True)
class Setting:
    """Models, their statistics, and what to compare with.

    Attributes:
        text_encoder, generator: in float32.
        text_statistics, generator_statistics: of all activations.
        tokens, noise: inputs (P,L) and (P,Z) of the test prompts.
        sentence, image: PyTorch's (P,E) float32 and (P,H,W,3) uint8.
    """

    text_encoder: Any
    generator: Any
    text_statistics: Mapping[Tensor, Statistics]
    generator_statistics: Mapping[Tensor, Statistics]
    tokens: Any
    noise: Any
    sentence: Any
    image: Any


def prepare(args: argparse.Namespace) -> Setting:
    """Export the checkpoint, run PyTorch on the test prompts, and collect statistics."""
    captions = read_captions(args.captions, args.samples + args.tests)
    tests = captions[:: len(captions) // args.tests][: args.tests]
    rest = [caption for caption in captions if caption not in tests][: args.samples]
    made = Prepared(args.checkpoint, args.clip, work=args.work)
    text_encoder, generator = map(to_openvino, made.rewritten())
    model = load_checkpoint(made.checkpoint).model
    tokenizer, size = build_tokenizer(model.config.clip), model.config.noise_dim
    tokens = tokenizer(tests)
    noise = np.concatenate([noise for noise, _ in generator_samples(tests, tests, size)])
    sentence, image = _pytorch(model, tokens, noise)
    del model
    print(f"collecting statistics of {len(rest)} captions", file=sys.stderr)
    text_statistics, sentences = collect_statistics(
        text_encoder, quantized_tensors(text_encoder), text_samples(tokenizer, rest)
    )
    generator_statistics, _ = collect_statistics(
        generator, quantized_tensors(generator), generator_samples(rest, sentences, size)
    )
    return Setting(
        text_encoder,
        generator,
        text_statistics,
        generator_statistics,
        tokens,
        noise,
        sentence,
        image,
    )


def _pytorch(model: Any, tokens: Any, noise: Any) -> tuple[Any, Any]:
    """Sentence embeddings, and images as 8-bit levels."""
    import torch

    with torch.inference_mode():
        sentence = model.text_encoder(torch.from_numpy(tokens))
        images = [
            model.generator(torch.from_numpy(noise[i : i + 1]), sentence[i : i + 1])
            for i in range(len(noise))
        ]
        levels = (torch.cat(images).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return sentence.numpy(), levels.permute(0, 2, 3, 1).numpy()


def compiled(model: Any, precision: str, columns: int | None = None) -> CompiledModel:
    """For a batch of one, as the runtime compiles it."""
    options = CompileOptions(available_cores(), 1, precision, None)
    return CompiledModel.of(specialize_for_cpu(model.clone()), options, columns)


def quantized(
    model: Any,
    found: Mapping[Tensor, Statistics],
    keep_float: Sequence[str] | None,
    variant: Variant,
) -> Any:
    """A copy in INT8; `keep_float` None: the model itself."""
    if keep_float is None:
        return model
    copy = model.clone()
    apply_statistics(copy, found, keep_float)
    if variant.halved:
        halve_weights(copy)
    return copy


@dataclass
class Compiled:
    """Both models of a variant, and their results in each turn."""

    text_encoder: CompiledModel
    generator: CompiledModel
    seconds: list[tuple[float, float]] = field(default_factory=list)
    outputs: list[tuple[Any, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, variant: Variant, made: Setting) -> Compiled:
        """Quantize and compile."""
        precision = supported_precision(variant.precision)
        text, generator = (
            quantized(made.text_encoder, made.text_statistics, variant.text_encoder, variant),
            quantized(made.generator, made.generator_statistics, variant.generator, variant),
        )
        return cls(compiled(text, precision, _TOKENS), compiled(generator, precision))

    def run(self, tokens: Any, noise: Any) -> None:
        """Generate an image."""
        start = time.perf_counter()
        sentence = self.text_encoder.infer(tokens)
        encoded = time.perf_counter()
        image = self.generator.infer(noise, sentence)
        self.seconds.append((encoded - start, time.perf_counter() - encoded))
        self.outputs.append((sentence, image))


def measure(made: Setting, names: Sequence[str], runs: int) -> list[dict[str, Any]]:
    """Times and distance from PyTorch of each variant, which takes turns with the chosen one."""
    chosen, count = Compiled.of(VARIANTS[CHOSEN], made), len(made.tokens)
    results = []
    for name in names:
        print(f"measuring: {name}", file=sys.stderr)
        variant = Compiled.of(VARIANTS[name], made)
        chosen.seconds, chosen.outputs = [], []
        for turn in range(max(runs, count)):
            for each in (chosen, variant) if turn % 2 else (variant, chosen):
                each.run(made.tokens[turn % count], made.noise[turn % count])
        of_chosen, of_variant = (list(map(sum, c.seconds)) for c in (chosen, variant))
        ratio = statistics.median(b / a for a, b in zip(of_chosen, of_variant))
        results.append({"name": name, "ratio": ratio, **_result(variant, made)})
    return results


def _result(variant: Compiled, made: Setting) -> dict[str, float]:
    sentences, images = map(np.stack, zip(*variant.outputs[: len(made.tokens)]))
    text, generator = map(statistics.median, zip(*variant.seconds))
    each = [worst_psnr_db(a[None], b[None]) for a, b in zip(images, made.image)]
    # All pixels together: the mean of the squared errors, not of the decibels.
    errors = np.mean([10 ** (-psnr / 10) for psnr in each])
    return {
        "text_s": text,
        "generator_s": generator,
        "psnr_db": float(-10 * np.log10(errors)),
        "worst_psnr_db": min(each),
        "mean_psnr_db": statistics.mean(each),
        "worst_cosine": worst_cosine(sentences, made.sentence),
    }


def part_of(operation: Any) -> str:
    """Part of the generator that an operation's weights belong to; the ViT is one."""
    name = _PREFIX.sub("", operation.input_value(1).get_node().get_friendly_name())
    if name.startswith("val_"):
        return "vit"
    found = re.search(r"gamma|beta|shortcut|bridge|mapping|noise_projection", name)
    return found.group() if found else name


def search(made: Setting, runs: int) -> list[dict[str, Any]]:
    """Each part of the generator alone in INT8: its error, what it saves, whether it is kept."""
    operations = [
        op
        for op in made.generator.get_ordered_ops()
        if op.get_type_name() in ("Convolution", "MatMul")
        and op.input_value(1).get_node().get_type_name() == "Constant"
    ]
    named = {op.get_friendly_name(): part_of(op) for op in operations}
    rest, rows = supported_precision("bf16"), list(zip(made.noise, made.sentence))
    floating = compiled(made.generator, rest)
    error_of_float = _squared_error(floating, rows, made.image)
    results = []
    for part in dict.fromkeys(named.values()):
        print(f"quantizing: {part}", file=sys.stderr)
        alone = compiled(_only(made, named, part), rest)
        seconds = _in_turns({"int8": alone, "float": floating}, rows, runs)
        added = max(0.0, _squared_error(alone, rows, made.image) - error_of_float)
        saved = seconds["float"] - seconds["int8"]
        results.append({"part": part, "squared_error": added, "saved_s": saved})
    whole = quantized(made.generator, made.generator_statistics, (), Variant())
    fastest = _in_turns({"int8": compiled(whole, rest)}, rows, runs)["int8"]
    return _greedy(results, fastest)


def _only(made: Setting, named: Mapping[str, str], part: str) -> Any:
    """A copy of the generator with that part in INT8."""
    model = made.generator.clone()
    for op in model.get_ordered_ops():
        if op.get_friendly_name() in named:
            weights = op.input_value(1).get_node()
            prefix = "quantized" if named[op.get_friendly_name()] == part else "kept"
            weights.set_friendly_name(f"{prefix}.{weights.get_friendly_name()}")
    apply_statistics(model, made.generator_statistics, ("kept",))
    return model


def _squared_error(generator: CompiledModel, rows: Sequence[Any], wanted: Any) -> float:
    """Mean over all pixels, in units of the range from -1 to 1."""
    images = np.stack([generator.infer(*row) for row in rows]).astype(np.float32)
    return float(np.mean(np.square((images - wanted) / 127.5)))


def _in_turns(
    generators: Mapping[str, CompiledModel], rows: Sequence[Any], runs: int
) -> dict[str, float]:
    """Median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    for turn in range(runs):
        for name, generator in generators.items():
            start = time.perf_counter()
            generator.infer(*rows[turn % len(rows)])
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


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
    print("| | text encoder | generator | time | PSNR, all pixels | worst image | least cosine |")
    print("|---|---|---|---|---|---|---|")
    for r in results:
        text, generator = (f"{r[name] * 1e3:.1f} ms" for name in ("text_s", "generator_s"))
        psnr, worst = (f"{r[name]:.1f} dB" for name in ("psnr_db", "worst_psnr_db"))
        print(
            f"| {r['name']} | {text} | {generator} | {r['ratio']:.3f} | {psnr} | {worst} "
            f"| {r['worst_cosine']:.5f} |"
        )


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
    parser.add_argument("--samples", type=int, default=260, help="captions to calibrate on")
    parser.add_argument("--tests", type=int, default=40, help="captions to compare on")
    parser.add_argument("--runs", type=int, default=40, help="measurements of each")
    parser.add_argument("--only", action="append", choices=VARIANTS, help="variants to measure")
    parser.add_argument("--parts", action="store_true", help="the sensitivity search")
    parser.add_argument("--work", type=Path, help="folder that keeps exported models")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    names = args.only or [n for n in VARIANTS if n != "bfloat16" or has_bf16()]
    env, made = environment(), prepare(args)
    if args.parts:
        found: dict[str, Any] = {"parts": search(made, args.runs)}
    else:
        found = {"chosen": CHOSEN, "candidates": measure(made, names, args.runs)}
    if args.json:
        print(json.dumps({"environment": env, **found}, indent=1))
        return
    print(f"{env['cpu']}, {env['cores']} cores, {', '.join(env['instruction_sets'])}")
    print(f"OpenVINO {env['openvino']}\n")
    if args.parts:
        print_parts(found["parts"])
    else:
        print_table(found["candidates"])


if __name__ == "__main__":
    main()
