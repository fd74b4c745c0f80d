"""PNG files that say how they were made, their names, and contact sheets."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from runtime.files import atomic_path
from runtime.version import __version__

Images = npt.NDArray[np.uint8]

# Key of the text chunk with our JSON; `parameters` is the one that other image tools read.
JSON_CHUNK = "galip-edge"


@dataclass(frozen=True)
class ImageMetadata:
    """What is needed to make an image again."""

    prompt: str
    seed: int
    index: int
    model: str
    model_hash: str
    version: str = __version__

    def parameters(self, size: tuple[int, int]) -> str:
        """The line format that image tools share: the prompt, then settings."""
        width, height = size
        return (
            f"{self.prompt}\nSteps: 1, Sampler: GALIP, Seed: {self.seed}, Image index: "
            f"{self.index}, Size: {width}x{height}, Model hash: {self.model_hash[:10]}, "
            f"Model: {self.model}, Version: galip-edge {self.version}"
        )


# For smooth pictures, runs alone give smaller files than the usual search, in less time.
_PNG: dict[str, Any] = {"compress_level": 4, "compress_type": zlib.Z_RLE}

# An image, how it was made, and its file.
Item: TypeAlias = tuple[Images, ImageMetadata, Path]


def file_name(metadata: ImageMetadata) -> str:
    """A name that sorts by prompt, seed and index, and that no other image of any model has."""
    words = re.sub(r"[^\w]+", "-", metadata.prompt.lower()).strip("-_")[:40].rstrip("-_")
    identity = hashlib.sha256(f"{metadata.model_hash}/{metadata.prompt}".encode()).hexdigest()
    return f"{words or 'image'}-{identity[:12]}-s{metadata.seed:010d}-{metadata.index:05d}.png"


def save_png(image: Images, path: Path, metadata: ImageMetadata) -> None:
    """Write one image (H,W,3) with its metadata, whole or not at all.

    Raises GalipEdgeError if it cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        write_png(image, file, metadata)


def write_png(image: Images, file: BinaryIO, metadata: ImageMetadata) -> None:
    """Write one image (H,W,3) with its metadata to an open file."""
    picture = Image.fromarray(image)
    info = PngInfo()
    info.add_text("parameters", metadata.parameters(picture.size))
    info.add_text(JSON_CHUNK, json.dumps(vars(metadata)))
    picture.save(file, format="PNG", pnginfo=info, **_PNG)


def save_each(images: Iterable[tuple[Images, ImageMetadata]], folder: Path) -> Iterator[Item]:
    """Write images to `folder` under their names; each is given on once its file is there.

    Files are written beside the work of whoever makes `images`, which is to take a little longer.
    Raises GalipEdgeError if one cannot be written.
    """

    def save(image: Images, metadata: ImageMetadata) -> Item:
        path = folder / file_name(metadata)
        save_png(image, path, metadata)
        return image, metadata, path

    with ThreadPoolExecutor(1) as writer:
        pending: deque[Future[Item]] = deque()
        for image, metadata in images:
            pending.append(writer.submit(save, image, metadata))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def read_metadata(path: Path) -> ImageMetadata | None:
    """The metadata of a PNG that `save_png` wrote, or None if it has none."""
    with Image.open(path) as picture:
        text = getattr(picture, "text", {}).get(JSON_CHUNK)
    try:
        return ImageMetadata(**json.loads(text)) if text else None
    except (ValueError, TypeError):
        return None


def contact_sheet(images: Sequence[Images], columns: int, gap: int = 4) -> Images:
    """All images in a grid on white, row by row.

    Args:
        images: each (H,W,3), all of one size; at least one.
        columns: images in a row.
        gap: pixels between and around them.

    Returns:
        (rows·(H+gap)+gap, columns·(W+gap)+gap, 3).
    """
    height, width, _ = images[0].shape
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8
    )
    for i, image in enumerate(images):
        top = gap + (i // columns) * (height + gap)
        left = gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def labelled(image: Images, text: str) -> Images:
    """A picture (H,W,3) with a line of text below it, (H+h,W,3)."""
    width = image.shape[1]
    size = max(10, width // 12)
    strip = Image.new("RGB", (width, size + size // 2), "white")
    font = ImageFont.load_default(size)
    ImageDraw.Draw(strip).text((width / 2, strip.height / 2), text, "black", font, anchor="mm")
    return np.concatenate([image, np.asarray(strip)])


def save_sheet(sheet: Images, path: Path) -> None:
    """Write a contact sheet, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG", **_PNG)
