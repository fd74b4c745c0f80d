"""Captions of scenes, from terse to detailed, with the attributes that they state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galip_edge.aviary.data.scene import Scene

_COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "red", "bright red", "scarlet", "crimson"),
    "orange": ("orange", "orange", "orange", "bright orange"),
    "yellow": ("yellow", "yellow", "yellow", "bright yellow", "golden"),
    "green": ("green", "green", "green", "emerald", "bright green"),
    "blue": ("blue", "blue", "blue", "bright blue"),
    "purple": ("purple", "purple", "purple", "violet"),
    "white": ("white", "white", "white", "snow-white"),
    "black": ("black", "black", "black", "dark black"),
    "brown": ("brown", "brown", "brown", "chestnut"),
}
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_PERCH_WORDS: dict[str, tuple[str, ...]] = {
    "branch": (
        "on a branch",
        "perched on a branch",
        "sitting on a branch",
        "on a tree branch",
        "resting on a branch",
    ),
    "fence": ("on a fence", "perched on a fence", "sitting on a wooden fence", "on a wooden fence"),
    "rock": ("on a rock", "standing on a rock", "standing on a stone", "on top of a boulder"),
    "ground": ("on the ground", "standing on the ground", "standing on the grass", "in the grass"),
    "water": ("swimming", "swimming in a lake", "on the water", "floating on the water"),
    "air": ("flying", "in flight", "flying through the air", "with spread wings, flying"),
}
_BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "sky": ("under a blue sky", "against the blue sky", "on a sunny day", "in daylight"),
    "forest": ("in the forest", "in a forest", "in the woods", "among the trees"),
    "sunset": ("at sunset", "at dusk", "in the evening light", "in front of the setting sun"),
    "snow": ("in the snow", "in winter", "on a snowy day", "in a snowy landscape"),
    "night": ("at night", "under the stars", "in the moonlight", "under the night sky"),
    "mountains": (
        "in the mountains",
        "in front of mountains",
        "with mountains behind it",
        "against a mountain landscape",
    ),
}
_OPENINGS = ("", "", "", "", "a picture of ", "an illustration of ", "a drawing of ")


@dataclass(frozen=True)
class Caption:
    """One caption.

    Attributes:
        text: of the caption.
        states: stated attributes, names of ATTRIBUTES.
    """

    text: str
    states: frozenset[str]


def write_caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """A caption of the scene, with random detail and wording."""
    return _Writer(scene, rng).caption()


def more_captions(
    first: Caption, scene: Scene, count: int, rng: np.random.Generator
) -> tuple[Caption, ...]:
    """`first` and other captions of the scene, `count` in all; fewer if they repeat themselves."""
    found = {first.text: first}
    for _ in range(8 * count):
        if len(found) >= count:
            break
        caption = write_caption(scene, rng)
        found.setdefault(caption.text, caption)
    return tuple(found.values())


class _Writer:
    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene = scene
        self.rng = rng
        self.detail = rng.choice([0.25, 0.5, 0.75, 0.95, 0.95])
        self.states: set[str] = set()

    def caption(self) -> Caption:
        bird, place, back = self._bird(), self._place(), self._background()
        form = self.rng.random()
        if form < 0.12:  # key words
            words = [w for w in (f"{bird} {place}".strip(), back) if w]
            text = ", ".join(words)
        elif form < 0.27 and back:
            text = f"{back}, {_article(bird)} {place}".strip()
        elif form < 0.37:
            text = f"there is {_article(bird)} {place} {back}".strip()
        else:
            text = f"{self._pick(_OPENINGS)}{_article(bird)} {place} {back}".strip()
        return Caption(" ".join(text.split()), frozenset(self.states))

    def _pick(self, values: tuple[str, ...]) -> str:
        return values[int(self.rng.integers(len(values)))]

    def _says(self, *names: str, odds: float = 1.0) -> bool:
        """Decide at random whether to state these attributes, and record them."""
        if self.rng.random() >= self.detail * odds:
            return False
        self.states.update(names)
        return True

    def _bird(self) -> str:
        scene, words = self.scene, []
        if self._says("size", odds=0.5):
            words.append(self._pick(_SIZE_WORDS[scene.size]))
        if self._says("body", odds=1.4):
            words.append(self._pick(_COLOUR_WORDS[scene.body]))
        words.append(scene.species if self._says("species", odds=0.7) else "bird")
        parts = []
        if scene.belly != "plain" and self._says("belly", odds=0.8):
            parts.append(f"a {scene.belly} {self._pick(('belly', 'breast'))}")
        if scene.wing != "plain" and self._says("wing", odds=0.8):
            parts.append(f"{scene.wing} wings")
        if self._says("beak", odds=0.4):
            parts.append(_article(f"{scene.beak} beak"))
        if parts:
            words.append("with " + " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])))
        return " ".join(words)

    def _place(self) -> str:
        if self._says("pose", "perch", odds=1.15):
            return self._pick(_PERCH_WORDS[self.scene.perch])
        return ""

    def _background(self) -> str:
        if self._says("background", odds=0.6):
            return self._pick(_BACKGROUND_WORDS[self.scene.background])
        return ""


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
