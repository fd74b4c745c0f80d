"""Captions in text files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from galip_edge.data.errors import SampleError


def tidy(caption: str) -> str:
    """`caption` on one line, with single spaces, without undecodable characters."""
    return " ".join(caption.replace("\ufffd", " ").split())


def tidy_all(captions: Iterable[str]) -> tuple[str, ...]:
    """Non-empty `captions`, tidied."""
    return tuple(filter(None, map(tidy, captions)))


def parse_captions(content: bytes) -> tuple[str, ...]:
    """Captions in a text file, one per line; empty lines are omitted.

    Any line ending is accepted. A byte order mark and bytes that are not UTF-8, as in CUB's
    captions, are omitted.
    """
    text = content.decode("utf-8-sig", errors="replace")
    return tidy_all(re.split("\r\n|\r|\n", text))


def read_captions(path: Path, key: str) -> tuple[str, ...]:
    """Captions of a text file, as by `parse_captions`.

    Raises SampleError if the file cannot be read, or has no caption.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SampleError("missing captions", key, f"{path}: {error.strerror or error}") from error
    captions = parse_captions(content)
    if not captions:
        raise SampleError("empty captions", key, f"{path} is empty")
    return captions
