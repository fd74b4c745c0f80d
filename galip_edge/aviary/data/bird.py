"""The bird, drawn from the side and facing right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galip_edge.aviary.data.chance import Chances
from galip_edge.aviary.data.scene import Scene
from galip_edge.aviary.data.svg import (
    Colour,
    Point,
    circle,
    ellipse,
    hex_colour,
    lighter,
    line,
    path,
    polygon,
    shifted,
    smooth,
)

COLOURS: dict[str, str] = {
    "red": "#d8262c",
    "orange": "#f5821f",
    "yellow": "#f8d32f",
    "green": "#3fa34d",
    "blue": "#2f6fdc",
    "purple": "#8e3fb8",
    "white": "#f7f5f0",
    "black": "#26262b",
    "brown": "#7a4a26",
}


@dataclass(frozen=True)
class Shape:
    """Proportions of a species; lengths are in units of half the body's length.

    Attributes:
        depth: half the body's height.
        head: radius of the head.
        neck: how far the head is from where it would sit without a neck.
        tail, legs, beak: lengths.
        beak_kind: `cone`, `hook`, `flat` or `spear`.
        crest: whether feathers stand up on the head.
    """

    depth: float
    head: float
    neck: float
    tail: float
    legs: float
    beak: float
    beak_kind: str
    crest: bool = False


SHAPES: dict[str, Shape] = {
    "songbird": Shape(0.74, 0.50, 0.0, 0.75, 0.50, 0.32, "cone"),
    "magpie": Shape(0.58, 0.42, 0.1, 1.55, 0.55, 0.38, "cone"),
    "parrot": Shape(0.62, 0.52, 0.1, 1.35, 0.40, 0.40, "hook", crest=True),
    "duck": Shape(0.62, 0.44, 0.55, 0.50, 0.42, 0.52, "flat"),
    "heron": Shape(0.52, 0.33, 1.05, 0.55, 1.10, 0.85, "spear"),
}


@dataclass(frozen=True)
class Stance:
    """Stance of a bird, and ranges of random variation.

    Attributes:
        proportions: largest relative change of depth, head, tail and beak.
        sweep: range of a spread wing's lean, in spans; from backward to forward.
        tilt: standard deviation of the body's angle in degrees.
        lift: height of a spread wing relative to a fully raised one.
        tail: angle of the tail in degrees, upwards.
    """

    proportions: float = 0.06
    sweep: tuple[float, float] = (-0.15, 0.35)
    tilt: float = 3.0
    lift: float = 1.0
    tail: float = 0.0


@dataclass(frozen=True)
class Figure:
    """A drawn bird.

    Attributes:
        svg: its elements, around the body's centre at (0, 0).
        feet: distance of its feet below the centre.
        front, back, top: distances of beak, tail and highest point from the centre.
        beak: the middle of the beak, and its length.
    """

    svg: str
    feet: float
    front: float
    back: float
    top: float
    beak: tuple[Point, float]


def draw_bird(scene: Scene, chances: Chances, stance: Stance = Stance()) -> Figure:
    """Draw the scene's bird; `chances` varies proportions and shades within `stance`."""
    return _Bird(scene, chances, stance).figure()


