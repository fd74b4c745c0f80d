"""Dividing a batch among processes and micro-batches without changing the result of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from galip_edge.training.diff_augment import step_draws
from galip_edge.training.distributed import World
from runtime.noise import draw_noise_rows

# Version of the random streams, stored in a run's state; older runs resume with their own.
STREAM = 2

# Embeddings of one text may differ in the last bits between processes.
_SAME = 1e-5


@dataclass(frozen=True)
class MicroBatch:
    """Samples that are computed at once.

    Attributes:
        images: (N,3,H,W) real images in [-1,1].
        sentence, mismatched: (N,E) sentence embeddings of the images, and of other images.
        mismatch_weights: (N,) 0 for samples without a mismatched sentence, otherwise 1.
        sentences: (B,E) sentence embeddings of the whole batch.
        noise: (N,Z).
        shifts: (N,2,2) translations in pixels of real and generated image, down and right.
        draws: (N,2,5) random numbers for the augmentation of real and generated image.
        share: fraction of the whole batch.
        first: position of the first sample in the whole batch.
    """

    images: Tensor
    sentence: Tensor
    mismatched: Tensor
    mismatch_weights: Tensor
    sentences: Tensor
    noise: Tensor
    shifts: Tensor
    draws: Tensor
    share: float
    first: int


@dataclass(frozen=True)
class BatchDivision:
    """Divides batches, and draws the random numbers of their samples.

    Attributes:
        world: the processes, each with an equal share of the batch.
        seed: of the random numbers.
        size: samples of a micro-batch; None for one micro-batch.
        noise_dim: length of a noise vector.
        translation: largest shift, as a fraction of the image's width.
        channels_last: memory layout of the images.
    """

    world: World
    seed: int
    size: int | None
    noise_dim: int
    translation: float
    channels_last: bool

    def __call__(
        self,
        number: int,
        images: Tensor,
        sentence: Tensor,
        noise: Tensor | None = None,
        stream: int = STREAM,
    ) -> list[MicroBatch]:
        """Divide this process's share of the batch.

        A mismatched sentence is the next different one in the whole batch, and random numbers
        belong to the position in the whole batch, so neither depends on the division.

        Args:
            number: step, from 0.
            images: (B,3,H,W) in [-1,1].
            sentence: (B,E) embeddings of their captions.
            noise: (B,Z); drawn from N(0,1) by default.
            stream: version of the random streams.
        """
        device, count = self.world.device, len(images)
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        images = images.to(device, non_blocking=True, memory_format=layout)
        sentence = sentence.to(device)
        first, total = self.world.rank * count, self.world.size * count
        sentences = self.world.gather(sentence)
        mismatched, weights = mismatched_sentences(sentences, first, count)
        if noise is None:
            noise = step_noise(self.seed, number, first, count, self.noise_dim)
        noise = noise.to(device)
        furthest = self.furthest(images)
        draw_shifts = step_shifts if stream > 1 else step_shifts_1
        shifts = draw_shifts(self.seed, number, first, count, furthest)
        draws = step_draws(self.seed, number, first, count).to(device)
        size = self.size or count
        rows = (slice(at, at + size) for at in range(0, count, size))
        return [
            MicroBatch(
                images[some],
                sentence[some],
                mismatched[some],
                weights[some],
                sentences,
                noise[some],
                shifts[some],
                draws[some],
                share=min(size, count - some.start) / total,
                first=first + some.start,
            )
            for some in rows
        ]

    def furthest(self, images: Tensor) -> int:
        """Bound of the translations of `images`, in pixels."""
        return round(self.translation * images.shape[-1])


def mismatched_sentences(sentences: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """For each sample, the next sentence of the batch that differs from its own.

    Captions repeat in a batch, and one text cannot both match and mismatch an image.

    Args:
        sentences: (B,E) of the whole batch.
        first, count: range of the samples that need a mismatched sentence.

    Returns:
        (count,E) sentences, and (count,) weights: 0 if all sentences of the batch are equal,
        otherwise 1.
    """
    mine, total = sentences[first : first + count], len(sentences)
    own = torch.arange(first, first + count, device=sentences.device)
    order = (own[:, None] + torch.arange(1, total, device=sentences.device)) % total
    differs = same_sentences(mine, sentences).logical_not().gather(1, order)
    partner = order.gather(1, differs.int().argmax(dim=1, keepdim=True))[:, 0]
    return sentences[partner], differs.any(dim=1).to(torch.float32)


def same_sentences(mine: Tensor, sentences: Tensor) -> Tensor:
    """Where sentence embeddings (N,E) and (B,E) are of the same text: (N,B)."""
    apart = torch.cdist(mine.float(), sentences.float(), p=math.inf)
    return apart <= _SAME * mine.float().abs().amax(dim=1, keepdim=True)


def step_noise(seed: int, number: int, first: int, count: int, size: int) -> Tensor:
    """Noise (count,size) from N(0,1) for the samples from `first` on of a step's batch."""
    rows = draw_noise_rows(seed, f"step {number}", range(first, first + count), size)
    return torch.from_numpy(rows)


def step_shifts(seed: int, number: int, first: int, count: int, furthest: int) -> Tensor:
    """Translations of a step's images, uniform in [-furthest,furthest].

    Returns:
        (count,2,2) pixels for the samples from `first` on: of the real and the generated image,
        down and right.
    """
    random = np.random.default_rng([seed, number])
    rows = random.integers(-furthest, furthest + 1, (first + count, 2, 2))
    return torch.from_numpy(rows[first:])


def step_shifts_1(seed: int, number: int, first: int, count: int, furthest: int) -> Tensor:
    """`step_shifts` of stream version 1, with a generator for each sample."""
    rows = [
        np.random.default_rng([seed, number, first + i]).integers(-furthest, furthest + 1, (2, 2))
        for i in range(count)
    ]
    return torch.from_numpy(np.stack(rows))
