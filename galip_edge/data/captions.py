"""Captions in text files."""

from __future__ import annotations

from pathlib import Path

from galip_edge.data.errors import SampleError


def tidy(caption: str) -> str:
    """`caption` on one line, with single spaces and without undecodable characters."""
    return " ".join(caption.replace("\ufffd", " ").split())


def tidy_all(captions: list[str]) -> tuple[str, ...]:
    """Those of `captions` in which something is written, tidied."""
    return tuple(filter(None, map(tidy, captions)))


def read_captions(path: Path, key: str) -> tuple[str, ...]:
    """The captions of a text file, one a line; empty lines are none.

    Raises SampleError if the file cannot be read or has no caption.
    """
    try:
        # CUB's captions, as they circulate, have bytes that are no UTF-8.
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise SampleError("missing captions", key, f"{path}: {error.strerror or error}") from error
    captions = tidy_all(text.split("\n"))
    if not captions:
        raise SampleError("empty captions", key, f"nothing is written in {path}")
    return captions
