"""Effects of small changes of perfect images on the evaluation's metrics.

    python benchmarks/metric_sensitivity.py     # writes results/metric_sensitivity.json

A second real set of the wide aviary, unchanged and changed, is compared with the first, as
`galip-edge evaluate` compares generated images. So a change shows which error of a generator costs
how much.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from environment import environment
from PIL import Image, ImageFilter
from torch.nn import functional as F

from galip_edge.aviary.data import AviaryConfig, AviarySource
from galip_edge.devices import keeping_free_memory
from galip_edge.evaluation.efficientnet import EfficientNetFeatures
from galip_edge.evaluation.manifold import manifold_metrics
from galip_edge.evaluation.two_sample import two_sample_accuracy
from runtime.arrays import Floats, Images

RESULTS = Path(__file__).parent / "results" / "metric_sensitivity.json"
_SIZE = 128
_BATCH = 50

# One image (H,W,3) and a generator of random numbers -> the changed image.
Change = Callable[[Images, np.random.Generator], Images]


def noise(levels: float, image: Images, rng: np.random.Generator) -> Images:
    """Add normal noise with a standard deviation of `levels` of 255."""
    return _uint8(image + levels * rng.standard_normal(image.shape, np.float32))


def blur(pixels: float, image: Images, rng: np.random.Generator) -> Images:
    """Gaussian blur with a standard deviation of `pixels`."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(pixels)))


def warp(pixels: float, points: int, image: Images, rng: np.random.Generator) -> Images:
    """Shift by smooth random offsets: `points`² normal ones per axis, of `pixels`, interpolated."""
    size = image.shape[0]
    offsets = torch.from_numpy(rng.standard_normal((1, 2, points, points)).astype(np.float32))
    smooth = F.interpolate(offsets, size=(size, size), mode="bicubic").permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 3, size, size], align_corners=False)
    pixels_in = torch.tensor(image).permute(2, 0, 1)[None].float()
    shifted = F.grid_sample(
        pixels_in, grid + 2 * pixels / size * smooth, padding_mode="border", align_corners=False
    )
    return _uint8(shifted[0].permute(1, 2, 0).numpy())


def jpeg(quality: int, image: Images, rng: np.random.Generator) -> Images:
    """Compress as JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


CHANGES: dict[str, Change] = {
    "no change": lambda image, rng: image,
    "blur, 0.5 pixels": partial(blur, 0.5),
    "blur, 0.8 pixels": partial(blur, 0.8),
    "noise of 1 level of 255": partial(noise, 1.0),
    "noise of 2 levels": partial(noise, 2.0),
    "JPEG, quality 90": partial(jpeg, 90),
    "warp, 0.3 pixels, 32² points": partial(warp, 0.3, 32),
    "warp, 0.7 pixels, 16² points": partial(warp, 0.7, 16),
    "warp, 1.5 pixels, 16² points": partial(warp, 1.5, 16),
}


def measure(count: int, two_sample: int) -> dict[str, dict[str, float]]:
    """Metrics by change, on `count` images, and of the two-sample test on `two_sample`."""
    source = AviarySource(AviaryConfig(split="test", image_size=_SIZE, resize=_SIZE, augment=False))
    second = source.with_seed(1)
    real = np.stack([np.asarray(source.image(i)) for i in range(count)])
    perfect = [np.asarray(second.image(i)) for i in range(count)]
    network = EfficientNetFeatures()
    known = _features(network, real)
    found = {}
    for name, change in CHANGES.items():
        rng = np.random.default_rng(0)
        images = np.stack([change(image, rng) for image in perfect])
        overlap = manifold_metrics(known, _features(network, images))
        found[name] = {"precision": overlap.precision, "coverage": overlap.coverage}
        if two_sample:
            accuracy = two_sample_accuracy(real[:two_sample], images[:two_sample])
            found[name]["two_sample_accuracy"] = accuracy
        print(f"{name}: {found[name]}", flush=True)
    return found


def _features(network: EfficientNetFeatures, images: Images) -> Floats:
    starts = range(0, len(images), _BATCH)
    return np.concatenate([network(images[at : at + _BATCH]) for at in starts])


def _uint8(image: Floats) -> Images:
    return np.clip(image, 0, 255).round().astype(np.uint8)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument(
        "--two-sample", type=int, default=500, help="images of each set; 0 for none"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    with keeping_free_memory():
        found = measure(given.count, given.two_sample)
    measured = {
        "environment": environment(),
        "images": given.count,
        "two_sample_images": given.two_sample,
        "results": found,
    }
    given.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
