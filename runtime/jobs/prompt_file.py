"""Prompts from a file of any size, row by row: lines, CSV, TSV, JSON (lines) or Parquet.

An invalid row carries its error, and the next ones are read as usual. Only a file that cannot be
read at all, or that has no column of prompts, is an error.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from runtime.checks import checked_path, require_integers
from runtime.errors import JobError, PromptError
from runtime.jobs.decoding import WORKBOOKS, Decoding, detect, open_text
from runtime.noise import MAX_SEED
from runtime.prompts import MAX_CHARACTERS, checked_prompt

FORMATS = ("txt", "csv", "tsv", "jsonl", "parquet")

# Names of the column of prompts, in any case; the first one that a file has.
PROMPT_COLUMNS = ("prompt", "caption", "text")

# A longer line is no prompt; it is not read into memory as a whole.
_LONGEST_LINE = 1 << 20

# Columns of our own in manifests, shards and `metadata.jsonl`, which cannot be kept.
RESERVED = frozenset(
    {"row", "id", "prompt", "index", "seed", "model", "file", "key", "sha256", "bytes", "status"}
    | {"error", "milliseconds", "image", "file_name", "invalid"}
)

# Images of one row. More are a mistake, and one row should not be a job of its own.
MAX_IMAGES = 1_000_000

# Integers from here on are not all exact as floats.
_EXACT_FLOATS = 2.0**53

_INTEGER = re.compile(r"\s*([+-]?\d+)(\.0*)?\s*", re.ASCII)

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_ENDINGS = {"ndjson": "jsonl", "json": "jsonl", "text": "txt", "pq": "parquet", "tab": "tsv"}
_COMPRESSED = frozenset({"gz", "gzip", "bz2", "xz", "zst", "zstd"})

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A row of a prompt file.

    Attributes:
        number: from 0.
        id: as given, else the number.
        prompt: text to draw.
        count: images of it.
        seed: picks their noise.
        carried: kept columns, with their types.
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
class Understood:
    """How a prompt file is read.

    Attributes:
        format: one of `FORMATS`.
        decoding: of a text file.
        delimiter: of CSV and TSV.
        column: of prompts; None for lines, and for JSON lines while no object has one.
        others: columns `id`, `n` and `seed` that it has.
    """

    format: str
    decoding: Decoding | None = None
    delimiter: str | None = None
    column: str | None = None
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        facts = [{"txt": "lines of text", "jsonl": "JSON lines"}.get(self.format, "")]
        facts[0] = facts[0] or ("Parquet" if self.format == "parquet" else self.format.upper())
        if self.decoding is not None:
            facts.append(self.decoding.name)
            facts += [self.decoding.compression] if self.decoding.compression else []
        if self.delimiter is not None:
            facts.append(f"delimiter {_DELIMITERS.get(self.delimiter, repr(self.delimiter))}")
        if self.column is not None:
            facts.append(f"prompts in column {self.column!r}")
        if self.others:
            facts.append(f"also column{'s' * (len(self.others) > 1)} {', '.join(self.others)}")
        return ", ".join(facts)


@dataclass(frozen=True)
class PromptFile:
    """A file of prompts.

    Attributes:
        path: its path.
        format: one of `FORMATS`; None: by the file's ending.
        count: images of a row without its own number.
        seed: seed of a row without its own.
        carry: columns to keep in the manifest and in shards.
        prompt_column: column of prompts; None: the first of `PROMPT_COLUMNS` that it has.
        encoding: of a text file; None: UTF-8, or UTF-16 or UTF-32 where the file is.
    """

    path: Path  # or text
    format: str | None = None
    count: int = 1
    seed: int = 0
    carry: tuple[str, ...] = ()
    prompt_column: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", checked_path(self.path))
        require_integers(self, "count", "seed")
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if not 1 <= self.count <= MAX_IMAGES:
            raise ValueError(f"count must be from 1 to {MAX_IMAGES:,}, got {self.count}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be from 0 to {MAX_SEED}, got {self.seed}")
        if reserved := sorted(name for name in self.carry if name.lower() in RESERVED):
            raise ValueError(
                f"column {reserved[0]!r} cannot be kept: the manifest and the shards have a column "
                "of this name; rename it in the prompt file"
            )
        if len(set(self.carry)) < len(self.carry):
            raise ValueError("a column to keep is named twice")

    @property
    def kind(self) -> str:
        """Its format. Raises JobError if its ending is none of the known ones."""
        endings = [each.lower().lstrip(".") for each in self.path.suffixes]
        while endings and endings[-1] in _COMPRESSED:
            endings.pop()
        ending = endings[-1] if endings else ""
        if ending in WORKBOOKS:
            raise JobError(
                f"{self.path} is a spreadsheet workbook, which is not read: save the sheet as CSV "
                '(in Excel: Save As, "CSV UTF-8") and pass that file'
            )
        if self.format is not None:
            return self.format
        kind = _ENDINGS.get(ending, ending)
        if kind not in FORMATS:
            raise JobError(
                f"the format of {self.path} is unknown by its ending: give --input-format, one of "
                f"{', '.join(FORMATS)}"
            )
        return kind

    @cached_property
    def understood(self) -> Understood:
        """How the file is read, from its first characters.

        Raises JobError if it cannot be read or has no column of prompts.
        """
        kind = self.kind
        with _readable(self.path):
            if kind == "parquet":
                return _Columns(self, kind, _parquet_columns(self.path)).understood
            decoding, head = detect(self.path, self.encoding)
        if kind == "txt":
            for name in (self.prompt_column, *self.carry):
                if name is not None:
                    raise JobError(
                        f"{self.path} has lines of text and no column {name!r}: give "
                        "--input-format if it is a table"
                    )
            return Understood(kind, decoding)
        if kind == "jsonl":
            return Understood(kind, decoding, column=_first_key(head, self.prompt_column))
        first = _first_line(head)
        delimiter = _delimiter_of(self.path, head, first, kind, self.prompt_column)
        header = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
        if not header:
            return Understood(kind, decoding, delimiter)
        found = _Columns(self, kind, header).understood
        return replace(found, decoding=decoding, delimiter=delimiter)

    def rows(self) -> Iterator[Row]:
        """All rows, in order; empty lines of a text file are none.

        Raises JobError if the file cannot be read, has no column of prompts or none of a kept one,
        or if a kept value cannot be kept.
        """
        readers = {"txt": _lines, "jsonl": _json_lines, "parquet": _parquet}
        seen = _Seen()
        with _readable(self.path):
            read = readers.get(self.understood.format, _table)
            for number, found in enumerate(read(self)):
                row = self._row(number, found)
                given = row.error is None and not isinstance(found, str) and found.get("id")
                if given and (first := seen.first(row.id, number)) != number:
                    said = f"duplicate id {row.id!r} (first used in row {first})"
                    row = replace(row, count=1, error=said)
                yield row

    def _row(self, number: int, found: Columns | str) -> Row:
        """A row from its columns, or from what is wrong with it."""
        name = f"{number:08d}"
        if isinstance(found, str):
            return Row(number, name, "", 1, self.seed, dict.fromkeys(self.carry), found)
        carried = {
            column: self._carried(number, column, found.get(f"={column}")) for column in self.carry
        }
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

    def _carried(self, number: int, column: str, value: Any) -> Any:
        """A kept value as JSON has it, with its type."""
        try:
            return _plain(value)
        except ValueError as error:
            raise JobError(
                f"column {column!r} of {self.path} cannot be kept: {error} in row {number}; "
                f"convert it to text or numbers, or do not keep it"
            ) from error


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


class _Columns:
    """The columns that are read, by the names that the file has for them.

    Args:
        file: whose they are.
        kind: its format.
        names: of all columns.

    Raises:
        JobError: there is no column of prompts, or none of a kept one.
    """

    def __init__(self, file: PromptFile, kind: str, names: Sequence[str]) -> None:
        self.names = list(names)
        if file.prompt_column is not None:
            prompt = _named(file.prompt_column, names)
        else:
            prompt = next((it for each in PROMPT_COLUMNS if (it := _named(each, names))), None)
        if prompt is None:
            wanted = file.prompt_column or "prompt"
            raise JobError(
                f"{file.path} has no column {wanted!r}, only {_listed(names)}: name the column of "
                "prompts with --prompt-column"
            )
        self.read = {"prompt": prompt}
        for name in ("id", "n", "seed"):
            if (found := _named(name, names)) is not None and found != prompt:
                self.read[name] = found
        for name in file.carry:
            if (found := _named(name, names)) is None:
                raise JobError(f"{file.path} has no column {name!r} to keep, only {_listed(names)}")
            self.read[f"={name}"] = found
        for name in self.read.values():
            if self.names.count(name) > 1:
                raise JobError(f"{file.path} has two columns {name!r}: rename one of them")
        others = tuple(name for name in ("id", "n", "seed") if name in self.read)
        self.understood = Understood(kind, column=prompt, others=others)

    def of(self, values: Columns) -> Columns:
        """Values by our names for their columns."""
        return {ours: values.get(name) for ours, name in self.read.items()}


def _named(wanted: str, names: Sequence[str]) -> str | None:
    """The column of this name, in its own case or else in any."""
    if wanted in names:
        return wanted
    return next((name for name in names if name.strip().lower() == wanted.lower()), None)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(_writable(name)[:40]) for name in list(names)[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown


def _integer(name: str, value: Any, default: int, least: int, most: int) -> int:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return default
    number = least - 1
    if isinstance(value, float):  # as data frames with a missing value have integers
        if value.is_integer() and abs(value) <= _EXACT_FLOATS:
            number = int(value)
    elif not isinstance(value, bool) and (found := _INTEGER.fullmatch(str(value)[:40])):
        number = int(found[1])
    if not least <= number <= most:
        raise PromptError(f"{name} must be an integer from {least} to {most}, got {value!r:.60}")
    return number


def _plain(value: Any, depth: int = 0) -> Any:
    """A kept value as JSON has it. Raises ValueError if JSON has none such."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError("it is an integer of more than 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"it is {value}, which JSON cannot hold,")
        return value
    if isinstance(value, str):
        return _without_invalid(value)
    if depth > 20:
        raise ValueError("it is nested too deeply")
    if isinstance(value, list | tuple):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, dict):
        return {_without_invalid(str(k)): _plain(v, depth + 1) for k, v in value.items()}
    raise ValueError(f"it has the type {type(value).__name__}")


