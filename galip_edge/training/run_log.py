"""Reports of a run: terminal, metrics.jsonl, TensorBoard, sample grids, environment."""

from __future__ import annotations

import json
import logging
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import galip_edge
from galip_edge.errors import ConfigError
from galip_edge.training.config import TrainConfig
from galip_edge.training.distributed import World
from galip_edge.training.optimized_module import StepReport
from runtime.arrays import Images
from runtime.cpu import available_cores, cpu_name
from runtime.errors import install_hint
from runtime.files import atomic_path
from runtime.images import contact_sheet, save_png

_log = logging.getLogger(__name__)


class Stopwatch:
    """Seconds spent in named activities, and in total."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Restart all measurements."""
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds since the last reset."""
        return time.perf_counter() - self._start

    def share(self, activity: str) -> float:
        """Share of `activity` in the total, 0 to 1."""
        return self.seconds.get(activity, 0.0) / self.total

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """A context whose time counts as `activity`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[activity] = self.seconds.get(activity, 0.0) + spent


# Labels of values on the terminal; other terms of the generator's loss keep their names.
_LABELS = {"discriminator/total": "D", "generator/total": "G"}
_HIDDEN = ("adversarial", "norm", "loss_scale", "projected")

_EVALUATED = (
    "clip_score", "cmmd", "fid_torchvision", "fid_tf", "clip_precision", "clip_recall",
    "diversity_clip",
)  # fmt: skip


class RunLog:
    """Reports the progress of a run; does nothing on all processes except the first.

    Args:
        config: of the run.
        world: the processes.
        step: finished steps.
        total: steps of the whole run.

    Raises:
        ConfigError: `log.tensorboard` is set, and TensorBoard is not installed.
    """

    def __init__(self, config: TrainConfig, world: World, step: int, total: int) -> None:
        self.watch = Stopwatch()
        self._folder = Path(config.output)
        self._config = config
        self._active = world.is_first
        self._total = total
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not (self._active and self._console.is_terminal),
        )
        self._task = self._progress.add_task("train", completed=step, total=total, status="")
        self._board: Any = None
        if self._active:
            self._write_description(world)
            self._drop_after(step)
            if config.log.tensorboard:
                self._board = _summary_writer(self._folder / "tensorboard", step)

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._board:
            self._board.close()

    def step(self, step: int, epoch: int, report: StepReport, skipped_images: int) -> None:
        """Record a finished step; every `log.interval` steps, report means."""
        if not self._active:
            return
        if not report.skipped:
            self._steps += 1
            for name, value in report.values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
        self._progress.update(self._task, completed=step)
        if step % self._config.log.interval == 0 and self._steps:
            self._report(step, epoch, skipped_images)

    def not_finite(self, step: int, report: StepReport, keys: list[str]) -> None:
        """Report a skipped step; `keys` are this process's samples."""
        if not self._active:
            return
        bad = [n for n, v in report.values.items() if not math.isfinite(v)] or ["a gradient"]
        _log.warning(
            "step %d: %s not finite; no update of the %s; batch: %s%s",
            step,
            ", ".join(bad),
            " and ".join(report.skipped),
            ", ".join(keys[:4]),
            ", ..." if len(keys) > 4 else "",
        )
        self._append({"step": step, "event": "not finite", "values": bad, "keys": keys})

    def samples(self, step: int, images: Images, real: Images | None = None) -> None:
        """Write a grid of images (N,H,W,3), each with its real image (N,H,W,3) on the right."""
        if not self._active:
            return
        columns = math.ceil(len(images) ** 0.5)
        cells = list(images)
        if real is not None:
            cells = [image for pair in zip(images, real, strict=True) for image in pair]
            columns *= 2
        sheet = contact_sheet(cells, columns)
        save_png(sheet, self._folder / "samples" / f"step-{step:08d}.png", None)
        if self._board:
            self._board.add_image("samples", sheet, step, dataformats="HWC")

    def evaluation(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Report metrics as `evaluation/NAME`."""
        if not self._active:
            return
        named = {f"evaluation/{name}": value for name, value in metrics.items()}
        self._append({"step": step, "epoch": epoch, **named})
        shown = [f"{name} {metrics[name]:.4g}" for name in _EVALUATED if name in metrics]
        self._print(f"step {step}  evaluation  {'  '.join(shown)}")
        if self._board:
            for name, value in named.items():
                self._board.add_scalar(name, value, step)

    def _print(self, line: str) -> None:
        """Print a line above the progress bar, or a plain line without a terminal."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _report(self, step: int, epoch: int, skipped_images: int) -> None:
        means = {name: total / self._steps for name, total in self._sums.items()}
        means["images_per_second"] = self._steps * self._config.batch_size / self.watch.total
        means["share/data"] = self.watch.share("data")
        means["share/log"] = self.watch.share("log")
        seconds = self.watch.total / self._steps
        self._sums, self._steps = {}, 0
        self.watch.reset()
        with self.watch.measure("log"):
            self._append({"step": step, "epoch": epoch, "skipped_images": skipped_images, **means})
            shown = [f"{label} {means[name]:.3f}" for name, label in _shown(means).items()]
            status = "  ".join([*shown, f"{means['images_per_second']:.1f} images/s"])
            self._progress.update(self._task, status=status)
            if self._progress.disable:  # without a terminal: lines for log files
                left = timedelta(seconds=round((self._total - step) * seconds))
                self._print(f"step {step}/{self._total}  epoch {epoch}  {status}  {left} left")
            if self._board:
                for name, value in means.items():
                    self._board.add_scalar(name, value, step)

    def _append(self, record: dict[str, Any]) -> None:
        # JSON has no non-finite numbers.
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in record.items()
        }
        with (self._folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")

    def _drop_after(self, step: int) -> None:
        """Remove reports of a killed run after the checkpoint that it resumes from."""
        path = self._folder / "metrics.jsonl"
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            with atomic_path(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _write_description(self, world: World) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("config.json", self._config.to_dict()),
            ("environment.json", run_environment(world)),
        ):
            with atomic_path(self._folder / name) as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shown(means: Mapping[str, float]) -> dict[str, str]:
    """Names of the values on the terminal, with their labels."""
    labels = {name: label for name, label in _LABELS.items() if name in means}
    for name in means:
        module, _, term = name.partition("/")
        if module == "generator" and name not in labels and term not in _HIDDEN:
            labels[name] = term
    return labels


def _step_of(line: str) -> float:
    """Step of a line of metrics.jsonl; infinite for a truncated line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"log.tensorboard needs the package tensorboard: {install_hint('train')}, or "
            "set log.tensorboard=false (metrics.jsonl has the same values)"
        ) from error
    # A resumed run repeats the steps after its checkpoint.
    return SummaryWriter(folder, purge_step=step + 1)


def run_environment(world: World) -> dict[str, Any]:
    """Versions and hardware that determine a run's speed and rounding."""
    cuda = world.device.type == "cuda"
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in ("torch", "open_clip_torch", "numpy")},
        "galip_edge": galip_edge.__version__,
        "git": _git_commit(),
        "processes": world.size,
        "device": torch.cuda.get_device_name(world.device) if cuda else cpu_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the checkout that contains this package, if any."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
