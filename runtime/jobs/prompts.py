"""Reader of prompt files of any size: text lines, CSV, TSV, JSON (lines) or Parquet.

Text files may be compressed, in UTF-8, UTF-16, UTF-32 or another encoding, with any usual
delimiter. An invalid row carries its error and does not affect the next ones; only an unreadable
file, or one without a prompt column, is an error.
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
from runtime.errors import JobError, PromptError, one_line
from runtime.jobs.text_file import Decoding, detect_decoding, open_text
from runtime.noise import MAX_SEED
from runtime.prompts import MAX_CHARACTERS, checked_prompt

INPUT_FORMATS = ("txt", "csv", "tsv", "jsonl", "parquet")

# Case-insensitive names of the prompt column; the first match is used.
PROMPT_COLUMNS = ("prompt", "caption", "text")

# Characters; longer lines are invalid and are never held in memory.
_LONGEST_LINE = 1 << 20

# Columns that manifests, shards and `metadata.jsonl` define themselves.
RESERVED = frozenset(
    {"row", "id", "prompt", "index", "seed", "model", "file", "key", "sha256", "bytes", "status"}
    | {"error", "milliseconds", "image", "file_name", "invalid"}
)

# Per row; a larger number is a mistake.
MAX_IMAGES = 1_000_000

# Above this, not every integer has a float64.
_EXACT_FLOATS = 2.0**53

_INTEGER = re.compile(r"\s*([+-]?\d+)(\.0*)?\s*", re.ASCII)

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_ENDINGS = {"ndjson": "jsonl", "json": "jsonl", "text": "txt", "pq": "parquet", "tab": "tsv"}
_COMPRESSED = frozenset({"gz", "gzip", "bz2", "xz", "zst", "zstd"})
_WORKBOOKS = frozenset({"xlsx", "xlsm", "xls", "xlsb", "ods", "numbers"})

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A row of a prompt file.

    Attributes:
        number: position in the file, from 0.
        id: value of the `id` column; default: the number.
        prompt: text.
        count: number of images.
        seed: noise seed.
        columns: kept columns, with their types.
        error: reason why the row is invalid, or None.
    """

    number: int
    id: str
    prompt: str
    count: int
    seed: int
    columns: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Layout:
    """Detected layout of a prompt file.

    Attributes:
        format: one of `INPUT_FORMATS`.
        decoding: text files only.
        delimiter: CSV and TSV only.
        column: prompt column; None for text lines and for JSON lines without one in the head.
        others: those of `id`, `n` and `seed` that exist.
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
    """A prompt file and how to read it.

    Attributes:
        path: path of the file.
        format: one of `INPUT_FORMATS`; default: by the file name's suffix.
        count: images per row, for rows without `n`.
        seed: noise seed, for rows without `seed`.
        keep_columns: columns to copy to the manifest and to shards.
        prompt_column: default: the first of `PROMPT_COLUMNS` that exists.
        encoding: of a text file; default: detected (UTF-8, UTF-16 or UTF-32).

    Raises:
        ValueError: a value is out of range, or a reserved column name is to be kept.
    """

    path: Path  # str is accepted
    format: str | None = None
    count: int = 1
    seed: int = 0
    keep_columns: tuple[str, ...] = ()
    prompt_column: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", checked_path(self.path))
        require_integers(self, "count", "seed")
        if self.format is not None and self.format not in INPUT_FORMATS:
            names = ", ".join(INPUT_FORMATS)
            raise ValueError(f"format must be one of {names}, got {self.format!r}")
        if not 1 <= self.count <= MAX_IMAGES:
            raise ValueError(f"count must be from 1 to {MAX_IMAGES:,}, got {self.count}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be from 0 to {MAX_SEED}, got {self.seed}")
        if reserved := sorted(name for name in self.keep_columns if name.lower() in RESERVED):
            raise ValueError(
                f"column {reserved[0]!r} cannot be kept: its name is reserved for a column of the "
                "manifest and the shards; rename it in the prompt file"
            )
        if len(set(self.keep_columns)) < len(self.keep_columns):
            raise ValueError("keep_columns has a duplicate name")

    @property
    def kind(self) -> str:
        """Format, given or by suffix. Raises JobError if the suffix is unknown."""
        endings = [each.lower().lstrip(".") for each in self.path.suffixes]
        while endings and endings[-1] in _COMPRESSED:
            endings.pop()
        ending = endings[-1] if endings else ""
        if ending in _WORKBOOKS:
            raise JobError(
                f"{self.path} is a spreadsheet workbook, which is not supported: save the sheet "
                'as CSV (in Excel: Save As, "CSV UTF-8") and pass that file'
            )
        if self.format is not None:
            return self.format
        kind = _ENDINGS.get(ending, ending)
        if kind not in INPUT_FORMATS:
            raise JobError(
                f"unknown format of {self.path}: pass --input-format, one of "
                f"{', '.join(INPUT_FORMATS)}"
            )
        return kind

    @cached_property
    def layout(self) -> Layout:
        """Layout, detected from the head of the file.

        Raises JobError if the file is unreadable or has no prompt column.
        """
        kind = self.kind
        with _readable(self.path):
            if kind == "parquet":
                return _Columns(self, kind, _parquet_columns(self.path)).layout
            decoding, head = detect_decoding(self.path, self.encoding)
        if kind == "txt":
            for name in (self.prompt_column, *self.keep_columns):
                if name is not None:
                    raise JobError(
                        f"{self.path} has text lines and no column {name!r}: pass --input-format "
                        "if it is a table"
                    )
            return Layout(kind, decoding)
        if kind == "jsonl":
            return Layout(kind, decoding, column=_first_key(head, self.prompt_column))
        first = _first_line(head)
        delimiter = _delimiter_of(self.path, head, first, kind, self.prompt_column)
        header = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
        if not header:
            return Layout(kind, decoding, delimiter)
        found = _Columns(self, kind, header).layout
        return replace(found, decoding=decoding, delimiter=delimiter)

    def rows(self) -> Iterator[Row]:
        """Iterate over all rows in order; blank lines of a text file are skipped.

        Raises JobError if the file is unreadable, the prompt column or a column to keep is
        missing, or a value to keep has no JSON form.
        """
        readers = {"txt": _lines, "jsonl": _json_lines, "parquet": _parquet}
        ids = _IdRegistry()
        with _readable(self.path):
            read = readers.get(self.layout.format, _table)
            for number, found in enumerate(read(self)):
                row = self._row(number, found)
                given = row.error is None and not isinstance(found, str) and found.get("id")
                if given and (first := ids.first_row(row.id, number)) != number:
                    error = f"duplicate id {row.id!r} (first used in row {first})"
                    row = replace(row, count=1, error=error)
                yield row

    def _row(self, number: int, found: Columns | str) -> Row:
        """Build a row from its columns, or from its error message."""
        name = f"{number:08d}"
        if isinstance(found, str):
            return Row(number, name, "", 1, self.seed, dict.fromkeys(self.keep_columns), found)
        columns = {
            name: self._checked_value(number, name, found.get(f"={name}"))
            for name in self.keep_columns
        }
        prompt, given = found.get("prompt"), found.get("id")
        name = name if given is None or given == "" else str(given)
        try:
            if not isinstance(prompt, str):
                raise PromptError(f"the prompt must be text, got {prompt!r}")
            checked_prompt(prompt)
            checked_prompt(name)
            count = _integer("n", found.get("n"), self.count, 1, MAX_IMAGES)
            seed = _integer("seed", found.get("seed"), self.seed, 0, MAX_SEED)
        except PromptError as error:
            shown = _writable(prompt if isinstance(prompt, str) else "")
            return Row(number, _writable(name), shown, 1, self.seed, columns, _writable(str(error)))
        return Row(number, name, prompt, count, seed, columns)

    def _checked_value(self, number: int, column: str, value: Any) -> Any:
        """Check and normalize a value to keep."""
        try:
            return _plain(value)
        except ValueError as error:
            raise JobError(
                f"column {column!r} of {self.path} cannot be kept: row {number} has {error}; "
                "convert it to text or numbers, or do not keep the column"
            ) from error


class _IdRegistry:
    """First row of each id, in a SQLite table that spills to a temporary file."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("")  # deleted with the connection
        self._table.execute("CREATE TABLE ids (hash BLOB PRIMARY KEY, row INTEGER) WITHOUT ROWID")

    def first_row(self, name: str, row: int) -> int:
        """First row with this id: `row` itself if the id is new."""
        key = hashlib.blake2b(name.encode(), digest_size=16).digest()
        insert = "INSERT INTO ids VALUES (?, ?) ON CONFLICT DO NOTHING"
        if self._table.execute(insert, (key, row)).rowcount:
            return row
        found = self._table.execute("SELECT row FROM ids WHERE hash = ?", (key,)).fetchone()
        return int(found[0])


