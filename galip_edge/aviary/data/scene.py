"""What is in a scene: the attributes that captions speak of and that can be measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from galip_edge.aviary.data.attributes import ATTRIBUTES, PERCHES, Variety
from galip_edge.aviary.data.chance import Noise, choose

# So much is added to the noise of what shall be more frequent: half of all parts are plain, and
# two in three that swim are ducks, as a person would expect.
_PLAIN, _DUCK = 1.1, 1.9

# What is imagined of a bird of which nothing is told.
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
    """One bird in one place.

    Attributes:
        species, body, belly, wing, beak, size, pose, perch, background: see ATTRIBUTES; a `plain`
            belly or wing has the colour of the body. All that captions do not speak of (position,
            direction, shades, clouds) is decided by the noise with which a scene is drawn.

    Raises:
        ValueError: an attribute has no such value, or the pose is not possible on the perch.
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
        """Each attribute's number in ATTRIBUTES."""
        return {name: ATTRIBUTES[name].index(value) for name, value in asdict(self).items()}


def random_scene(noise: Noise, given: Mapping[str, str] = MappingProxyType({})) -> Scene:
    """The scene that `noise` decides on, as far as it is not `given`.

    Colours are such that every part can be told from the body, unless that is given otherwise.
    """
    # A body of which nothing is said has none of the colours that its parts are said to have.
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
    """Another scene that has `keep`, names of attributes, in common with `scene`.

    What a caption states may be kept, so that it describes both. The rest is `random_scene`'s, or
    for narrow variety `imagined_scene`'s. Raises ValueError for an unknown name.
    """
    kept = set(keep)
    if unknown := kept - set(ATTRIBUTES):
        raise ValueError(f"unknown attributes {', '.join(sorted(unknown))}")
    if "perch" in kept:  # it is possible in one pose only
        kept.add("pose")
    given = {name: getattr(scene, name) for name in kept}
    return random_scene(noise, given) if variety == "wide" else imagined_scene(noise, given)


def imagined_scene(noise: Noise, told: Mapping[str, str]) -> Scene:
    """The usual scene with the attributes `told`, for narrow variety.

    Noise decides where more than one value is usual: on colour and background. The fewer such
    choices there are, the sooner a generator learns which it is (docs/embedded-model.md).
    """
    scene = {name: choose(noise, name, values) for name, values in _USUAL.items()} | dict(told)
    scene.setdefault("perch", PERCHES[scene["pose"]][0])
    if scene["pose"] == "swimming" and "species" not in told:
        scene["species"] = "duck"
    scene.setdefault("beak", _USUAL_BEAK[scene["species"]])
    return Scene(**scene)
