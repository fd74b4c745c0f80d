"""Reading image files, and preparing them as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from galip_edge.data.errors import SampleError

# Formats of photographs. Pillow's other decoders are disabled (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

# Normalized values of the 256 levels of a pixel.
_LEVELS = (np.arange(256) / 127.5 - 1).astype(np.float32)


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: int
    top: int
    width: int
    height: int


class Chance(NamedTuple):
    """Random numbers of one sample, each uniform in [0,1)."""

    caption: float
    top: float
    left: float
    flip: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Chance:
        """Draw the next four numbers of `generator`."""
        return cls(*generator.random(4).tolist())


def read_image(
    file: str | BytesIO, key: str, shorter_side: int | None = None, upright: bool = False
) -> Image.Image:
    """A decoded RGB image; transparent parts become white.

    Args:
        file: path or content of an image file.
        key: of the sample, for the error.
        shorter_side: allows a JPEG to be decoded at 1/2, 1/4 or 1/8 size, which is faster,
            as long as its shorter side keeps at least this many pixels.
        upright: apply the EXIF orientation.

    Raises SampleError if the file is missing or cannot be decoded.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            if shorter_side is not None:
                image.draft("RGB", (shorter_side, shorter_side))
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except FileNotFoundError as error:
        raise SampleError("missing image", key, f"no such file: {file}") from error
    except Exception as error:
        # Pillow's decoders raise exceptions of a dozen types for damaged files.
        place = file if isinstance(file, str) else "in the shard"
        raise SampleError(
            "unreadable image", key, f"{place}: {type(error).__name__}: {error}"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image  # convert would copy it
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def crop_around(image: Image.Image, box: Box) -> Image.Image:
    """Crop a square around `box`, of 1.5 times its longer side, within the image.

    Rounded as by DF-GAN and GALIP for CUB. Raises ValueError if the crop is empty.
    """
    radius = int(max(box.width, box.height) * 0.75)
    centre_x, centre_y = box.left + box.width // 2, box.top + box.height // 2
    left, top = max(0, centre_x - radius), max(0, centre_y - radius)
    right, bottom = min(image.width, centre_x + radius), min(image.height, centre_y + radius)
    if right <= left or bottom <= top:
        raise ValueError(f"{tuple(box)} is outside the image of {image.width}x{image.height}")
    return image.crop((left, top, right, bottom))


@dataclass(frozen=True)
class Augmentation:
    """Resize the shorter side, crop a square, mirror.

    Attributes:
        shorter_side: pixels before the crop.
        image_size: side of the square.
        random: crop and mirror at random; otherwise crop the centre, without mirroring.
        flip: mirror with probability 1/2.
    """

    shorter_side: int
    image_size: int
    random: bool = True
    flip: bool = True

    def __call__(self, image: Image.Image, chance: Chance) -> Tensor:
        """An RGB image -> (3,image_size,image_size) float32 in [-1,1]."""
        width, height = (n * self.shorter_side // min(image.size) for n in image.size)
        slack_x, slack_y = width - self.image_size, height - self.image_size
        if self.random:
            left, top = int(chance.left * (slack_x + 1)), int(chance.top * (slack_y + 1))
        else:
            left, top = slack_x // 2, slack_y // 2
        # Same pixels as resizing before cropping, with less work, and little memory even for an
        # image with an extreme aspect ratio.
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, (left + self.image_size) * x, (top + self.image_size) * y)
        size = (self.image_size, self.image_size)
        pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
        if self.random and self.flip and chance.flip < 0.5:
            pixels = pixels[:, ::-1]
        channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return torch.from_numpy(np.take(_LEVELS, channels_first))