class _Columns:
    """Mapping from our column names to those of a table.

    Args:
        file: the prompt file.
        kind: its format.
        names: all column names of the table.

    Raises:
        JobError: the prompt column or a column to keep is missing or ambiguous.
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
                f"{file.path} has no column {wanted!r}, only {_listed(names)}: pass the prompt "
                "column's name with --prompt-column"
            )
        self.read = {"prompt": prompt}
        for name in ("id", "n", "seed"):
            if (found := _named(name, names)) is not None and found != prompt:
                self.read[name] = found
        for name in file.keep_columns:
            if (found := _named(name, names)) is None:
                raise JobError(f"{file.path} has no column {name!r} to keep, only {_listed(names)}")
            self.read[f"={name}"] = found
        for name in self.read.values():
            if self.names.count(name) > 1:
                raise JobError(f"{file.path} has two columns {name!r}: rename one of them")
        others = tuple(name for name in ("id", "n", "seed") if name in self.read)
        self.layout = Layout(kind, column=prompt, others=others)

    def of(self, values: Columns) -> Columns:
        """Select the columns that are read, under our names."""
        return {ours: values.get(name) for ours, name in self.read.items()}


def _named(wanted: str, names: Sequence[str]) -> str | None:
    """Find a column by name: exact match first, then case-insensitive."""
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
    if isinstance(value, float):  # data frames store integers with missing values as floats
        if value.is_integer() and abs(value) <= _EXACT_FLOATS:
            number = int(value)
    elif not isinstance(value, bool) and (found := _INTEGER.fullmatch(str(value)[:40])):
        number = int(found[1])
    if not least <= number <= most:
        raise PromptError(f"{name} must be an integer from {least} to {most}, got {value!r:.60}")
    return number


def _plain(value: Any, depth: int = 0) -> Any:
    """Normalize a value to JSON types. Raises ValueError if it has no JSON form."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError("an integer of more than 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value}, which JSON cannot represent")
        return value
    if isinstance(value, str):
        return _without_invalid(value)
    if depth > 20:
        raise ValueError("a value nested too deeply")
    if isinstance(value, list | tuple):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, dict):
        return {_without_invalid(str(k)): _plain(v, depth + 1) for k, v in value.items()}
    raise ValueError(f"a value of type {type(value).__name__}")


