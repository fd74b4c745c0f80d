"""The state of each item of a part: one line of JSON each, written as soon as it is known."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from runtime.files import atomic_path
from runtime.jobs.parts import Item

_log = logging.getLogger(__name__)

# Columns of the manifest for one item: `COLUMNS` and the kept ones.
Entry: TypeAlias = dict[str, Any]

COLUMNS = (
    *("row", "id", "prompt", "index", "seed", "model", "status", "error", "file", "key"),
    *("bytes", "sha256", "milliseconds"),
)
DONE, FAILED = "done", "failed"

# In a journal only: the row itself is wrong, so that another attempt fails as well.
INVALID = "invalid"

# Types of the columns, None aside, and the columns that an entry with an image must have.
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("row", "index", "seed", "bytes"), int),
    **dict.fromkeys(("id", "prompt", "model", "status", "error", "file", "key", "sha256"), str),
    "milliseconds": (int, float),
}
_NEEDED = ("row", "id", "prompt", "index", "seed", "status")
_NEEDED_IF_DONE = ("file", "key", "bytes", "sha256")

# Far more than any image or shard has.
_MOST_BYTES = 1 << 50


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
    invalid = {} if item.error is None else {INVALID: True}
    return {name: known.get(name) for name in COLUMNS} | item.carried | invalid


def to_line(value: Mapping[str, Any]) -> str:
    """JSON and a trailing newline. Raises ValueError if a number has no JSON (NaN, Infinity)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Record:
    """Everything known about a part.

    Attributes:
        entries: in the order in which they were written.
        shards: sizes of its finished shards in bytes, by name; None while it is not finished.
        hashes: SHA-256 of those shards, by name; without those of jobs before version 2.
    """

    entries: list[Entry] = field(default_factory=list)
    shards: dict[str, int] | None = None
    hashes: dict[str, str] = field(default_factory=dict)


def read_record(content: bytes | None, name: str = "a record") -> Record:
    """A record from the bytes of its file; None is an empty one.

    A process that is killed leaves a last line cut short at worst, which is no entry. A whole line
    that is damaged ends the record, with a warning: the images after it are generated again.
    """
    entries: list[Entry] = []
    shards: dict[str, int] | None = None
    hashes: dict[str, str] = {}
    for line in (content or b"").split(b"\n")[:-1]:  # after the last newline nothing is whole
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and "shards" in found and "row" not in found:
            if not _are_shards(found):
                found = None
            else:
                shards, hashes = found["shards"], found.get("hashes", {})
                continue
        if not isinstance(found, dict) or not _is_entry(found):
            _log.warning(
                "%s is damaged after %d entries: what it does not list is generated again",
                name,
                len(entries),
            )
            break
        entries.append(found)
    return Record(entries, shards, hashes)


def _are_shards(found: Entry) -> bool:
    shards, hashes = found["shards"], found.get("hashes", {})
    return (
        isinstance(shards, dict)
        and isinstance(hashes, dict)
        and all(_is_ours(name) and _is_size(size) for name, size in shards.items())
        and all(isinstance(each, str) for each in hashes.values())
    )


def _is_entry(found: Entry) -> bool:
    if set(COLUMNS) - set(found):
        return False
    for name, kind in _TYPES.items():
        value = found[name]
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            return False
    done = found["status"] == DONE
    needed = _NEEDED + (_NEEDED_IF_DONE if done else ())
    if any(found[name] is None for name in needed) or found["status"] not in (DONE, FAILED):
        return False
    numbers = (found[name] for name in ("row", "index", "seed", "bytes"))
    if not all(number is None or 0 <= number < 1 << 64 for number in numbers):
        return False
    if not done:
        return found["file"] is None or _is_ours(found["file"])
    key = re.fullmatch(r"\d{8,}-\d{5,}-[a-z0-9-]{1,40}", found["key"])
    return key is not None and _is_ours(found["file"]) and _is_size(found["bytes"])


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_BYTES


def _is_ours(name: str) -> bool:
    """Whether a job makes files of this name: whatever a record says, no other one is removed."""
    return re.fullmatch(r"\d{8,}(-retry\d+)?\.\w+|\d{8,}/[a-z0-9-]+\.\w+", name) is not None


class Journal:
    """The record of a part on disk.

    Args:
        path: its file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def read(self) -> Record:
        """What earlier runs wrote. Raises OSError."""
        content = self._path.read_bytes() if self._path.exists() else None
        return read_record(content, str(self._path))

    def restart(self, record: Record) -> None:
        """Hold this, and continue after it."""
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
                file.write(to_line({"shards": record.shards, "hashes": record.hashes}))
