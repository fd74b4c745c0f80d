"""Captioned images that can be had by number: the interface, and image files on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from galip_edge.data.captions import read_captions
from galip_edge.data.errors import Problem, SampleError
from galip_edge.data.images import Box, crop_around, read_image


class Source(Protocol):
    """Captioned images by number, from 0. Reading raises SampleError for an unusable one."""

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def key(self, index: int) -> str:
        """The name of an image in its data set."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of an image, at least one."""
        ...

    def image(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The RGB image; it may be scaled down to a shorter side no less than `shorter_side`."""
        ...

    def noise(self, index: int) -> npt.NDArray[np.float32] | None:
        """What a generator should make the image of (Z,), if that is known."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """Where an image and its captions are.

    Attributes:
        key: the image's name in its data set.
        image: path of the file, as text (a quarter of the memory of a Path).
        captions: the captions themselves, or a text file with one a line.
        box: the part of the image that matters, cropped at 1.5 times its longer side.
        fault: why the record is known to be unusable, if it is.
    """

    key: str
    image: str
    captions: tuple[str, ...] | str
    box: Box | None = None
    fault: Problem | None = None


class RecordSource:
    """The source over a list of records.

    Args:
        records: at least one.
        upright: whether images are turned as their EXIF orientation says. CUB and COCO never
            were, in their annotations or by any model of this family; people's own photographs
            must be.
    """

    def __init__(self, records: Sequence[Record], upright: bool = False) -> None:
        self._records = records
        self._upright = upright

    def __len__(self) -> int:
        return len(self._records)

    def key(self, index: int) -> str:
        """The name of an image in its data set."""
        return self._records[index].key

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of an image. Raises SampleError if there are none."""
        record = self._records[index]
        _raise_fault(record)
        if isinstance(record.captions, str):
            return read_captions(Path(record.captions), record.key)
        if not record.captions:
            raise SampleError("empty captions", record.key, "no caption is given for it")
        return record.captions

    def image(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The RGB image, cropped around its box. Raises SampleError if it cannot be read."""
        record = self._records[index]
        _raise_fault(record)
        if record.box is None:
            return read_image(record.image, record.key, shorter_side, self._upright)
        try:
            return crop_around(read_image(record.image, record.key), record.box)
        except ValueError as error:
            raise SampleError("bad bounding box", record.key, str(error)) from error

    def noise(self, index: int) -> None:
        """Not known of image files."""


def _raise_fault(record: Record) -> None:
    if record.fault is not None:
        raise SampleError(record.fault.kind, record.fault.key, record.fault.detail)
