"""A training run, from a configuration to a trained model: `galip-edge train`."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from galip_edge.checkpoint import save_checkpoint
from galip_edge.data import Batch, Loader, Position, build_loader
from galip_edge.training.config import ConfigError, TrainConfig
from galip_edge.training.distributed import World, join_world
from galip_edge.training.network import StepReport
from galip_edge.training.precision import fastest_precision
from galip_edge.training.record import RunRecord
from galip_edge.training.sentences import SentenceEncoder, clip_hash
from galip_edge.training.setup import build_model, check_identity, run_identity
from galip_edge.training.state import (
    load_moments,
    load_trainer_state,
    newest_state,
    save_state,
    writing,
)
from galip_edge.training.trainer import Trainer
from runtime.cache import cache_folder
from runtime.errors import GalipEdgeError
from runtime.noise import draw_noise

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        step, total: finished steps, and those of the whole run.
        model: the exported model, for `galip-edge convert`.
    """

    step: int
    total: int
    model: Path

    @property
    def finished(self) -> bool:
        """False if it was interrupted; the same command then resumes it."""
        return self.step >= self.total


def train(config: TrainConfig) -> RunResult:
    """Train until `config` is fulfilled, resuming if `config.output` holds this run's checkpoints.

    Ctrl-C or SIGTERM end the run after the current step, with a checkpoint.

    Raises:
        GalipEdgeError: data, weights or settings cannot be used, a checkpoint cannot be written,
            or losses stay non-finite; the message is one sentence.
    """
    with join_world(config.device) as world, _stop_requests() as stop_requested:
        precision = fastest_precision(world.device, config.precision)
        config = replace(config, precision=precision)
        return _Run(config, world).go(stop_requested)


class _Run:
    """The parts of a run, put together, at the step where it is to go on."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config = config
        self.world = world
        self.folder = Path(config.output)
        state = newest_state(self.folder / "checkpoints")
        model, moments = build_model(config, resuming=state is not None)
        clip_sha256 = clip_hash(model)
        self.identity = run_identity(config, clip_sha256)
        if state:
            check_identity(state["run"], self.identity, config.output)
        self.loader = open_loader(config, world)
        self.total = total_steps(config, len(self.loader))
        self.trainer = Trainer(model, config, world)
        self.encode = SentenceEncoder(model, _text_cache(config), clip_sha256)
        self.step = 0
        if state:
            load_trainer_state(self.trainer, state)
            self.step = state["step"]
            self.loader.resume(Position(state["epoch"], state["samples"]))
            _log.info("resuming %s after step %d", self.folder, self.step)
        else:
            for network in self.trainer.networks:
                load_moments(network, moments)
        _check_same_on_all(world, self.step)

    def go(self, stop_requested: Callable[[], bool]) -> RunResult:
        """Train to the end, or until a stop is requested."""
        not_finite = 0
        with RunRecord(self.config, self.world, self.step, self.total) as record:
            batches = _endless(self.loader)
            while self.step < self.total:
                with record.watch.measure("data"):
                    batch = next(batches)
                sentence = self.encode(batch.captions)
                report = self.trainer.step(self.step, batch.images, sentence, batch.noise)
                self.step += 1
                record.step(self.step, self.loader.position.epoch, report, self.loader.skips.total)
                not_finite = self._check_finite(report, batch, not_finite, record)

                stop = self.world.any(stop_requested())
                last = stop or self.step == self.total
                with record.watch.measure("log"):
                    if self._is_due(self.config.log.samples_every, last):
                        record.samples(self.step, self._sample(batch))
                    if self._is_due(self.config.checkpoint.every, last):
                        self._save()
                if stop:
                    _log.warning("stopped after step %d; the same command resumes", self.step)
                    break
        self.loader.close()
        if self.loader.skips.total:
            _log.warning("images that could not be used: %s", self.loader.skips)
        return RunResult(self.step, self.total, self.folder / "model.safetensors")

    def _is_due(self, every: int, last: bool) -> bool:
        return bool(every) and (last or self.step % every == 0)

    def _check_finite(
        self, report: StepReport, batch: Batch, before: int, record: RunRecord
    ) -> int:
        """How many steps in a row were not finite; raises GalipEdgeError at the limit."""
        if not report.skipped:
            return 0
        record.not_finite(self.step, report, batch.keys)
        if before + 1 >= self.config.non_finite_limit:
            raise GalipEdgeError(
                f"{before + 1} steps in a row had values that are not finite, the last was step "
                f"{self.step}: look at {self.folder / 'metrics.jsonl'} for the batches, try "
                "precision = 'float32' or lower rates, and resume from the last checkpoint"
            )
        return before + 1

    def _save(self) -> None:
        """The model for users, then the state to resume from."""
        if not self.world.is_first:
            return
        path = self.folder / "model.safetensors"
        with writing(path), self.trainer.averaged():
            save_checkpoint(self.trainer.model, path, extra={"step": str(self.step)})
        save_state(
            self.folder / "checkpoints",
            self.trainer,
            self.step,
            self.loader.position,
            self.identity,
            self.config.checkpoint.keep,
        )

    def _sample(self, batch: Batch) -> Tensor:
        """Images of always the same prompts and noise."""
        prompts = self._sample_prompts(batch)
        size = self.config.model.noise_dim
        noise = np.stack([draw_noise(self.config.seed, p, i, size) for i, p in enumerate(prompts)])
        return self.trainer.sample(
            torch.from_numpy(noise).to(self.world.device), self.encode(prompts)
        )

    def _sample_prompts(self, batch: Batch) -> list[str]:
        """Those of the configuration, or the captions that the first grid was made with."""
        if self.config.log.prompts:
            return list(self.config.log.prompts)
        path = self.folder / "samples" / "prompts.json"
        if path.exists():
            prompts: list[str] = json.loads(path.read_text(encoding="utf-8"))
            return prompts
        prompts = batch.captions[: self.config.log.sample_count]
        if self.world.is_first:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(prompts, indent=2), encoding="utf-8")
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
    """Steps of the whole run, for data with `per_epoch` batches."""
    limits = [config.steps, config.epochs and config.epochs * per_epoch]
    return min(limit for limit in limits if limit is not None)


def describe(config: TrainConfig) -> str:
    """The resolved configuration as JSON, and what `train` would do, without doing it."""
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
            "folder that all machines share"
        )


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C or SIGTERM came; a second one acts at once, as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = threading.Event()
    usual = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: object) -> None:
        requested.set()
        signal.signal(number, usual[number])

    for number in usual:
        signal.signal(number, note)
    try:
        yield requested.is_set
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
