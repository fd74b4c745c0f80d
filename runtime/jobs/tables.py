"""Rows of the manifest and of shards as Arrow tables, with the types of the kept columns."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.errors import JobError
from runtime.jobs.prompt_file import PromptFile, Row

_TYPES = {
    "row": pa.int64(),
    "index": pa.int64(),
    "seed": pa.int64(),
    "bytes": pa.int64(),
    "milliseconds": pa.float64(),
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
}

# Rows of a row group: flat memory, and still few groups.
_GROUP = 1024

# Arrow type of each kept column, by its name.
ColumnTypes = dict[str, Any]


class TypesOfColumns:
    """Finds the Arrow types of the kept columns while rows pass through.

    Raises JobError, naming the column, where two rows have values that no type holds.
    """

    def __init__(self, prompts: PromptFile) -> None:
        self._path = prompts.path
        self._types: ColumnTypes = dict.fromkeys(prompts.carry, pa.null())
        self._rows: list[Row] = []

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows."""
        for row in rows:
            if self._types:
                self._rows.append(row)
                if len(self._rows) == _GROUP:
                    self._flush()
            yield row
        self._flush()

    def _flush(self) -> None:
        for name, known in self._types.items():
            values = [row.carried[name] for row in self._rows]
            try:
                self._types[name] = _unified(known, pa.array(values).type)
            except (pa.ArrowException, OverflowError):
                self._types[name] = self._one_by_one(name)
        self._rows = []

    def _one_by_one(self, name: str) -> Any:
        kind = self._types[name]
        for row in self._rows:
            try:
                kind = _unified(kind, pa.array([row.carried[name]]).type)
            except (pa.ArrowException, OverflowError) as error:
                raise JobError(
                    f"column {name!r} of {self._path} cannot be kept: it is {kind} before row "
                    f"{row.number}, which has {row.carried[name]!r:.60}; give it one type, or do "
                    "not keep it"
                ) from error
        raise JobError(f"column {name!r} of {self._path} cannot be kept: its types are mixed")

    def found(self) -> ColumnTypes:
        """The types, after the last row. Raises JobError if a column has no type for Parquet."""
        found = {name: _without_nulls(kind) for name, kind in self._types.items()}
        for name, kind in found.items():
            if _has_empty_struct(kind):
                raise JobError(
                    f"column {name!r} of {self._path} cannot be kept: it has objects without keys"
                )
        return found


def _unified(one: Any, other: Any) -> Any:
    schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _without_nulls(kind: Any) -> Any:
    """A column without values is one of text."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_nulls(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _without_nulls(field.type)) for field in kind])
    return kind


def _has_empty_struct(kind: Any) -> bool:
    if pa.types.is_list(kind):
        return _has_empty_struct(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return False


def types_to_text(types: ColumnTypes) -> str:
    """For `types_from_text`."""
    return base64.b64encode(pa.schema(list(types.items())).serialize().to_pybytes()).decode()


def types_from_text(text: str) -> ColumnTypes:
    """Raises ValueError if it is damaged."""
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"the types of columns are damaged: {error}") from error
    return dict(zip(schema.names, schema.types))


def schema_of(columns: Sequence[str], types: Mapping[str, Any]) -> Any:
    """Columns of our own have types of their own; the `image` is one for Hugging Face's datasets.

    Args:
        columns: names.
        types: of the kept ones; text where it has none.
    """
    schema = pa.schema([(name, types.get(name, _TYPES.get(name, pa.string()))) for name in columns])
    if "image" not in columns:
        return schema
    features = {
        field.name: {"_type": "Image"} if field.name == "image" else _feature(field.type)
        for field in schema
    }
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: Any) -> Any:
    """An Arrow type as Hugging Face's datasets write it."""
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    name = {"double": "float64", "float": "float32"}.get(str(kind), str(kind))
    return {"dtype": name, "_type": "Value"}


def table_of(rows: Sequence[dict[str, Any]], schema: Any) -> Any:
    """A table of rows. Raises JobError, naming the column, if a value has another type."""
    columns = {}
    for field in schema:
        values = [_cell(row.get(field.name), field.type) for row in rows]
        try:
            columns[field.name] = pa.array(values, field.type)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise JobError(
                f"column {field.name!r} has a value that is no {field.type}: {error}"
            ) from error
    return pa.table(columns, schema=schema)


def _cell(value: Any, kind: Any) -> Any:
    if kind != pa.string() or value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], schema: Any) -> None:
    """Write any number of rows, in flat memory."""
    with pq.ParquetWriter(path, schema) as writer:
        left = iter(rows)
        while group := list(islice(left, _GROUP)):
            writer.write_table(table_of(group, schema))
