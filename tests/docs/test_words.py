"""Words that must not come back, in pages, docstrings, comments, help and messages.

    python tests/docs/test_words.py    # prints every finding, those outside of UNREVISED first

Shrink UNREVISED: an entry without findings fails, so that it is removed.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Folders whose own files (not those of folders below) still have such words.
UNREVISED: tuple[str, ...] = ()

# Word -> what to write.
BANNED = {
    r"\bpictures?\b": "image",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"(?<!bounding )(?<!MP4 )\bbox(es)?\b(?!:| and Muller)": "target machine, field, area",
    r"\btold\b|\btell(s|ing)?\b": "report, print, return",
    r"\bbut for\b": "except",
    r"\bin place of\b": "instead of",
    r"\bbeside\b": "next to, in addition to",
    r"\bside by side\b": "in parallel, next to each other",
    r"\bof (its|their) own\b": "its own, separate",
    r"\b(nobody|somebody|whom)\b": "no program, a client",
    r"\bat hand\b": "available",
}
PATTERN = re.compile("|".join(f"(?:{word})" for word in BANNED), re.IGNORECASE)
FRAGMENT = re.compile(r"(Of|What|See|That|Whose|Whether)\b")

# HTML's element and an id of the page, and the path of the API, which clients know.
# The opening of a caption of the aviary is training data.
NAMES = re.compile(r"<[^>]*>|`[^`\n]*`|\"picture\"|/pictures/?\S*|^a picture of $")
# Code in Markdown.
CODE = re.compile(r"^ *```.*?^ *```|^ {4,}\S.*?$|`[^`\n]*`", re.DOTALL | re.MULTILINE)

Finding = tuple[int, str]


def _in_text(text: str, first: int = 1) -> Iterator[Finding]:
    for number, line in enumerate(NAMES.sub("", text).splitlines(), first):
        for found in PATTERN.finditer(line):
            yield number, found[0]


def _in_markdown(text: str) -> Iterator[Finding]:
    yield from _in_text(CODE.sub(lambda found: "\n" * found[0].count("\n"), text))


def _fragments(tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and (start := FRAGMENT.match(docstring)):
                yield node.body[0].lineno, f"docstring that starts with {start[0]}"


def _in_python(text: str) -> Iterator[Finding]:
    tree = ast.parse(text)
    yield from _fragments(tree)
    for node in ast.walk(tree):
        # A name, such as that of a column or route, is no text.
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from _in_text(node.value, node.lineno)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from _in_text(token.string, token.start[0])


def _in_page(text: str) -> Iterator[Finding]:
    """Text of HTML; strings with a space in JavaScript."""
    for number, line in enumerate(text.splitlines(), 1):
        strings = re.findall(r"\"[^\"]* [^\"]*\"|'[^']* [^']*'|`[^`]* [^`]*`|>[^<>{}]+<", line)
        for each in strings:
            yield from _in_text(each.strip("<>"), number)


READERS = {".md": _in_markdown, ".py": _in_python, ".html": _in_page, ".js": _in_page}


def files() -> Iterator[Path]:
    """Pages, and everything in the packages and benchmarks that users or contributors read."""
    yield from sorted(ROOT.glob("*.md"))
    for folder in ("docs", "models", "galip_edge", "convert", "runtime", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in READERS and "vendor" not in path.parts:
                yield path


def findings(path: Path) -> list[str]:
    """A line for each banned word of a file."""
    found = READERS[path.suffix](path.read_text(encoding="utf-8"))
    return [f"{path.relative_to(ROOT)}:{line}: {word}" for line, word in sorted(set(found))]


def entry_of(path: Path) -> str | None:
    """The entry of UNREVISED that covers a file."""
    folder = path.parent.relative_to(ROOT).as_posix()
    return folder if folder in UNREVISED else None


def test_no_banned_words() -> None:
    found = [line for path in files() if entry_of(path) is None for line in findings(path)]
    assert not found, "\n".join([f"{len(found)} findings; see BANNED for what to write", *found])


def test_each_unrevised_entry_has_findings() -> None:
    with_findings = {entry_of(path) for path in files() if entry_of(path) and findings(path)}
    assert set(UNREVISED) == with_findings, "remove the others from UNREVISED"


def test_no_docstring_of_tests_starts_as_a_fragment() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        found = [what for _, what in _fragments(ast.parse(path.read_text(encoding="utf-8")))]
        assert not found, f"{path}: {found}"


@pytest.mark.parametrize(
    ("reader", "text", "count"),
    [
        (_in_markdown, "Two pictures, told `picture`.\n\n    picture\n\n```\nbox\n```\n", 2),
        (_in_python, '"""Of a box."""\nx = "it tells us"  # at hand\npicture = "picture"\n', 4),
        (_in_python, '"""Read bounding boxes."""\n', 0),
        (_in_page, '<picture id="picture">a picture</picture>', 1),
    ],
)
def test_words_are_found(reader, text: str, count: int) -> None:
    assert len(list(reader(text))) == count


if __name__ == "__main__":
    lines = [(entry_of(path) or "", line) for path in files() for line in findings(path)]
    for entry, line in sorted(lines):
        print(f"{line}{f'   (unrevised: {entry})' if entry else ''}")
    sys.exit(bool(lines))