def _without_invalid(text: str) -> str:
    """Escape invalid UTF-8 and NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _writable(text: str) -> str:
    """Truncate and escape text for manifests and messages."""
    return _without_invalid(text[:MAX_CHARACTERS])


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JobError(f"cannot read the prompts in {path}: {error.strerror or error}") from error


def _bounded_lines(file: TextIO) -> Iterator[str | None]:
    """Yield lines with their newlines; None for an overlong one."""
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
    assert file.layout.decoding is not None
    with open_text(file.path, file.layout.decoding) as text:
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
                        yield f"invalid JSON: {error}"
                        continue
                    yield columns.of(found)
    columns.check()


def _json_array(file: PromptFile, text: TextIO) -> list[Any] | None:
    """Load a .json file that is one array; None for one with an object per line."""
    if not any(suffix.lower() == ".json" for suffix in file.path.suffixes):
        return None
    array = text.read(1024).lstrip().startswith("[")
    text.seek(0)
    if not array:
        return None
    try:
        found = json.load(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{file.path} is invalid JSON: {error}") from error
    return found if isinstance(found, list) else [found]


def _first_key(head: str, wanted: str | None) -> str | None:
    """Find the prompt key in the head of JSON lines or of an array."""
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
    """Columns of JSON objects, whose keys may differ; the first prompt key found is used."""

    def __init__(self, file: PromptFile) -> None:
        self._file = file
        self._wanted = file.prompt_column
        self._kept = set(file.keep_columns)
        self._first: list[str] | None = None
        self._prompts = 0

    def of(self, found: Any) -> Columns | str:
        """Select the columns that are read, or return an error message."""
        if isinstance(found, str):
            self._prompts += 1
            return {"prompt": found}
        if not isinstance(found, dict):
            return f"expected a JSON object, got {_writable(repr(found)[:40])}"
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
        for name in self._file.keep_columns:
            if (key := _named(name, names)) is not None:
                self._kept.discard(name)
                values[f"={name}"] = found[key]
        return values

    def check(self) -> None:
        """After the last object: raise JobError if no object had a prompt or a column to keep."""
        if self._first is not None and not self._prompts:
            raise JobError(
                f"{self._file.path} has no key {self._wanted or 'prompt'!r}, only "
                f"{_listed(self._first)}: pass the name of the prompt key with --prompt-column"
            )
        if self._kept and self._prompts:
            raise JobError(
                f"{self._file.path} has no column {min(self._kept)!r} to keep, only "
                f"{_listed(self._first or [])}"
            )


# Excel's declaration of the delimiter, in the first line.
_EXCEL_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)


def _first_line(head: str) -> str:
    """First row of a table, without Excel's delimiter line."""
    lines = _EXCEL_LINE.sub("", head, count=1) if _EXCEL_LINE.match(head) else head
    return re.split(r"[\r\n]", lines.lstrip("\r\n"), maxsplit=1)[0]


