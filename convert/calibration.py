"""What quantization is calibrated on: prompts, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from galip_edge.models import GALIP
from runtime.errors import GalipEdgeError, PromptError
from runtime.noise import draw_noise
from runtime.prompts import checked_prompt
from runtime.tokenizer import Tokenizer

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


@dataclass(frozen=True)
class CalibrationSamples:
    """Inputs of batch 1 for each of the two models."""

    text_encoder: Sequence[tuple[npt.NDArray[Any], ...]]
    generator: Sequence[tuple[npt.NDArray[Any], ...]]


def make_samples(model: GALIP, tokenizer: Tokenizer, captions: Sequence[str]) -> CalibrationSamples:
    """Tokens, and the true sentence embeddings of the captions with noise of their own."""
    tokens = tokenizer(captions)
    text, generator = [], []
    for row, caption in zip(tokens, captions):
        with torch.inference_mode():
            sentence = model.text_encoder(torch.from_numpy(row[None])).numpy()
        noise = draw_noise(0, caption, 0, model.config.noise_dim)
        text.append((row[None],))
        generator.append((noise[None], sentence))
    return CalibrationSamples(text, generator)
