"""Calibration data for quantization: prompts, and the inputs of both models."""

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
    """Read at most `limit` prompts, spread evenly over a text file with one prompt per line.

    Blank lines are skipped. The first lines alone would be biased: prompt files are often sorted by
    subject.

    Args:
        path: text file; None for the 300 built-in captions.
        limit: number of prompts.

    Raises:
        GalipEdgeError: the file cannot be read, is not UTF-8, or contains no prompt or an invalid
            one, whose line is named.
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
        raise GalipEdgeError(f"{path} contains no prompts: write one per line")
    count = min(limit, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def text_samples(tokenizer: Tokenizer, captions: Sequence[str]) -> list[Sample]:
    """Tokens (1,L) of each caption, without the padding, which causal attention ignores."""
    rows = tokenizer(captions)
    return [(row[None, : int(row.argmax()) + 1],) for row in rows]


def generator_samples(
    captions: Sequence[str], sentences: Sequence[npt.NDArray[Any]], noise_dim: int
) -> list[Sample]:
    """Noise (1,noise_dim) and sentence embedding (1,E) of each caption."""
    return [
        (draw_noise(0, caption, 0, noise_dim)[None], sentence)
        for caption, sentence in zip(captions, sentences)
    ]
