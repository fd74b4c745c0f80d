"""Animations: GIF, WebP and MP4."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runtime.arrays import Images
from runtime.credentials import MEDIA_TYPES, Signer
from runtime.errors import GalipEdgeError, install_hint
from runtime.files import atomic_path
from runtime.recipes import Recipe, save_options, with_packet, xmp_packet

ENDINGS = (".gif", ".webp", ".mp4")


def save_animation(
    frames: Iterable[Images],
    path: str | Path,
    frames_per_second: float = 24.0,
    recipe: Recipe | None = None,
    signer: Signer | None = None,
) -> None:
    """Write an animation atomically; GIF and WebP loop.

    Args:
        frames: at least one, each (H,W,3), all of one size.
        path: its suffix, one of `ENDINGS`, selects the format; MP4 needs PyAV.
        frames_per_second: GIF rounds the duration of a frame to hundredths of a second.
        recipe: stored in the file.
        signer: signs the file, if there is one.

    Raises:
        GalipEdgeError: PyAV is missing, or the file cannot be written.
        ValueError: the suffix is not one of `ENDINGS`.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"an animation ends in {', '.join(ENDINGS)}, got {path.name}")
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".mp4":
            _save_mp4(frames, temporary, frames_per_second)
        else:
            _save_images(frames, temporary, path.suffix[1:].lower(), frames_per_second, recipe)
        if path.suffix.lower() != ".webp":
            temporary.write_bytes(with_packet(temporary.read_bytes(), xmp_packet(recipe)))
        if signer is not None:
            media_type = MEDIA_TYPES[path.suffix.lower()]
            temporary.write_bytes(signer.sign(temporary.read_bytes(), media_type))


def _save_images(
    frames: Iterable[Images],
    path: Path,
    kind: str,
    frames_per_second: float,
    recipe: Recipe | None,
) -> None:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    settings: dict[str, Any] = {"loop": 0}
    if kind == "webp":
        settings |= {"quality": 90, "method": 4, **save_options(kind, first.size, recipe)}
    first.save(
        path,
        kind.upper(),
        save_all=True,
        append_images=rest,
        duration=round(1000 / frames_per_second),
        **settings,
    )


def _save_mp4(frames: Iterable[Images], path: Path, frames_per_second: float) -> None:
    try:
        import av
    except ImportError as error:
        raise GalipEdgeError(
            f"MP4 needs PyAV, which is not installed: {install_hint('video')}, or write a .webp "
            "or .gif"
        ) from error
    from fractions import Fraction

    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for frame in frames:
            if stream is None:
                rate = Fraction(frames_per_second).limit_denominator(1000)
                stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
                # Players expect even sides and color at half resolution.
                stream.height, stream.width = (side - side % 2 for side in frame.shape[:2])
                stream.pix_fmt = "yuv420p"
            even = np.ascontiguousarray(frame[: stream.height, : stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
