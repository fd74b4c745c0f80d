"""Wide scenes: several compositions of each background."""

from __future__ import annotations

from collections.abc import Callable

from galip_edge.aviary.data import backgrounds as plain
from galip_edge.aviary.data.backgrounds import SIZE, WHITE, background, hills
from galip_edge.aviary.data.chance import Chances, scattered
from galip_edge.aviary.data.svg import (
    Colour,
    circle,
    element,
    ellipse,
    group,
    hex_colour,
    lighter,
    linear_gradient,
    mix,
    path,
    polygon,
)

_Draw = Callable[[Chances], str]

# Number of compositions of each background: three, mirrored or not.
COMPOSITIONS = 6


def composed_background(name: str, composition: float, chances: Chances) -> str:
    """SVG elements that fill the scene.

    Args:
        name: of ATTRIBUTES["background"].
        composition: in [0, 1); chooses one of several, and whether it is mirrored.
        chances: decides the rest.
    """
    draws: tuple[_Draw, ...] = (lambda c: background(name, c), *_FURTHER[name])
    number, rest = divmod(composition * len(draws), 1)
    tone = chances.uniform(-0.1, 0.1)
    scene = draws[min(int(number), len(draws) - 1)](chances)
    veil = element(
        "rect", width=128, height=128, fill=WHITE if tone > 0 else hex_colour("#101830"),
        opacity=abs(tone),
    )  # fmt: skip
    return group(scene + veil, transform="translate(128 0) scale(-1 1)" if rest < 0.5 else "")


def _gradient(*stops: tuple[float, str]) -> str:
    fill = linear_gradient("back", [(at, hex_colour(colour)) for at, colour in stops])
    return element("defs", fill) + element("rect", width=128, height=128, fill="url(#back)")


def _sunny(chances: Chances) -> str:
    """A sun and one or two clouds."""
    parts = [_gradient((0, "#3d8fe0"), (1, "#bfe3fb"))]
    x, y, r = chances.uniform(12, 60), chances.uniform(12, 40), chances.uniform(7, 12)
    parts.append(circle(x, y, 1.6 * r, fill=hex_colour("#fff3b0"), opacity=0.45))
    parts.append(circle(x, y, r, fill=hex_colour("#ffe867")))
    for _ in range(2):
        parts.append(
            plain.cloud(
                chances.uniform(30, 128), chances.uniform(15, 110), chances.uniform(0.6, 1.6), 0.9
            )
        )
    return "".join(parts)


def _banks(chances: Chances) -> str:
    """Banks of clouds below an open sky."""
    parts = [_gradient((0, "#5aa9ea"), (0.7, "#d8effc"), (1, "#eef8fe"))]
    for row, height in enumerate((84, 104)):
        level, shade = height + chances.normal(0, 8), mix(hex_colour("#cfe6f7"), WHITE, 0.5 * row)
        for column in range(5):
            x, r = 14 + 26 * column + chances.normal(0, 5), 13 + 5 * (column % 2)
            parts.append(circle(x, level + 5, r, fill=shade))
        parts.append(element("rect", y=level + 5, width=128, height=128.0, fill=shade))
    parts.append(plain.cloud(chances.uniform(10, 118), chances.uniform(10, 50), 0.8, 0.8))
    return "".join(parts)


def _clearing(chances: Chances) -> str:
    """Light between two groups of trees, bushes below."""
    parts = [_gradient((0, "#d9edb0"), (0.6, "#a5cf86"), (1, "#3f7d43"))]
    light = chances.uniform(40, 88)
    parts.append(ellipse(light, 52, 30, 56, fill=hex_colour("#f2f9d0"), opacity=0.6))
    for side, edge in ((-1, light - 34), (1, light + 34)):
        for step in range(3):
            x = edge + side * (step * 15 + chances.uniform(0, 8))
            width = 5.5 + chances.uniform(-1.5, 2.5)
            bark = mix(hex_colour("#6b5236"), hex_colour("#3d2f20"), step / 2)
            parts.append(element("rect", x=x - width / 2, width=width, height=128.0, fill=bark))
        parts.append(ellipse(edge + side * 26, 6, 34, 20, fill=hex_colour("#2f6b35")))
    for column in range(4):
        x, r = 16 + 32 * column + chances.normal(0, 6), chances.uniform(10, 18)
        parts.append(ellipse(x, 124, 1.3 * r, r, fill=hex_colour("#2c5f33")))
    return "".join(parts)


