"""Prompt to uint8 image on this CPU: PyTorch eager float32 against our bundles, in one run.

    python benchmarks/cpu_latency.py [--checkpoint CKPT [--clip CLIP]] [--json]

Without a checkpoint an untrained one of the published size is made: latency does not depend on
the values of weights. Every variant lives in a process of its own, so that its peak memory is its
own, and the variants take turns, so that a slow moment of the machine hits all of them.

Exits with 1 if the 95th percentile of the deployed precision (INT8) at batch 1 is a second or more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROMPT = "a small red bird with a yellow beak, sitting on a rock near the sea"
EAGER = "PyTorch eager float32"
BUNDLES = {"fp32": "OpenVINO float32", "bf16": "OpenVINO bfloat16", "int8": "OpenVINO INT8"}
DEPLOYED = BUNDLES["int8"]
LIMIT_SECONDS = 1.0


def eager(checkpoint: str) -> Callable[[int], Any]:
    """Our PyTorch model in the published order; returns a function from n to images."""
    import numpy as np
    import torch
    from published import in_published_order

    from galip_edge.checkpoint import load_checkpoint
    from galip_edge.tokenizer import build_tokenizer
    from runtime.cpu import available_cores
    from runtime.noise import draw_noise

    torch.set_num_threads(available_cores())
    model = load_checkpoint(Path(checkpoint)).model
    in_published_order(model.generator)
    tokenizer = build_tokenizer(model.config.clip)

    def generate(n: int) -> Any:
        noise = np.stack([draw_noise(0, PROMPT, i, model.config.noise_dim) for i in range(n)])
        with torch.inference_mode():
            sentence = model.text_encoder(torch.from_numpy(tokenizer(PROMPT))).expand(n, -1)
            images = model.generator(torch.from_numpy(noise), sentence).clamp(-1, 1)
            return (images * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    return generate


def bundle(folder: str) -> Callable[[int], Any]:
    """The runtime, as `galip-edge generate` uses it; returns a function from n to images."""
    from runtime import Pipeline, PipelineOptions

    pipeline = Pipeline.from_bundle(folder, PipelineOptions(cache=False))
    return lambda n: pipeline.generate(PROMPT, n=n)


def worker(kind: str, source: str, connection: Any) -> None:
    """Run as many images as asked for, answering with seconds; at the end with peak memory."""
    generate = {"eager": eager, "bundle": bundle}[kind](source)
    for _ in range(3):
        generate(1)
    connection.send("ready")
    while n := connection.recv():
        start = time.perf_counter()
        generate(n)
        connection.send(time.perf_counter() - start)
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def build_bundles(
    checkpoint: Path, clip: Path | None, work: Path, precisions: Iterable[str] = BUNDLES
) -> dict[str, Path]:
    """Convert the checkpoint to each precision, once: a bundle that is there is used again."""
    from convert import ConvertOptions, convert

    folders = {precision: work / precision for precision in precisions}
    for precision, folder in folders.items():
        if not folder.exists():
            print(f"converting to {precision}", file=sys.stderr)
            # 16 samples do: latency does not depend on the ranges that are found.
            options = ConvertOptions(precision=precision, samples=16, min_psnr=0)
            convert(checkpoint, folder, options, clip=clip)
    return folders


def untrained_checkpoint(path: Path) -> Path:
    """A checkpoint of the published size with fresh weights, made once."""
    if not path.exists():
        import torch

        from galip_edge.checkpoint import save_checkpoint
        from galip_edge.models import GALIP, PRESETS

        torch.manual_seed(0)
        save_checkpoint(GALIP(PRESETS["coco"]), path)
    return path


def default_bundle() -> Path:
    """The INT8 bundle of an untrained model of the published size, made once."""
    work = work_folder()
    checkpoint = untrained_checkpoint(work / "untrained.safetensors")
    return build_bundles(checkpoint, None, work, ["int8"])["int8"]


def work_folder(path: Path | None = None) -> Path:
    """Where bundles are made and found again: `path`, or one in the user's cache folder."""
    from runtime.cache import cache_folder

    path = path or cache_folder() / "benchmarks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of all values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(sources: dict[str, tuple[str, str]], runs: int) -> dict[str, dict[str, float]]:
    """Let the variants take turns; seconds and bytes for each."""
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for name, (kind, source) in sources.items():
        connections[name], theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(kind, source, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        connections[name].recv()

    def ask(name: str, n: int) -> float:
        connections[name].send(n)
        return float(connections[name].recv())

    one: dict[str, list[float]] = {name: [] for name in sources}
    eight: dict[str, list[float]] = {name: [] for name in sources}
    for i in range(runs):
        for name in sources:
            one[name].append(ask(name, 1))
            if i % 5 == 0:
                eight[name].append(ask(name, 8))
    results = {
        name: {
            "latency_median_s": statistics.median(one[name]),
            "latency_p95_s": percentile(one[name], 0.95),
            "eight_images_median_s": statistics.median(eight[name]),
            "peak_memory_bytes": ask(name, 0),
        }
        for name in sources
    }
    for result in results.values():
        result["times_faster"] = results[EAGER]["latency_median_s"] / result["latency_median_s"]
    for process in processes:
        process.join()
    return results


def environment() -> dict[str, Any]:
    """Hardware and versions, without which a figure means nothing."""
    from runtime.cpu import available_cores, cpu_name, instruction_sets

    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "instruction_sets": instruction_sets(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "openvino", "nncf", "galip-edge")},
    }


