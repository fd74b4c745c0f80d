"""Text files in any usual encoding, compressed or not: detection and reading."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from runtime.errors import JobError

# Decompressed bytes in which the encoding is detected, and by the caller the columns.
_HEAD = 1 << 16

# By magic number.
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
# UTF-32 first: its marks begin like those of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
# Other file types passed by mistake, by magic number.
_OTHER_FILES = {
    b"PK\x03\x04": "an Excel or OpenDocument workbook, or another ZIP archive: save the sheet as "
    'CSV (in Excel: Save As, "CSV UTF-8") and pass that file',
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the sheet as CSV (in Excel: Save As, "
    '"CSV UTF-8") and pass that file',
    b"PAR1": "a Parquet file: pass --input-format parquet",
    b"%PDF": "a PDF document: save its text as a .txt file with one prompt per line",
    b"\x89PNG": "an image, not a file of prompts",
    b"\xff\xd8\xff": "an image, not a file of prompts",
    b"ARROW1": "an Arrow file: save the table as Parquet or CSV",
}
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def _invalid(error: UnicodeError) -> tuple[str, int]:
    """Decode invalid bytes to a lone surrogate, which `checked_prompt` rejects in that row."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("galip_edge.invalid", _invalid)


@dataclass(frozen=True)
class Decoding:
    """Compression and encoding of a text file.

    Attributes:
        compression: gzip, bzip2, xz, zstd or None.
        encoding: Python codec.
        name: display name of the encoding.
    """

    compression: str | None
    encoding: str
    name: str


def detect_decoding(path: Path, encoding: str | None = None) -> tuple[Decoding, str]:
    """Detect how to decode a text file; also return the head of its text.

    Args:
        path: path of the file.
        encoding: overrides detection.

    Raises:
        JobError: the file is damaged or not a text file.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
    compression = next((c for magic, c in _COMPRESSIONS.items() if start.startswith(magic)), None)
    with _open_bytes(path, compression) as content, _checked(path, compression):
        head = content.read(_HEAD)
    for magic, what in _OTHER_FILES.items():
        if head.startswith(magic):
            raise JobError(f"{path} is {what}")
    if encoding is not None:
        try:
            found = Decoding(compression, encoding, codecs.lookup(encoding).name)
        except LookupError as error:
            raise JobError(
                f"unknown --encoding {encoding!r}: use utf-8, utf-16, cp1252 or another of Python's"
            ) from error
    else:
        found = Decoding(compression, *_encoding_of(head))
    with open_text(path, found) as text:
        return found, text.read(_HEAD // 4)


def _encoding_of(head: bytes) -> tuple[str, str]:
    for mark, encoding, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding, name
    # UTF-16 without a byte order mark: every other byte of Latin text is NUL.
    pairs = head[: len(head) // 2 * 2]
    if len(pairs) >= 4:
        if pairs[1::2].count(0) * 2 > len(pairs[1::2]) and not pairs[::2].count(0):
            return "utf-16-le", "UTF-16"
        if pairs[::2].count(0) * 2 > len(pairs[::2]) and not pairs[1::2].count(0):
            return "utf-16-be", "UTF-16"
    return "utf-8", "UTF-8"


@contextmanager
def open_text(path: Path, decoding: Decoding) -> Iterator[TextIO]:
    """Open a file as text, newlines untranslated and invalid bytes as lone surrogates.

    Raises:
        JobError: the compressed data is damaged.
        OSError: the file cannot be read.
    """
    errors = "surrogateescape" if decoding.name == "UTF-8" else "galip_edge.invalid"
    with _open_bytes(path, decoding.compression) as file, _checked(path, decoding.compression):
        text = io.TextIOWrapper(file, decoding.encoding, errors, newline="")
        try:
            yield text
        finally:
            text.detach()


@contextmanager
def _open_bytes(path: Path, compression: str | None) -> Iterator[BinaryIO]:
    if compression == "zstd":
        import pyarrow as pa

        with pa.OSFile(str(path)) as raw, pa.CompressedInputStream(raw, "zstd") as stream:
            yield cast(BinaryIO, io.BufferedReader(_ArrowStream(stream)))
        return
    opened: dict[str | None, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    with opened.get(compression, open)(path, "rb") as file:
        yield file


class _ArrowStream(io.RawIOBase):
    """Adapter from a pyarrow stream to Python's io."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _checked(path: Path, compression: str | None) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if compression is None and not isinstance(error, _DAMAGED):
            raise
        raise JobError(
            f"{path} is damaged or incomplete ({compression}: {error}): copy or download it again"
        ) from error