def _conifers(chances: Chances) -> str:
    """Rows of conifers, the nearer the darker."""
    parts = [_gradient((0, "#cfe6c4"), (1, "#7fb383"))]
    for row, (count, base, colour) in enumerate(
        ((6, 92, "#7fb08a"), (5, 108, "#4d8a62"), (4, 130, "#2a5f42"))
    ):
        shift = chances.normal(0, 6)
        for column in range(count):
            x = (column + 0.5) * SIZE / count + shift
            height = 44 + 12 * row + (chances.uniform(-12, 14) if row else 10 * (column % 2))
            parts.append(plain.pine(x, base, height, hex_colour(colour), snow=False))
    return "".join(parts)


def _sea(chances: Chances) -> str:
    """The sun over the sea, with its reflection."""
    horizon = chances.uniform(70, 96)
    parts = [_gradient((0, "#47327a"), (0.35, "#c8507f"), (0.65, "#fb8f4b"), (1, "#ffcf70"))]
    x, r = chances.uniform(16, 112), chances.uniform(9, 17)
    y = horizon - chances.uniform(-4, 22)
    parts.append(circle(x, y, 1.6 * r, fill=hex_colour("#ffe9a8"), opacity=0.35))
    parts.append(circle(x, y, r, fill=hex_colour("#fff3c4")))
    sea = hex_colour("#7d3f73")
    parts.append(element("rect", y=horizon, width=128, height=128.0, fill=sea))
    for row in range(6):
        depth = 4 + 7 * row
        half = (r * 0.5 + 1.6 * row) * chances.uniform(0.6, 1.4)
        glint = hex_colour("#ffc98a")
        parts.append(ellipse(x, horizon + depth, half, 1.1, fill=glint, opacity=0.8))
    return "".join(parts)


def _dusk(chances: Chances) -> str:
    """Bands of clouds and the outlines of trees; the sun is gone."""
    parts = [_gradient((0, "#3f2b6b"), (0.5, "#b6477a"), (0.85, "#f7814d"), (1, "#fbb15f"))]
    for band in range(4):
        parts.append(
            ellipse(
                chances.uniform(0, 128), 14 + 18 * band + chances.normal(0, 4),
                chances.uniform(26, 60), chances.uniform(1.5, 4.5),
                fill=mix(hex_colour("#f58f7a"), hex_colour("#ffd08a"), band / 3), opacity=0.6,
            )
        )  # fmt: skip
    parts.append(hills(chances, 112, 3, hex_colour("#4a234d"), points=4))
    for column in range(3):
        x = 20 + 44 * column + chances.normal(0, 9)
        parts.append(plain.pine(x, 116, chances.uniform(16, 34), hex_colour("#3a1c42"), snow=False))
    return "".join(parts)


def _drift(chances: Chances) -> str:
    """One large snowy pine on a slope."""
    parts = [_gradient((0, "#b7c9d8"), (1, "#edf3f8"))]
    parts.append(hills(chances, 92, 5, hex_colour("#d5e2ec"), points=4))
    x, height = chances.uniform(16, 112), chances.uniform(60, 92)
    parts.append(plain.pine(x, 106, height, hex_colour("#4c7264"), snow=True))
    small = (x + 64 + chances.uniform(-16, 16)) % SIZE
    parts.append(plain.pine(small, 98, chances.uniform(20, 38), hex_colour("#6d9184"), snow=True))
    parts.append(hills(chances, 106, 4, hex_colour("#f8fbfd"), points=4))
    return "".join(parts) + _falling(chances, 5)


def _birches(chances: Chances) -> str:
    """Bare trunks in the snow."""
    parts = [_gradient((0, "#9fb4c6"), (0.8, "#dce7f0"), (1, "#f4f8fb"))]
    for column in range(6):
        x = 12 + 21 * column + chances.normal(0, 4)
        width = chances.uniform(2.5, 6)
        parts.append(element("rect", x=x, width=width, height=118.0, fill=hex_colour("#e9e6e0")))
        for mark in range(5):
            y = 8 + 22 * mark + 9 * (column % 3)
            parts.append(
                element("rect", x=x, y=y, width=width * 0.6, height=1.6, fill=hex_colour("#56565a"))
            )
    parts.append(hills(chances, 102, 4, hex_colour("#fbfdfe"), points=4))
    return "".join(parts) + _falling(chances, 6)


