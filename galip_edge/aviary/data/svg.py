"""A few words of SVG: enough to draw the aviary."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence

Colour = tuple[float, float, float]
Point = tuple[float, float]


def hex_colour(text: str) -> Colour:
    """`#rrggbb` as red, green and blue in [0, 1]."""
    return (int(text[1:3], 16) / 255, int(text[3:5], 16) / 255, int(text[5:7], 16) / 255)


def text_colour(colour: Colour) -> str:
    """The inverse of `hex_colour`; values are clamped."""
    return "#" + "".join(f"{round(255 * min(1.0, max(0.0, c))):02x}" for c in colour)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b, the rest a."""
    return tuple(x + (y - x) * share for x, y in zip(a, b))  # type: ignore[return-value]


def lighter(colour: Colour, amount: float) -> Colour:
    """Towards white; towards black if `amount` is negative."""
    return mix(colour, (1.0, 1.0, 1.0) if amount > 0 else (0.0, 0.0, 0.0), abs(amount))


def shifted(colour: Colour, hue: float, saturation: float, value: float) -> Colour:
    """Hue (turns) added, saturation and value multiplied."""
    h, s, v = colorsys.rgb_to_hsv(*colour)
    return colorsys.hsv_to_rgb((h + hue) % 1.0, min(1.0, s * saturation), min(1.0, v * value))


def element(tag: str, content: str = "", /, **attributes: object) -> str:
    """One element; `_` in an attribute's name stands for `-`."""
    parts = [f"<{tag}"]
    for name, value in attributes.items():
        if isinstance(value, tuple):
            value = text_colour(value)
        elif isinstance(value, float):
            value = f"{value:.2f}"
        parts.append(f' {name.replace("_", "-")}="{value}"')
    parts.append(f">{content}</{tag}>" if content else "/>")
    return "".join(parts)


def circle(x: float, y: float, radius: float, **style: object) -> str:
    """A circle around (x, y)."""
    return element("circle", cx=x, cy=y, r=radius, **style)


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0, **style: object) -> str:
    """`turn` in degrees, clockwise."""
    if turn:
        style["transform"] = f"rotate({turn:.2f} {x:.2f} {y:.2f})"
    return element("ellipse", cx=x, cy=y, rx=rx, ry=ry, **style)


def polygon(points: Iterable[Point], **style: object) -> str:
    """A closed polygon."""
    return element("polygon", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in points), **style)


def line(points: Sequence[Point], colour: Colour, width: float, **style: object) -> str:
    """An open line with round ends."""
    return element(
        "polyline",
        points=" ".join(f"{x:.2f},{y:.2f}" for x, y in points),
        fill="none",
        stroke=colour,
        stroke_width=width,
        stroke_linecap="round",
        stroke_linejoin="round",
        **style,
    )


def smooth(points: Sequence[Point], closed: bool = True) -> str:
    """Path data of a curve through `points` (Catmull-Rom)."""
    n = len(points)

    def at(i: int) -> Point:
        return points[i % n] if closed else points[min(max(i, 0), n - 1)]

    parts = [f"M{points[0][0]:.2f} {points[0][1]:.2f}"]
    for i in range(n if closed else n - 1):
        before, start, end, after = at(i - 1), at(i), at(i + 1), at(i + 2)
        c1 = (start[0] + (end[0] - before[0]) / 6, start[1] + (end[1] - before[1]) / 6)
        c2 = (end[0] - (after[0] - start[0]) / 6, end[1] - (after[1] - start[1]) / 6)
        numbers = (*c1, *c2, *end)
        parts.append("C" + " ".join(f"{v:.2f}" for v in numbers))
    return "".join(parts) + ("Z" if closed else "")


def path(data: str, **style: object) -> str:
    """A path by SVG's commands."""
    return element("path", d=data, **style)


def linear_gradient(name: str, stops: Sequence[tuple[float, Colour]]) -> str:
    """From top to bottom of what it fills."""
    content = "".join(element("stop", offset=at, stop_color=colour) for at, colour in stops)
    return element("linearGradient", content, id=name, x1=0, y1=0, x2=0, y2=1)


def group(content: str, transform: str = "", **style: object) -> str:
    """Elements that share a transform and a style."""
    if transform:
        style["transform"] = transform
    return element("g", content or " ", **style)