def _delimiter_of(path: Path, head: str, first: str, kind: str, wanted: str | None) -> str:
    """Detect the delimiter: the one that splits off a prompt column in the first row."""
    if found := _EXCEL_LINE.match(head):
        return found[1]
    usual = "\t" if kind == "tsv" else ","
    names = (wanted,) if wanted is not None else PROMPT_COLUMNS
    cells = {}
    for delimiter in sorted(_DELIMITERS, key=lambda each: each != usual):
        try:
            cells[delimiter] = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error as error:
            raise JobError(f"cannot read the first row of {path}: {error}") from error
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

        reader = csv.reader(lines(), delimiter=file.layout.delimiter or ",")
        columns: _Columns | None = None
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                yield f"unreadable row: {error}"
                continue
            if too_long:
                too_long = False
                yield _TOO_LONG
            elif columns is None:
                if cells:
                    kind = file.layout.format
                    columns = _Columns(file, kind, [cell.strip() for cell in cells])
            elif len(cells) > len(columns.names):
                yield f"the row has {len(cells)} columns, the header {len(columns.names)}"
            elif cells:
                yield columns.of(dict(zip(columns.names, cells)))


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise JobError(
            f"{path} is damaged or not a Parquet file: {one_line(str(error))}"
        ) from error
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date after 9999
        raise JobError(
            f"{path} has a value that Python cannot hold ({error}): change it, or do not keep its "
            "column"
        ) from error


def _parquet_columns(path: Path) -> list[str]:
    with _parquet_file(path) as file:
        return list(file.schema_arrow.names)


def _parquet(file: PromptFile) -> Iterator[Columns | str]:
    columns = _Columns(file, "parquet", _parquet_columns(file.path))
    with _parquet_file(file.path) as opened:
        wanted = list(dict.fromkeys(columns.read.values()))
        for batch in opened.iter_batches(batch_size=1024, columns=wanted):
            yield from map(columns.of, batch.to_pylist())
