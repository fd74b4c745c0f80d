"""What a job knows of the rows of its prompt file, so that a later file is an extension or not.

A job has passes: the first makes what its prompt file held at the start, each later one what was
added since (rows at the end, more images of a row). Parts belong to one pass, so that an extension
never touches what is finished. A pass keeps a table with 20 bytes a row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from runtime.errors import JobError
from runtime.files import sha256_of
from runtime.jobs.parts import Item, Part, parts_of
from runtime.jobs.prompt_file import PromptFile, Row

# digest: of all of a row but its number of images; before, after: images of earlier passes, and
# with this one; count: images wanted now, fewer than `after` once the row asks for fewer.
_RECORD = np.dtype([("digest", "<u8"), ("before", "<u4"), ("after", "<u4"), ("count", "<u4")])
_CHUNK = 4096

_HASH = re.compile(r"[0-9a-f]{64}")

Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class Pass:
    """The items that one run added to a job.

    Attributes:
        first: its first row.
        rows: rows of the prompt file then; the last of them is the pass's last one.
        slots: items that were added.
        table: SHA-256 of its table.
    """

    first: int
    rows: int
    slots: int
    table: str = ""

    @classmethod
    def from_json(cls, value: Any) -> Pass:
        """Raises ValueError if it is none."""
        if not isinstance(value, dict) or set(value) != {"first", "rows", "slots", "table"}:
            raise ValueError("a pass is no object of first, rows, slots and table")
        numbers = [value[name] for name in ("first", "rows", "slots")]
        if any(isinstance(it, bool) or not isinstance(it, int) for it in numbers):
            raise ValueError("a pass has other values than integers")
        if not isinstance(value["table"], str) or not _HASH.fullmatch(value["table"]):
            raise ValueError("a pass has no hash of its table")
        found = cls(**value)
        if not (0 <= found.first < found.rows < 1 << 40 and 0 < found.slots < 1 << 62):
            raise ValueError("a pass has no rows or no images")
        return found

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return asdict(self)

    def parts(self, size: int) -> int:
        """Number of parts of `size` slots."""
        return -(-self.slots // size)


def table_name(number: int, which: Pass) -> str:
    """Name of a pass's table in the folder of all of them; an updated one has another."""
    return f"{number:08d}-{which.table[:16]}"


def read_table(path: Path, which: Pass) -> Records:
    """A pass's table, memory-mapped. Raises ValueError if it does not fit its pass, or OSError."""
    rows = which.rows - which.first
    if path.stat().st_size != rows * _RECORD.itemsize or sha256_of(path) != which.table:
        raise ValueError(f"the table of rows {which.first} to {which.rows} has another hash")
    return np.memmap(path, _RECORD, "r", shape=(rows,))


def as_table(path: Path) -> Records:
    """Records of all rows that `compare` wrote."""
    return np.memmap(path, _RECORD, "r") if path.stat().st_size else np.zeros(0, _RECORD)


def _digest(row: Row) -> int:
    known = json.dumps([row.id, row.prompt, row.seed, row.carried, row.error], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(known.encode(), digest_size=8).digest(), "little")


@dataclass
class Difference:
    """How the rows of a prompt file differ from those that a job knows.

    Attributes:
        rows: in the file.
        known: in the job.
        changed: known rows that are others now, or ask for fewer images.
        first_changed: the first one of them.
        stale: whether a known row is another now or asks for another number of images.
        added: the pass that makes what is new, or None.
        images: of all rows, an invalid row counting as one.
    """

    rows: int = 0
    known: int = 0
    changed: int = 0
    first_changed: int = 0
    stale: bool = False
    added: Pass | None = None
    images: int = 0


class _Known:
    """The latest record of each row, in order."""

    def __init__(self, passes: Sequence[Pass], tables: Sequence[Records]) -> None:
        self._passes, self._tables = passes, tables

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        last = self._passes[-1].rows if self._passes else 0
        position = 0
        while position < last:
            # The latest pass that has this row, up to where a later one begins.
            number = max(i for i, it in enumerate(self._passes) if it.first <= position < it.rows)
            later = [it.first for it in self._passes[number + 1 :] if it.first > position]
            end = min([self._passes[number].rows, *later])
            start = self._passes[number].first
            while position < end:
                until = min(end, position + _CHUNK)
                yield from self._tables[number][position - start : until - start].tolist()
                position = until


def compare(
    rows: Iterator[Row],
    passes: Sequence[Pass],
    tables: Sequence[Records],
    current: BinaryIO,
    added: BinaryIO,
) -> Difference:
    """How `rows` differ from what earlier passes know.

    Args:
        rows: all rows of the prompt file, as it is now.
        passes: what is known.
        tables: of each of them.
        current: written: records (digest, 0, 0, count) of all rows, as they are now.
        added: written: the table of the pass that makes what is new.
    """
    found = Difference(known=passes[-1].rows if passes else 0)
    known = iter(_Known(passes, tables))
    first: int | None = None
    slots = 0
    for row in rows:
        digest, images = _digest(row), row.count
        before, old = 0, next(known, None)
        if old is not None:
            before = old[2]
            found.stale |= (old[0], old[3]) != (digest, images)
            if old[0] != digest or images < old[3]:
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
    return np.array([values], _RECORD).tobytes()


def updated(table: Records, which: Pass, current: Records) -> Records:
    """A pass's table with its rows as they are now."""
    new = np.array(table)
    now = current[which.first : which.rows]
    new["digest"], new["count"] = now["digest"], now["count"]
    return new


def read_parts(
    prompts: PromptFile, passes: Sequence[Pass], tables: Sequence[Records], size: int
) -> Iterator[Part]:
    """All parts of a job, while its prompts are read.

    Raises:
        JobError: a row is not the one that the job knows: the file changed meanwhile.
    """
    rows = prompts.rows()
    position = number = 0
    for which, table in zip(passes, tables):
        if which.first < position:
            rows, position = prompts.rows(), 0
        while position < which.first:
            next(rows, None)
            position += 1
        yield from parts_of(_slots(prompts, rows, which, table), size, number)
        position = which.rows
        number += which.parts(size)
    if next(rows, None) is not None:
        raise JobError(
            f"rows were added to {prompts.path} during the run: rerun the same command to generate "
            "their images"
        )


def _slots(
    prompts: PromptFile, rows: Iterator[Row], which: Pass, table: Records
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
                        row.number, row.id, row.prompt, index, row.seed, row.carried, row.error
                    )