def _without_invalid(text: str) -> str:
    """Text without bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _writable(text: str) -> str:
    """Text that every file of ours can hold, cut."""
    return _without_invalid(text[:MAX_CHARACTERS])


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JobError(f"cannot read the prompts in {path}: {error.strerror or error}") from error


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


@contextmanager
def _text(file: PromptFile) -> Iterator[TextIO]:
    assert file.understood.decoding is not None
    with open_text(file.path, file.understood.decoding) as text:
        yield text


def _lines(file: PromptFile) -> Iterator[Columns | str]:
    with _text(file) as text:
        for line in _bounded_lines(text):
            if line is None:
                yield _TOO_LONG
            elif line.strip():
                yield {"prompt": line.strip()}


def _json_lines(file: PromptFile) -> Iterator[Columns | str]:
    columns = _JsonColumns(file)
    with _text(file) as text:
        objects = _json_array(file, text)
        if objects is not None:
            yield from map(columns.of, objects)
        else:
            for line in _bounded_lines(text):
                if line is None:
                    yield _TOO_LONG
                elif line.strip():
                    try:
                        found = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        yield f"the line is no JSON: {error}"
                        continue
                    yield columns.of(found)
    columns.check()


def _json_array(file: PromptFile, text: TextIO) -> list[Any] | None:
    """All values of a .json file that is one array; None if it has a value in each line."""
    if not any(suffix.lower() == ".json" for suffix in file.path.suffixes):
        return None
    array = text.read(1024).lstrip().startswith("[")
    text.seek(0)
    if not array:
        return None
    try:
        found = json.load(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{file.path} is no JSON: {error}") from error
    return found if isinstance(found, list) else [found]


def _first_key(head: str, wanted: str | None) -> str | None:
    """The key of prompts in the first characters of JSON lines or of an array."""
    found: Any = None
    decoder = json.JSONDecoder()
    for line in re.split(r"[\r\n]+", head.lstrip().removeprefix("[")):
        with suppress(ValueError, RecursionError):
            found, _ = decoder.raw_decode(line.strip())
        if isinstance(found, dict):
            names = (wanted,) if wanted is not None else PROMPT_COLUMNS
            return next((it for each in names if (it := _named(each, list(found)))), None)
    return None


class _JsonColumns:
    """Columns of objects, which may each have others: the prompt's name is that of the first."""

    def __init__(self, file: PromptFile) -> None:
        self._file = file
        self._wanted = file.prompt_column
        self._kept = set(file.carry)
        self._first: list[str] | None = None
        self._prompts = 0

    def of(self, found: Any) -> Columns | str:
        """The columns that are read, or why there are none."""
        if isinstance(found, str):
            self._prompts += 1
            return {"prompt": found}
        if not isinstance(found, dict):
            return f"the line is no JSON object but {_writable(repr(found)[:40])}"
        names = list(found)
        self._first = names if self._first is None else self._first
        if self._wanted is None:
            self._wanted = next((n for each in PROMPT_COLUMNS if (n := _named(each, names))), None)
        prompt = None if self._wanted is None else _named(self._wanted, names)
        if prompt is None:
            return f"the object has no key {self._wanted or 'prompt'!r}"
        self._prompts += 1
        values = {"prompt": found[prompt]}
        for name in ("id", "n", "seed"):
            if (key := _named(name, names)) is not None and key != prompt:
                values[name] = found[key]
        for name in self._file.carry:
            if (key := _named(name, names)) is not None:
                self._kept.discard(name)
                values[f"={name}"] = found[key]
        return values

    def check(self) -> None:
        """At the end: raises JobError if no object had prompts, or a column that is to be kept."""
        if self._first is not None and not self._prompts:
            raise JobError(
                f"{self._file.path} has no key {self._wanted or 'prompt'!r}, only "
                f"{_listed(self._first)}: name the key of prompts with --prompt-column"
            )
        if self._kept and self._prompts:
            raise JobError(
                f"{self._file.path} has no column {min(self._kept)!r} to keep, only "
                f"{_listed(self._first or [])}"
            )


