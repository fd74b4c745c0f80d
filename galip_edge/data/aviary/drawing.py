"""From a scene to a picture."""

from __future__ import annotations

import io

from PIL import Image

from galip_edge.data.aviary import perches
from galip_edge.data.aviary.backgrounds import background
from galip_edge.data.aviary.bird import draw_bird
from galip_edge.data.aviary.chance import Chances, Noise
from galip_edge.data.aviary.scene import Scene
from galip_edge.data.aviary.svg import element, group
from galip_edge.data.errors import DataError

# Of what scene and noise draw. Raised with every change of a picture, so that none kept from before
# is taken for it.
VERSION = 2

# Each place is always much alike, and all birds look to the right and are built alike: of a picture
# that is to be learned on a CPU, variety belongs to what can be told in words. The numbers of usual
# layouts were picked by eye.
_VARIETY, _BIRD_VARIETY = 0.2, 0.3
_USUAL_SCENERY, _USUAL_FLOOR, _USUAL_BIRD, _USUAL_PLACE = 8, 7, 7, 0


def to_svg(scene: Scene, noise: Noise) -> str:
    """The scene as an SVG document of 128 by 128 units; `noise` (NOISE_DIM,) decides the rest."""
    back = background(scene.background, Chances(noise, "scenery", _VARIETY, _USUAL_SCENERY))
    bird = draw_bird(scene, Chances(noise, "bird", _BIRD_VARIETY, _USUAL_BIRD))
    place = Chances(noise, "place", _BIRD_VARIETY, _USUAL_PLACE)
    floor = Chances(noise, "floor", _VARIETY, _USUAL_FLOOR)
    x = place.normal(64, 2)
    behind, front = "", ""
    if scene.perch == "air":
        y = place.uniform(58, 78)
    else:
        height = {"branch": 92, "fence": 84, "rock": 90, "ground": 104, "water": 92}[scene.perch]
        level = height + place.uniform(-4, 4)
        y = level + 1 - bird.feet
        if scene.perch == "water":
            behind, front = perches.water(floor, level, scene.background)
        else:
            draw_perch = getattr(perches, scene.perch)
            behind = draw_perch(floor, level, scene.background)
    figure = group(bird.svg, transform=f"translate({x:.2f} {y:.2f})")
    return element(
        "svg",
        back + behind + figure + front,
        xmlns="http://www.w3.org/2000/svg",
        viewBox="0 0 128 128",
        width=128,
        height=128,
    )


def draw(scene: Scene, noise: Noise, size: int = 128) -> Image.Image:
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
    png = svg_to_bytes(
        svg_string=to_svg(scene, noise), width=size, height=size, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB")
