"""The training loop's step against the plain one: images/s, peak memory, and the loop's overhead.

    python benchmarks/training_step.py --batch 4 --steps 4 --json

`plain` is eager float32 in the published order of operations (resize first), on one batch that
stays in memory, encoding its text in every step. The others are `galip-edge train` itself, reading
JPEGs of COCO's size from disk with enough workers that it hardly ever waits for them: the share of
waiting time is reported, with a warning above 5 %. Every variant runs in separate processes, in
turn, `--rounds` times; the first steps of each are skipped, and medians are reported. CLIP's
weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment as machine
from PIL import Image
from published import in_published_order

from galip_edge.models import GALIP, PRESETS
from galip_edge.tokenizer import build_tokenizer
from galip_edge.training.config import TrainConfig
from galip_edge.training.fast_attention import use_training_copy
from galip_edge.training.losses import LossConfig, discriminator_loss, generator_loss
from galip_edge.training.run import train
from runtime.cpu import available_cores

BURN_IN = 2
MOST_WAITING = 0.05
CAPTION = "a man riding a wave on top of a surfboard, image {}"


@dataclass(frozen=True)
class Task:
    """Measurements of one process."""

    variant: str
    preset: str
    device: str
    batch: int
    steps: int
    threads: int
    workers: int
    folder: str


def measure_plain(task: Task) -> dict[str, Any]:
    """Eager float32, published order, unfused Adam; the text is encoded in every step."""
    config = PRESETS[task.preset]
    model = GALIP(config).to(task.device)
    in_published_order(model.generator)
    use_training_copy(model, "float32")  # open_clip's attention, slow on CPUs, would flatter us
    g_adam, d_adam = (
        torch.optim.Adam(
            [p for p in network.parameters() if p.requires_grad],
            lr=rate,
            betas=(0.0, 0.9),
            foreach=False,
        )
        for network, rate in ((model.generator, 1e-4), (model.discriminator, 4e-4))
    )
    images = torch.rand(task.batch, 3, 256, 256, device=task.device) * 2 - 1
    captions = [CAPTION.format(i) for i in range(task.batch)]
    tokens = torch.from_numpy(build_tokenizer(config.clip)(captions)).to(task.device)
    weights = LossConfig()

    def step() -> None:
        with torch.no_grad():
            sentence = model.text_encoder(tokens)
            real, _ = model.image_encoder(images)
        noise = torch.randn(task.batch, config.noise_dim, device=task.device)
        fake, embedding = model.image_encoder(model.generator(noise, sentence))
        loss = discriminator_loss(
            model.discriminator, real, fake, sentence, sentence.roll(-1, 0), weights
        )
        d_adam.zero_grad()
        loss.total.backward()
        d_adam.step()
        g_adam.zero_grad()
        generator_loss(model.discriminator, fake, embedding, sentence, weights).total.backward()
        g_adam.step()
        if task.device == "cuda":
            torch.cuda.synchronize()

    seconds = []
    for _ in range(BURN_IN + task.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[BURN_IN:]}


def measure_loop(task: Task) -> dict[str, Any]:
    """`train` on a folder of JPEGs; its own metrics state the time of each step and its parts."""
    precision, _, compiled = task.variant.partition("+")
    with tempfile.TemporaryDirectory() as output:
        config = TrainConfig.from_dict(
            {
                "output": output,
                "model": {"preset": task.preset},
                "data": {"kind": "folder", "root": task.folder, "workers": task.workers},
                "batch_size": task.batch,
                "steps": BURN_IN + task.steps,
                "precision": precision,
                "compile": bool(compiled),
                "device": task.device,
                "threads": task.threads,
                "clip": "random",
                "text_cache": str(Path(task.folder) / "cache"),
                "checkpoint": {"interval": 1_000_000, "minutes": 0},
                "log": {"interval": 1, "samples_interval": 0},
            }
        )
        train(config)
        lines = (Path(output) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines][BURN_IN:]
    return {
        "seconds": [task.batch / record["images_per_second"] for record in records],
        "waited_for_data": statistics.median(record["share/data"] for record in records),
        "lost": statistics.median(r["share/data"] + r["share/log"] for r in records),
    }


def run(task: Task, results: Any) -> None:
    """In a separate process: measure, and add the peak of its memory."""
    torch.set_num_threads(task.threads)
    measured = measure_plain(task) if task.variant == "plain" else measure_loop(task)
    if task.device == "cuda":
        measured["peak_bytes"] = torch.cuda.max_memory_allocated()
    else:
        measured["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put(measured)


def measure(task: Task) -> dict[str, Any]:
    """Result of `run` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=run, args=(task, results))
    process.start()
    while process.is_alive() and results.empty():
        process.join(0.2)
    if results.empty():
        raise SystemExit(f"{task.variant} failed with exit code {process.exitcode}")
    measured: dict[str, Any] = results.get()
    process.join()
    return measured


