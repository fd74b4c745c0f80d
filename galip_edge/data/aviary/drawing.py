"""From a scene to a picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from galip_edge.data.aviary import perches
from galip_edge.data.aviary.backgrounds import background
from galip_edge.data.aviary.bird import draw_bird
from galip_edge.data.aviary.scene import Scene
from galip_edge.data.aviary.svg import element, group
from galip_edge.data.errors import DataError


def to_svg(scene: Scene) -> str:
    """The scene as an SVG document of 128 by 128 units."""
    rng = np.random.default_rng(scene.drawing_seed)
    back = background(scene.background, rng)
    bird = draw_bird(scene, rng)
    mirrored = rng.random() < 0.5
    x = 64 + rng.normal(0, 4)
    front = ""
    if scene.perch == "air":
        y = rng.uniform(58, 78)
        behind = ""
    else:
        floor = {"branch": 92, "fence": 84, "rock": 90, "ground": 104, "water": 92}[scene.perch]
        level = floor + rng.uniform(-4, 4)
        y = level + 1 - bird.feet
        if scene.perch == "water":
            behind, front = perches.water(rng, level, scene.background)
        else:
            draw_perch = getattr(perches, scene.perch)
            behind = draw_perch(rng, level, scene.background)
    mirror = " scale(-1 1)" if mirrored else ""
    figure = group(bird.svg, transform=f"translate({x:.2f} {y:.2f}){mirror}")
    return element(
        "svg",
        back + behind + figure + front,
        xmlns="http://www.w3.org/2000/svg",
        viewBox="0 0 128 128",
        width=128,
        height=128,
    )


def draw(scene: Scene, size: int = 128) -> Image.Image:
    """The scene as an RGB image of `size` by `size` pixels, anti-aliased.

    Raises DataError if resvg_py is not installed.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise DataError(
            "the aviary is drawn by resvg_py, which is not installed: "
            "pip install 'galip-edge[train]'"
        ) from error
    png = svg_to_bytes(svg_string=to_svg(scene), width=size, height=size, skip_system_fonts=True)
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB")
