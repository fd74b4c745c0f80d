"""Recipes of files with several images, and commands that reproduce files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from runtime.checks import checked_integer, checked_share
from runtime.images import ImageMetadata
from runtime.noise import MAX_SEED
from runtime.version import __version__

# Options of each command that a recipe may have, with the check of their values: the range of an
# integer, or a word that `_check_option` knows.
_POSITIVE = (1, 10_000)
# Frames per second.
_SLOWEST, _FASTEST = 0.1, 100
_OPTIONS: dict[str, dict[str, Any]] = {
    "generate": {"n": (1, 2**31), "psi": "share", "grid": "flag"},
    "explore": {"n": _POSITIVE, "columns": (1, 2**31), "psi": "share"},
    "interpolate": {
        "steps": _POSITIVE,
        "loop": "flag",
        "fps": "rate",
        "psi": "share",
        "grid": "shape",
    },
}
_MOST_PROMPTS = 10_000
# More steps than this between two images give shares that floating point no longer separates.
_MOST_STEPS = 10_000


@dataclass(frozen=True)
class SeriesRecipe:
    """Inputs from which a sheet, strip or animation was generated.

    Attributes:
        command: generate, explore or interpolate.
        prompts: its prompts.
        seeds: its seeds; `explore` has the first one.
        model, model_hash: the model's name, and the hash of its files.
        options: of the command, by their long names (`n`, `psi`, `grid`, ...).
    """

    command: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    model: str
    model_hash: str
    options: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    def __post_init__(self) -> None:
        if self.command not in _OPTIONS:
            raise ValueError(f"no command {self.command!r} writes files with several images")
        for name, items, kind in (("prompts", self.prompts, str), ("seeds", self.seeds, int)):
            if not 1 <= len(items) <= _MOST_PROMPTS or not all(type(it) is kind for it in items):
                raise ValueError(f"{name} are missing or not of type {kind.__name__}")
        for seed in self.seeds:
            checked_integer(seed, "seed", 0, MAX_SEED)
        for text in (self.model, self.model_hash, self.version):
            if not isinstance(text, str) or len(text) > 200:
                raise ValueError("model and version must be short strings")
        for name, value in self.options.items():
            _check_option(name, value, _OPTIONS[self.command].get(name))

    @classmethod
    def of_recorded(cls, values: Mapping[str, Any]) -> SeriesRecipe:
        """Inverse of `recorded`. Raises ValueError if they are not such a recipe."""
        try:
            prompts, seeds = tuple(values["prompts"]), tuple(values["seeds"])
            return cls(**{**values, "prompts": prompts, "seeds": seeds})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("no recipe of several images") from error

    @property
    def caption(self) -> str:
        """The prompts, in lines."""
        return "\n".join(self.prompts)

    def parameters(self, size: tuple[int, int]) -> str:
        """A1111's form; the command stands where an image has its index."""
        width, height = size
        settings = {
            "Steps": 1,
            "Sampler": "GALIP",
            "Seed": self.seeds[0],
            "Size": f"{width}x{height}",
            "Model hash": self.model_hash[:10],
            "Model": self.model,
            "Version": f"galip-edge {self.version}",
            "Command": json.dumps(shown(self.arguments())),
        }
        return f"{self.caption}\n" + ", ".join(f"{name}: {it}" for name, it in settings.items())

    def recorded(self) -> dict[str, Any]:
        """Values for JSON."""
        return asdict(self)

    def arguments(self) -> list[str]:
        """The command that reproduces the file, without the model and the output."""
        found = ["galip-edge", self.command]
        for seed in self.seeds:
            found += ["--seed", str(seed)]
        for name, value in self.options.items():
            if value is False or (name == "psi" and value == 1):
                continue
            found.append("-n" if name == "n" else f"--{name}")
            if value is not True:
                found.append(str(value).removesuffix(".0"))
        return [*found, "--", *self.prompts]


def _check_option(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError unless the option exists and has a value of its kind."""
    if kind == "share":
        checked_share(value, name)
        return
    if isinstance(kind, tuple):
        checked_integer(value, name, *kind)
        return
    valid = {
        "flag": type(value) is bool,
        "shape": isinstance(value, str) and re.fullmatch(r"[0-9]{1,4}x[0-9]{1,4}", value),
        "rate": type(value) in (int, float) and _SLOWEST <= value <= _FASTEST,
    }
    if not valid.get(kind, False):
        raise ValueError(f"unexpected option {name!r}")


def recipe_of(recorded: Mapping[str, Any]) -> ImageMetadata | SeriesRecipe:
    """The recipe in the JSON of an image file.

    Raises:
        ValueError: it is not a recipe.
    """
    if "command" in recorded:
        return SeriesRecipe.of_recorded(recorded)
    return ImageMetadata.of_recorded(recorded)


@dataclass(frozen=True)
class Reproduction:
    """How to reproduce a file.

    Attributes:
        arguments: of the command, without the model; None if no command reproduces it.
        note: what else the command does, or another way to reproduce the file.
    """

    arguments: list[str] | None
    note: str | None = None


def reproduction(recipe: ImageMetadata | SeriesRecipe) -> Reproduction:
    """The command that reproduces a recipe's file."""
    if isinstance(recipe, SeriesRecipe):
        prompts, found = recipe.prompts, Reproduction(recipe.arguments())
    elif recipe.end is None:
        prompts, found = (recipe.prompt,), _image(recipe)
    else:
        prompts, found = (recipe.prompt, recipe.end.prompt), _frame(recipe)
    if "-" in prompts:  # reads standard input
        return Reproduction(None, "the prompt - can only be passed from Python or to the API")
    return found


def _image(recipe: ImageMetadata) -> Reproduction:
    found = ["galip-edge", "generate", "--seed", str(recipe.seed)]
    note = None
    if recipe.index:
        found += ["-n", str(recipe.index + 1)]
        note = f"the last of its {recipe.index + 1:,} images"
    if recipe.psi != 1:
        found += ["--psi", str(recipe.psi)]
    return Reproduction([*found, "--", recipe.prompt], note)


def _frame(recipe: ImageMetadata) -> Reproduction:
    """A frame of `interpolate`, if both shares are k of n steps."""
    assert recipe.end is not None
    share = Fraction(recipe.sentence_share).limit_denominator(_MOST_STEPS)
    number, steps = share.numerator, share.denominator
    same = recipe.sentence_share == recipe.noise_share == number / steps
    if not same or recipe.index or recipe.end.index:
        return Reproduction(
            None, "only the API generates this interpolated image: POST /v1/images/interpolations"
        )
    found = ["galip-edge", "interpolate", "--seed", str(recipe.seed)]
    found += ["--seed", str(recipe.end.seed), "--steps", str(steps), "--out", "frames"]
    if recipe.psi != 1:
        found += ["--psi", str(recipe.psi)]
    return Reproduction(
        [*found, "--", recipe.prompt, recipe.end.prompt],
        f"frame {number:05d}.png of its {steps + 1:,} frames",
    )


def with_option(arguments: Sequence[str], name: str, value: str) -> list[str]:
    """A command's arguments with one more option."""
    return [*arguments[:2], name, value, *arguments[2:]]


def shown(arguments: Sequence[str]) -> str:
    """A command line to paste into a POSIX shell, without control characters."""
    return " ".join(map(_quoted, arguments))


def _quoted(text: str) -> str:
    if text.isprintable():
        return shlex.quote(text)
    # bash, zsh, ksh, fish 4: ANSI-C quoting.
    inside = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(_escaped(it) for it in inside) + "'"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\U{code:08x}"
