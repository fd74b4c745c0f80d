"""Samples and batches, and the randomness that makes them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from galip_edge.data.errors import Problem


@dataclass(frozen=True, slots=True)
class Draw:
    """A sample to be read: image `index` as it is prepared in `epoch`."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Sample:
    """One image with one of its captions.

    Attributes:
        key: the image's name in its data set.
        image: (3,S,S) float32 in [-1,1].
        caption: never empty.
        index: the image's number in its data set; -1 in web shards, which have no numbers.
        skipped: what could not be used before this sample took its place.
        noise: (Z,) float32, what a generator should make this image of; None if nobody knows.
    """

    key: str
    image: Tensor
    caption: str
    index: int = -1
    skipped: tuple[Problem, ...] = ()
    noise: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Samples side by side.

    Attributes:
        images: (B,3,S,S) float32 in [-1,1].
        captions, keys: B each.
        skipped: what could not be used and was replaced in this batch.
        noise: (B,Z) float32 of the images, or None if it is not known.
    """

    images: Tensor
    captions: list[str]
    keys: list[str]
    skipped: list[Problem]
    noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> Batch:
        """A copy whose images are in page-locked memory; torch's DataLoader calls this."""
        return replace(self, images=self.images.pin_memory())


def collate(samples: Sequence[Sample]) -> Batch:
    """Put `samples` into one batch; without any, its images are (0,3,0,0)."""
    images = [sample.image for sample in samples]
    noise = [sample.noise for sample in samples if sample.noise is not None]
    return Batch(
        images=torch.stack(images) if images else torch.empty(0, 3, 0, 0),
        captions=[sample.caption for sample in samples],
        keys=[sample.key for sample in samples],
        skipped=[problem for sample in samples for problem in sample.skipped],
        noise=torch.stack(noise) if noise else None,
    )


def generator_for(purpose: str, *numbers: int) -> np.random.Generator:
    """A random generator that depends on the arguments alone, so that any use can be repeated."""
    return np.random.default_rng((zlib.crc32(purpose.encode()), *numbers))
