"""A training run from a configuration to a trained model: `galip-edge train`."""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from galip_edge.checkpoints.format import save_checkpoint
from galip_edge.data import Batch, Loader, Position, build_loader
from galip_edge.devices import compute_settings, default_threads
from galip_edge.errors import ConfigError
from galip_edge.evaluation.models import to_pixels
from galip_edge.evaluation.names import lower_is_better
from galip_edge.training.config import TrainConfig
from galip_edge.training.distributed import World, join_world
from galip_edge.training.evaluation import Evaluator
from galip_edge.training.heads import import_heads
from galip_edge.training.init import build_model, check_identity, run_identity
from galip_edge.training.optimized_module import StepReport
from galip_edge.training.precision import fastest_precision
from galip_edge.training.resume import (
    load_moments,
    load_trainer_state,
    newest_state,
    only_run,
    save_state,
    writing,
)
from galip_edge.training.run_log import RunLog
from galip_edge.training.text_cache import SentenceEncoder, clip_hash
from galip_edge.training.trainer import Trainer
from runtime.arrays import Images
from runtime.errors import GalipEdgeError
from runtime.files import atomic_path, cache_folder
from runtime.noise import draw_noise

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        step, total: finished steps, and steps of the whole run.
        model: exported model, for `galip-edge convert`.
    """

    step: int
    total: int
    model: Path

    @property
    def finished(self) -> bool:
        """False after an interruption; the same command resumes the run."""
        return self.step >= self.total


def train(config: TrainConfig) -> RunResult:
    """Train as configured, or resume if `config.output` holds this run's checkpoints.

    Ctrl-C and SIGTERM end the run after the current step, with a checkpoint.

    Raises:
        GalipEdgeError: data, weights or settings are invalid, a checkpoint cannot be written,
            another process trains in `config.output`, or losses stay non-finite.
    """
    with (
        join_world(config.device) as world,
        _stop_requests() as stop_requested,
        ExitStack() as stack,
    ):
        with world.together():
            if world.is_first:
                stack.enter_context(only_run(Path(config.output)))
        precision = fastest_precision(world.device, config.precision)
        config = replace(config, precision=precision)
        threads = config.threads or default_threads(config.data.workers)
        with compute_settings(threads, config.tf32, config.cudnn_benchmark):
            return _Run(config, world).go(stop_requested)


class _Run:
    """A run at its first step, or at the step where it resumes."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config = config
        self.world = world
        self.folder = Path(config.output)
        with world.together():
            state = newest_state(self.folder / "checkpoints")
            model, moments = build_model(config, resuming=state is not None)
            clip_sha256 = clip_hash(model)
            self.identity = run_identity(config, clip_sha256)
            if state:
                check_identity(state["run"], self.identity, config.output)
            self.loader = open_loader(config, world)
            self.total = total_steps(config, len(self.loader))
        self.trainer = Trainer(model, config, world)
        self.step = 0
        self.best: dict[str, Any] = {}
        with world.together():
            self.encode = SentenceEncoder(model, _text_cache(config), clip_sha256)
            if state:
                load_trainer_state(self.trainer, state)
                self.step = state["step"]
                self.best = state.get("best", {})
                self.loader.resume(Position(state["epoch"], state["samples"]))
                _log.info("resuming %s after step %d", self.folder, self.step)
            else:
                for module in self.trainer.modules:
                    load_moments(module, moments)
                if config.start and self.trainer.projected:
                    import_heads(self.trainer.projected, Path(config.start))
        with world.together():
            evaluates = config.evaluation.interval and world.is_first
            self.evaluator = Evaluator(config, self.trainer, self.encode) if evaluates else None
        _check_same_on_all(world, self.step)
        self._saved_at = self._evaluated_at = time.monotonic()

    def go(self, stop_requested: Callable[[], bool]) -> RunResult:
        """Train to the end, or until a stop is requested."""
        not_finite = 0
        with RunLog(self.config, self.world, self.step, self.total) as log:
            batches = _endless(self.loader)
            while self.step < self.total:
                batch, sentence, failure = self._next(batches, log)
                stop, failed, overdue, unevaluated = self.world.any(
                    stop_requested(),
                    failure is not None,
                    self._is_overdue(self.config.checkpoint.minutes, self._saved_at),
                    self.evaluator is not None
                    and self._is_overdue(self.config.evaluation.minutes, self._evaluated_at),
                )
                if failed:
                    self.world.raise_any(failure)
                assert batch is not None
                assert sentence is not None
                report = self.trainer.step(
                    self.step, batch.images, sentence, batch.keys, batch.captions
                )
                self.step += 1
                log.step(self.step, self.loader.position.epoch, report, self.loader.skips.total)
                not_finite = self._check_finite(report, batch, not_finite, log)
                last = stop or self.step == self.total
                self._after_step(log, batch, last, overdue, unevaluated)
                if stop:
                    _log.warning("stopped after step %d; rerun to resume", self.step)
                    break
        self.loader.close()
        if self.loader.skips.total:
            _log.warning("invalid images: %s", self.loader.skips)
        return RunResult(self.step, self.total, self.folder / "model.safetensors")

    def _next(
        self, batches: Iterator[Batch], log: RunLog
    ) -> tuple[Batch | None, Tensor | None, Exception | None]:
        """The next batch and its sentence embeddings, or the error that prevents it."""
        try:
            with log.watch.measure("data"):
                batch = next(batches)
            return batch, self.encode(batch.captions), None
        except Exception as error:  # noqa: BLE001 - it is raised on all processes together
            return None, None, error

    def _after_step(
        self, log: RunLog, batch: Batch, last: bool, overdue: bool, unevaluated: bool
    ) -> None:
        """Write samples, evaluate, and save a checkpoint, where due."""
        samples = self._is_due(self.config.log.samples_interval, last)
        # Not at an interruption, on which the best model must not depend.
        finished = self.step == self.total
        evaluation = unevaluated or self._is_due(self.config.evaluation.interval, finished)
        pretraining = self.config.pretraining
        if pretraining is not None and pretraining.trains_layers_apart(self.step - 1):
            evaluation &= finished
        kept = self._is_due(self.config.checkpoint.keep_interval, False)
        save = overdue or kept or self._is_due(self.config.checkpoint.interval, last)
        if not (samples or evaluation or save):
            return
        with log.watch.measure("log"), self.world.together():
            if not self.world.is_first:
                return
            if samples:
                self._sample(log, batch)
            if evaluation:
                self._evaluate(log)
            if save:
                self._save(kept)

    def _is_due(self, interval: int, last: bool) -> bool:
        return bool(interval) and (last or self.step % interval == 0)

    def _is_overdue(self, minutes: float, last: float) -> bool:
        """True if `last` is too long ago, by the clock of the first process; 0 minutes: never."""
        return self.world.is_first and minutes > 0 and time.monotonic() - last > 60 * minutes

    def _check_finite(self, report: StepReport, batch: Batch, before: int, log: RunLog) -> int:
        """Number of consecutive non-finite steps; raises GalipEdgeError at the limit."""
        if not report.skipped:
            return 0
        log.not_finite(self.step, report, batch.keys)
        if before + 1 >= self.config.non_finite_limit:
            raise GalipEdgeError(
                f"{before + 1} consecutive steps up to step {self.step} had non-finite values: "
                f"{self.folder / 'metrics.jsonl'} lists their images; resume from the last "
                "checkpoint with precision = 'float32' or lower learning rates"
            )
        return before + 1

    def _evaluate(self, log: RunLog) -> None:
        """Report metrics, and keep the model if it is the best by `checkpoint.best`."""
        assert self.evaluator is not None
        metrics = self.evaluator()
        self._evaluated_at = time.monotonic()
        log.evaluation(self.step, self.loader.position.epoch, metrics)
        metric = self.config.checkpoint.best
        if metric is None:
            return
        if metric not in metrics:
            raise ConfigError(
                f"checkpoint.best = {metric!r} is not a metric of this evaluation: "
                f"{', '.join(metrics)}"
            )
        value, before = metrics[metric], self.best
        known = before.get("metric") == metric
        sign = 1 if lower_is_better(metric) else -1
        if math.isfinite(value) and (not known or sign * value < sign * before["value"]):
            self.best = {"metric": metric, "value": value, "step": self.step}
            self._export("model-best.safetensors", {"metric": metric, "value": repr(value)})

    def _save(self, keep: bool) -> None:
        """Save the model, then the state for resuming."""
        self._export("model.safetensors")
        if keep:
            self._export(f"model-step-{self.step:08d}.safetensors")
        save_state(
            self.folder / "checkpoints",
            self.trainer,
            self.step,
            self.loader.position,
            self.identity,
            self.config.checkpoint.keep,
            keep_interval=self.config.checkpoint.keep_interval,
            best=self.best,
        )
        self._saved_at = time.monotonic()

    def _export(self, name: str, extra: Mapping[str, str] | None = None) -> None:
        path = self.folder / name
        with writing(path), self.trainer.averaged():
            save_checkpoint(
                self.trainer.model, path, extra={"step": str(self.step), **(extra or {})}
            )

    def _sample(self, log: RunLog, batch: Batch) -> None:
        """Generate images of fixed prompts and noise, next to real images where available."""
        real: Images | None = None
        if self.evaluator and not self.config.log.prompts:
            held_out, count = self.evaluator.held_out, self.config.log.sample_count
            prompts, real = held_out.captions[:count], held_out.pixels[:count]
        else:
            prompts = self._sample_prompts(batch)
        size = self.config.model.noise_dim
        noise = np.stack([draw_noise(self.config.seed, p, i, size) for i, p in enumerate(prompts)])
        images = self.trainer.sample(
            torch.from_numpy(noise).to(self.world.device), self.encode(prompts)
        )
        log.samples(self.step, to_pixels(images), real)

    def _sample_prompts(self, batch: Batch) -> list[str]:
        """The configured prompts, or the captions of the first grid."""
        if self.config.log.prompts:
            return list(self.config.log.prompts)
        path = self.folder / "samples" / "prompts.json"
        try:
            prompts = json.loads(path.read_text(encoding="utf-8"))
            if prompts and all(isinstance(prompt, str) for prompt in prompts):
                return list(prompts)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            _log.warning("cannot read %s (%s): choosing new prompts", path, error)
        prompts = batch.captions[: self.config.log.sample_count]
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(prompts, indent=2), encoding="utf-8")
        return prompts


