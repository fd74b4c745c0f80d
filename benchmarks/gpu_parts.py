"""The parts of `gpu.py`. Each yields records, the most important first, in case time runs out."""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from published import in_published_order
from torch import Tensor, distributed

from galip_edge.models import GALIP, PRESETS
from galip_edge.tokenizer import build_tokenizer
from galip_edge.training.config import TrainConfig
from galip_edge.training.distributed import World
from galip_edge.training.precision import Precision
from galip_edge.training.trainer import Trainer

PROMPT = "a small red bird with a white beak, sitting on a rock near the sea"
TOLERANCE = 1e-3  # five float32 steps on two devices
PUBLISHED = "eager, published order"
LEAST_PSNR = {"float32": 60.0, "float16": 40.0, "bfloat16": 30.0}  # dB, of one checkpoint's images


@dataclass(frozen=True)
class Settings:
    """Device and model. A rehearsal on a CPU runs everything only a few times."""

    device: str
    preset: str
    compiles: bool = True

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def batches(self) -> tuple[int, ...]:
        return (1, 64, 8) if self.on_gpu else (1, 2)

    @property
    def runs(self) -> tuple[int, int]:
        """Warm-up and timed runs."""
        return (20, 100) if self.on_gpu else (1, 3)


def describe_device(device: str) -> dict[str, Any]:
    """Name and versions, without which a figure means nothing."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device != "cuda":
        return {"device": "cpu", **found}
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA device: rehearse with --device cpu --preset small")
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = None
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": torch.cuda.get_device_name(0),
        "memory_bytes": properties.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **found,
    }


# --- inference ---------------------------------------------------------------------------------


def inference(settings: Settings) -> Iterator[dict[str, Any]]:
    """Generator by precision, batch and mode, in seconds; the text encoder separately."""
    precisions = (torch.float16, torch.bfloat16)
    with torch.inference_mode():
        for dtype in precisions:
            model = _model(settings, dtype)
            yield _text_record(settings, model, dtype)
            for batch in settings.batches:
                for mode in ("eager", "cuda graph"):
                    yield _generator_record(settings, model, dtype, batch, mode)
        published = _model(settings, torch.float16)
        in_published_order(published.generator)
        for batch in settings.batches:
            yield _generator_record(settings, published, torch.float16, batch, PUBLISHED)
        if not settings.compiles:
            return
        for dtype in precisions:  # compiling takes most of the time: last
            model = _model(settings, dtype)
            for batch in settings.batches if settings.on_gpu else settings.batches[:1]:
                yield _generator_record(settings, model, dtype, batch, "torch.compile")


def _model(settings: Settings, dtype: torch.dtype) -> GALIP:
    torch.manual_seed(0)
    model = GALIP(PRESETS[settings.preset]).eval().requires_grad_(False)
    return model.to(settings.device, dtype, memory_format=torch.channels_last)


def _text_record(settings: Settings, model: GALIP, dtype: torch.dtype) -> dict[str, Any]:
    tokens = torch.from_numpy(build_tokenizer(model.config.clip)([PROMPT])).to(settings.device)
    _reset_memory(settings)
    seconds = _time(settings, lambda: model.text_encoder(tokens))
    return {"what": "text encoder", "precision": _name(dtype), "batch": 1, **seconds}


def _generator_record(
    settings: Settings, model: GALIP, dtype: torch.dtype, batch: int, mode: str
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "what": "generator",
        "precision": _name(dtype),
        "batch": batch,
        "mode": mode,
    }
    noise = torch.randn(batch, model.config.noise_dim, device=settings.device, dtype=dtype)
    width = model.config.clip.embedding_dim
    sentence = torch.randn(batch, width, device=settings.device, dtype=dtype)
    generate: Callable[[], Any] = lambda: model.generator(noise, sentence)  # noqa: E731
    if mode == "cuda graph" and not settings.on_gpu:
        return {**record, "skipped": "needs CUDA"}
    _reset_memory(settings)
    start = time.perf_counter()
    try:
        if mode == "torch.compile":
            torch.compiler.reset()
            compiled = torch.compile(model.generator, dynamic=False)
            generate = lambda: compiled(noise, sentence)  # noqa: E731
        elif mode == "cuda graph":
            generate = _captured(generate)
        generate()
        _synchronize(settings)
        record["preparation_s"] = time.perf_counter() - start
        return {**record, **_time(settings, generate)}
    except RuntimeError as error:  # out of memory, no compiler: the other modes still count
        return {**record, "error": f"{type(error).__name__}: {error}"[:500]}


def _captured(generate: Callable[[], Any]) -> Callable[[], Any]:
    """`generate` as a CUDA graph, replayed with the same inputs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            generate()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        generate()
    return graph.replay


