"""Which prompts are accepted."""

from __future__ import annotations

from runtime.errors import PromptError

# CLIP reads 77 tokens, some 400 characters; anything far beyond is a mistake, such as a whole file.
MAX_CHARACTERS = 2000


def checked_prompt(prompt: str) -> str:
    """The prompt unchanged.

    Raises PromptError if it is empty or blank, longer than `MAX_CHARACTERS`, or no valid text.
    """
    if not prompt.strip():
        raise PromptError("the prompt is empty: describe what the picture should show")
    if len(prompt) > MAX_CHARACTERS:
        raise PromptError(
            f"the prompt has {len(prompt):,} characters, at most {MAX_CHARACTERS:,} are accepted "
            f"(the model reads the first 75 words or so): {prompt[:40]!r}..."
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
