"""Identification of files without weights by their first bytes."""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

HEAD_BYTES = 1024

_ARCHIVES = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
    b"\x04\x22\x4d\x18": ("LZ4", "unlz4"),
    b"7z\xbc\xaf\x27\x1c": ("7-Zip", "7z x"),
    b"Rar!": ("RAR", "unrar x"),
}
_OTHERS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (Keras or TensorFlow weights)",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a RIFF file (WebP, WAV or AVI)",
    b"%PDF": "a PDF document",
    b"\x7fELF": "a Linux program or library",
    b"MZ": "a Windows program or library",
    b"SQLite format 3\x00": "an SQLite database",
}
_WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_PYTORCH = "a PyTorch or safetensors checkpoint"


def looks_like_safetensors(head: bytes) -> bool:
    """True if the file starts with the length of a JSON header in eight bytes, then the header."""
    return head[8:9] == b"{" and not any(head[4:8])


def foreign_kind(head: bytes, size: int) -> str | None:
    """Description of a file without weights, and what to do; None if it may be a checkpoint.

    Args:
        head: its first `HEAD_BYTES` bytes.
        size: of the file, in bytes.
    """
    if not size:
        return "is empty: copy or download it again"
    if looks_like_safetensors(head):
        return None
    for magic, (name, tool) in _ARCHIVES.items():
        if head.startswith(magic):
            return f"is compressed with {name}: unpack it ({tool}) and pass the file inside"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it (tar -xf) and pass the file inside"
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            return f"is {name}, not {_PYTORCH}"
    if not head.strip(b"\0"):
        return "starts with zeros only: the download did not complete, download it again"
    text = _as_text(head)
    return None if text is None else _text_kind(text)


def _as_text(head: bytes) -> str | None:
    """The head as text, or None if it is binary."""
    for encoding in ("utf-16", "utf-8-sig"):
        if encoding == "utf-16" and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
            continue
        try:
            # The last character may be cut.
            text = head[: len(head) - len(head) % 2].decode(encoding, "ignore")
        except UnicodeError:
            continue
        kept = len(text.encode("utf-8")) if encoding == "utf-8-sig" else len(head)
        if kept >= len(head) - 8 and not re.search(r"[\x00-\x08\x0e-\x1f\x7f]", text):
            return text.lstrip()
    return None


def _text_kind(text: str) -> str | None:
    lowered = text.lower()
    if lowered.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d{1,15})\s*$", text, re.MULTILINE)
        of = f" to a file of {int(size[1]) / 1e6:,.1f} MB" if size else ""
        return (
            f"is a git-LFS pointer{of}, not the file itself: run 'git lfs pull' in its repository, "
            "or download the file from the repository's web page"
        )
    if re.match(r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<(!doctype html|html|head|body)\b", lowered):
        title = re.search(r"<title[^>]*>([^<]{1,80})", text, re.IGNORECASE)
        named = f" titled {' '.join(title[1].split())!r}" if title else ""
        return (
            f"is a web page{named}, not weights: the server sent a page instead of the file "
            "(Google Drive does for large files); open the link in a browser and confirm the "
            "download"
        )
    if lowered.startswith(("{", "[")):
        if '"weight_map"' in text:
            return "is the JSON index of a sharded checkpoint, not weights: pass one single file"
        return f"is JSON text, not {_PYTORCH}"
    if lowered.startswith(("<?xml", "<net")):
        return f"is XML text, not {_PYTORCH}"
    if re.match(r"[(\]})c].{0,60}\n", text) and "\n" in text:
        return None  # may be a pickle of protocol 0, which is text
    return f"is text, not {_PYTORCH}"


def zip_without_weights(names: Sequence[str]) -> str:
    """Description of a zip archive that is not a PyTorch checkpoint."""
    if weights := [name for name in names if name.lower().endswith(_WEIGHTS)]:
        return f"is a zip archive: unpack it and pass {_printable(weights[0])!r} inside"
    if not names:
        return "is an empty zip archive, without weights"
    if all(name.endswith(".npy") for name in names):
        return f"holds NumPy arrays (.npz), and is not {_PYTORCH}"
    return f"is a zip archive without weights (it holds {_printable(names[0])!r})"


def _printable(name: str) -> str:
    return name[:80]


def cut_short(path: Path, head: bytes, size: int) -> str | None:
    """Description of a truncated safetensors file or zip archive; None if it is complete."""
    if looks_like_safetensors(head):
        (length,) = struct.unpack("<Q", head[:8])
        if 8 + length > size:
            return f"ends after {size:,} bytes, within its header of {length:,} bytes"
        return None
    if head.startswith(b"PK") and not is_zip(path):
        return f"starts as a PyTorch file, but its end is missing after {size:,} bytes"
    return None


def is_zip(path: Path) -> bool:
    """True if a file has the end of a zip archive, even if damaged."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # raised for some archives of several disks
        return True
