"""A data set that is read by number: CUB, COCO, folders, tables."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from galip_edge.data.errors import DataError, Problem, SampleError
from galip_edge.data.images import Augmentation, Chance
from galip_edge.data.records import Source
from galip_edge.data.samples import Draw, Sample, generator_for

# With half of all images broken, one sample in four thousand million fails this often.
_ATTEMPTS = 32


class CaptionedImages(Dataset[Sample]):
    """Augmented images of a source, each with one of its captions.

    What a sample is depends on (seed, epoch, index) alone. An image that cannot be used is
    replaced by another, drawn from the same randomness; the sample says so in `skipped`.
    """

    def __init__(self, source: Source, augmentation: Augmentation, seed: int = 0) -> None:
        self.source = source
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw | int) -> Sample:
        """The sample at `draw`; an integer is an index in epoch 0.

        Raises:
            IndexError: there is no such index.
            DataError: neither this nor many other images can be used.
        """
        epoch, index = (draw.epoch, draw.index) if isinstance(draw, Draw) else (0, draw)
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0..{len(self) - 1}, got {index}")
        generator = generator_for("sample", self.seed, epoch, index)
        chance = Chance.draw(generator)
        skipped: list[Problem] = []
        for _ in range(_ATTEMPTS):
            try:
                return self._read(index, chance, skipped)
            except SampleError as error:
                skipped.append(error.problem)
                index = int(generator.random() * len(self))
        raise DataError(
            f"{_ATTEMPTS} images in a row cannot be used, the last because of {skipped[-1]}; "
            "run galip-edge data check to see what is wrong"
        )

    def _read(self, index: int, chance: Chance, skipped: list[Problem]) -> Sample:
        captions = self.source.captions(index)
        noise = self.source.noise(index)
        # JPEGs of many megapixels are decoded smaller, but not so small that it could be seen.
        image = self.source.image(index, 2 * self.augmentation.shorter_side)
        return Sample(
            key=self.source.key(index),
            image=self.augmentation(image, chance),
            caption=captions[int(chance.caption * len(captions))],
            index=index,
            skipped=tuple(skipped),
            noise=None if noise is None else torch.from_numpy(noise),
        )