def print_table(results: dict[str, dict[str, float]], env: dict[str, Any]) -> None:
    """Markdown, ready for README."""
    print(f"{env['cpu']}, {env['cores']} cores, {', '.join(env['instruction_sets'])}")
    print(f"OpenVINO {env['openvino']}, PyTorch {env['torch']}, NNCF {env['nncf']}\n")
    print("| | batch 1, median | p95 | ratio to eager | 8 images | peak memory |")
    print("|---|---|---|---|---|---|")
    for name, r in results.items():
        print(
            f"| {name} | {r['latency_median_s'] * 1e3:.0f} ms | {r['latency_p95_s'] * 1e3:.0f} ms "
            f"| {r['times_faster']:.2f} x | {r['eight_images_median_s'] * 1e3:.0f} ms "
            f"| {r['peak_memory_bytes'] / 1e6:.0f} MB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, help="default: an untrained one of full size")
    parser.add_argument("--clip", type=Path, help="CLIP weights, for an original checkpoint")
    parser.add_argument("--work", type=Path, help="folder for bundles; reused if it is there")
    parser.add_argument("--runs", type=int, default=40, help="measurements of each variant")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    args = parser.parse_args()
    work = work_folder(args.work)
    checkpoint = args.checkpoint or untrained_checkpoint(work / "untrained.safetensors")
    folders = build_bundles(checkpoint, args.clip, work)
    if args.clip is not None:
        checkpoint = own_format(checkpoint, args.clip, work / "own.safetensors")
    sources = {EAGER: ("eager", str(checkpoint))}
    sources |= {BUNDLES[p]: ("bundle", str(folder)) for p, folder in folders.items()}
    results, env = measure(sources, args.runs), environment()
    if args.json:
        print(json.dumps({"environment": env, "prompt": PROMPT, "results": results}, indent=1))
    else:
        print_table(results, env)
    slowest = results[DEPLOYED]["latency_p95_s"]
    if slowest >= LIMIT_SECONDS:
        sys.exit(f"p95 of {DEPLOYED} is {slowest:.2f} s, must be below {LIMIT_SECONDS:.0f} s")


def own_format(checkpoint: Path, clip: Path, path: Path) -> Path:
    """An original checkpoint and its CLIP in one file of ours, for the eager variant."""
    from galip_edge.checkpoint import load_checkpoint, save_checkpoint

    save_checkpoint(load_checkpoint(checkpoint, clip).model, path)
    return path


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # an idle variant must not spin
    main()