def _time(settings: Settings, work: Callable[[], Any]) -> dict[str, Any]:
    """Median and 95th percentile in seconds, and peak memory; by CUDA events on a GPU."""
    warm_up, timed = settings.runs
    for _ in range(warm_up):
        work()
    _synchronize(settings)
    if settings.on_gpu:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(timed + 1)]
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        torch.cuda.synchronize()
        seconds = [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
    else:
        seconds = []
        for _ in range(timed):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    return {
        "median_s": statistics.median(seconds),
        "p95_s": float(np.quantile(seconds, 0.95)),
        "peak_memory_bytes": _peak_memory(settings),
    }


# --- training ----------------------------------------------------------------------------------


def training(settings: Settings) -> Iterator[dict[str, Any]]:
    """Whole training steps, images already on the device: images/s and peak memory."""
    batch, burn_in, steps = (64, 5, 15) if settings.on_gpu else (2, 1, 1)
    precisions: dict[str, tuple[Precision, ...]] = {"eager": ("bfloat16", "float16", "float32")}
    if settings.on_gpu:
        precisions["cuda graphs"] = ("bfloat16", "float32")
    if settings.compiles:
        # On two cores, compiling one step takes five minutes.
        precisions["compiled"] = precisions["eager"] if settings.on_gpu else ("bfloat16",)
    for mode, some in precisions.items():
        for precision in some:
            _reset_memory(settings)
            trainer = _trainer(settings, settings.preset, batch, precision, mode)
            model = trainer.model.config
            device = torch.device(settings.device)
            images = torch.rand(batch, 3, 256, 256, device=device) * 2 - 1
            sentence = torch.randn(batch, model.clip.embedding_dim, device=device)
            start = time.perf_counter()
            for step in range(burn_in):
                trainer.step(step, images, sentence)
            _synchronize(settings)
            prepared = time.perf_counter()
            for step in range(burn_in, burn_in + steps):
                trainer.step(step, images, sentence)
            _synchronize(settings)
            seconds = (time.perf_counter() - prepared) / steps
            yield {
                "precision": precision,
                "mode": mode,
                "batch": batch,
                "first_steps_s": prepared - start,
                "step_s": seconds,
                "images_per_second": batch / seconds,
                "peak_memory_bytes": _peak_memory(settings),
            }
            del trainer


def _trainer(
    settings: Settings,
    preset: str,
    batch: int,
    precision: str,
    mode: str = "eager",
    device: str | None = None,
) -> Trainer:
    config = TrainConfig.from_dict(
        {
            "output": "unused",
            "model": {"preset": preset},
            "data": {"kind": "folder", "root": "unused"},
            "batch_size": batch,
            "steps": 1,
            "precision": precision,
            "compile": mode == "compiled",
            "cuda_graphs": mode == "cuda graphs",
            "clip": "random",
        }
    )
    torch.manual_seed(0)
    where = torch.device(device or settings.device)
    return Trainer(GALIP(config.model), config, World(device=where))


# --- correctness -------------------------------------------------------------------------------


def correctness(settings: Settings) -> Iterator[dict[str, Any]]:
    """Checks that CUDA agrees with the CPU; `passed` is the outcome."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for check in (
        _five_float32_steps,
        _five_bfloat16_steps,
        _float16_halves_its_scale,
        _one_process_joins,
        _images_agree,
        _killed_run_resumes,
    ):
        start = time.perf_counter()
        try:
            found = check(settings)
        except Exception as error:  # noqa: BLE001 - the next check is still worth its time
            found = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        yield {"check": check.__name__.strip("_"), **found, "s": time.perf_counter() - start}


def _batch(trainer: Trainer, count: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(0)
    config = trainer.model.config
    images = random.uniform(-1, 1, (count, 3, config.image_size, config.image_size))
    sentence = random.standard_normal((count, config.clip.embedding_dim))
    return torch.from_numpy(images).float(), torch.from_numpy(sentence).float()


def _five_float32_steps(settings: Settings) -> dict[str, Any]:
    """All reported values of five steps, against the CPU's."""
    values = []
    for device in ("cpu", settings.device):
        trainer = _trainer(settings, "tiny", 8, "float32", device=device)
        batch = _batch(trainer, 8)
        values.append([trainer.step(i, *batch).values for i in range(5)])
    worst = max(
        abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-2)
        for theirs, ours in zip(*values, strict=True)
        for name in theirs
    )
    return {"passed": worst <= TOLERANCE, "largest_relative_difference": worst}


