"""Prompts from a file of any size, row by row: lines, CSV, TSV, JSON lines or Parquet.

What is wrong with one row is told in that row, and the next ones are read as if nothing had been.
Only a file that cannot be read at all, or has no column of prompts, is an error.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from runtime.checks import checked_path, require_integers
from runtime.errors import JobError, PromptError
from runtime.noise import MAX_SEED
from runtime.prompts import MAX_CHARACTERS, checked_prompt

FORMATS = ("txt", "csv", "tsv", "jsonl", "parquet")

# A longer line is no prompt; it is not read into memory as a whole.
_LONGEST_LINE = 1 << 20

# Columns of the manifest, which cannot be carried.
RESERVED = frozenset(
    {"row", "id", "prompt", "index", "seed", "model", "file", "key", "sha256", "bytes", "status"}
    | {"error", "milliseconds"}
)

# Images of one row. More are a mistake, and one row should not be a job of its own.
MAX_IMAGES = 1_000_000


@dataclass(frozen=True)
class Row:
    """A row of a prompt file.

    Attributes:
        number: from 0.
        id: as given, else the number.
        prompt: what the picture shall show.
        count: images of it.
        seed: picks their noise.
        carried: other columns, as they were.
        error: why nothing can be generated from it, or None.
    """

    number: int
    id: str
    prompt: str
    count: int
    seed: int
    carried: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class PromptFile:
    """A file of prompts.

    Attributes:
        path: of the file.
        format: one of `FORMATS`; None: by the file's ending.
        count: images of a row that does not say.
        seed: of a row that does not say.
        carry: columns to carry through to the manifest.
    """

    path: Path  # or text
    format: str | None = None
    count: int = 1
    seed: int = 0
    carry: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", checked_path(self.path))
        require_integers(self, "count", "seed")
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if not 1 <= self.count <= MAX_IMAGES:
            raise ValueError(f"count must be from 1 to {MAX_IMAGES:,}, got {self.count}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be from 0 to {MAX_SEED}, got {self.seed}")
        if reserved := sorted(set(self.carry) & RESERVED):
            raise ValueError(f"the manifest has a column {reserved[0]!r} of its own")

    @property
    def kind(self) -> str:
        """Its format. Raises JobError if its ending does not tell."""
        if self.format is not None:
            return self.format
        ending = self.path.suffix.lower().lstrip(".")
        kind = {"ndjson": "jsonl", "text": "txt", "pq": "parquet"}.get(ending, ending)
        if kind not in FORMATS:
            raise JobError(
                f"{self.path} does not tell by its ending what is in it: give --input-format, one "
                f"of {', '.join(FORMATS)}"
            )
        return kind

    def rows(self) -> Iterator[Row]:
        """All rows, in order; empty lines of a text file are none.

        Raises JobError if the file cannot be read or has no column of prompts.
        """
        read = {"txt": _lines, "jsonl": _json_lines, "parquet": _parquet}.get(self.kind, _table)
        seen = _Seen()
        with _readable(self.path):
            for number, found in enumerate(read(self.path, self.kind)):
                row = self._row(number, found)
                given = row.error is None and not isinstance(found, str) and found.get("id")
                if given and (first := seen.first(row.id, number)) != number:
                    said = f"the id {row.id!r} was given to row {first} already"
                    row = replace(row, count=1, error=said)
                yield row

    def _row(self, number: int, found: Mapping[str, Any] | str) -> Row:
        """A row from its columns, or from what is wrong with it."""
        name = f"{number:08d}"
        if isinstance(found, str):
            return Row(number, name, "", 1, self.seed, dict.fromkeys(self.carry), found)
        carried = {column: _plain(found.get(column)) for column in self.carry}
        prompt, given = found.get("prompt"), found.get("id")
        name = name if given is None or given == "" else str(given)
        try:
            if not isinstance(prompt, str):
                raise PromptError(f"the prompt is no text but {prompt!r}")
            checked_prompt(prompt)
            checked_prompt(name)
            count = _integer("n", found.get("n"), self.count, 1, MAX_IMAGES)
            seed = _integer("seed", found.get("seed"), self.seed, 0, MAX_SEED)
        except PromptError as error:
            shown = _writable(prompt if isinstance(prompt, str) else "")
            return Row(number, _writable(name), shown, 1, self.seed, carried, _writable(str(error)))
        return Row(number, name, prompt, count, seed, carried)


class _Seen:
    """Which ids were met, in a temporary file that SQLite makes when they become many."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("")  # its own, and gone with the connection
        self._table.execute("CREATE TABLE ids (hash BLOB PRIMARY KEY, row INTEGER) WITHOUT ROWID")

    def first(self, name: str, row: int) -> int:
        """The row that had this id first, which may be `row`."""
        key = hashlib.blake2b(name.encode(), digest_size=16).digest()
        insert = "INSERT INTO ids VALUES (?, ?) ON CONFLICT DO NOTHING"
        if self._table.execute(insert, (key, row)).rowcount:
            return row
        found = self._table.execute("SELECT row FROM ids WHERE hash = ?", (key,)).fetchone()
        return int(found[0])


