"""Images of another size than the model's own."""

from __future__ import annotations

import numpy as np
from PIL import Image

from runtime.images import Images

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
