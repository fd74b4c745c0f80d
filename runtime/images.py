"""PNG files with their recipes, their names, and contact sheets."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from runtime.arrays import Images
from runtime.checks import require_integers
from runtime.credentials import Signer
from runtime.files import write_whole
from runtime.latent import Interpolation, Keyframe
from runtime.recipes import Recipe, read_recipe, save_options
from runtime.version import __version__

# Characters of a model's name, hash or version in a recipe.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class ImageMetadata:
    """Recipe of an image; for the last four see `Interpolation`."""

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
        """Recipe of an interpolation."""
        start, shares = blend.start, (blend.sentence_share, blend.noise_share)
        identity = (start.prompt, start.seed, start.index, model, model_hash, __version__)
        return cls(*identity, blend.psi, blend.end, *shares)

    @classmethod
    def of_recorded(cls, values: Mapping[str, Any]) -> ImageMetadata:
        """Inverse of `recorded`, for untrusted values.

        Raises:
            ValueError: they are not a recipe of an image.
        """
        try:
            found = cls(**values)
            end = None if found.end is None else Keyframe(**values["end"])
        except (TypeError, ValueError) as error:
            raise ValueError("no recipe of an image") from error
        start, shares = Keyframe(found.prompt, found.seed, found.index), found.sentence_share
        blend = Interpolation(start, end, shares, found.noise_share, found.psi)
        for text in (found.model, found.model_hash, found.version):
            if not isinstance(text, str) or len(text) > _LONGEST_NAME:
                raise ValueError("no recipe of an image: model and version must be short strings")
        return replace(
            cls.of_interpolation(blend, found.model, found.model_hash), version=found.version
        )

    @property
    def caption(self) -> str:
        """The prompts, in lines."""
        return self.prompt if self.end is None else f"{self.prompt}\n{self.end.prompt}"

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
        """Values for JSON; those of interpolation and truncation only where they are used."""
        found = asdict(self)
        if self.psi == 1:
            del found["psi"]
        if self.end is None:
            del found["end"], found["sentence_share"], found["noise_share"]
        return found


# For smooth images, run-length matching gives smaller files than the default search, in less time.
_PNG: dict[str, Any] = {"compress_level": 4, "compress_type": zlib.Z_RLE}

# An image, its recipe and its file.
Item: TypeAlias = tuple[Images, ImageMetadata, Path]


def file_name(metadata: ImageMetadata) -> str:
    """A name that sorts by prompt, seed and index, unique across models; not for interpolations."""
    words = re.sub(r"[^\w]+", "-", metadata.prompt.lower()).strip("-_")[:40].rstrip("-_")
    identity = hashlib.sha256(f"{metadata.model_hash}/{metadata.prompt}".encode()).hexdigest()
    psi = "" if metadata.psi == 1 else f"-psi{metadata.psi!r}"
    numbers = f"s{metadata.seed:010d}-{metadata.index:05d}{psi}"
    return f"{words or 'image'}-{identity[:12]}-{numbers}.png"


def save_png(
    image: Images, path: str | Path, recipe: Recipe | None, signer: Signer | None = None
) -> None:
    """Write one image (H,W,3) with its recipe, atomically.

    Raises GalipEdgeError if it cannot be written.
    """
    write_whole(path, png_file(image, recipe, signer))


def png_file(image: Images, recipe: Recipe | None, signer: Signer | None = None) -> bytes:
    """Content of a PNG file of one image (H,W,3) with its recipe."""
    buffer = io.BytesIO()
    write_png(image, buffer, recipe)
    content = buffer.getvalue()
    return signer.sign(content, "image/png") if signer else content


def write_png(image: Images, file: BinaryIO, recipe: Recipe | None) -> None:
    """Write one image (H,W,3) with its recipe to an open file."""
    converted = Image.fromarray(image)
    converted.save(file, format="PNG", **save_options("png", converted.size, recipe), **_PNG)


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
        """Suffix of the file name, without the dot."""
        return SUFFIXES[self.name]

    def encode(self, image: Images, metadata: ImageMetadata) -> bytes:
        """Content of the file of an image (H,W,3), with its recipe."""
        buffer = io.BytesIO()
        if self.name == "png":
            write_png(image, buffer, metadata)
        else:
            source = Image.fromarray(image)
            recipe = save_options(self.name, source.size, metadata)
            source.save(buffer, self.name, quality=self.quality, **recipe)
        content = buffer.getvalue()
        return self.signer.sign(content, f"image/{self.name}") if self.signer else content


def save_each(
    images: Iterable[tuple[Images, ImageMetadata]],
    folder: str | Path,
    signer: Signer | None = None,
) -> Iterator[Item]:
    """Write images to `folder` under their names; each is yielded once its file exists.

    Files are written in parallel with the generation of `images`.
    Raises GalipEdgeError if one cannot be written.
    """
    folder = Path(folder)

    def save(image: Images, metadata: ImageMetadata) -> Item:
        path = folder / file_name(metadata)
        save_png(image, path, metadata, signer)
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
    """The recipe in a PNG, JPEG or WebP file of one image; None if it has none.

    Raises GalipEdgeError if the file cannot be read.
    """
    recorded = read_recipe(Path(path)).recorded
    try:
        return None if recorded is None else ImageMetadata.of_recorded(recorded)
    except ValueError:
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
    """Image (H,W,3) with a line of text below it, (H+h,W,3)."""
    width = image.shape[1]
    size = max(10, width // 12)
    strip = Image.new("RGB", (width, size + size // 2), "white")
    font = ImageFont.load_default(size)
    ImageDraw.Draw(strip).text((width / 2, strip.height / 2), text, "black", font, anchor="mm")
    return np.concatenate([image, np.asarray(strip)])


# Adaptation to another aspect ratio.
FITS = ("crop", "pad")


def resized(image: Images, width: int, height: int, fit: str = "crop") -> Images:
    """Resample an image with a Lanczos filter, unless it has that size already.

    Args:
        image: (H,W,3).
        width, height: of the result, in pixels.
        fit: `crop` keeps the center with the new aspect ratio; `pad` keeps the whole image,
            centered on black.

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
    area = left, top, whole_width - left, whole_height - top
    return np.asarray(source.resize((width, height), Image.Resampling.LANCZOS, area))
