"""What became of each item of a part: a line of JSON each, written as soon as it is known."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from runtime.files import atomic_path
from runtime.jobs.parts import Item

# Columns of the manifest for one item: `COLUMNS` and those that were carried.
Entry: TypeAlias = dict[str, Any]

COLUMNS = (
    *("row", "id", "prompt", "index", "seed", "model", "status", "error", "file", "key"),
    *("bytes", "sha256", "milliseconds"),
)
DONE, FAILED = "done", "failed"


def entry_of(item: Item, model: str, milliseconds: float, **outcome: Any) -> Entry:
    """A line of the manifest: `outcome` has what is known of status, error and file."""
    known = {
        "row": item.row,
        "id": item.id,
        "prompt": item.prompt,
        "index": item.index,
        "seed": item.seed,
        "model": model,
        "milliseconds": round(milliseconds, 3),
    } | outcome
    return {name: known.get(name) for name in COLUMNS} | item.carried


def to_line(value: Mapping[str, Any]) -> str:
    """JSON and a line's end."""
    return json.dumps(value, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Record:
    """What is known of a part.

    Attributes:
        entries: in the order in which they were written.
        shards: sizes of its finished shards in bytes, by name; None while it is not finished.
    """

    entries: list[Entry] = field(default_factory=list)
    shards: dict[str, int] | None = None


def read_record(content: bytes | None) -> Record:
    """A record from what was written: a process that is killed leaves a last line cut short at
    worst, which is no entry. None is an empty one."""
    entries: list[Entry] = []
    shards: dict[str, int] | None = None
    for line in (content or b"").split(b"\n")[:-1]:  # after the last line's end is nothing whole
        try:
            found = json.loads(line)
        except ValueError:
            break
        if not isinstance(found, dict):
            break
        if "shards" in found and "row" not in found:
            if not all(map(_is_ours, found["shards"])):
                break
            shards = found["shards"]
        elif set(COLUMNS) - set(found) or not _is_ours(found["file"] or "00000000.tar"):
            break
        else:
            entries.append(found)
    return Record(entries, shards)


def _is_ours(name: str) -> bool:
    """Whether a job makes files of this name: whatever a record says, no other one is removed."""
    return re.fullmatch(r"\d{8}(-retry\d+)?\.\w+|\d{8}/[a-z0-9-]+\.\w+", name) is not None


class Journal:
    """The record of a part on disk.

    Args:
        path: of its file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def read(self) -> Record:
        """What earlier runs wrote. Raises OSError."""
        return read_record(self._path.read_bytes() if self._path.exists() else None)

    def restart(self, record: Record) -> None:
        """Hold this, and go on after it."""
        self.finish(record)
        self._file = self._path.open("a", encoding="utf-8")

    def add(self, entry: Entry) -> None:
        """One more."""
        assert self._file is not None
        self._file.write(to_line(entry))
        self._file.flush()

    def close(self) -> None:
        """No more in this run."""
        if self._file is not None:
            with suppress(OSError):  # of a full disk: what is not written is made again
                self._file.close()

    def finish(self, record: Record) -> None:
        """Hold this, which is all that there will be."""
        with atomic_path(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(map(to_line, record.entries))
            if record.shards is not None:
                file.write(to_line({"shards": record.shards}))
