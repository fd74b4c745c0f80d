"""Calibration data of quantization: prompts, and the inputs of both models for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from runtime.errors import GalipEdgeError, PromptError
from runtime.noise import draw_noise
from runtime.prompts import checked_prompt
from runtime.tokenizer import Tokenizer

Sample = tuple[npt.NDArray[Any], ...]

BUILT_IN = Path(__file__).with_name("captions.txt")


def read_captions(path: Path | None, limit: int) -> list[str]:
    """At most `limit` prompts of a text file with one a line, spread evenly over it.

    Blank lines are left out. Prompt files are often sorted by subject, so the first ones alone
    would not do.

    Args:
        path: None for the 300 varied captions that come with the package.

    Raises:
        GalipEdgeError: the file cannot be read, is no UTF-8 text, holds no prompt, or one that
            cannot be used; the line is named.
    """
    path = path or BUILT_IN
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise GalipEdgeError(f"cannot read prompts from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise GalipEdgeError(f"{path} is not UTF-8 text (byte {error.start})") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                prompts.append(checked_prompt(line.strip()))
            except PromptError as error:
                raise GalipEdgeError(f"line {number} of {path}: {error}") from error
    if not prompts:
        raise GalipEdgeError(f"{path} holds no prompts: write one a line")
    count = min(limit, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def text_samples(tokenizer: Tokenizer, captions: Sequence[str]) -> list[Sample]:
    """Tokens (1,L) of each caption up to the end of text: none sees those that come after it."""
    rows = tokenizer(captions)
    return [(row[None, : int(row.argmax()) + 1],) for row in rows]


def generator_samples(
    captions: Sequence[str], sentences: Sequence[npt.NDArray[Any]], noise_dim: int
) -> list[Sample]:
    """Noise (1,noise_dim) of each caption, and its sentence embedding (1,E)."""
    return [
        (draw_noise(0, caption, 0, noise_dim)[None], sentence)
        for caption, sentence in zip(captions, sentences)
    ]
