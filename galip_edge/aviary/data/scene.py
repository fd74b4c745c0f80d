"""Scenes: the attributes that captions state and that can be measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from types import MappingProxyType

import numpy as np

from galip_edge.aviary.data.attributes import ATTRIBUTES, PERCHES, Variety
from galip_edge.aviary.data.chance import Noise, choose, redraw_entries, rows_of_entries
from runtime.arrays import Floats, Integers

# Added to the noise of frequent values: half of all parts are plain, and two in three swimming
# birds are ducks.
_PLAIN, _DUCK = 1.1, 1.9
# Added to that of an impossible value.
_NEVER = -100.0

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
# Draws until noise chooses a value. The rarest is one in twenty.
_ATTEMPTS = 2000

# Attributes in the order of their choice, and those whose chances depend on a previous one.
_ORDER = ("body", "pose", "species", "belly", "wing", "beak", "size", "perch", "background")
_DEPENDS_ON = {"species": "pose", "belly": "body", "wing": "body", "perch": "pose"}

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
    chosen: dict[str, str] = {}
    for name in _ORDER:
        chosen[name] = given.get(name) or choose(
            noise, name, _choices(name, chosen), _bonuses(name, chosen, given)
        )
    return Scene(**chosen)


def random_labels(noises: Noise, given: Integers) -> Integers:
    """`labels()` of `random_scene` for many noise vectors at once.

    Args:
        noises: (N,NOISE_DIM).
        given: (N,attributes) indices of values in ATTRIBUTES, -1 where noise chooses. A given perch
            needs its pose.

    Returns:
        (N,attributes) indices.
    """
    names = list(ATTRIBUTES)
    labels = np.empty_like(given)
    for name in _ORDER:
        column, bonuses, values = names.index(name), *_tables(name)
        rows = labels[:, names.index(_DEPENDS_ON[name])] if name in _DEPENDS_ON else 0
        scores = rows_of_entries(noises, name)[:, : bonuses.shape[1]] + bonuses[rows]
        if name == "body":  # differs from the given colors of parts
            for part in ("belly", "wing"):
                colors = np.array([_index("body", value) for value in ATTRIBUTES[part]])
                taken = colors[given[:, names.index(part)]]
                differs = (given[:, names.index(part)] >= 0) & (taken >= 0)
                scores[differs, taken[differs]] += _NEVER
        chosen = values[rows, scores.argmax(axis=1)]
        labels[:, column] = np.where(given[:, column] >= 0, given[:, column], chosen)
    return labels


@cache
def _tables(name: str) -> tuple[Floats, Integers]:
    """Bonuses and values of an attribute's entries, a row for each value of what it depends on."""
    parent = _DEPENDS_ON.get(name)
    all_chosen = [{parent: value} for value in ATTRIBUTES[parent]] if parent else [{}]
    choices = [_choices(name, chosen) for chosen in all_chosen]
    shape = (len(choices), max(map(len, choices)))
    bonuses, values = np.full(shape, _NEVER, np.float32), np.zeros(shape, np.int64)
    for row, (chosen, possible) in enumerate(zip(all_chosen, choices, strict=True)):
        by_value = _bonuses(name, chosen, {})
        bonuses[row, : len(possible)] = [by_value.get(value, 0.0) for value in possible]
        values[row, : len(possible)] = [ATTRIBUTES[name].index(value) for value in possible]
    return bonuses, values


def _index(name: str, value: str) -> int:
    return ATTRIBUTES[name].index(value) if value in ATTRIBUTES[name] else -1


def redraw(noise: Noise, scene: Scene, given: Iterable[str], rng: np.random.Generator) -> Noise:
    """Other noise with the same image for a caption that states `given`, in wide variety.

    Entries of attributes are drawn anew: of those that the caption leaves open until they choose
    the scene's values, of the others, which decide nothing, just once.

    Args:
        noise: (NOISE_DIM,) of the image.
        scene: of the image.
        given: names of the attributes that the caption states.
        rng: of the entries.

    Raises ValueError if no noise gives the scene.
    """
    values = asdict(scene)
    stated = {name: values[name] for name in given}
    if "perch" in stated:  # it is possible in one pose only
        stated["pose"] = scene.pose
    drawn = noise.copy()
    chosen: dict[str, str] = {}
    for name in _ORDER:
        choices, bonuses = _choices(name, chosen), _bonuses(name, chosen, stated)
        for _ in range(_ATTEMPTS):
            redraw_entries(drawn, name, rng)
            if name in stated or choose(drawn, name, choices, bonuses) == values[name]:
                break
        else:
            raise ValueError(f"no noise gives {name} {values[name]!r} of {scene}")
        chosen[name] = values[name]
    return drawn


def _choices(name: str, chosen: Mapping[str, str]) -> tuple[str, ...]:
    """Values of an attribute, given those that precede it in _ORDER."""
    return PERCHES[chosen["pose"]] if name == "perch" else ATTRIBUTES[name]


def _bonuses(name: str, chosen: Mapping[str, str], given: Mapping[str, str]) -> dict[str, float]:
    """Added to the entries of the values of an attribute."""
    if name == "body":  # differs from the given colors of parts
        return {given[part]: _NEVER for part in ("belly", "wing") if part in given}
    if name in ("belly", "wing"):
        return {"plain": _PLAIN, chosen["body"]: _NEVER}
    if name == "species":
        return {"duck": _DUCK * (chosen["pose"] == "swimming")}
    return {}


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