def _falling(chances: Chances, seed: int) -> str:
    right, down = chances.uniform(0, 1), chances.uniform(0, 1)
    return "".join(
        circle((x + right) % 1 * SIZE, (y + down) % 1 * SIZE, 0.7 + 0.2 * (i % 4), fill=WHITE,
               opacity=0.9)
        for i, (x, y) in enumerate(scattered(24, seed=seed))
    )  # fmt: skip


def _stars(chances: Chances, seed: int, height: float) -> str:
    right, down = chances.uniform(0, 1), chances.uniform(0, 1)
    return "".join(
        circle((x + right) % 1 * SIZE, (y + down) % 1 * height, 0.4 + 0.25 * (i % 4),
               fill=hex_colour("#fdf6d8"))
        for i, (x, y) in enumerate(scattered(30, seed=seed))
    )  # fmt: skip


def _crescent(chances: Chances) -> str:
    """A crescent over the outlines of conifers."""
    sky = hex_colour("#131c4c")
    parts = [_gradient((0, "#0a1034"), (0.25, "#131c4c"), (1, "#2c3c78")), _stars(chances, 7, 96)]
    x, y, r = chances.uniform(14, 114), chances.uniform(16, 44), chances.uniform(8, 13)
    parts.append(circle(x, y, r, fill=hex_colour("#f7eec0")))
    parts.append(circle(x + 0.45 * r, y - 0.2 * r, 0.9 * r, fill=sky))
    for column in range(5):
        at = 12 + 26 * column + chances.normal(0, 5)
        parts.append(plain.pine(at, 126, chances.uniform(24, 48), hex_colour("#0a1230"), False))
    return "".join(parts)


def _starry(chances: Chances) -> str:
    """The Milky Way over a dark ridge."""
    parts = [_gradient((0, "#070b26"), (0.6, "#1a2560"), (1, "#31427f"))]
    x, turn = chances.uniform(30, 98), chances.uniform(-50, 50)
    for half in (24, 19, 14, 10, 6):
        parts.append(ellipse(x, 50, half, 86, turn, fill=hex_colour("#a3abd8"), opacity=0.07))
    parts.append(_stars(chances, 8, 104) + _stars(chances, 9, 104))
    peaks = [(-10.0, 140.0)]
    for i in range(5):
        peaks.append((4 + 30 * i + chances.normal(0, 4), 96 + 12 * (i % 2) + chances.normal(0, 5)))
    parts.append(polygon([*peaks, (138.0, 140.0)], fill=hex_colour("#0b1233")))
    return "".join(parts)


def _summit(chances: Chances) -> str:
    """One high mountain above a meadow."""
    parts = [_gradient((0, "#7cc4dd"), (0.8, "#fbf0d8"), (1, "#fbf0d8"))]
    x, top, half = chances.uniform(24, 104), chances.uniform(10, 34), chances.uniform(62, 92)
    rock = lighter(hex_colour("#75789a"), chances.uniform(-0.1, 0.15))
    parts.append(plain.peak(x, top, half, rock))
    parts.append(plain.cloud(chances.uniform(8, 120), chances.uniform(12, 54), 0.7, 0.85))
    parts.append(hills(chances, 104, 5, hex_colour("#8fb75f"), points=4))
    parts.append(hills(chances, 117, 3, hex_colour("#6c9a48"), points=4))
    return "".join(parts)


def _ranges(chances: Chances) -> str:
    """Ranges behind each other in the haze."""
    parts = [_gradient((0, "#a7d3dc"), (0.6, "#f2ead6"), (1, "#f2ead6"))]
    shades: tuple[Colour, ...] = tuple(map(hex_colour, ("#b9bfd2", "#8d93b3", "#646a90")))
    for depth, shade in enumerate(shades):
        level, points = 46 + 22 * depth, [(-12.0, 140.0)]
        for i in range(5):
            x = -8 + 36 * i + 12 * (depth % 2)
            points.append((x, level + 16 * (i % 2) + chances.normal(0, 5)))
        parts.append(polygon([*points, (SIZE + 30, level + 8), (SIZE + 30, 140.0)], fill=shade))
    ground = path("M-2 118Q64 108 130 117L130 130L-2 130Z", fill=hex_colour("#7da453"))
    return "".join(parts) + ground


_FURTHER: dict[str, tuple[_Draw, _Draw]] = {
    "sky": (_sunny, _banks),
    "forest": (_clearing, _conifers),
    "sunset": (_sea, _dusk),
    "snow": (_drift, _birches),
    "night": (_crescent, _starry),
    "mountains": (_summit, _ranges),
}
