"""Sources of captioned images: the interface, and image files on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from galip_edge.data.captions import read_captions
from galip_edge.data.errors import Problem, SampleError
from galip_edge.data.images import Box, crop_around, read_image


class Source(Protocol):
    """Captioned images by index. Reading an invalid one raises SampleError."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def key(self, index: int) -> str:
        """An image's name in its data set."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of an image, at least one."""
        ...

    def image(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The RGB image; it may be scaled down to a shorter side no less than `shorter_side`."""
        ...


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """Paths of an image and its captions.

    Attributes:
        key: the image's name in its data set.
        image: path of the file, as a string (a quarter of a Path's memory).
        captions: the captions, or the path of a text file with one per line.
        box: bounding box; the image is cropped to a square of 1.5 times its longer side.
        fault: known problem that makes the record invalid.
    """

    key: str
    image: str
    captions: tuple[str, ...] | str
    box: Box | None = None
    fault: Problem | None = None


class RecordSource:
    """Source of the images in a list of records.

    Args:
        records: at least one.
        upright: apply the EXIF orientation. Annotations of CUB and COCO ignore it, as do the
            models of this family; users' photographs need it.
    """

    def __init__(self, records: Sequence[ImageRecord], upright: bool = False) -> None:
        self._records = records
        self._upright = upright

    def __len__(self) -> int:
        return len(self._records)

    def key(self, index: int) -> str:
        """An image's name in its data set."""
        return self._records[index].key

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of an image. Raises SampleError if it has none."""
        record = self._records[index]
        _raise_fault(record)
        if isinstance(record.captions, str):
            return read_captions(Path(record.captions), record.key)
        if not record.captions:
            raise SampleError("empty captions", record.key, "it has no caption")
        return record.captions

    def image(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The RGB image, cropped around its bounding box. Raises SampleError if unreadable."""
        record = self._records[index]
        _raise_fault(record)
        if record.box is None:
            return read_image(record.image, record.key, shorter_side, self._upright)
        try:
            return crop_around(read_image(record.image, record.key), record.box)
        except ValueError as error:
            raise SampleError("bad bounding box", record.key, str(error)) from error


def _raise_fault(record: ImageRecord) -> None:
    if record.fault is not None:
        raise SampleError(record.fault.kind, record.fault.key, record.fault.detail)