class _Bird:
    """The parts of one bird, with common dimensions."""

    def __init__(self, scene: Scene, chances: Chances, stance: Stance) -> None:
        self.scene = scene
        self.stance = stance
        self.shape = SHAPES[scene.species]
        self.r = (17.0 if scene.size == "small" else 25.0) * chances.uniform(0.88, 1.12)
        if scene.species == "heron":
            self.r *= 0.86
        change = stance.proportions
        vary = [chances.uniform(1 - change, 1 + change) for _ in range(4)]
        self.depth = self.r * self.shape.depth * vary[0]
        self.head_r = self.r * self.shape.head * vary[1]
        self.tail = self.r * self.shape.tail * vary[2]
        self.beak = self.r * self.shape.beak * vary[3]
        self.sweep = chances.uniform(*stance.sweep)
        shade = {"hue": chances.normal(0, 0.006), "saturation": chances.uniform(0.9, 1.08),
                 "value": chances.uniform(0.92, 1.05)}  # fmt: skip
        self.body = shifted(hex_colour(COLOURS[scene.body]), **shade)
        self.belly = self._part(scene.belly, lighter(self.body, 0.22))
        self.wing = self._part(
            scene.wing, lighter(self.body, 0.18 if scene.body == "black" else -0.2)
        )
        self.beak_colour = {
            "orange": hex_colour("#f08a1d"),
            "yellow": hex_colour("#f4cf3a"),
            "black": hex_colour("#2b2b2b"),
            "red": hex_colour("#cf2f2f"),
        }[scene.beak]
        rim = 0.45 if scene.body == "black" else -0.45
        self.outline = lighter(self.body, rim)
        tilt = {"perched": 30, "standing": 16, "swimming": 3, "flying": 8}[scene.pose]
        self.tilt = np.radians(tilt + chances.normal(0, stance.tilt))

    def _part(self, name: str, plain: Colour) -> Colour:
        return plain if name == "plain" else hex_colour(COLOURS[name])

    def at(self, along: float, up: float) -> Point:
        """A point by its coordinates along the tilted body and perpendicular to it."""
        c, s = float(np.cos(self.tilt)), float(np.sin(self.tilt))
        return (along * c - up * s, -along * s - up * c)

    @property
    def head(self) -> Point:
        x, y = self.at(self.r * 0.78, self.depth * 0.62)
        neck = self.r * self.shape.neck
        if self.scene.pose == "flying":  # stretched forward
            return (x + neck * 0.85, y - neck * 0.3)
        return (x + neck * 0.3, y - neck * 0.9)

    def figure(self) -> Figure:
        legs, feet = self._legs()
        parts = []
        if self.scene.pose == "flying":
            parts.append(self._spread_wing(far=True))
        parts += [legs, self._tail(), self._beak(), self._body()]
        parts.append(self._spread_wing(far=False) if self.scene.pose == "flying" else self._wing())
        parts.append(self._eye())
        x, y = self.head
        crown = self.head_r * (1.75 if self.shape.crest else 1.0)
        spread = 1.5 * self.r * self.stance.lift if self.scene.pose == "flying" else 0.0
        return Figure(
            "".join(parts),
            feet,
            front=x + self.head_r * 0.78 + self.beak,
            back=self.r * 0.72 + self.tail,
            top=max(crown - y, spread + 0.42 * self.depth),
            beak=((x + self.head_r * 0.78 + self.beak / 2, y + self.head_r * 0.12), self.beak),
        )

    def _silhouette(self, **style: object) -> str:
        """Body, neck and head as overlapping shapes."""
        turn = -float(np.degrees(self.tilt))
        x, y = self.head
        parts = [
            ellipse(0, 0, self.r, self.depth, turn, **style),
            circle(x, y, self.head_r, **style),
        ]
        below, above = self.at(self.r * 0.82, -self.depth * 0.25), self.at(0, self.depth * 0.9)
        chin = (x + self.head_r * 0.62, y + self.head_r * 0.72)
        nape = (x - self.head_r * 0.85, y - self.head_r * 0.25)
        if self.shape.neck > 0.3 and self.scene.pose != "flying":
            above = self.at(self.r * 0.35, self.depth * 0.8)
            chin = (x + self.head_r * 0.35, y + self.head_r * 0.85)
        parts.append(polygon([below, chin, nape, above], stroke_linejoin="round", **style))
        crest = ""
        if self.shape.crest:
            feathers = [
                (x - self.head_r * 0.15, y - self.head_r * 0.7),
                (x - self.head_r * 0.75, y - self.head_r * 1.75),
                (x - self.head_r * 0.75, y - self.head_r * 1.1),
                (x - self.head_r * 1.45, y - self.head_r * 1.25),
                (x - self.head_r * 0.9, y - self.head_r * 0.2),
            ]
            crest = polygon(feathers, stroke_linejoin="round", **style)
        return crest + "".join(parts)

    def _body(self) -> str:
        edge = self._silhouette(fill=self.outline, stroke=self.outline, stroke_width=2.2)
        fill = self._silhouette(fill=self.body)
        turn = -float(np.degrees(self.tilt))
        x, y = self.at(self.r * 0.18, -self.depth * 0.42)
        belly = ellipse(x, y, self.r * 0.70, self.depth * 0.50, turn, fill=self.belly)
        x, y = self.head
        shine = ellipse(
            x - self.head_r * 0.15, y - self.head_r * 0.5, self.head_r * 0.5, self.head_r * 0.25,
            -15, fill=lighter(self.body, 0.35), opacity=0.6,
        )  # fmt: skip
        return edge + fill + belly + shine

    def _tail(self) -> str:
        end, spread = self.r * 0.72 + self.tail, self.r * 0.24
        root, flat = self.depth * 0.34, self.scene.pose in ("flying", "swimming")
        drop = 0.0 if flat else self.tail * 0.12
        lift = self.r * 0.25 if self.scene.species == "duck" else 0.0
        points = [
            self.at(-self.r * 0.6, root),
            self.at(-end, spread - drop + lift),
            self.at(-end * 0.97, -spread * 0.1 - drop + lift),
            self.at(-end * 1.02, -spread - drop + lift),
            self.at(-self.r * 0.6, -root * 0.8),
        ]
        if self.stance.tail:
            pivot = self.at(-self.r * 0.6, 0.0)
            points = [_turned(point, pivot, self.stance.tail) for point in points]
        return polygon(
            points, fill=self.wing, stroke=self.outline, stroke_width=1.1, stroke_linejoin="round"
        )

    def _wing(self) -> str:
        r, d = self.r, self.depth
        points = [
            self.at(r * 0.42, d * 0.38),
            self.at(r * 0.10, d * 0.66),
            self.at(-r * 0.50, d * 0.46),
            self.at(-r * 1.18, d * 0.04),
            self.at(-r * 0.55, -d * 0.22),
            self.at(r * 0.10, -d * 0.24),
        ]
        edge = lighter(self.wing, 0.3 if self._dark(self.wing) else -0.3)
        parts = [path(smooth(points), fill=self.wing, stroke=edge, stroke_width=1.0)]
        for k in (0.0, 0.24):
            feather = [self.at(r * (0.1 - k), d * (0.05 + k)), self.at(-r * 0.45, d * (0.02 + k)),
                       self.at(-r * 0.85, d * (0.02 + k * 0.6))]  # fmt: skip
            parts.append(path(smooth(feather, False), fill="none", stroke=edge, stroke_width=1.0))
        return "".join(parts)

    def _spread_wing(self, far: bool) -> str:
        """A raised wing, seen from the side; the far one is darker and further forward."""
        r, lean = self.r, self.sweep + (0.42 if far else 0.0)
        span, chord = r * (1.75 if not far else 1.6), r * 0.62
        root = self.at(r * (0.30 if far else 0.12), self.depth * 0.42)

        height = 0.86 * self.stance.lift

        def out(share: float, back: float) -> Point:
            """`share` of the span outwards, `back` chords behind the leading edge."""
            x = span * share * (lean - 0.35) - chord * back
            return (root[0] + x, root[1] - span * share * height + chord * back * 0.25)

        points = [out(0, -0.45), out(0.35, -0.55), out(0.75, -0.25), out(1.0, 0.25),
                  out(0.86, 0.55), out(0.70, 0.66), out(0.52, 0.92), out(0.34, 1.0),
                  out(0.16, 1.08), out(0.0, 0.8)]  # fmt: skip
        fill = lighter(self.wing, -0.22) if far and not self._dark(self.wing) else self.wing
        edge = lighter(fill, 0.3 if self._dark(fill) else -0.3)
        parts = [path(smooth(points), fill=fill, stroke=edge, stroke_width=1.1)]
        if not far:
            for share in (0.25, 0.5):
                feather = [out(share, 0.1), out(share - 0.04, 0.8)]
                parts.append(line(feather, edge, 1.0))
        return "".join(parts)

    def _beak(self) -> str:
        x, y = self.head
        x += self.head_r * 0.78
        y += self.head_r * 0.12
        n, h = self.beak, self.head_r * 0.42
        edge = lighter(self.beak_colour, 0.3 if self.scene.beak == "black" else -0.35)
        style: dict[str, object] = {
            "fill": self.beak_colour, "stroke": edge, "stroke_width": 0.9,
            "stroke_linejoin": "round",
        }  # fmt: skip
        kind = self.shape.beak_kind
        if kind == "cone":
            return polygon([(x, y - h), (x + n, y + h * 0.2), (x, y + h * 0.9)], **style)
        if kind == "spear":
            return polygon([(x, y - h * 0.7), (x + n, y + h * 0.1), (x, y + h * 0.6)], **style)
        if kind == "flat":
            bill = [
                (x, y - h * 0.7),
                (x + n * 0.6, y - h * 0.05),
                (x + n, y + h * 0.1),
                (x + n, y + h * 0.75),
                (x + n * 0.4, y + h * 0.9),
                (x, y + h * 0.9),
            ]
            return path(smooth(bill), **style)
        hook = [(x - 1, y - h * 1.15), (x + n * 0.75, y - h * 0.6), (x + n * 0.85, y + h * 1.5),
                (x + n * 0.35, y + h * 0.7), (x - 1, y + h * 0.9)]  # fmt: skip
        return path(smooth(hook), **style)

    def _eye(self) -> str:
        x, y = self.head
        x += self.head_r * 0.32
        y -= self.head_r * 0.12
        r = max(1.7, self.head_r * 0.27)
        return (
            circle(x, y, r, fill="#ffffff", stroke="#3a3a3a", stroke_width=0.5)
            + circle(x + r * 0.15, y, r * 0.66, fill="#16161a")
            + circle(x + r * 0.4, y - r * 0.35, r * 0.24, fill="#ffffff")
        )

    def _legs(self) -> tuple[str, float]:
        if self.scene.pose in ("flying", "swimming"):
            return "", self.depth * 0.45
        length = self.r * self.shape.legs * (0.55 if self.scene.pose == "perched" else 1.0)
        colour = hex_colour("#d08a3c") if self.scene.beak != "black" else hex_colour("#4a4a4a")
        width, parts, ground = max(1.5, self.r * 0.085), [], self.depth * 0.8 + length
        for along in (-0.02, 0.28):
            hip = self.at(self.r * along, -self.depth * 0.7)
            foot = (hip[0] + self.r * 0.03, ground)
            parts.append(line([hip, foot], colour, width))
            for toe in (-0.16, 0.2):
                parts.append(line([foot, (foot[0] + self.r * toe, ground + 0.8)], colour, width))
        return "".join(parts), ground

    @staticmethod
    def _dark(colour: Colour) -> bool:
        return max(colour) < 0.35


def _turned(point: Point, pivot: Point, degrees: float) -> Point:
    """`point` rotated around `pivot`; positive lifts what is to its left."""
    c, s = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
    x, y = point[0] - pivot[0], point[1] - pivot[1]
    return (pivot[0] + x * c - y * s, pivot[1] + x * s + y * c)


__all__ = ["COLOURS", "SHAPES", "Figure", "Shape", "Stance", "draw_bird"]
