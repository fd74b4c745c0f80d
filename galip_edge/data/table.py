"""Images with captions in one CSV, TSV, JSON Lines or Parquet file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from galip_edge.data.captions import tidy_all
from galip_edge.data.config import DataConfig
from galip_edge.data.errors import DataError, require
from galip_edge.data.records import ImageRecord
from runtime.errors import one_line

Row = Mapping[str, Any]


def table_records(config: DataConfig) -> list[ImageRecord]:
    """The images of a table; several rows of one image are its captions.

    Keys are the image paths, relative to `root`. In JSON Lines and Parquet a caption may also be a
    list of captions.

    Raises DataError if the file is missing or damaged, or lacks a column.
    """
    root = config.folder()
    path = root / str(config.table)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is not a table: expected a file ending in {', '.join(_READERS)}")
    captions: dict[str, list[str]] = {}
    try:
        for row in reader(path, (config.image_column, config.caption_column)):
            image = str(_cell(row, config.image_column, path) or "").strip()
            if not image:
                raise DataError(f"{path} has a row without an image: {dict(row)}")
            caption = _cell(row, config.caption_column, path)
            several = caption if isinstance(caption, list) else [caption]
            captions.setdefault(image, []).extend(str(one) for one in several if one is not None)
    except (OSError, ValueError, OverflowError) as error:  # also of pyarrow, JSON and Unicode
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        raise DataError(f"{path} is damaged: {one_line(str(error))}") from error
    if not captions:
        raise DataError(f"{path} has no rows")
    return [
        ImageRecord(image, str(root / image), tidy_all(texts)) for image, texts in captions.items()
    ]


def _cell(row: Row, column: str, path: Path) -> Any:
    if column not in row:
        raise DataError(
            f"{path} has no column {column!r}, it has {', '.join(map(repr, row))}: name the "
            "right ones with the image_column and caption_column settings"
        )
    return row[column]


def _read_csv(path: Path, columns: Collection[str], delimiter: str = ",") -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for row in csv.DictReader(file, delimiter=delimiter):
                # More cells than the header: usually an unquoted comma in a caption.
                if extra := row.pop(None, None):
                    raise ValueError(
                        f"the row of {row} has more cells than the header: {extra}; put captions "
                        "in quotes"
                    )
                yield row
        except csv.Error as error:
            raise ValueError(str(error)) from error


def _read_tsv(path: Path, columns: Collection[str]) -> Iterator[Row]:
    return _read_csv(path, columns, delimiter="\t")


def _read_jsonl(path: Path, columns: Collection[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: expected an object, got {line.strip()[:80]}")
            yield row


def _read_parquet(path: Path, columns: Collection[str]) -> Iterator[Row]:
    parquet = require("pyarrow.parquet", "reading Parquet")
    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if not set(columns) <= set(names):
            yield dict.fromkeys(names)  # for the message about columns
        for batch in file.iter_batches(columns=list(columns)):
            yield from batch.to_pylist()


# File and the columns that are needed to rows, which may have more columns.
_READERS: dict[str, Callable[[Path, Collection[str]], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
