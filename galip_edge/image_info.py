"""Output of `galip-edge info` for an image file, which is untrusted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galip_edge.available import available_models
from runtime.errors import printable
from runtime.images import ImageMetadata
from runtime.recipes import StoredRecipe, read_recipe
from runtime.reproduce import (
    Reproduction,
    SeriesRecipe,
    recipe_of,
    reproduction,
    shown,
    with_option,
)


@dataclass(frozen=True)
class ImageInfo:
    """An image file's recipe.

    Attributes:
        path: of the file.
        stored: contents of the file's metadata.
        recipe: ours; None if it has none, or a damaged one.
    """

    path: Path
    stored: StoredRecipe
    recipe: ImageMetadata | SeriesRecipe | None

    @classmethod
    def of(cls, path: Path) -> ImageInfo:
        """Raises GalipEdgeError if the file cannot be read."""
        stored = read_recipe(path)
        try:
            recipe = None if stored.recorded is None else recipe_of(stored.recorded)
        except ValueError:
            recipe = None
        return cls(path, stored, recipe)

    @property
    def reproduction(self) -> Reproduction:
        """The command that reproduces the file, with its model."""
        if self.recipe is None:
            return Reproduction(None, "no recipe of galip-edge")
        found = reproduction(self.recipe)
        if (arguments := found.arguments) is None:
            return found
        if (out := self._out(self.recipe)) is not None:
            arguments = with_option(arguments, "--out", out)
        model, note = model_option(self.recipe.model, self.recipe.model_hash)
        if model is not None:
            arguments = with_option(arguments, "--model", model)
        notes = [each for each in (found.note, note) if each]
        return Reproduction(arguments, "; ".join(notes) or None)

    def _out(self, recipe: ImageMetadata | SeriesRecipe) -> str | None:
        """Value of `--out` where the command would write another kind of file without it."""
        suffix = self.path.suffix.lower()
        if isinstance(recipe, SeriesRecipe):
            animates = recipe.command == "interpolate" and "grid" not in recipe.options
            needed = animates or suffix != ".png"
        else:  # one of several images, and a frame, are written to a folder
            needed = suffix != ".png" and not recipe.index and recipe.end is None
        return f"again{suffix}" if needed else None

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found, recipe = self.reproduction, self.recipe
        return {
            "path": str(self.path),
            "format": self.stored.format,
            "size": self.stored.size,
            "digital_source_type": self.stored.source_type,
            "recipe": None if recipe is None else recipe.recorded(),
            "parameters": self.stored.parameters,
            "command": None if found.arguments is None else shown(found.arguments),
            "note": found.note,
        }

    def lines(self) -> Iterator[str]:
        """Lines for a terminal."""
        stored, found = self.stored, self.reproduction
        size = "" if stored.size is None else ", {} x {} pixels".format(*stored.size)
        yield from _line("image", f"{stored.format}{size}")
        if stored.source_type:
            yield from _line("source type", stored.source_type.rpartition("/")[2])
        if self.recipe is not None:
            for name, value in _described(self.recipe):
                yield from _line(name, value)
        elif stored.parameters:  # of another program
            yield from _line("parameters", stored.parameters)
        if found.arguments is not None:
            yield f"{'command':12} {shown(found.arguments)}"
        if found.note:
            yield from _line("note", found.note)


def _line(name: str, value: str) -> Iterator[str]:
    for number, line in enumerate(value.splitlines() or [""]):
        yield f"{'' if number else name:12} {printable(line)}"


def _described(recipe: ImageMetadata | SeriesRecipe) -> Iterator[tuple[str, str]]:
    if isinstance(recipe, SeriesRecipe):
        for prompt in recipe.prompts:
            yield "prompt", prompt
        yield "seeds", ", ".join(map(str, recipe.seeds))
        for name, value in recipe.options.items():
            yield name, str(value)
    else:
        yield "prompt", recipe.prompt
        yield "seed", f"{recipe.seed}, image {recipe.index}"
        if recipe.end is not None:
            yield "toward", recipe.end.prompt
            yield "seed", f"{recipe.end.seed}, image {recipe.end.index}"
            shares = f"sentence {recipe.sentence_share:g}, noise {recipe.noise_share:g}"
            yield "shares", shares
        if recipe.psi != 1:
            yield "psi", f"{recipe.psi:g}"
    yield "model", f"{recipe.model} ({recipe.model_hash[:16]})"
    yield "made with", f"galip-edge {recipe.version}"


def model_option(name: str, model_hash: str) -> tuple[str | None, str | None]:
    """Value of `--model` for a model's hash, and a note if the bundle is not known here.

    Returns:
        (None, None) for the embedded model.
    """
    for model in available_models():
        if model.manifest.model_hash == model_hash:
            return model.option, None
    return name, f"--model is the bundle with the hash {model_hash[:16]}, which is not known here"
