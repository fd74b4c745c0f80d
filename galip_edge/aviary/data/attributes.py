"""The attributes that captions state and that can be measured."""

from __future__ import annotations

from typing import Literal

# Variation of what a caption leaves open. `wide`: every attribute, direction, place, size, stance
# and scenery. `narrow`: color and background, among four and two; the rest hardly varies.
Variety = Literal["wide", "narrow"]

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

# Perches of each pose.
PERCHES: dict[str, tuple[str, ...]] = {
    "perched": ("branch", "branch", "fence"),
    "standing": ("rock", "ground"),
    "swimming": ("water",),
    "flying": ("air",),
}
