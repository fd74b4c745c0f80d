"""Language of the runtime and its server: words that are not the field's."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted((ROOT / "runtime").glob("*.py")),
    *sorted((ROOT / "runtime/jobs").glob("*.py")),
    *sorted((ROOT / "runtime/server").glob("*.py")),
    *sorted((ROOT / "runtime/server/page").glob("*.*")),
    *(
        ROOT / f"galip_edge/commands/{name}.py"
        for name in ("generate", "batch", "serve", "verify", "info")
    ),
    *(ROOT / f"docs/{name}.md" for name in ("batch", "cluster", "serving")),
]
BANNED = re.compile(
    r"\b(?<!\.)(pictures?|mend(ed|s)?|tells?|told|beside|nobody|somebody|whom|in place of|but for|"
    r"side by side|meant well|of its own)\b",
    re.IGNORECASE,
)
# Name of a store in the user's browser.
ALLOWED = 'const STORE = "pictures";'


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_plain_words(file):
    lines = file.read_text(encoding="utf-8").replace(ALLOWED, "").splitlines()
    found = [f"{number}: {line}" for number, line in enumerate(lines, 1) if BANNED.search(line)]
    assert not found
