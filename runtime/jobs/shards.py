"""The items of a job, in shards: the units of work, of output files and of recovery.

A job has passes: the first one covers the prompt file at the start, each later one what was added
since (rows at the end, more images of a row). A shard belongs to one pass, so that an extension
never touches finished shards. Each pass has a table on disk with 20 bytes per row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from runtime.errors import JobError
from runtime.files import sha256_of
from runtime.jobs.prompts import PromptFile, Row

# digest: hash of the row except its number of images; before, after: its images in earlier passes
# and including this one; count: images wanted now, below `after` once the row asks for fewer.
_TABLE_ROW = np.dtype([("digest", "<u8"), ("before", "<u4"), ("after", "<u4"), ("count", "<u4")])
_CHUNK = 4096

_HASH = re.compile(r"[0-9a-f]{64}")

RowTable = npt.NDArray[np.void]


@dataclass(frozen=True)
class Item:
    """One image to generate, or an invalid row.

    Attributes:
        row, id, prompt, seed, columns, error: see `Row`.
        index: image index within the row, from 0.
    """

    row: int
    id: str
    prompt: str
    index: int
    seed: int
    columns: dict[str, Any]
    error: str | None

    @property
    def position(self) -> tuple[int, int]:
        """Row and index, unique within the job."""
        return self.row, self.index

    @cached_property
    def key(self) -> str:
        """File name stem: sorts by position, unique within the job, without dots."""
        words = self.prompt if self.id == f"{self.row:08d}" else self.id
        words = re.sub(r"[^a-z0-9]+", "-", words.lower())
        return f"{self.row:08d}-{self.index:05d}-{words[:40].strip('-') or 'image'}"


@dataclass(frozen=True)
class Shard:
    """Consecutive items of a job."""

    number: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """Eight digits, which sort by number."""
        return f"{self.number:08d}"


def split(slots: Iterable[Item | None], size: int, first: int = 0) -> Iterator[Shard]:
    """Split slots into shards of `size`, numbered from `first`; the last one may be shorter.

    The slot of an image that is no longer wanted stays empty, so that no item changes its shard.
    """
    remaining = iter(slots)
    number = first
    while chunk := tuple(islice(remaining, size)):
        yield Shard(number, tuple(item for item in chunk if item is not None))
        number += 1


@dataclass(frozen=True)
class Pass:
    """Items that one run added to a job.

    Attributes:
        first: its first row.
        rows: number of rows in the prompt file at that time; the pass ends with the last one.
        slots: number of items added.
        table: SHA-256 of its table.
    """

    first: int
    rows: int
    slots: int
    table: str = ""

    @classmethod
    def from_json(cls, value: Any) -> Pass:
        """Inverse of `to_json`. Raises ValueError if the value is invalid."""
        if not isinstance(value, dict) or set(value) != {"first", "rows", "slots", "table"}:
            raise ValueError("a pass must be an object with first, rows, slots and table")
        numbers = [value[name] for name in ("first", "rows", "slots")]
        if any(isinstance(it, bool) or not isinstance(it, int) for it in numbers):
            raise ValueError("first, rows and slots of a pass must be integers")
        if not isinstance(value["table"], str) or not _HASH.fullmatch(value["table"]):
            raise ValueError("table of a pass must be a SHA-256")
        found = cls(**value)
        if not (0 <= found.first < found.rows < 1 << 40 and 0 < found.slots < 1 << 62):
            raise ValueError("a pass must have rows and slots")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def shard_count(self, size: int) -> int:
        """Number of shards of `size` slots."""
        return -(-self.slots // size)


def table_name(number: int, which: Pass) -> str:
    """File name of a pass's table; an updated table has another one."""
    return f"{number:08d}-{which.table[:16]}"


def read_table(path: Path, which: Pass) -> RowTable:
    """Memory-map a pass's table. Raises ValueError if it does not match the pass, or OSError."""
    rows = which.rows - which.first
    if path.stat().st_size != rows * _TABLE_ROW.itemsize or sha256_of(path) != which.table:
        raise ValueError(f"hash mismatch in the table of rows {which.first} to {which.rows}")
    return np.memmap(path, _TABLE_ROW, "r", shape=(rows,))


def map_rows(path: Path) -> RowTable:
    """Memory-map the current rows that `compare` wrote."""
    return np.memmap(path, _TABLE_ROW, "r") if path.stat().st_size else np.zeros(0, _TABLE_ROW)


def _digest(row: Row) -> int:
    # Not the text of an error, which later versions may reword.
    known = json.dumps(
        [row.id, row.prompt, row.seed, row.columns, row.error and True], sort_keys=True
    )
    return int.from_bytes(hashlib.blake2b(known.encode(), digest_size=8).digest(), "little")


