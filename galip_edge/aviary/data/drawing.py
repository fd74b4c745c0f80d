"""Drawing a scene."""

from __future__ import annotations

import io
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from PIL import Image

from galip_edge.aviary.data import perches
from galip_edge.aviary.data.attributes import Variety
from galip_edge.aviary.data.backgrounds import SIZE, background
from galip_edge.aviary.data.bird import Figure, Stance, draw_bird
from galip_edge.aviary.data.chance import Chances, Noise, rows_of_entries
from galip_edge.aviary.data.compositions import COMPOSITIONS, composed_background
from galip_edge.aviary.data.scene import Scene
from galip_edge.aviary.data.svg import element, group
from galip_edge.data.errors import DataError
from runtime.arrays import Integers
from runtime.errors import install_hint

# Part of the names of cached images; incremented with every change of the drawing.
VERSION = 2

# Narrow: similar places, and similar birds that all face right. The numbers of usual layouts were
# chosen by eye.
_VARIETY, _BIRD_VARIETY = 0.2, 0.3
_USUAL_SCENERY, _USUAL_FLOOR, _USUAL_BIRD, _USUAL_PLACE = 8, 7, 7, 0

# Wide: range of a perch's height, from the top.
_LEVELS: dict[str, tuple[float, float]] = {
    "branch": (58, 112),
    "fence": (62, 104),
    "rock": (70, 110),
    "ground": (82, 116),
    "water": (74, 108),
}
_MARGIN = 4.0  # between the beak, or the highest point, and the border

# Number of values of what noise alone chooses in a wide scene: direction, and composition.
LAYOUT_VALUES = (2, COMPOSITIONS)
_BETWEEN_COMPOSITIONS = [NormalDist().inv_cdf(i / COMPOSITIONS) for i in range(1, COMPOSITIONS)]


@dataclass(frozen=True)
class Layout:
    """Direction and position of the bird, which no caption states.

    Lengths are in widths of the image, positions from its upper left corner.

    Attributes:
        facing: `right` or `left`.
        x, y: the centre of its body.
        beak_x, beak_y, beak_length: the middle and the length of its beak.
        box_x, box_y, box_width, box_height: the center and the size of its bounding box.
    """

    facing: str
    x: float
    y: float
    beak_x: float
    beak_y: float
    beak_length: float
    box_x: float
    box_y: float
    box_width: float
    box_height: float


@dataclass(frozen=True)
class _Plan:
    """A bird and its position; `level` is the height of its perch, `composition` in [0,1)."""

    bird: Figure
    facing: int
    x: float
    y: float
    level: float
    composition: float = 0.0

    @property
    def figure(self) -> str:
        mirror = "" if self.facing > 0 else " scale(-1 1)"
        return group(self.bird.svg, transform=f"translate({self.x:.2f} {self.y:.2f}){mirror}")


def layout_of(scene: Scene, noise: Noise, variety: Variety = "wide") -> Layout:
    """Direction and position of the bird in the image by `draw`."""
    plan = (_wide_plan if variety == "wide" else _narrow_plan)(scene, noise)
    bird = plan.bird
    (ahead, down), length = bird.beak
    return Layout(
        facing="right" if plan.facing > 0 else "left",
        x=plan.x / SIZE,
        y=plan.y / SIZE,
        beak_x=(plan.x + plan.facing * ahead) / SIZE,
        beak_y=(plan.y + down) / SIZE,
        beak_length=length / SIZE,
        box_x=(plan.x + plan.facing * (bird.front - bird.back) / 2) / SIZE,
        box_y=(plan.y + (bird.feet - bird.top) / 2) / SIZE,
        box_width=(bird.front + bird.back) / SIZE,
        box_height=(bird.feet + bird.top) / SIZE,
    )


def layout_labels(noises: Noise) -> Integers:
    """Choices of noise (N,NOISE_DIM) alone in wide scenes, as indices (N,2).

    The first is 0 for birds that face right; the second is that of the composition.
    """
    direction, composition = rows_of_entries(noises, "layout")[:, :2].T
    chosen = np.searchsorted(_BETWEEN_COMPOSITIONS, composition, side="right")
    return np.stack([(direction >= 0).astype(np.int64), chosen.astype(np.int64)], axis=1)


def to_svg(scene: Scene, noise: Noise, variety: Variety = "wide") -> str:
    """The scene as an SVG document of 128 by 128 units; `noise` (NOISE_DIM,) sets the rest."""
    layers = _wide_layers if variety == "wide" else _narrow_layers
    return element(
        "svg",
        layers(scene, noise),
        xmlns="http://www.w3.org/2000/svg",
        viewBox="0 0 128 128",
        width=128,
        height=128,
    )


