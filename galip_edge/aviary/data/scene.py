"""Scenes: the attributes that captions state and that can be measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from galip_edge.aviary.data.attributes import ATTRIBUTES, PERCHES, Variety
from galip_edge.aviary.data.chance import Noise, choose

# Added to the noise of frequent values: half of all parts are plain, and two in three swimming
# birds are ducks.
_PLAIN, _DUCK = 1.1, 1.9

# Usual values of attributes that a caption leaves open.
_USUAL: dict[str, tuple[str, ...]] = {
    "species": ("songbird",),
    "body": ("red", "yellow", "green", "blue"),
    "belly": ("plain",),
    "wing": ("plain",),
    "size": ("large",),
    "pose": ("perched",),
    "background": ("sky", "forest"),
}
_USUAL_BEAK = {
    "songbird": "orange",
    "magpie": "black",
    "parrot": "red",
    "duck": "orange",
    "heron": "yellow",
}


@dataclass(frozen=True)
class Scene:
    """A bird in its surroundings.

    Attributes:
        species, body, belly, wing, beak, size, pose, perch, background: see ATTRIBUTES; a `plain`
            belly or wing has the color of the body. The noise of the image determines the rest
            (position, direction, shades, clouds).

    Raises:
        ValueError: a value is unknown, or the pose is not possible on the perch.
    """

    species: str
    body: str
    belly: str
    wing: str
    beak: str
    size: str
    pose: str
    perch: str
    background: str

    def __post_init__(self) -> None:
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}"
                )
        if self.perch not in PERCHES[self.pose]:
            raise ValueError(f"a {self.pose} bird cannot be on {self.perch!r}")

    def labels(self) -> dict[str, int]:
        """Index of each attribute's value in ATTRIBUTES."""
        return {name: ATTRIBUTES[name].index(value) for name, value in asdict(self).items()}


def random_scene(noise: Noise, given: Mapping[str, str] = MappingProxyType({})) -> Scene:
    """The scene of `noise`, with the `given` values.

    Every part differs from the body in color, unless given otherwise.
    """
    # An unstated body color differs from the given colors of parts.
    parts = {given[name]: -100.0 for name in ("belly", "wing") if name in given}

    def pick(name: str, values: tuple[str, ...], bonus: Mapping[str, float]) -> str:
        return given.get(name) or choose(noise, name, values, bonus)

    def part(name: str) -> str:
        return pick(name, ATTRIBUTES[name], {"plain": _PLAIN, body: -100.0})

    body = pick("body", ATTRIBUTES["body"], parts)
    pose = pick("pose", ATTRIBUTES["pose"], {})
    return Scene(
        species=pick("species", ATTRIBUTES["species"], {"duck": _DUCK * (pose == "swimming")}),
        body=body,
        belly=part("belly"),
        wing=part("wing"),
        beak=pick("beak", ATTRIBUTES["beak"], {}),
        size=pick("size", ATTRIBUTES["size"], {}),
        pose=pose,
        perch=pick("perch", PERCHES[pose], {}),
        background=pick("background", ATTRIBUTES["background"], {}),
    )


def similar_scene(
    scene: Scene, keep: Iterable[str], noise: Noise, variety: Variety = "wide"
) -> Scene:
    """Another scene with the same attributes `keep` as `scene`.

    A caption describes both scenes if its stated attributes are kept. The rest is by
    `random_scene`, or for narrow variety by `imagined_scene`.

    Raises ValueError for an unknown name.
    """
    kept = set(keep)
    if unknown := kept - set(ATTRIBUTES):
        raise ValueError(f"unknown attributes {', '.join(sorted(unknown))}")
    if "perch" in kept:  # it is possible in one pose only
        kept.add("pose")
    given = {name: getattr(scene, name) for name in kept}
    return random_scene(noise, given) if variety == "wide" else imagined_scene(noise, given)


def imagined_scene(noise: Noise, given: Mapping[str, str]) -> Scene:
    """The usual scene with the `given` attributes, for narrow variety.

    Noise chooses among several usual values, of color and background. A generator learns fewer
    choices faster (docs/embedded-model.md).
    """
    scene = {name: choose(noise, name, values) for name, values in _USUAL.items()} | dict(given)
    scene.setdefault("perch", PERCHES[scene["pose"]][0])
    if scene["pose"] == "swimming" and "species" not in given:
        scene["species"] = "duck"
    scene.setdefault("beak", _USUAL_BEAK[scene["species"]])
    return Scene(**scene)
