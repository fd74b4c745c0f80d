"""Perches and floors: behind the bird's feet, or in front of its body in water."""

from __future__ import annotations

import numpy as np

from galip_edge.aviary.data.backgrounds import SIZE, WHITE, hills
from galip_edge.aviary.data.chance import Chances, scattered
from galip_edge.aviary.data.svg import (
    Colour,
    element,
    ellipse,
    hex_colour,
    lighter,
    line,
    mix,
    path,
    polygon,
    smooth,
)

# Tint of water and ground for each background.
_TINT: dict[str, tuple[str, float]] = {
    "sky": ("#ffffff", 0.0),
    "forest": ("#2f6b3c", 0.15),
    "sunset": ("#7a2f5e", 0.35),
    "snow": ("#eef4f8", 0.0),
    "night": ("#101a44", 0.5),
    "mountains": ("#ffffff", 0.0),
}


def _lit(colour: str, background: str) -> Colour:
    tint, share = _TINT[background]
    return mix(hex_colour(colour), hex_colour(tint), share)


def branch(
    chances: Chances,
    y: float,
    background: str,
    x: float = 64.0,
    steep: float = 5.0,
) -> str:
    """A branch across the scene, under the bird's feet at (x, y); `steep` is its largest slope."""
    bark = _lit("#6b4a2e", background)
    slope, bend = chances.uniform(-steep, steep), chances.uniform(1, 4)
    left, right = y + slope * ((x + 6) / 70) + bend, y - slope * ((134 - x) / 70) + bend
    thick, thin = chances.uniform(1.6, 3.8), chances.uniform(1.6, 3.8)
    upper = [(-6.0, left - thick), (x, y), (134.0, right - thin)]
    lower = [(134.0, right + thin), (x, y + thick + thin), (-6.0, left + thick)]
    outline = smooth(upper, False) + "L" + smooth(lower, False)[1:] + "Z"
    parts = [path(outline, fill=bark)]
    leaf = _lit("#4f9a3d", background)
    for i, at in enumerate((8.0, 22.0, 36.0, 92.0, 106.0, 120.0)):
        foot = at + chances.uniform(-5, 5)
        if steep > 5:  # where the branch bends under a bird that may be anywhere
            share = (x - foot) / (x + 6) if foot < x else (foot - x) / (134 - x)
            base = y + ((left if foot < x else right) - y) * share
        else:
            base = (left + (right - left) * foot / SIZE) * 0.4 + y * 0.6
        up = 1.0 if i in (1, 5) else -1.0
        tip = (foot + chances.uniform(-6, 6), base + up * 8.5)
        parts.append(line([(foot, base), tip], bark, 1.1))
        turn = float(np.degrees(np.arctan2(tip[1] - base, tip[0] - foot)))
        if background == "snow":
            parts.append(ellipse(tip[0], tip[1], 2.2, 1.6, turn, fill=WHITE))
        else:
            shade = lighter(leaf, 0.12 * (i % 3 - 1))
            parts.append(ellipse(tip[0], tip[1], 4.6, 2.3, turn, fill=shade))
    if background == "snow":
        top = [(along, up - 0.6) for along, up in upper]
        parts.append(path(smooth(top, False), fill="none", stroke=WHITE, stroke_width=2.0))
    return "".join(parts)


def fence(chances: Chances, y: float, background: str, x: float = 64.0) -> str:
    """A wooden fence whose upper rail is at height `y`; it runs across, wherever the bird is."""
    wood = _lit("#b08a5b", background)
    dark = lighter(wood, -0.3)
    parts = []
    for rail in (y, y + 20):
        parts.append(element("rect", x=-4, y=rail, width=136, height=5.0, fill=wood))
        parts.append(element("rect", x=-4, y=rail + 4.0, width=136, height=1.2, fill=dark))
    offset = chances.uniform(6, 20)
    for at in (offset, offset + 88):
        post = [(at, 140.0), (at, y - 9), (at + 4.5, y - 14), (at + 9, y - 9), (at + 9, 140.0)]
        parts.append(polygon(post, fill=lighter(wood, 0.08)))
        parts.append(
            polygon(
                [(at + 6.5, 140), (at + 6.5, y - 11), (at + 9, y - 9), (at + 9, 140)], fill=dark
            )
        )
        if background == "snow":
            parts.append(ellipse(at + 4.5, y - 11.5, 5.2, 2.6, fill=WHITE))
    return "".join(parts)


