"""What is in a scene: the attributes that captions speak of and that can be measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np

# The values of every attribute, in the order of a classifier's outputs.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "species": ("songbird", "magpie", "parrot", "duck", "heron"),
    "body": ("red", "orange", "yellow", "green", "blue", "purple", "white", "black", "brown"),
    "belly": ("plain", "white", "yellow", "red", "blue"),
    "wing": ("plain", "white", "black", "yellow", "blue", "red"),
    "beak": ("orange", "yellow", "black", "red"),
    "size": ("small", "large"),
    "pose": ("perched", "standing", "swimming", "flying"),
    "perch": ("branch", "fence", "rock", "ground", "water", "air"),
    "background": ("sky", "forest", "sunset", "snow", "night", "mountains"),
}

# What a bird in each pose is on.
PERCHES: dict[str, tuple[str, ...]] = {
    "perched": ("branch", "branch", "fence"),
    "standing": ("rock", "ground"),
    "swimming": ("water",),
    "flying": ("air",),
}

_POSES = ("perched", "perched", "standing", "standing", "flying", "flying", "swimming")


@dataclass(frozen=True)
class Scene:
    """One bird in one place.

    Attributes:
        species, body, belly, wing, beak, size, pose, perch, background: see ATTRIBUTES; a `plain`
            belly or wing has the colour of the body.
        drawing_seed: decides all that captions do not speak of: proportions, position, direction,
            shades, clouds, leaves.

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
    drawing_seed: int = 0

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
        return {
            f.name: ATTRIBUTES[f.name].index(getattr(self, f.name))
            for f in fields(self)
            if f.name in ATTRIBUTES
        }


def random_scene(rng: np.random.Generator) -> Scene:
    """Any scene; colours are drawn so that every part can be told from the body."""

    def pick(*values: str) -> str:
        return values[int(rng.integers(len(values)))]

    def part(name: str, body: str) -> str:
        others = [c for c in ATTRIBUTES[name][1:] if c != body]
        return "plain" if rng.random() < 0.5 else pick(*others)

    body = pick(*ATTRIBUTES["body"])
    pose = pick(*_POSES)
    species = ATTRIBUTES["species"]
    if pose == "swimming":  # mostly a duck, as a person would expect
        species = ("duck", "duck", "duck", *species)
    return Scene(
        species=pick(*species),
        body=body,
        belly=part("belly", body),
        wing=part("wing", body),
        beak=pick(*ATTRIBUTES["beak"]),
        size=pick(*ATTRIBUTES["size"]),
        pose=pose,
        perch=pick(*PERCHES[pose]),
        background=pick(*ATTRIBUTES["background"]),
        drawing_seed=int(rng.integers(2**32)),
    )


def similar_scene(scene: Scene, keep: Iterable[str], rng: np.random.Generator) -> Scene:
    """Another scene that has `keep`, names of attributes, in common with `scene`.

    What a caption states may be kept, so that it describes both. Raises ValueError for an
    unknown name.
    """
    kept = set(keep)
    if unknown := kept - set(ATTRIBUTES):
        raise ValueError(f"unknown attributes {', '.join(sorted(unknown))}")
    values = {name: getattr(scene, name) for name in kept}
    if "perch" in kept:
        values["pose"] = scene.pose
    elif "pose" in kept:
        options = PERCHES[scene.pose]
        values["perch"] = options[int(rng.integers(len(options)))]
    return replace(random_scene(rng), **values)
