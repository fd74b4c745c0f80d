"""Validation of every image and caption of a data set."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from galip_edge.data.config import DataConfig
from galip_edge.data.errors import Problem, ProblemLog, SampleError
from galip_edge.data.records import Source
from galip_edge.data.shards import list_shards, raw_captions, raw_image, read_shard
from galip_edge.data.sources import open_source

Item = TypeVar("Item")
# Called with the number of finished images (of web data: shards), and the total.
Progress = Callable[[int, int], None]

_CHUNK = 64

# Samples, and problems of each kind, in a report.
_EXAMPLES = 5


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum."""

    minimum: int
    median: int
    maximum: int

    @classmethod
    def of(cls, counts: Counter[int]) -> Spread | None:
        """The spread of numbers with these `counts`; None without numbers."""
        if not counts:
            return None
        numbers = sorted(counts)
        below = accumulate(counts[number] for number in numbers)
        half = counts.total() / 2
        median = next(number for number, n in zip(numbers, below, strict=True) if n >= half)
        return cls(numbers[0], median, numbers[-1])


@dataclass(frozen=True)
class Report:
    """The result of `check`.

    Attributes:
        kind, root, split: of the configuration.
        shards: number of checked tar files; 0 if the data is not in shards.
        images: number of valid images: readable, and with a caption.
        captions: of the valid images.
        distinct_captions: number of different captions. Mismatched captions come from other
            images, so a data set needs many.
        captions_per_image, width, height: of the valid images; None without any.
        enlarged: valid images smaller than the size that they are resized to.
        samples: examples of (key, caption).
        problems: everything that training would skip, and duplicate keys.
    """

    kind: str
    root: str
    split: str
    shards: int
    images: int
    captions: int
    distinct_captions: int
    captions_per_image: Spread | None
    width: Spread | None
    height: Spread | None
    enlarged: int
    samples: list[tuple[str, str]]
    problems: ProblemLog

    @property
    def ok(self) -> bool:
        """True if there are valid images and no problems."""
        return self.images > 0 and self.problems.total == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {name: value for name, value in vars(self).items() if name != "problems"}
        for name in ("captions_per_image", "width", "height"):
            values[name] = values[name] and asdict(values[name])
        values["samples"] = [list(sample) for sample in self.samples]
        return {**values, "problems": self.problems.to_dict(), "ok": self.ok}


def check(
    config: DataConfig,
    progress: Progress | None = None,
    *,
    limit: int | None = None,
) -> Report:
    """Decode images, read captions, and report contents and problems.

    Args:
        config: of the data.
        progress: called from this thread.
        limit: check at most this many images or shards, evenly spread. Default: all.

    Raises:
        DataError: the data set is unusable: no root, no list of files, a hostile pickle.
    """
    shards: list[str] = []
    tasks: Iterable[partial[_Tally]]
    if config.kind == "webdataset":
        shards = _spread_out(list_shards(config), limit)
        total = len(shards)
        tasks = (partial(_check_shard, shard) for shard in shards)
    else:
        source = open_source(config)
        indices = _spread_out(range(len(source)), limit)
        total = len(indices)
        tasks = _image_tasks(source, indices)
    summary = _Summary(config, len(shards))
    done = 0
    pool = ThreadPoolExecutor()  # decoding releases Python's lock, so threads scale
    try:
        for tally in pool.map(lambda task: task(), tasks):
            summary.add(tally)
            done += tally.done
            if progress is not None:
                progress(done, total)
    finally:  # immediately, also on Ctrl-C
        pool.shutdown(cancel_futures=True)
    return summary.report()


@dataclass
class _Tally:
    """The results for a chunk of images, or a shard."""

    done: int
    keys: list[str] = field(default_factory=list)
    captions: Counter[int] = field(default_factory=Counter)
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    sample: tuple[str, str] | None = None
    problems: list[Problem] = field(default_factory=list)

    def add(self, key: str, captions: tuple[str, ...], size: tuple[int, int]) -> None:
        self.captions[len(captions)] += 1
        self.hashes.extend(map(_hash, captions))
        self.sizes[size] += 1
        # The first samples of all chunks show more of the data than the first few of one.
        self.sample = self.sample or (key, captions[0])


def _hash(caption: str) -> int:
    """64-bit hash: a collision among ten million captions has a probability of 3e-6."""
    digest = hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _check_images(source: Source, indices: list[int]) -> _Tally:
    tally = _Tally(done=len(indices))
    for index in indices:
        key = source.key(index)
        tally.keys.append(key)
        try:
            tally.add(key, source.captions(index), source.image(index).size)
        except SampleError as error:
            tally.problems.append(error.problem)
    return tally


def _check_shard(shard: str) -> _Tally:
    tally = _Tally(done=1)
    for raw in read_shard(shard, tally.problems.append):
        key = raw["__key__"]
        tally.keys.append(key)
        try:
            tally.add(key, raw_captions(raw), raw_image(raw).size)
        except SampleError as error:
            tally.problems.append(error.problem)
    return tally


def _image_tasks(source: Source, indices: list[int]) -> Iterator[partial[_Tally]]:
    for start in range(0, len(indices), _CHUNK):
        yield partial(_check_images, source, indices[start : start + _CHUNK])


def _spread_out(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` of `items`, evenly spread."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise ValueError(f"limit must be positive, got {limit}")
    return [items[i * len(items) // limit] for i in range(limit)]


class _Summary:
    """Combines tallies into a report."""

    def __init__(self, config: DataConfig, shards: int) -> None:
        self._config = config
        self._shards = shards
        self._captions: Counter[int] = Counter()
        self._hashes = array("Q")  # 8 bytes per caption: web data has millions
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._samples: list[tuple[str, str]] = []
        self._keys: set[str] = set()
        self._problems = ProblemLog(_EXAMPLES)

    def add(self, tally: _Tally) -> None:
        self._problems.add(tally.problems)
        self._captions += tally.captions
        self._hashes.extend(tally.hashes)
        self._sizes += tally.sizes
        self._samples += [tally.sample] if tally.sample else []
        if self._shards:
            self._keys.clear()  # compared only within each shard: web data has millions
        for key in tally.keys:
            if key in self._keys:
                self._problems.add([Problem("duplicate key", key, "used by more than one image")])
            self._keys.add(key)

    def report(self) -> Report:
        widths: Counter[int] = Counter()
        heights: Counter[int] = Counter()
        for (width, height), count in self._sizes.items():
            widths[width] += count
            heights[height] += count
        least = self._config.shorter_side
        return Report(
            kind=self._config.kind,
            root=self._config.root,
            split=self._config.split,
            shards=self._shards,
            images=self._sizes.total(),
            captions=sum(number * count for number, count in self._captions.items()),
            distinct_captions=len(np.unique(np.frombuffer(self._hashes, np.uint64))),
            captions_per_image=Spread.of(self._captions),
            width=Spread.of(widths),
            height=Spread.of(heights),
            enlarged=sum(n for size, n in self._sizes.items() if min(size) < least),
            samples=_spread_out(self._samples, _EXAMPLES),
            problems=self._problems,
        )
