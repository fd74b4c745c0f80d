"""Validation of prompts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from runtime.errors import PromptError

# CLIP reads 77 tokens, some 400 characters; anything far beyond is a mistake, such as a whole file.
MAX_CHARACTERS = 2000


def checked_prompts(prompts: str | Iterable[str]) -> list[str]:
    """One prompt or many as a list of at least one.

    Raises PromptError if there is none, or like `checked_prompt`.
    """
    values: Any = [prompts] if isinstance(prompts, str) else prompts
    if isinstance(values, (bytes, bytearray)) or not isinstance(values, Iterable):
        raise PromptError(f"prompts must be text or a list of texts, got {_shown(values)}")
    checked = [checked_prompt(prompt) for prompt in values]
    if not checked:
        raise PromptError("no prompts: pass at least one")
    return checked


def _shown(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def checked_prompt(prompt: str) -> str:
    """The prompt unchanged.

    Raises PromptError if it is not text, empty or blank, longer than `MAX_CHARACTERS`, or not valid
    Unicode.
    """
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt must be text, got {_shown(prompt)}")
    if not prompt.strip():
        raise PromptError("the prompt is empty: describe the image")
    if len(prompt) > MAX_CHARACTERS:
        raise PromptError(
            f"the prompt has {len(prompt):,} characters, at most {MAX_CHARACTERS:,} are accepted "
            f"(the model reads the first 75 tokens): {prompt[:40]!r}..."
        )
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the prompt is not valid UTF-8 text at character {error.start}: {prompt[:40]!r}"
        ) from error
    if "\0" in prompt:
        raise PromptError(f"the prompt contains a NUL character: {prompt[:40]!r}")
    return prompt