def _integer(name: str, value: Any, default: int, least: int, most: int) -> int:
    if value is None or value == "":
        return default
    try:
        number = int(str(value))
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise PromptError(f"{name} must be an integer from {least} to {most}, got {value!r}")
    return number


def _plain(value: Any) -> Any:
    """A carried value as JSON has it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return _writable(value if isinstance(value, str) else str(value))


def _writable(text: str) -> str:
    """Text that every file of ours can hold: cut, without bytes that are no UTF-8."""
    return text[:MAX_CHARACTERS].encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JobError(f"cannot read the prompts in {path}: {error.strerror or error}") from error


def _open(path: Path) -> TextIO:
    # Bytes that are no UTF-8 come through as what `checked_prompt` refuses, in their row alone.
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _bounded_lines(file: TextIO) -> Iterator[str | None]:
    """Lines with their ends; None for one that is too long."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) < _LONGEST_LINE or line.endswith("\n"):
            yield line
            continue
        while line and not line.endswith("\n"):
            line = file.readline(_LONGEST_LINE)
        yield None


_TOO_LONG = f"the line has over {_LONGEST_LINE:,} characters, a prompt at most {MAX_CHARACTERS:,}"


def _lines(path: Path, _: str) -> Iterator[dict[str, Any] | str]:
    with _open(path) as file:
        for line in _bounded_lines(file):
            if line is None:
                yield _TOO_LONG
            elif line.strip():
                yield {"prompt": line.strip()}


def _json_lines(path: Path, _: str) -> Iterator[dict[str, Any] | str]:
    with _open(path) as file:
        for line in _bounded_lines(file):
            if line is None:
                yield _TOO_LONG
            elif line.strip():
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield f"the line is no JSON: {error}"
                    continue
                if isinstance(found, dict):
                    yield found if "prompt" in found else "the object has no key 'prompt'"
                else:
                    yield f"the line is no JSON object but {_writable(repr(found)[:40])}"


def _table(path: Path, kind: str) -> Iterator[dict[str, Any] | str]:
    with _open(path) as file:
        too_long = False

        def lines() -> Iterator[str]:
            nonlocal too_long
            for line in _bounded_lines(file):
                if line is None:
                    too_long = True
                yield "\n" if line is None else line

        reader = csv.reader(lines(), delimiter="\t" if kind == "tsv" else ",")
        columns: list[str] | None = None
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                yield f"the row cannot be read: {error}"
                continue
            if too_long:
                too_long = False
                yield _TOO_LONG
            elif columns is None:
                columns = [cell.strip().lower() for cell in cells]
                _has_prompts(path, columns)
            elif len(cells) > len(columns):
                yield f"the row has {len(cells)} columns, the first row {len(columns)}"
            elif cells:
                yield dict(zip(columns, cells))


def _parquet(path: Path, _: str) -> Iterator[dict[str, Any] | str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _has_prompts(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise JobError(f"{path} is damaged or no Parquet file: {error}") from error


def _has_prompts(path: Path, columns: list[str]) -> None:
    if "prompt" not in columns:
        raise JobError(f"{path} has no column 'prompt', only {', '.join(map(repr, columns))}")
