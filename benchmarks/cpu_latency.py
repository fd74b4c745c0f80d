"""Prompt to image on this CPU: PyTorch, ONNX Runtime and plain OpenVINO against our bundles.

    python benchmarks/cpu_latency.py [--checkpoint CKPT [--clip CLIP]] [--json]

All take turns in one run (`turns.py`), with a new prompt in each turn. Without a checkpoint, an
untrained one of the published size is created: latency does not depend on the values of weights.
With CUDA, PyTorch in float16 on the GPU is measured as well; otherwise the figures in
`results/gpu.json` are shown, if they exist.

Exits with 1 if the 95th percentile of our INT8 bundle at batch 1 is a second or more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contenders
from environment import environment, has_cuda
from prepared import Prepared
from turns import Variant, joules, percentile

from runtime.compiled import has_bf16

EAGER = "PyTorch eager float32"
OURS = {
    "fp32": "galip-edge float32",
    "bf16": "galip-edge bfloat16",
    "int8": "galip-edge INT8",
}
NAIVE = "OpenVINO INT8, NNCF's defaults"
DEPLOYED = OURS["int8"]
GPU = "PyTorch float16, GPU"
LIMIT_SECONDS = 1.0
GPU_RESULTS = Path(__file__).parent / "results" / "gpu.json"

COLOURS = ("red", "blue", "green", "white", "black", "brown", "yellow", "orange", "pink", "grey")


def prompt_of(turn: int) -> str:
    """A different prompt for each of a hundred turns, all of the same length."""
    body, beak = COLOURS[turn % 10], COLOURS[turn // 10 % 10]
    return f"a small {body} bird with a {beak} beak, sitting on a rock near the sea"


def timed(make: str, *arguments: Any) -> Callable[..., dict[str, float | None]]:
    """Time a contender in its process: `run` of a `Variant`.

    Args:
        make: name of the function in `contenders` that makes it.
        arguments: of that function.
    """
    contender: contenders.Contender = getattr(contenders, make)(*arguments)

    def one(prompt: str) -> dict[str, float | None]:
        noise, energy, start = contender.noise(prompt, 1), joules(), time.perf_counter()
        sentence = contender.encode(prompt)
        encoded = time.perf_counter()
        list(contender.draw(sentence, noise))
        end, after = time.perf_counter(), joules()
        return {
            "text": encoded - start,
            "generator": end - encoded,
            "image": end - start,
            "joules": after - energy if after is not None and energy is not None else None,
        }

    def several(prompt: str, n: int) -> dict[str, float | None]:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            contender.save(prompt, n, Path(folder))
            return {"images to disk": (time.perf_counter() - start) / n}

    for _ in range(3):
        one(prompt_of(0))
    several(prompt_of(0), 8)
    return lambda prompt, n: one(prompt) if n == 1 else several(prompt, n)


def sources(made: Prepared, only: list[str] | None) -> dict[str, tuple[tuple[Any, ...], Path]]:
    """By name: arguments of `timed`, and the file or folder that a user would copy."""
    bf16 = has_bf16()
    checkpoint, bundles = made.checkpoint, made.bundles(p for p in OURS if bf16 or p != "bf16")
    tokenizer = bundles["fp32"]

    def torch(compiled: bool, precision: str, device: str = "cpu") -> tuple[tuple[Any, ...], Path]:
        return ("torch_contender", checkpoint, compiled, precision, device), checkpoint

    def onnx(folder: Path) -> tuple[tuple[Any, ...], Path]:
        return ("onnx_contender", folder, tokenizer), folder

    def openvino(folder: Path, precision: str) -> tuple[tuple[Any, ...], Path]:
        return ("openvino_contender", folder, precision, tokenizer), folder

    # Lazily: only requested models are created.
    found: dict[str, Callable[[], tuple[tuple[Any, ...], Path]]] = {
        EAGER: lambda: torch(False, "float32"),
        "PyTorch compiled float32": lambda: torch(True, "float32"),
    }
    if bf16:
        found["PyTorch compiled bfloat16"] = lambda: torch(True, "bfloat16")
    found |= {
        "ONNX Runtime float32": lambda: onnx(made.onnx()),
        "ONNX Runtime INT8, dynamic": lambda: onnx(made.onnx_int8(static=False)),
        "ONNX Runtime INT8, static": lambda: onnx(made.onnx_int8(static=True)),
        "OpenVINO float32": lambda: openvino(made.onnx(), "f32"),
    }
    if bf16:
        found["OpenVINO bfloat16"] = lambda: openvino(made.onnx(), "bf16")
    found[NAIVE] = lambda: openvino(made.naive(), "f32")
    for precision, folder in bundles.items():
        ours = (("our_contender", folder), folder)
        found[OURS[precision]] = lambda ours=ours: ours  # type: ignore[misc]
    if has_cuda():
        found[GPU] = lambda: torch(False, "float16", "cuda")
    names = [EAGER, *only, DEPLOYED] if only else list(found)
    if unknown := set(names) - set(found):
        sys.exit(f"no contender {sorted(unknown)} here: choose from {list(found)}")
    return {name: make() for name, make in found.items() if name in names}


def measure(found: dict[str, tuple[tuple[Any, ...], Path]], runs: int) -> dict[str, dict[str, Any]]:
    """Let them take turns; medians and percentiles in seconds, memory and sizes in bytes."""
    variants = {}
    for name, (arguments, _) in found.items():
        print(f"starting {name}", file=sys.stderr)
        variants[name] = Variant(timed, *arguments)
    one: dict[str, list[dict[str, float]]] = {name: [] for name in found}
    eight: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(runs):
        for name, variant in variants.items():
            one[name].append(variant.run(prompt_of(turn), 1))
            if turn % 5 == 0:
                eight[name].append(variant.run(prompt_of(turn), 8)["images to disk"])
    results: dict[str, dict[str, Any]] = {}
    for name, (_, path) in found.items():
        images = [run["image"] for run in one[name]]
        energy = [run["joules"] for run in one[name] if run["joules"] is not None]
        results[name] = {
            "median_s": statistics.median(images),
            "p95_s": percentile(images, 0.95),
            "p99_s": percentile(images, 0.99),
            "text_s": statistics.median(run["text"] for run in one[name]),
            "generator_s": statistics.median(run["generator"] for run in one[name]),
            "eight_images_per_second": 1 / statistics.median(eight[name]),
            "joules": statistics.median(energy) if energy else None,
            "peak_memory_bytes": variants[name].end(),
            "size_bytes": size_of(path),
        }
    for result in results.values():
        result["times_faster"] = results[EAGER]["median_s"] / result["median_s"]
    return results


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def stages(bundle: Path) -> dict[str, float]:
    """Median seconds of the steps common to all: tokenizing a prompt, and writing a PNG."""
    contender = contenders.our_contender(bundle)
    assert isinstance(contender, contenders.OurContender)
    tokenizer = contender.pipeline.tokenizer
    image = next(iter(contender.draw(contender.encode(prompt_of(0)), contender.noise("", 1))))
    metadata = contenders.ImageMetadata(prompt_of(0), 0, 0, "", "")
    seconds: dict[str, list[float]] = {"tokenize": [], "write PNG": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(40):
            start = time.perf_counter()
            tokenizer([prompt_of(turn)])
            tokenized = time.perf_counter()
            contenders.save_png(image, Path(folder) / "image.png", metadata)
            seconds["tokenize"].append(tokenized - start)
            seconds["write PNG"].append(time.perf_counter() - tokenized)
    return {name: statistics.median(values) for name, values in seconds.items()}


def gpu_reference(results: dict[str, dict[str, Any]]) -> str:
    """Our INT8 against a GPU's float16, in a sentence."""
    ours = results[DEPLOYED]["median_s"]
    if GPU in results:
        return f"{GPU}: the CPU takes {ours / results[GPU]['median_s']:.1f} times as long"
    if not GPU_RESULTS.exists():
        return f"{GPU}: not measured"
    known = json.loads(GPU_RESULTS.read_text(encoding="utf-8"))
    text = _fastest(known, "text encoder", 1)
    alone, many = (_fastest(known, "generator", batch) for batch in (1, 64))
    prompt_to_image = text["median_s"] + alone["median_s"]
    return (
        f"CPU INT8 takes {ours / prompt_to_image:.1f} times as long as {known['device']} in float16"
        f" ({prompt_to_image * 1e3:.1f} ms, {alone['mode']}; {many['median_s'] / 64 * 1e3:.2f} ms "
        f"per image at batch 64, {many['mode']}; PyTorch {known['torch']}, {known['date']})"
    )