_EXCEL_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)


def _first_line(head: str) -> str:
    """The first row of a table, after the line by which Excel knows its delimiter."""
    lines = _EXCEL_LINE.sub("", head, count=1) if _EXCEL_LINE.match(head) else head
    return re.split(r"[\r\n]", lines.lstrip("\r\n"), maxsplit=1)[0]


def _delimiter_of(path: Path, head: str, first: str, kind: str, wanted: str | None) -> str:
    """The delimiter with which the first row has a column of prompts."""
    if found := _EXCEL_LINE.match(head):
        return found[1]
    usual = "\t" if kind == "tsv" else ","
    names = (wanted,) if wanted is not None else PROMPT_COLUMNS
    cells = {}
    for delimiter in sorted(_DELIMITERS, key=lambda each: each != usual):
        try:
            cells[delimiter] = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error as error:
            raise JobError(f"the first row of {path} cannot be read: {error}") from error
    with_prompts = [d for d, found in cells.items() if any(_named(n, found) for n in names)]
    return max(with_prompts or cells, key=lambda each: len(cells[each]))


def _table(file: PromptFile) -> Iterator[Columns | str]:
    with _text(file) as text:
        too_long = False

        def lines() -> Iterator[str]:
            nonlocal too_long
            for number, line in enumerate(_bounded_lines(text)):
                if line is None:
                    too_long = True
                elif number == 0 and _EXCEL_LINE.match(line):
                    continue
                yield "\n" if line is None else line

        reader = csv.reader(lines(), delimiter=file.understood.delimiter or ",")
        columns: _Columns | None = None
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
                if cells:
                    kind = file.understood.format
                    columns = _Columns(file, kind, [cell.strip() for cell in cells])
            elif len(cells) > len(columns.names):
                yield f"the row has {len(cells)} columns, the first row {len(columns.names)}"
            elif cells:
                yield columns.of(dict(zip(columns.names, cells)))


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except pa.ArrowException as error:
        raise JobError(f"{path} is damaged or no Parquet file: {error}") from error


def _parquet_columns(path: Path) -> list[str]:
    with _parquet_file(path) as file:
        return list(file.schema_arrow.names)


def _parquet(file: PromptFile) -> Iterator[Columns | str]:
    columns = _Columns(file, "parquet", _parquet_columns(file.path))
    with _parquet_file(file.path) as opened:
        wanted = list(dict.fromkeys(columns.read.values()))
        for batch in opened.iter_batches(batch_size=1024, columns=wanted):
            yield from map(columns.of, batch.to_pylist())
