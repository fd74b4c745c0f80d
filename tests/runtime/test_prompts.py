import pytest

from runtime.errors import PromptError
from runtime.prompts import checked_prompt


@pytest.mark.parametrize("prompt", ["a bird", "  鳥 🐦 ", "x" * 2000])
def test_good_prompts_pass_unchanged(prompt):
    assert checked_prompt(prompt) == prompt


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        (" \n\t", "the prompt is empty"),
        ("x" * 10_000, "has 10,000 characters, at most 2,000"),
        ("a\udcff", "not valid UTF-8 text at character 1"),
        ("a\0b", "contains a NUL"),
    ],
)
def test_bad_prompts_are_explained(prompt, message):
    with pytest.raises(PromptError, match=message):
        checked_prompt(prompt)