def _fastest(known: dict[str, Any], what: str, batch: int) -> dict[str, Any]:
    """The float16 record of `gpu.py` with the smallest median."""
    records = (
        r
        for r in known["inference"]
        if (r["what"], r["precision"], r["batch"]) == (what, "float16", batch) and "median_s" in r
    )
    return min(({"mode": "eager", **r} for r in records), key=lambda r: r["median_s"])


def print_table(
    results: dict[str, dict[str, Any]], shared: dict[str, float], env: dict[str, Any]
) -> None:
    """Markdown, ready for README."""
    print(f"{env['cpu']}, {env['cores']} cores, {', '.join(env['instruction_sets'])}")
    print(f"OpenVINO {env['openvino']}, PyTorch {env['torch']}, NNCF {env['nncf']}, ", end="")
    print(f"ONNX Runtime {env['onnxruntime']}\n")
    print("| | prompt to image | p95, p99 | text + generator | ratio to eager ", end="")
    print("| 8 images to disk | peak memory | size |")
    print("|---|---|---|---|---|---|---|---|")
    for name, r in results.items():
        print(
            f"| {name} | {r['median_s'] * 1e3:.0f} ms "
            f"| {r['p95_s'] * 1e3:.0f}, {r['p99_s'] * 1e3:.0f} ms "
            f"| {r['text_s'] * 1e3:.1f} + {r['generator_s'] * 1e3:.0f} ms "
            f"| {r['times_faster']:.2f} x | {r['eight_images_per_second']:.1f} images/s "
            f"| {r['peak_memory_bytes'] / 1e6:.0f} MB | {r['size_bytes'] / 1e6:.0f} MB |"
        )
    print(f"\n{gpu_reference(results)}")
    for name, seconds in shared.items():
        print(f"{name}: {seconds * 1e3:.2f} ms")
    energy = results[DEPLOYED]["joules"]
    print("energy: " + ("not readable here" if energy is None else f"{energy:.1f} J an image"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, help="default: an untrained one of full size")
    parser.add_argument("--clip", type=Path, help="CLIP weights, for an original checkpoint")
    parser.add_argument("--work", type=Path, help="folder for created models")
    parser.add_argument("--runs", type=int, default=40, help="measurements of each contender")
    parser.add_argument("--only", action="append", help="one more contender than eager and ours")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    made = Prepared(args.checkpoint, args.clip, args.work)
    results = measure(sources(made, args.only), args.runs)
    shared, env = stages(made.bundle("int8")), environment()
    if args.json:
        print(json.dumps({"environment": env, "stages": shared, "results": results}, indent=1))
    else:
        print_table(results, shared, env)
    slowest = results[DEPLOYED]["p95_s"]
    if slowest >= LIMIT_SECONDS:
        sys.exit(f"p95 of {DEPLOYED} is {slowest:.2f} s, must be below {LIMIT_SECONDS:.0f} s")


if __name__ == "__main__":
    main()
