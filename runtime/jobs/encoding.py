"""An image as the bytes of a file."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from runtime.checks import require_integers
from runtime.images import ImageMetadata, Images, write_png

SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}


@dataclass(frozen=True)
class ImageFormat:
    """How images are stored.

    Attributes:
        name: png (with the recipe inside), jpeg or webp.
        quality: 1 to 100, of jpeg and webp.
    """

    name: str = "png"
    quality: int = 95

    def __post_init__(self) -> None:
        require_integers(self, "quality")
        if self.name not in SUFFIXES:
            raise ValueError(
                f"image format must be one of {', '.join(SUFFIXES)}, got {self.name!r}"
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, got {self.quality}")

    @property
    def suffix(self) -> str:
        """Of a file's name, without the dot."""
        return SUFFIXES[self.name]

    def encode(self, image: Images, metadata: ImageMetadata) -> bytes:
        """The file's content of an image (H,W,3)."""
        buffer = io.BytesIO()
        if self.name == "png":
            write_png(image, buffer, metadata)
        else:
            Image.fromarray(image).save(buffer, self.name, quality=self.quality)
        return buffer.getvalue()
