"""Rows of the manifest and of shards as Arrow tables, whose columns do not depend on their rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


def schema_of(columns: Sequence[str]) -> pa.Schema:
    """Columns of our own have types; those that were carried are text."""
    return pa.schema([(name, _TYPES.get(name, pa.string())) for name in columns])


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """A table of rows that all have the same columns; at least one."""
    schema = schema_of(list(rows[0]))
    columns = {
        name: [_cell(row.get(name), schema.field(name).type) for row in rows]
        for name in schema.names
    }
    return pa.table(columns, schema=schema)


def _cell(value: Any, kind: pa.DataType) -> Any:
    if kind != pa.string() or value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write any number of rows, in flat memory."""
    schema = schema_of(columns)
    with pq.ParquetWriter(path, schema) as writer:
        left = iter(rows)
        while group := list(islice(left, _GROUP)):
            writer.write_table(table_of(group).select(schema.names))
