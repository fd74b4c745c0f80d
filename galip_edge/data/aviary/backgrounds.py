"""What is behind the bird. Scenes are 128 units wide and high."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from galip_edge.data.aviary.svg import (
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


def background(name: str, rng: np.random.Generator) -> str:
    """SVG elements that fill the scene. `name` is one of ATTRIBUTES["background"]."""
    return _DRAW[name](rng)


def _fill(*stops: tuple[float, str]) -> str:
    gradient = linear_gradient("back", [(at, hex_colour(colour)) for at, colour in stops])
    return element("defs", gradient) + element("rect", width=128, height=128, fill="url(#back)")


def hills(
    rng: np.random.Generator, height: float, roughness: float, colour: Colour, points: int = 6
) -> str:
    """A rolling horizon; `height` is where it lies, counted from the top."""
    xs = np.linspace(-12, SIZE + 12, points)
    ridge = [(float(x), height + float(rng.normal(0, roughness))) for x in xs]
    outline = smooth(ridge, closed=False) + f"L{SIZE + 20:.0f} 140L-20 140Z"
    return path(outline, fill=colour)


def _cloud(rng: np.random.Generator, x: float, y: float, scale: float, opacity: float) -> str:
    puffs = [(-9, 1.5, 6), (-3, -2, 8), (5, -1, 7), (11, 2, 5)]
    parts = [
        ellipse(x + dx * scale, y + dy * scale, r * scale, r * scale * 0.75, fill=WHITE)
        for dx, dy, r in puffs
    ]
    parts.append(ellipse(x + scale, y + 3.5 * scale, 15 * scale, 4 * scale, fill=WHITE))
    return group("".join(parts), opacity=opacity)


def _sky(rng: np.random.Generator) -> str:
    parts = [_fill((0, "#4ba3e3"), (1, "#cfeafc"))]
    for _ in range(int(rng.integers(2, 5))):
        x, y = rng.uniform(0, SIZE), rng.uniform(8, 80)
        parts.append(_cloud(rng, x, y, rng.uniform(0.6, 1.4), rng.uniform(0.75, 0.95)))
    return "".join(parts)


def _forest(rng: np.random.Generator) -> str:
    parts = [_fill((0, "#b9dc9a"), (0.55, "#6fae6a"), (1, "#2f6b3c"))]
    for depth, count in ((0.25, 6), (0.6, 5), (1.0, 3)):
        bark = mix(hex_colour("#86b07a"), hex_colour("#4a3b2a"), depth)
        leaf = mix(hex_colour("#8cc47c"), hex_colour("#24592f"), depth)
        for _ in range(count):
            x, width = rng.uniform(0, SIZE), rng.uniform(1.6, 3.2) * (0.7 + depth)
            parts.append(
                polygon(
                    [(x - width / 2, 0), (x + width / 2, 0), (x + width, 128), (x - width, 128)],
                    fill=bark,
                )
            )
        for _ in range(count + 2):
            x, y = rng.uniform(0, SIZE), rng.normal(6 + 6 * (1 - depth), 5)
            parts.append(ellipse(x, y, rng.uniform(10, 18), rng.uniform(7, 12), fill=leaf))
    parts.append(hills(rng, 116, 3, hex_colour("#234f2c")))
    return "".join(parts)


def _sunset(rng: np.random.Generator) -> str:
    parts = [_fill((0, "#5b3a82"), (0.4, "#d9577a"), (0.7, "#fb9a4b"), (1, "#ffd97a"))]
    x, y, r = rng.uniform(20, 108), rng.uniform(62, 88), rng.uniform(10, 15)
    parts.append(circle(x, y, r * 1.7, fill=hex_colour("#ffe9a8"), opacity=0.35))
    parts.append(circle(x, y, r, fill=hex_colour("#fff3c4")))
    for _ in range(int(rng.integers(1, 4))):
        parts.append(
            ellipse(
                rng.uniform(0, SIZE),
                rng.uniform(20, 60),
                rng.uniform(18, 34),
                rng.uniform(1.2, 2.6),
                fill=hex_colour("#ffc59a"),
                opacity=0.55,
            )
        )
    parts.append(hills(rng, 102, 5, hex_colour("#8a3b5e")))
    parts.append(hills(rng, 114, 3, hex_colour("#5a2a52")))
    return "".join(parts)


def _pine(x: float, base: float, height: float, colour: Colour, snow: bool) -> str:
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


def _snow(rng: np.random.Generator) -> str:
    parts = [_fill((0, "#a9bfd0"), (1, "#e3edf4"))]
    parts.append(hills(rng, 84, 6, hex_colour("#cfdde8")))
    for _ in range(int(rng.integers(3, 7))):
        x, base = rng.uniform(4, 124), rng.uniform(84, 98)
        parts.append(_pine(x, base, rng.uniform(22, 42), hex_colour("#5d8072"), snow=True))
    parts.append(hills(rng, 100, 4, hex_colour("#f4f8fb")))
    for _ in range(28):
        x, y, r = rng.uniform(0, SIZE), rng.uniform(0, SIZE), rng.uniform(0.5, 1.3)
        parts.append(circle(x, y, r, fill=WHITE, opacity=0.9))
    return "".join(parts)


def _night(rng: np.random.Generator) -> str:
    parts = [_fill((0, "#0b1238"), (0.7, "#23346e"), (1, "#3b4f8f"))]
    for _ in range(26):
        x, y, r = rng.uniform(0, SIZE), rng.uniform(0, 90), rng.uniform(0.35, 0.95)
        parts.append(circle(x, y, r, fill=hex_colour("#fdf6d8")))
    x, y, r = rng.uniform(16, 112), rng.uniform(14, 34), rng.uniform(7, 10)
    parts.append(circle(x, y, r * 1.5, fill=hex_colour("#fdf6d8"), opacity=0.18))
    parts.append(circle(x, y, r, fill=hex_colour("#fbf1c7")))
    parts.append(circle(x + r * 0.3, y - r * 0.1, r * 0.22, fill=hex_colour("#e3d6a4")))
    parts.append(circle(x - r * 0.35, y + r * 0.3, r * 0.16, fill=hex_colour("#e3d6a4")))
    parts.append(hills(rng, 106, 5, hex_colour("#162250")))
    parts.append(hills(rng, 117, 3, hex_colour("#0c1534")))
    return "".join(parts)


def _peak(x: float, top: float, half: float, colour: Colour) -> str:
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


def _mountains(rng: np.random.Generator) -> str:
    parts = [_fill((0, "#8fd0d6"), (0.75, "#f6ead2"), (1, "#f6ead2"))]
    for x in rng.permutation([18.0, 62.0, 106.0]):
        peak = lighter(hex_colour("#7c7f9e"), float(rng.uniform(-0.08, 0.12)))
        parts.append(_peak(x + rng.normal(0, 7), rng.uniform(24, 58), rng.uniform(38, 58), peak))
    parts.append(hills(rng, 106, 4, hex_colour("#7da453")))
    parts.append(hills(rng, 117, 3, hex_colour("#5f8a3f")))
    return "".join(parts)


_DRAW: dict[str, Callable[[np.random.Generator], str]] = {
    "sky": _sky,
    "forest": _forest,
    "sunset": _sunset,
    "snow": _snow,
    "night": _night,
    "mountains": _mountains,
}
