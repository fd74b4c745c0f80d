"""Batches from worker processes, starting at any position in training."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from galip_edge.data.config import DataConfig
from galip_edge.data.dataset import CaptionedImages
from galip_edge.data.errors import DataError, ProblemLog
from galip_edge.data.samples import Batch, Draw, collate
from galip_edge.data.schedule import Position, Schedule
from galip_edge.data.sources import build_dataset
from galip_edge.data.stream import WebShards


class Loader:
    """Yields the batches of one epoch in each iteration.

    The workers prefetch across the end of an epoch, so no step waits there.

    Attributes:
        schedule: division of epochs into batches.
        position: position to resume at, after the last batch that was yielded.
        skips: problems of images that were replaced on this process.
    """

    def __init__(
        self,
        dataset: CaptionedImages | WebShards,
        schedule: Schedule,
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.schedule = schedule
        self.position = Position()
        self.skips = ProblemLog()
        self._workers = workers
        self._pin_memory = pin_memory
        self._stream: Iterator[Batch | DataError] | None = None

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.schedule.batches_per_epoch

    def resume(self, position: Position) -> None:
        """Continue at the `position` of another loader.

        With WebDataset shards, this is exact if the number of processes, the number of workers
        and the batch size are unchanged; otherwise the rest of the epoch is distributed
        differently, and some of its samples are repeated or missed.
        """
        self.close()
        if isinstance(self.dataset, WebShards):  # streams have whole batches only
            samples = position.samples - position.samples % self.schedule.global_batch
            position = Position(position.epoch, samples)
        self.position = self.schedule.valid(position)

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch. Raises DataError."""
        epoch = self.position.epoch
        while self.position.epoch == epoch:
            batch = self._next()
            self.position = self.schedule.after(self.position)
            self.skips.add(batch.skipped)
            yield batch

    def close(self) -> None:
        """Stop the workers; they restart when needed."""
        self._stream = None

    def _next(self) -> Batch:
        if self._stream is None:
            self._stream = iter(self._start())
        try:
            batch = next(self._stream)
        except RuntimeError as error:
            self.close()
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a data-loading process died ({error}), usually because memory or /dev/shm is "
                "full: reduce workers or the batch size"
            ) from error
        if isinstance(batch, DataError):
            self.close()
            raise batch
        return batch

    def _start(self) -> Iterable[Batch | DataError]:
        options: dict[str, Any] = {
            "batch_size": None,  # the data set yields whole batches
            "num_workers": self._workers,
            "collate_fn": _unchanged,
            "pin_memory": self._pin_memory,
            # Otherwise, starting the workers would draw from torch's global generator, and a
            # resumed run would get different noise.
            "generator": torch.Generator(),
            "worker_init_fn": _ignore_interrupts,
        }
        if isinstance(self.dataset, WebShards):
            streams = _StreamBatches(self.dataset, self.schedule, self.position)
            return DataLoader(streams, **options)
        draws = partial(self.schedule.draws, self.position, self.dataset.seed)
        return DataLoader(_MapBatches(self.dataset), sampler=_Draws(draws), **options)


def build_loader(
    config: DataConfig,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loader:
    """Open the data set of `config` for reading in batches.

    Args:
        config: of the data.
        batch_size: samples in a batch of this process.
        rank, world_size: of this process, and number of processes.
        pin_memory: yield page-locked images, for copies to a GPU.

    Raises:
        DataError: the data set is unusable, or has too few samples or shards.
        ValueError: an argument is out of range.
    """
    dataset = build_dataset(config)
    return Loader(
        dataset,
        Schedule(len(dataset), batch_size, rank, world_size),
        workers=config.workers,
        pin_memory=pin_memory,
    )


# Workers return errors as values: torch would prepend a traceback to an exception.


class _MapBatches(Dataset["Batch | DataError"]):
    """Whole batches of a data set with random access."""

    def __init__(self, dataset: CaptionedImages) -> None:
        self._dataset = dataset

    def __getitem__(self, draws: list[Draw]) -> Batch | DataError:
        try:
            return collate([self._dataset[draw] for draw in draws])
        except DataError as error:
            return error


class _Draws:
    """Draws of each batch, as a sampler for DataLoader."""

    def __init__(self, start: Callable[[], Iterator[list[Draw]]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[list[Draw]]:
        return self._start()


class _StreamBatches(IterableDataset["Batch | DataError"]):
    """Whole batches of WebDataset shards.

    The batches of a process are numbered across epochs; reader n modulo the number of readers makes
    batch n. DataLoader asks its workers in turn, so worker w is reader (start + w) modulo their
    number, for any batch number `start`.
    """

    def __init__(
        self,
        dataset: WebShards,
        schedule: Schedule,
        start: Position,
    ) -> None:
        self._dataset = dataset
        self._schedule = schedule
        self._start = start

    def __iter__(self) -> Iterator[Batch | DataError]:
        worker = get_worker_info()
        worker_id, readers = (worker.id, worker.num_workers) if worker else (0, 1)
        schedule, per_epoch = self._schedule, self._schedule.batches_per_epoch
        number = self._start.epoch * per_epoch + self._start.samples // schedule.global_batch
        number += worker_id
        reader = number % readers
        try:
            while True:
                epoch = number // per_epoch
                first = epoch * per_epoch + (reader - epoch * per_epoch) % readers
                samples = self._dataset.samples(
                    epoch,
                    schedule.rank * readers + reader,
                    schedule.world_size * readers,
                    skip=(number - first) // readers * schedule.batch_size,
                )
                while number < (epoch + 1) * per_epoch:
                    yield collate(list(islice(samples, schedule.batch_size)))
                    number += readers
        except DataError as error:
            yield error


def _ignore_interrupts(worker_id: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach all processes; the main process handles them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _unchanged(batch: Batch | DataError) -> Batch | DataError:
    return batch
