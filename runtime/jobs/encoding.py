"""An image as the bytes of a file."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from PIL import Image

from runtime.checks import require_integers
from runtime.credentials import Signer
from runtime.images import ImageMetadata, Images, write_png
from runtime.recipes import save_options

SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}


@dataclass(frozen=True)
class ImageFormat:
    """How images are stored.

    Attributes:
        name: png, jpeg or webp.
        quality: 1 to 100, of jpeg and webp.
        signer: signs each file, if there is one.
    """

    name: str = "png"
    quality: int = 95
    signer: Signer | None = field(default=None, compare=False, repr=False)

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
        """The file's content of an image (H,W,3), with its recipe."""
        buffer = io.BytesIO()
        if self.name == "png":
            write_png(image, buffer, metadata)
        else:
            picture = Image.fromarray(image)
            recipe = save_options(self.name, picture.size, metadata)
            picture.save(buffer, self.name, quality=self.quality, **recipe)
        content = buffer.getvalue()
        return self.signer.sign(content, f"image/{self.name}") if self.signer else content