def rock(chances: Chances, y: float, background: str, x: float = 64.0) -> str:
    """A boulder whose top is at (x, y)."""
    stone = _lit("#8d8a86", background)
    half = chances.uniform(26, 38)

    def knob(side: float, height: float) -> tuple[float, float]:
        return (x + side * half + chances.normal(0, 1.5), height + chances.normal(0, 1))

    outline = [
        knob(-1.25, 132),
        knob(-0.95, y + 14),
        knob(-0.45, y + 1.5),
        (x, y),
        knob(0.5, y + 2),
        knob(0.98, y + 16),
        knob(1.25, 132),
    ]
    shade = [(x + half * 0.2, y + 4), (x + half * 0.9, y + 18), (x + half * 1.1, 134),
             (x + half * 0.3, 134)]  # fmt: skip
    parts = [
        path(smooth(outline), fill=stone),
        path(smooth(shade), fill=lighter(stone, -0.15)),
        ellipse(x - half * 0.35, y + 7, half * 0.22, 2.4, -12, fill=lighter(stone, 0.25)),
    ]
    if background == "snow":
        parts.append(ellipse(x, y + 1, half * 0.55, 2.4, fill=WHITE))
    return "".join(parts)


def ground(chances: Chances, y: float, background: str, x: float = 64.0) -> str:
    """Grass, or snow, up to height `y`, wherever the bird is."""
    snow = background == "snow"
    grass = hex_colour("#ffffff") if snow else _lit("#6cab3f", background)
    parts = [hills(chances, y, 0.8, grass, points=5)]
    blade = hex_colour("#cddbe6") if snow else lighter(grass, -0.22)
    wind, left = chances.uniform(-1.5, 1.5), chances.uniform(-5, 5)
    for i, (across, depth) in enumerate(scattered(24, seed=3)):
        foot = (across * SIZE + left, y + 3 + depth * (123 - y))
        parts.append(line([foot, (foot[0] + wind, foot[1] - 3 - i % 3)], blade, 0.9))
    return "".join(parts)


def water(
    chances: Chances, y: float, background: str, x: float = 64.0, far: float = 14.0
) -> tuple[str, str]:
    """A lake up to height `y` - `far`, and the water in front of a bird that floats at (x, y)."""
    colours = {
        "sky": "#3f8fc9",
        "forest": "#3f7f78",
        "sunset": "#a8557a",
        "snow": "#7fa3bd",
        "night": "#1d2f6b",
        "mountains": "#4fa3b5",
    }
    lake = hex_colour(colours[background])
    behind = element("rect", x=-2, y=y - far, width=132, height=150.0, fill=lake)
    front = [path(smooth([(-4.0, y + 1), (40.0, y), (90.0, y + 1), (134.0, y)], False)
                  + "L134 140L-4 140Z", fill=lake)]  # fmt: skip
    light = lighter(lake, 0.32)
    drift = chances.uniform(-10, 10)
    for i, (across, depth) in enumerate(scattered(12, seed=4)):
        left, at, length = across * 136 - 8 + drift, y + 4 + depth * (122 - y), 8.0 + 4 * (i % 4)
        ripple = [(left, at), (left + length / 2, at + 1.2), (left + length, at)]
        front.append(path(smooth(ripple, False), fill="none", stroke=light, stroke_width=1.1))
    front.append(ellipse(x, y + 1.4, 26, 1.5, fill=light, opacity=0.7))
    return behind, "".join(front)
