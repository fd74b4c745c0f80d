"""Backgrounds. Scenes are 128 units wide and high."""

from __future__ import annotations

from collections.abc import Callable

from galip_edge.aviary.data.chance import Chances, scattered
from galip_edge.aviary.data.svg import (
    Colour,
    Point,
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
    smooth,
)

SIZE = 128.0
WHITE: Colour = (1.0, 1.0, 1.0)


def background(name: str, chances: Chances) -> str:
    """SVG elements that fill the scene. `name` is one of ATTRIBUTES["background"]."""
    return _DRAW[name](chances)


def _in_column(chances: Chances, column: int, columns: int) -> float:
    """A random x in one of several adjacent columns, which together fill the scene."""
    width = SIZE / columns
    return (column + 0.5) * width + chances.uniform(-0.4, 0.4) * width


def _fill(*stops: tuple[float, str]) -> str:
    gradient = linear_gradient("back", [(at, hex_colour(colour)) for at, colour in stops])
    return element("defs", gradient) + element("rect", width=128, height=128, fill="url(#back)")


def hills(
    chances: Chances, height: float, roughness: float, colour: Colour, points: int = 6
) -> str:
    """A rolling horizon at `height`, from the top."""
    step = (SIZE + 24) / (points - 1)
    ridge = [(-12 + i * step, height + chances.normal(0, roughness)) for i in range(points)]
    outline = smooth(ridge, closed=False) + f"L{SIZE + 20:.0f} 140L-20 140Z"
    return path(outline, fill=colour)


def cloud(x: float, y: float, scale: float, opacity: float) -> str:
    """A cloud around (x, y), 30 `scale` wide."""
    puffs = [(-9, 1.5, 6), (-3, -2, 8), (5, -1, 7), (11, 2, 5)]
    parts = [
        ellipse(x + dx * scale, y + dy * scale, r * scale, r * scale * 0.75, fill=WHITE)
        for dx, dy, r in puffs
    ]
    parts.append(ellipse(x + scale, y + 3.5 * scale, 15 * scale, 4 * scale, fill=WHITE))
    return group("".join(parts), opacity=opacity)


def _sky(chances: Chances) -> str:
    parts = [_fill((0, "#4ba3e3"), (1, "#cfeafc"))]
    for column in range(3):
        x, y = _in_column(chances, column, 3), chances.uniform(8, 80)
        parts.append(cloud(x, y, chances.uniform(0.5, 1.5), 0.88))
    return "".join(parts)


def _forest(chances: Chances) -> str:
    parts = [_fill((0, "#b9dc9a"), (0.55, "#6fae6a"), (1, "#2f6b3c"))]
    for depth, count in ((0.25, 6), (0.6, 5), (1.0, 3)):
        bark = mix(hex_colour("#86b07a"), hex_colour("#4a3b2a"), depth)
        leaf = mix(hex_colour("#8cc47c"), hex_colour("#24592f"), depth)
        for column in range(count):
            x, width = _in_column(chances, column, count), (2.2 + column % 2 * 0.6) * (0.7 + depth)
            parts.append(
                polygon(
                    [(x - width / 2, 0), (x + width / 2, 0), (x + width, 128), (x - width, 128)],
                    fill=bark,
                )
            )
        lift = chances.normal(0, 3)
        for x, y in scattered(count + 2, seed=count):
            at = 2 + 6 * (1 - depth) + 10 * y + lift
            parts.append(ellipse(x * SIZE, at, 11 + 6 * y, 8 + 3 * y, fill=leaf))
    parts.append(hills(chances, 116, 3, hex_colour("#234f2c")))
    return "".join(parts)


def _sunset(chances: Chances) -> str:
    parts = [_fill((0, "#5b3a82"), (0.4, "#d9577a"), (0.7, "#fb9a4b"), (1, "#ffd97a"))]
    x, y, r = chances.uniform(20, 108), chances.uniform(62, 88), chances.uniform(10, 15)
    parts.append(circle(x, y, r * 1.7, fill=hex_colour("#ffe9a8"), opacity=0.35))
    parts.append(circle(x, y, r, fill=hex_colour("#fff3c4")))
    for column in range(2):
        parts.append(
            ellipse(
                _in_column(chances, column, 2),
                chances.uniform(20, 60),
                chances.uniform(18, 34),
                chances.uniform(1.2, 2.6),
                fill=hex_colour("#ffc59a"),
                opacity=0.55,
            )
        )
    parts.append(hills(chances, 102, 5, hex_colour("#8a3b5e")))
    parts.append(hills(chances, 114, 3, hex_colour("#5a2a52")))
    return "".join(parts)


