"""PNG files that say how they were made, their names, and contact sheets."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from runtime.arrays import Images
from runtime.checks import require_integers
from runtime.files import atomic_path
from runtime.latent import Interpolation, Keyframe
from runtime.version import __version__

# Key of the text chunk with our JSON; `parameters` is the one that other image tools read.
JSON_CHUNK = "galip-edge"


@dataclass(frozen=True)
class ImageMetadata:
    """What is needed to make an image again; for the last four see `Interpolation`."""

    prompt: str
    seed: int
    index: int
    model: str
    model_hash: str
    version: str = __version__
    psi: float = 1.0
    end: Keyframe | None = None
    sentence_share: float = 0.0
    noise_share: float = 0.0

    @classmethod
    def of_interpolation(cls, blend: Interpolation, model: str, model_hash: str) -> ImageMetadata:
        """Of an image that was made from a blend."""
        start, shares = blend.start, (blend.sentence_share, blend.noise_share)
        identity = (start.prompt, start.seed, start.index, model, model_hash, __version__)
        return cls(*identity, blend.psi, blend.end, *shares)

    def parameters(self, size: tuple[int, int]) -> str:
        """The line format that image tools share: the prompt, then settings."""
        width, height = size
        settings: dict[str, Any] = {
            "Steps": 1,
            "Sampler": "GALIP",
            "Seed": self.seed,
            "Image index": self.index,
            "Size": f"{width}x{height}",
            "Model hash": self.model_hash[:10],
            "Model": self.model,
            "Version": f"galip-edge {self.version}",
        }
        if self.psi != 1:
            settings["Psi"] = self.psi
        if self.end:
            settings["Toward"] = json.dumps(self.end.prompt)  # quoted: it may have commas in it
            settings["Toward seed"] = self.end.seed
            settings["Toward image index"] = self.end.index
            settings["Sentence share"] = self.sentence_share
            settings["Noise share"] = self.noise_share
        return f"{self.prompt}\n" + ", ".join(f"{name}: {it}" for name, it in settings.items())

    def recorded(self) -> dict[str, Any]:
        """For JSON; without what only blends and truncated pictures have in any other."""
        found = asdict(self)
        if self.psi == 1:
            del found["psi"]
        if self.end is None:
            del found["end"], found["sentence_share"], found["noise_share"]
        return found


# For smooth pictures, runs alone give smaller files than the usual search, in less time.
_PNG: dict[str, Any] = {"compress_level": 4, "compress_type": zlib.Z_RLE}

# An image, how it was made, and its file.
Item: TypeAlias = tuple[Images, ImageMetadata, Path]


def file_name(metadata: ImageMetadata) -> str:
    """A name that sorts by prompt, seed and index, and that no other image of any model has.

    Between pictures there are too many to be named; they have no such name.
    """
    words = re.sub(r"[^\w]+", "-", metadata.prompt.lower()).strip("-_")[:40].rstrip("-_")
    identity = hashlib.sha256(f"{metadata.model_hash}/{metadata.prompt}".encode()).hexdigest()
    psi = "" if metadata.psi == 1 else f"-psi{metadata.psi!r}"
    numbers = f"s{metadata.seed:010d}-{metadata.index:05d}{psi}"
    return f"{words or 'image'}-{identity[:12]}-{numbers}.png"


def save_png(image: Images, path: str | Path, metadata: ImageMetadata) -> None:
    """Write one image (H,W,3) with its metadata, whole or not at all.

    Raises GalipEdgeError if it cannot be written.
    """
    path = Path(path)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        write_png(image, file, metadata)


def write_png(image: Images, file: BinaryIO, metadata: ImageMetadata) -> None:
    """Write one image (H,W,3) with its metadata to an open file."""
    picture = Image.fromarray(image)
    info = PngInfo()
    info.add_text("parameters", metadata.parameters(picture.size))
    info.add_text(JSON_CHUNK, json.dumps(metadata.recorded()))
    picture.save(file, format="PNG", pnginfo=info, **_PNG)


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


def save_each(images: Iterable[tuple[Images, ImageMetadata]], folder: str | Path) -> Iterator[Item]:
    """Write images to `folder` under their names; each is given on once its file is there.

    Files are written beside the work of whoever makes `images`, which is to take a little longer.
    Raises GalipEdgeError if one cannot be written.
    """
    folder = Path(folder)

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


def read_metadata(path: str | Path) -> ImageMetadata | None:
    """The metadata of a PNG that `save_png` wrote, or None if it has none."""
    with Image.open(path) as picture:
        text = getattr(picture, "text", {}).get(JSON_CHUNK)
    try:
        found = json.loads(text or "null")
        if found and found.get("end"):
            found["end"] = Keyframe(**found["end"])
        return ImageMetadata(**found) if found else None
    except (AttributeError, ValueError, TypeError):
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


def save_sheet(sheet: Images, path: str | Path) -> None:
    """Write a contact sheet, whole or not at all."""
    path = Path(path)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG", **_PNG)


# How an image of another aspect ratio is fitted in.
FITS = ("crop", "pad")


def resized(image: Images, width: int, height: int, fit: str = "crop") -> Images:
    """An image resampled by Lanczos' filter; the image itself if it has that size already.

    Args:
        image: (H,W,3).
        width, height: of the result, in pixels.
        fit: `crop` keeps the centre that has the new aspect ratio; `pad` keeps all of the image,
            centred on black.

    Returns:
        (height,width,3).
    """
    if image.shape[:2] == (height, width):
        return image
    source = Image.fromarray(image)
    whole_width, whole_height = source.size
    if fit == "pad":
        scale = min(width / whole_width, height / whole_height)
        inner = max(1, round(whole_width * scale)), max(1, round(whole_height * scale))
        result = Image.new("RGB", (width, height))
        corner = (width - inner[0]) // 2, (height - inner[1]) // 2
        result.paste(source.resize(inner, Image.Resampling.LANCZOS), corner)
        return np.asarray(result)
    scale = min(whole_width / width, whole_height / height)
    left, top = (whole_width - width * scale) / 2, (whole_height - height * scale) / 2
    box = left, top, whole_width - left, whole_height - top
    return np.asarray(source.resize((width, height), Image.Resampling.LANCZOS, box))
