"""Samples, batches, and reproducible random generators."""

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
    """A sample to read: image `index`, prepared for `epoch`."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Sample:
    """One image with one of its captions.

    Attributes:
        key: the image's name in its data set.
        image: (3,S,S) float32 in [-1,1].
        caption: never empty.
        index: the image's position in its data set; -1 in WebDataset shards, which are streamed.
        skipped: problems of the images that this sample replaces.
    """

    key: str
    image: Tensor
    caption: str
    index: int = -1
    skipped: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Stacked samples.

    Attributes:
        images: (B,3,S,S) float32 in [-1,1].
        captions, keys: B each.
        skipped: problems of images that were replaced in this batch.
    """

    images: Tensor
    captions: list[str]
    keys: list[str]
    skipped: list[Problem]

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> Batch:
        """A copy with images in page-locked memory; torch's DataLoader calls this."""
        return replace(self, images=self.images.pin_memory())


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack `samples` into a batch; the images of an empty batch are (0,3,0,0)."""
    images = [sample.image for sample in samples]
    return Batch(
        images=torch.stack(images) if images else torch.empty(0, 3, 0, 0),
        captions=[sample.caption for sample in samples],
        keys=[sample.key for sample in samples],
        skipped=[problem for sample in samples for problem in sample.skipped],
    )


def generator_for(purpose: str, *numbers: int) -> np.random.Generator:
    """A random generator that depends only on the arguments, so any use is reproducible."""
    return np.random.default_rng((zlib.crc32(purpose.encode()), *numbers))