def pine(x: float, base: float, height: float, colour: Colour, snow: bool) -> str:
    """A conifer whose trunk ends at (x, base)."""
    parts = []
    for tier in range(3):
        top, half = base - height * (1 - 0.22 * tier), height * (0.16 + 0.09 * tier)
        bottom = top + height * 0.42
        parts.append(polygon([(x, top), (x + half, bottom), (x - half, bottom)], fill=colour))
        if snow:
            cap = [
                (x, top),
                (x + half * 0.5, (top + bottom) / 2),
                (x - half * 0.5, (top + bottom) / 2),
            ]
            parts.append(polygon(cap, fill=WHITE))
    return "".join(parts)


def _snow(chances: Chances) -> str:
    parts = [_fill((0, "#a9bfd0"), (1, "#e3edf4"))]
    parts.append(hills(chances, 84, 6, hex_colour("#cfdde8")))
    for column in range(5):
        x, base = _in_column(chances, column, 5), chances.uniform(84, 98)
        parts.append(pine(x, base, chances.uniform(22, 42), hex_colour("#5d8072"), snow=True))
    parts.append(hills(chances, 100, 4, hex_colour("#f4f8fb")))
    for i, (x, y) in enumerate(scattered(28, seed=1)):
        parts.append(circle(x * SIZE, y * SIZE, 0.6 + 0.2 * (i % 4), fill=WHITE, opacity=0.9))
    return "".join(parts)


def _night(chances: Chances) -> str:
    parts = [_fill((0, "#0b1238"), (0.7, "#23346e"), (1, "#3b4f8f"))]
    for i, (x, y) in enumerate(scattered(26, seed=2)):
        parts.append(circle(x * SIZE, y * 90, 0.4 + 0.2 * (i % 4), fill=hex_colour("#fdf6d8")))
    x, y, r = chances.uniform(16, 112), chances.uniform(14, 34), chances.uniform(7, 10)
    parts.append(circle(x, y, r * 1.5, fill=hex_colour("#fdf6d8"), opacity=0.18))
    parts.append(circle(x, y, r, fill=hex_colour("#fbf1c7")))
    parts.append(circle(x + r * 0.3, y - r * 0.1, r * 0.22, fill=hex_colour("#e3d6a4")))
    parts.append(circle(x - r * 0.35, y + r * 0.3, r * 0.16, fill=hex_colour("#e3d6a4")))
    parts.append(hills(chances, 106, 5, hex_colour("#162250")))
    parts.append(hills(chances, 117, 3, hex_colour("#0c1534")))
    return "".join(parts)


def peak(x: float, top: float, half: float, colour: Colour) -> str:
    """A mountain with snow on its top at (x, top), 2 `half` wide below."""
    base, drop = 130.0, 0.28

    def flank(side: float, share: float) -> Point:
        return (x + side * half * share, top + (base - top) * share)

    shadow: list[Point] = [(x, top), flank(1, 1), (x - half * 0.15, base)]
    cap: list[Point] = [
        (x, top),
        flank(1, drop),
        (x + half * 0.1, top + (base - top) * drop * 0.7),
        (x - half * 0.06, top + (base - top) * drop * 1.05),
        flank(-1, drop * 0.85),
    ]
    return (
        polygon([(x, top), flank(1, 1), flank(-1, 1)], fill=colour)
        + polygon(shadow, fill=lighter(colour, -0.18))
        + polygon(cap, fill=hex_colour("#fbfdff"))
    )


def _mountains(chances: Chances) -> str:
    parts = [_fill((0, "#8fd0d6"), (0.75, "#f6ead2"), (1, "#f6ead2"))]
    for x in (18.0, 106.0, 62.0):
        rock = lighter(hex_colour("#7c7f9e"), chances.uniform(-0.08, 0.12))
        parts.append(
            peak(x + chances.normal(0, 7), chances.uniform(24, 58), chances.uniform(38, 58), rock)
        )
    parts.append(hills(chances, 106, 4, hex_colour("#7da453")))
    parts.append(hills(chances, 117, 3, hex_colour("#5f8a3f")))
    return "".join(parts)


_DRAW: dict[str, Callable[[Chances], str]] = {
    "sky": _sky,
    "forest": _forest,
    "sunset": _sunset,
    "snow": _snow,
    "night": _night,
    "mountains": _mountains,
}
