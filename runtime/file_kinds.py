"""What a file is that was expected to be another, by its first bytes."""

from __future__ import annotations

# Bytes that `describe` needs to see.
HEAD = 512

_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body")


def describe(head: bytes) -> str | None:
    """A noun phrase for a file that is often found instead of the wanted one, and what to do.

    Args:
        head: the file's first `HEAD` bytes.

    Returns:
        None if the file is none of them.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_LFS):
        return "a git-LFS pointer, not the file itself: run git lfs pull where you cloned it"
    if text.startswith(_HTML):
        return "an HTML page, not the file itself: download the file that the page links to"
    if not head:
        return "an empty file: copy or download it again"
    return None