def _narrow_plan(scene: Scene, noise: Noise) -> _Plan:
    place = Chances(noise, "place", variety=_BIRD_VARIETY, usual=_USUAL_PLACE)
    chances = Chances(noise, "bird", variety=_BIRD_VARIETY, usual=_USUAL_BIRD)
    bird = draw_bird(scene, chances, Stance())
    x = place.normal(64, 2)
    if scene.perch == "air":
        return _Plan(bird, 1, x, place.uniform(58, 78), 0.0)
    height = {"branch": 92, "fence": 84, "rock": 90, "ground": 104, "water": 92}[scene.perch]
    level = height + place.uniform(-4, 4)
    return _Plan(bird, 1, x, level + 1 - bird.feet, level)


def _narrow_layers(scene: Scene, noise: Noise) -> str:
    plan = _narrow_plan(scene, noise)
    scenery = Chances(noise, "scenery", "layout", variety=_VARIETY, usual=_USUAL_SCENERY)
    floor = Chances(noise, "floor", variety=_VARIETY, usual=_USUAL_FLOOR)
    behind, front = _perch(scene, floor, plan.level)
    return background(scene.background, scenery) + behind + plan.figure + front


def _wide_plan(scene: Scene, noise: Noise) -> _Plan:
    layout, place = Chances(noise, "layout"), Chances(noise, "place")
    facing = 1 if layout.uniform(0, 1) < 0.5 else -1
    composition = layout.uniform(0, 1)
    stance = Stance(
        proportions=0.12,
        sweep=(-0.6, 0.6),
        tilt=7.0,
        lift=layout.uniform(0.45, 1.1),
        tail=layout.uniform(-16, 16),
    )
    bird = draw_bird(scene, Chances(noise, "bird"), stance)
    x = _across(bird, facing, place.uniform(0, 1))
    if scene.perch == "air":
        highest = bird.top + _MARGIN
        y = highest + place.uniform(0, 1) * max(0.0, 100 - highest)
        return _Plan(bird, facing, x, y, 0.0, composition)
    lowest, highest = _LEVELS[scene.perch]
    lowest = min(max(lowest, bird.feet + bird.top + _MARGIN), highest)
    level = lowest + place.uniform(0, 1) * (highest - lowest)
    return _Plan(bird, facing, x, level + 1 - bird.feet, level, composition)


def _wide_layers(scene: Scene, noise: Noise) -> str:
    plan = _wide_plan(scene, noise)
    behind, front = _perch(scene, Chances(noise, "floor"), plan.level, plan.x)
    # Scenery that needs more numbers than it has takes the floor's.
    scenery = Chances(noise, "scenery", "floor")
    back = composed_background(scene.background, plan.composition, scenery)
    return back + behind + plan.figure + front


def _across(bird: Figure, facing: int, share: float) -> float:
    """Horizontal position of the bird, with its beak and most of its tail within the image."""
    ahead, behind = bird.front + _MARGIN, 0.75 * bird.back
    left, right = (behind, ahead) if facing > 0 else (ahead, behind)
    if left > SIZE - right:  # too long: the tail gives way
        return SIZE - right if facing > 0 else left
    return left + share * (SIZE - right - left)


def _perch(scene: Scene, floor: Chances, level: float, x: float | None = None) -> tuple[str, str]:
    """The perch behind and in front of the bird; narrow images have no `x`."""
    wide = x is not None
    x = 64.0 if x is None else x
    if scene.perch == "air":
        return "", ""
    if scene.perch == "water":
        return perches.water(floor, level, scene.background, x)
    if scene.perch == "branch":
        return perches.branch(floor, level, scene.background, x, 16.0 if wide else 5.0), ""
    draw_perch = {"fence": perches.fence, "rock": perches.rock, "ground": perches.ground}
    return draw_perch[scene.perch](floor, level, scene.background, x), ""


def draw(scene: Scene, noise: Noise, size: int = 128, variety: Variety = "wide") -> Image.Image:
    """The scene as an RGB image of `size` by `size` pixels, anti-aliased.

    Raises DataError if resvg_py is not installed.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise DataError(
            f"the aviary is drawn by resvg_py, which is not installed: {install_hint('train')}"
        ) from error
    png = svg_to_bytes(
        svg_string=to_svg(scene, noise, variety), width=size, height=size, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB")
