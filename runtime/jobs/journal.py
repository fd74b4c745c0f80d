"""Journal of a shard: one line of JSON per item, appended as soon as its outcome is known."""

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
from runtime.jobs.shards import Item

_log = logging.getLogger(__name__)

# One line of the manifest: `COLUMNS` and the kept columns.
Entry: TypeAlias = dict[str, Any]

COLUMNS = (
    *("row", "id", "prompt", "index", "seed", "model", "status", "error", "file", "key"),
    *("bytes", "sha256", "milliseconds"),
)
DONE, FAILED = "done", "failed"

# In journals only: the row is invalid, so that every attempt fails.
INVALID = "invalid"

# Types of the columns, if not None, and the columns that must not be None.
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("row", "index", "seed", "bytes"), int),
    **dict.fromkeys(("id", "prompt", "model", "status", "error", "file", "key", "sha256"), str),
    "milliseconds": (int, float),
}
_REQUIRED = ("row", "id", "prompt", "index", "seed", "status")
_REQUIRED_IF_DONE = ("file", "key", "bytes", "sha256")

# Above the size of any image or shard.
_MAX_BYTES = 1 << 50

# Manifests have integers of 64 bits, and floats, which hold integers up to here exactly.
_MAX_INTEGER, _MAX_MILLISECONDS = 1 << 63, 1 << 53

_HASH = re.compile(r"[0-9a-f]{64}")


def entry_of(item: Item, model: str, milliseconds: float, **outcome: Any) -> Entry:
    """Build an entry; `outcome` holds status, error and what is known about the file."""
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
    return {name: known.get(name) for name in COLUMNS} | item.columns | invalid


def matches(entry: Entry, item: Item, model: str) -> bool:
    """Check that an entry is the outcome of an item, its row unchanged since.

    Args:
        entry: of a journal.
        item: at the entry's position.
        model: hash of the job's model.
    """
    if set(entry) - set(COLUMNS) - set(item.columns) - {INVALID}:
        return False
    expected = {"id": item.id, "prompt": item.prompt, "seed": item.seed, "model": model}
    expected |= item.columns
    if entry["status"] == DONE:
        expected["key"] = item.key
    if not all(_same(entry.get(name), value) for name, value in expected.items()):
        return False
    return bool(entry.get(INVALID)) == (item.error is not None)


def _same(value: Any, other: Any) -> bool:
    """Compare JSON values; 1, 1.0 and true differ."""
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)
    return type(value) is type(other) and bool(value == other)


def to_line(value: Mapping[str, Any]) -> str:
    """Serialize to JSON with a trailing newline. Raises ValueError for NaN and infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True)
class ShardRecord:
    """Content of a shard's journal.

    Attributes:
        entries: in the order of writing.
        sizes: bytes of its finished shard files, by name; None while it is unfinished.
        hashes: SHA-256 of those files, by name; empty in jobs of version 1.
    """

    entries: list[Entry] = field(default_factory=list)
    sizes: dict[str, int] | None = None
    hashes: dict[str, str] = field(default_factory=dict)


def parse_journal(content: bytes | None, name: str = "a journal") -> ShardRecord:
    """Parse a journal; None is an empty one.

    A last line without a newline, left by a killed process, is ignored. A damaged line ends the
    record with a warning: the images listed after it are generated again.
    """
    entries: list[Entry] = []
    sizes: dict[str, int] | None = None
    hashes: dict[str, str] = {}
    for line in (content or b"").split(b"\n")[:-1]:  # what follows the last newline is incomplete
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and "shards" in found and "row" not in found:
            if not _is_completion(found):
                found = None
            else:
                sizes, hashes = found["shards"], found.get("hashes", {})
                continue
        if not isinstance(found, dict) or not _is_entry(found):
            _log.warning(
                "%s is damaged after %d entries: all other images are generated again",
                name,
                len(entries),
            )
            break
        entries.append(found)
    return ShardRecord(entries, sizes, hashes)


def _is_completion(found: Entry) -> bool:
    sizes, hashes = found["shards"], found.get("hashes", {})
    return (
        isinstance(sizes, dict)
        and isinstance(hashes, dict)
        and all(_is_job_file(name) and _is_size(size) for name, size in sizes.items())
        and all(isinstance(each, str) and _HASH.fullmatch(each) for each in hashes.values())
    )


def _is_entry(found: Entry) -> bool:
    if set(COLUMNS) - set(found):
        return False
    for name, kind in _TYPES.items():
        value = found[name]
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            return False
        if isinstance(value, str) and not _is_unicode(value):
            return False
    done = found["status"] == DONE
    required = _REQUIRED + (_REQUIRED_IF_DONE if done else ())
    if any(found[name] is None for name in required) or found["status"] not in (DONE, FAILED):
        return False
    numbers = (found[name] for name in ("row", "index", "seed", "bytes"))
    if not all(number is None or 0 <= number < _MAX_INTEGER for number in numbers):
        return False
    if found["milliseconds"] is not None and not 0 <= found["milliseconds"] < _MAX_MILLISECONDS:
        return False
    if found["sha256"] is not None and not _HASH.fullmatch(found["sha256"]):
        return False
    if not done:
        return found["file"] is None or _is_job_file(found["file"])
    key = re.fullmatch(r"\d{8,}-\d{5,}-[a-z0-9-]{1,40}", found["key"])
    return key is not None and _is_job_file(found["file"]) and _is_size(found["bytes"])


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a surrogate
        return False
    return True


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_BYTES


def _is_job_file(name: str) -> bool:
    """Check that a job writes files of this name; it never removes any other."""
    return re.fullmatch(r"\d{8,}(-retry\d+)?\.\w+|\d{8,}/[a-z0-9-]+\.\w+", name) is not None


class Journal:
    """A shard's journal on disk.

    Args:
        path: path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def read(self) -> ShardRecord:
        """Read what earlier runs wrote. Raises OSError."""
        content = self._path.read_bytes() if self._path.exists() else None
        return parse_journal(content, str(self._path))

    def restart(self, record: ShardRecord) -> None:
        """Replace the content and open the journal for appending."""
        self.finish(record)
        self._file = self._path.open("a", encoding="utf-8")

    def append(self, entry: Entry) -> None:
        """Write and flush an entry."""
        assert self._file is not None
        self._file.write(to_line(entry))
        self._file.flush()

    def close(self) -> None:
        """Stop appending."""
        if self._file is not None:
            with suppress(OSError):  # disk full: unwritten entries are generated again
                self._file.close()

    def finish(self, record: ShardRecord) -> None:
        """Replace the content, atomically."""
        with atomic_path(self._path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(map(to_line, record.entries))
            if record.sizes is not None:
                file.write(to_line({"shards": record.sizes, "hashes": record.hashes}))