@contextmanager
def coco_like_images(count: int) -> Iterator[Path]:
    """A folder of photographs' size and compressibility, 640x480, with captions."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
            picture = coarse.resize((640, 480), Image.Resampling.BICUBIC)
            picture.save(folder / f"{i:04}.jpg", quality=90)
            (folder / f"{i:04}.txt").write_text(CAPTION.format(i) + "\n")
        yield folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--preset", default="coco", choices=list(PRESETS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="measured steps in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--workers",
        type=int,
        default=max(1, min(16, available_cores() - 1)),
        help="processes that read images ahead (default: all cores but one, at most 16)",
    )
    parser.add_argument("--devices", nargs="+", help="cpu, cuda; default: all there are")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["plain", "float32", "bfloat16"],
        help="plain, or a precision, with +compile to use torch.compile",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, help="write JSON to this file as well")
    args = parser.parse_args()
    devices = args.devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with coco_like_images(max(64, args.batch)) as folder:
        for _ in range(args.rounds):
            for device in devices:
                for variant in args.variants:
                    task = Task(
                        variant,
                        args.preset,
                        device,
                        args.batch,
                        args.steps,
                        args.threads,
                        args.workers,
                        str(folder),
                    )
                    print(f"{device} {variant} ...", file=sys.stderr, flush=True)
                    found.setdefault((device, variant), []).append(measure(task))

    rows = []
    for (device, variant), rounds in found.items():
        median = statistics.median(s for r in rounds for s in r["seconds"])
        rows.append(
            {
                "device": device,
                "variant": variant,
                "seconds_per_step": median,
                "images_per_second": args.batch / median,
                "peak_gb": max(r["peak_bytes"] for r in rounds) / 1e9,
                "waited_for_data": statistics.median(r.get("waited_for_data", 0.0) for r in rounds),
                "lost_to_data_and_logging": statistics.median(r.get("lost", 0.0) for r in rounds),
            }
        )
    baseline = {row["device"]: row["seconds_per_step"] for row in rows if row["variant"] == "plain"}
    for row in rows:
        if row["device"] in baseline:
            row["speedup"] = baseline[row["device"]] / row["seconds_per_step"]
    for row in rows:
        if row["waited_for_data"] > MOST_WAITING:
            print(
                f"{row['device']} {row['variant']}: {row['waited_for_data']:.0%} of the time went "
                "into waiting for images, so this is not the step's time: raise --workers",
                file=sys.stderr,
            )
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "out")}
    report = {"environment": environment(devices), "settings": settings, "results": rows}
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1) if args.json else table(rows))


def environment(devices: list[str]) -> dict[str, Any]:
    """This machine, its load, and its GPU if that is measured."""
    gpu = {"gpu": torch.cuda.get_device_name()} if "cuda" in devices else {}
    return {**machine(), "load_average": os.getloadavg()[0], **gpu}


def table(rows: list[dict[str, Any]]) -> str:
    """Print a table."""
    lines = ["device variant              s/step  images/s  speedup  peak GB  data+log"]
    for row in rows:
        lines.append(
            f"{row['device']:6} {row['variant']:18} {row['seconds_per_step']:9.3f} "
            f"{row['images_per_second']:9.3f} {row.get('speedup', float('nan')):7.2f}  "
            f"{row['peak_gb']:8.2f} {row['lost_to_data_and_logging']:8.1%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
