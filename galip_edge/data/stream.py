"""Web shards as endless, reproducible streams of samples, one for every reader."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import chain, count, islice

from galip_edge.data.config import DataConfig
from galip_edge.data.errors import DataError, Problem, SampleError
from galip_edge.data.images import Augmentation, Chance
from galip_edge.data.samples import Sample, generator_for
from galip_edge.data.shards import (
    RawSample,
    list_shards,
    raw_captions,
    raw_image,
    read_shard,
    samples_per_epoch,
)


class WebShards:
    """Augmented images and captions from sequentially read tar files.

    An epoch distributes the shards, in an order that depends on (seed, epoch), among the readers of
    all processes. A reader shuffles blocks within a shard, and starts over if its shards end before
    the epoch, so all processes have the same number of batches.

    An invalid sample is replaced by another one of its block, so a reader's n-th sample always
    corresponds to its n-th raw sample, and a stream can resume at n without decoding earlier
    samples. (Exceptions are blocks without a valid sample, which are skipped, and downloads that
    break at a different position.)
    """

    def __init__(self, config: DataConfig, augmentation: Augmentation) -> None:
        self.shards = list_shards(config)
        self.augmentation = augmentation
        self.seed = config.seed
        self._length = samples_per_epoch(config, self.shards)
        self._block = config.shuffle_block

    def __len__(self) -> int:
        """Samples in an epoch, over all processes."""
        return self._length

    def samples(
        self, epoch: int, reader: int, readers: int, skip: int = 0, shuffle: bool = True
    ) -> Iterator[Sample]:
        """Yield the samples of `reader` in `epoch`, without its first `skip` and without end.

        Raises DataError if there are fewer shards than readers, or if none of the reader's shards
        has a valid sample.
        """
        if readers > len(self.shards):
            raise DataError(
                f"{len(self.shards)} shards are too few for {readers} readers (processes times "
                "workers): reduce workers, or write smaller shards"
            )
        order = list(range(len(self.shards)))
        if shuffle:
            order = generator_for("shards", self.seed, epoch).permutation(len(order)).tolist()
        mine = order[reader::readers]
        problems: list[Problem] = []
        for lap in count():
            good, skip_before = 0, skip
            for block in self._blocks(mine, (self.seed, epoch, lap), shuffle, problems):
                if skip >= len(block):
                    skip -= len(block)
                    continue
                for sample in self._decode(block, skip, (self.seed, epoch, lap), problems):
                    good += 1
                    yield sample
                skip = 0
            if not good and skip == skip_before:
                names = ", ".join(self.shards[number] for number in mine[:3])
                why = f" ({problems[-1]})" if problems else ""
                raise DataError(
                    f"no valid sample in {len(mine)} shard(s), first {names}{why}; run "
                    "galip-edge data check for a full list"
                )

    def _blocks(
        self,
        shards: list[int],
        numbers: tuple[int, ...],
        shuffle: bool,
        problems: list[Problem],
    ) -> Iterator[list[RawSample]]:
        """Yield the undecoded samples of `shards` in blocks, shuffled by `numbers`."""
        for shard in shards:
            raw = read_shard(self.shards[shard], problems.append)
            for block_number in count():
                block = list(islice(raw, self._block))
                if not block:
                    break
                if shuffle:
                    places = generator_for("block", *numbers, shard, block_number)
                    block = [block[i] for i in places.permutation(len(block))]
                yield block

    def _decode(
        self,
        block: list[RawSample],
        skip: int,
        numbers: tuple[int, ...],
        problems: list[Problem],
    ) -> Iterator[Sample]:
        """Yield the samples of `block` after `skip`; the next one carries the `problems`."""
        broken: set[int] = set()
        for place in range(skip, len(block)):
            for candidate in chain(range(place, len(block)), range(place)):
                if candidate in broken:
                    continue
                raw = block[candidate]
                try:
                    captions = raw_captions(raw)
                    image = raw_image(raw, 2 * self.augmentation.shorter_side)
                except SampleError as error:
                    broken.add(candidate)
                    problems.append(error.problem)
                    continue
                key = raw["__key__"]
                chance = Chance.draw(generator_for("sample", *numbers, zlib.crc32(key.encode())))
                caption = captions[int(chance.caption * len(captions))]
                skipped = tuple(problems)
                problems.clear()
                yield Sample(key, self.augmentation(image, chance), caption, skipped=skipped)
                break