def open_loader(config: TrainConfig, world: World) -> Loader:
    """This process's share of the data. Raises DataError or ConfigError."""
    if config.batch_size % world.size:
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be divided among {world.size} processes"
        )
    return build_loader(
        config.data,
        config.batch_size // world.size,
        rank=world.rank,
        world_size=world.size,
        pin_memory=world.device.type == "cuda",
    )


def total_steps(config: TrainConfig, per_epoch: int) -> int:
    """Steps of the whole run, with `per_epoch` batches in an epoch."""
    limits = [config.steps, config.epochs and config.epochs * per_epoch]
    return min(limit for limit in limits if limit is not None)


def describe(config: TrainConfig) -> str:
    """The resolved configuration as JSON, and a description of the run, for --dry-run."""
    lines = [json.dumps(config.to_dict(), indent=2), ""]
    try:
        loader = open_loader(config, World())
        lines.append(f"data: {loader.schedule.length} samples, {len(loader)} steps an epoch")
        lines.append(f"training: {total_steps(config, len(loader))} steps of {config.batch_size}")
    except GalipEdgeError as error:
        lines.append(f"data: {error}")
    state = newest_state(Path(config.output) / "checkpoints")
    start = f"starts with {config.start or 'new weights'}"
    if state:
        start = f"resumes after step {state['step']}"
    lines.append(f"{config.output}: {start}")
    lines.append(f"sentence embeddings: {_text_cache(config) or 'not cached'}")
    return "\n".join(lines)


def _text_cache(config: TrainConfig) -> Path | None:
    if config.text_cache == "none":
        return None
    return Path(config.text_cache) if config.text_cache else cache_folder() / "sentences"


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


def _check_same_on_all(world: World, step: int) -> None:
    steps = world.gather(torch.tensor([step], device=world.device)).tolist()
    if len(set(steps)) > 1:
        raise GalipEdgeError(
            f"the processes found checkpoints of different steps ({steps}): output must be a "
            "folder shared by all machines"
        )


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that reports Ctrl-C or SIGTERM; a second signal acts immediately."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = threading.Event()
    usual = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, _: object) -> None:
        requested.set()
        signal.signal(number, usual[number])

    for number in usual:
        signal.signal(number, request)
    try:
        yield requested.is_set
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
