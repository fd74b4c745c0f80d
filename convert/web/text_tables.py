"""Tables of ftfy and Python with which the page's tokenizer cleans text as the runtime does."""

from __future__ import annotations

import html
import re
from html.entities import html5
from typing import Any

from ftfy import badness, chardata

# Python's classes in terms of JavaScript's; both patterns are used outside brackets only.
_CLASSES = {r"\s": r"[\s\x1c-\x1f\x85]", r"\w": r"[\p{L}\p{N}_]"}


def text_tables() -> dict[str, Any]:
    """Plain values for JSON, read by `page/browser/text.js`."""
    codes = [bytes([byte]).decode("sloppy-windows-1252") for byte in range(256)]
    return {
        "badness": _javascript(badness.BADNESS_RE),
        "utf8_detector": _javascript(chardata.UTF8_DETECTOR_RE),
        "charmaps": [[name, bytes(range(256)).decode(name)] for name in chardata.CHARMAP_ENCODINGS],
        "windows_1252": codes,
        "entities": chardata.HTML_ENTITIES,
        "html5": html5,
        "invalid_references": html._invalid_charrefs,  # type: ignore[attr-defined]
        "invalid_code_points": sorted(html._invalid_codepoints),  # type: ignore[attr-defined]
        "ligatures": {chr(code): text for code, text in chardata.LIGATURES.items()},
        "widths": {chr(code): text for code, text in chardata.WIDTH_MAP.items()},
    }


def _javascript(pattern: re.Pattern[str]) -> str:
    """A verbose Python pattern as a JavaScript one (flag u)."""
    parts: list[str] = []
    text, at, in_class = pattern.pattern, 0, False
    while at < len(text):
        character = text[at]
        if character == "\\":
            escape = text[at : at + 2]
            parts.append(escape if in_class else _CLASSES.get(escape, escape))
            at += 1
        elif character == "[" and not in_class:
            in_class = True
            parts.append(character)
        elif in_class:
            in_class = character != "]"
            parts.append("\\" + character if character in "[{}()|/" else character)
        elif character == "#":
            at = text.find("\n", at) % (len(text) + 1)
        elif not character.isspace():
            parts.append(character)
        at += 1
    return "".join(parts)