def _five_bfloat16_steps(settings: Settings) -> dict[str, Any]:
    trainer = _trainer(settings, "tiny", 8, "bfloat16")
    reports = [trainer.step(i, *_batch(trainer, 8)) for i in range(5)]
    return {"passed": not any(r.skipped for r in reports), "last": reports[-1].values}


def _float16_halves_its_scale(settings: Settings) -> dict[str, Any]:
    """A scale that is too large: skipped without a change, halved until steps succeed."""
    trainer = _trainer(settings, "tiny", 8, "float16")
    first = trainer.step(0, *_batch(trainer, 8))
    for network in (trainer.generator, trainer.discriminator):
        network.scale.value = 2.0**40
    before = {k: p.detach().clone() for k, p in trainer.discriminator.parameters.items()}
    report = trainer.step(1, *_batch(trainer, 8))
    unchanged = all(torch.equal(before[k], p) for k, p in trainer.discriminator.parameters.items())
    halved = trainer.discriminator.scale.value == 2.0**39
    steps = 1
    while report.skipped and steps < 60:
        report = trainer.step(1 + steps, *_batch(trainer, 8))
        steps += 1
    return {
        "passed": unchanged and halved and not report.skipped,
        "first_step_skipped": list(first.skipped),
        "scale": trainer.discriminator.scale.value,
        "steps_until_finite": steps,
    }


def _one_process_joins(settings: Settings) -> dict[str, Any]:
    """NCCL (gloo on a CPU) starts, and its collectives return a single process's own values."""
    backend = "nccl" if settings.on_gpu else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(
            backend, init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        try:
            mine = torch.arange(6.0, device=settings.device).reshape(3, 2)
            summed, gathered = mine.clone(), [torch.empty_like(mine)]
            distributed.all_reduce(summed)
            distributed.all_gather(gathered, mine)
            distributed.broadcast(mine, src=0)
            same = torch.equal(summed, mine) and torch.equal(gathered[0], mine)
        finally:
            distributed.destroy_process_group()
    return {"passed": same, "backend": backend}


@torch.inference_mode()
def _images_agree(settings: Settings) -> dict[str, Any]:
    """PSNR of one checkpoint's images, the CPU's float32 against the device's precisions."""
    torch.manual_seed(0)
    model = GALIP(PRESETS[settings.preset]).eval()
    noise = torch.randn(4, model.config.noise_dim)
    tokens = torch.from_numpy(build_tokenizer(model.config.clip)([PROMPT] * 4))
    reference = model(noise, tokens).clamp(-1, 1)
    found = {}
    for name in LEAST_PSNR:
        dtype = getattr(torch, name)
        model.to(settings.device, dtype)
        images = model(noise.to(settings.device, dtype), tokens.to(settings.device))
        error = (images.float().cpu().clamp(-1, 1) - reference).square().mean().item()
        found[name] = 10 * float(np.log10(4 / max(error, 1e-12)))
        model.float().cpu()
    return {"passed": all(found[n] >= least for n, least in LEAST_PSNR.items()), "psnr_db": found}


def _killed_run_resumes(settings: Settings) -> dict[str, Any]:
    """`galip-edge train` is killed after a checkpoint and resumes to its end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_images(folder / "images", 16)
        command = [sys.executable, "-m", "galip_edge", "train", "tiny"]
        for setting in (
            f"data.root={folder / 'images'}",
            f"output={folder / 'run'}",
            f"device={settings.device}",
            "steps=40",
            "checkpoint.interval=5",
            "log.tensorboard=false",
            "log.samples_interval=0",
        ):
            command += ["--set", setting]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        killed_after = _kill_after_checkpoint(command, folder / "run" / "checkpoints", environment)
        again = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])["step"]
    return {
        "passed": again.returncode == 0 and last == 40 and killed_after is not None,
        "killed_after_step": killed_after,
        "last_step": last,
        **({"stderr": again.stderr[-500:]} if again.returncode else {}),
    }


def _kill_after_checkpoint(command: list[str], folder: Path, env: dict[str, str]) -> int | None:
    """SIGKILL as soon as `folder` holds a checkpoint; how many it held, None without a kill."""
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        if folder.is_dir() and (written := len(list(folder.glob("[!.]*")))):
            child.send_signal(signal.SIGKILL)
            child.wait()
            return written
        time.sleep(0.02)
    child.kill()
    child.wait()
    return None


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(count):
        pixels = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"image {i}\n", encoding="utf-8")


# --- both devices ------------------------------------------------------------------------------


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _synchronize(settings: Settings) -> None:
    if settings.on_gpu:
        torch.cuda.synchronize()


def _reset_memory(settings: Settings) -> None:
    if settings.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_memory(settings: Settings) -> int | None:
    return torch.cuda.max_memory_allocated() if settings.on_gpu else None
