"""A data set with random access: CUB, COCO, folders, tables."""

from __future__ import annotations

from torch.utils.data import Dataset

from galip_edge.data.errors import DataError, Problem, SampleError
from galip_edge.data.images import Augmentation, Chance
from galip_edge.data.records import Source
from galip_edge.data.samples import Draw, Sample, generator_for

# With half of all images broken, one sample in four billion exhausts them.
_ATTEMPTS = 32


class CaptionedImages(Dataset[Sample]):
    """Augmented images of a source, each with one of its captions.

    A sample depends only on (seed, epoch, index). An invalid image is replaced by another one,
    drawn from the same random generator, and listed in `skipped`.
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
            IndexError: the index is out of range.
            DataError: this and many other images are invalid.
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
            f"{_ATTEMPTS} images in a row are invalid, the last because of {skipped[-1]}; "
            "run galip-edge data check for a full list"
        )

    def _read(self, index: int, chance: Chance, skipped: list[Problem]) -> Sample:
        captions = self.source.captions(index)
        # Large JPEGs are decoded at a reduced size that stays above the resized one.
        image = self.source.image(index, 2 * self.augmentation.shorter_side)
        return Sample(
            key=self.source.key(index),
            image=self.augmentation(image, chance),
            caption=captions[int(chance.caption * len(captions))],
            index=index,
            skipped=tuple(skipped),
        )