@dataclass
class Difference:
    """Differences between a prompt file and the rows known to a job.

    Attributes:
        rows: number of rows in the file.
        known: number of rows in the job.
        changed: number of known rows with other content, or with fewer images.
        first_changed: number of the first of them.
        stale: whether a known row has another digest or number of images.
        added: the pass with everything new, or None.
        images: total over all rows; an invalid row counts as one.
    """

    rows: int = 0
    known: int = 0
    changed: int = 0
    first_changed: int = 0
    stale: bool = False
    added: Pass | None = None
    images: int = 0


def _latest_rows(
    passes: Sequence[Pass], tables: Sequence[RowTable]
) -> Iterator[tuple[int, int, int, int]]:
    """Iterate over the latest table row of each known row, in order."""
    last = passes[-1].rows if passes else 0
    position = 0
    while position < last:
        # The latest pass with this row, up to the start of a later one.
        number = max(i for i, it in enumerate(passes) if it.first <= position < it.rows)
        later = [it.first for it in passes[number + 1 :] if it.first > position]
        end = min([passes[number].rows, *later])
        start = passes[number].first
        while position < end:
            until = min(end, position + _CHUNK)
            yield from tables[number][position - start : until - start].tolist()
            position = until


def compare(
    rows: Iterator[Row],
    passes: Sequence[Pass],
    tables: Sequence[RowTable],
    current: BinaryIO,
    added: BinaryIO,
    trust_invalid: bool = False,
) -> Difference:
    """Compare the rows of a prompt file with those known from earlier passes.

    Args:
        rows: all rows of the prompt file.
        passes: earlier passes.
        tables: their tables.
        current: output, (digest, 0, 0, count) of each row.
        added: output, table of the pass with everything new.
        trust_invalid: accept any known digest of an invalid row.
    """
    found = Difference(known=passes[-1].rows if passes else 0)
    known = _latest_rows(passes, tables)
    first: int | None = None
    slots = 0
    for row in rows:
        digest, images = _digest(row), row.count
        before, old = 0, next(known, None)
        if old is not None:
            before = old[2]
            found.stale |= (old[0], old[3]) != (digest, images)
            trusted = trust_invalid and row.error is not None
            if (old[0] != digest and not trusted) or images < old[3]:
                found.first_changed = found.first_changed if found.changed else found.rows
                found.changed += 1
        after = max(before, images)
        current.write(_packed(digest, 0, 0, images))
        if first is None and after > before:
            first = found.rows
        if first is not None:
            added.write(_packed(digest, before, after, images))
            slots += after - before
        found.rows += 1
        found.images += images
    if first is not None:
        found.added = Pass(first, found.rows, slots)
    return found


def _packed(*values: int) -> bytes:
    return np.array([values], _TABLE_ROW).tobytes()


def updated(table: RowTable, which: Pass, current: RowTable) -> RowTable:
    """Copy of a pass's table with the digests and counts of the current rows."""
    new = np.array(table)
    now = current[which.first : which.rows]
    new["digest"], new["count"] = now["digest"], now["count"]
    return new


def read_shards(
    prompts: PromptFile, passes: Sequence[Pass], tables: Sequence[RowTable], size: int
) -> Iterator[Shard]:
    """Stream all shards of a job from its prompt file.

    Raises:
        JobError: the prompt file changed since it was compared.
    """
    rows = prompts.rows()
    position = number = 0
    for which, table in zip(passes, tables):
        if which.first < position:
            rows, position = prompts.rows(), 0
        while position < which.first:
            next(rows, None)
            position += 1
        yield from split(_slots(prompts, rows, which, table), size, number)
        position = which.rows
        number += which.shard_count(size)
    if next(rows, None) is not None:
        raise JobError(
            f"rows were added to {prompts.path} during the run: rerun the same command to generate "
            "their images"
        )


def _slots(
    prompts: PromptFile, rows: Iterator[Row], which: Pass, table: RowTable
) -> Iterator[Item | None]:
    for start in range(0, len(table), _CHUNK):
        for digest, before, after, count in table[start : start + _CHUNK].tolist():
            row = next(rows, None)
            if row is None or _digest(row) != digest or row.count != count:
                where = "rows were removed from" if row is None else f"row {row.number} changed in"
                raise JobError(
                    f"{where} {prompts.path} during the run: rerun the command once the file is "
                    "complete"
                )
            for index in range(before, after):
                if index >= row.count:
                    yield None
                else:
                    yield Item(
                        row.number, row.id, row.prompt, index, row.seed, row.columns, row.error
                    )
