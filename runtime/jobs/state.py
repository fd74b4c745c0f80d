"""State of a job, `.job/job.json`: its settings, and its passes over the prompt file."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import JobError
from runtime.files import sha256_of
from runtime.jobs.prompts import PromptFile
from runtime.jobs.shards import (
    Difference,
    Pass,
    RowTable,
    compare,
    map_rows,
    read_table,
    table_name,
    updated,
)
from runtime.jobs.storage import STATE, Storage, copy_to
from runtime.jobs.writers import ColumnTypes, TypeInference, types_from_text, types_to_text

STATE_FILE, JOURNALS, TABLES = f"{STATE}/job.json", f"{STATE}/parts", f"{STATE}/rows"

# Version 1 had no passes: its jobs continue only if nothing changed. Tables of version 2 have other
# digests of invalid rows. Both are rewritten as the current version when they continue.
_VERSION = 3

# Settings that must not change, with their names in messages.
_FIXED = {
    "seed": "seed",
    "carried columns": "kept columns",
    "model": "model",
    "output form": "output format",
    "image format": "image format",
    "quality": "quality",
    "part size": "shard size",
    "precision": "precision",
    "device": "device",
    "signed": "choice of signing images",
}
# Values for jobs from before a setting existed.
_DEFAULTS = {"precision": "auto", "device": "CPU", "signed": False}


@dataclass(frozen=True)
class State:
    """Content of `job.json`.

    Attributes:
        facts: settings that must not change, and how the prompt file was read.
        passes: what each run added.
        items: number of images wanted, plus invalid rows.
        types: Arrow types of the kept columns.
        version: version of the file.
    """

    facts: dict[str, Any]
    passes: tuple[Pass, ...]
    items: int
    types: ColumnTypes
    version: int = _VERSION

    @classmethod
    def from_bytes(cls, content: bytes) -> State:
        """Inverse of `to_bytes`. Raises ValueError if the content is damaged."""
        try:
            found = json.loads(content)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
        checksum = found.pop("checksum", None)
        if found.get("version") != 1 and checksum != _checksum(found):
            raise ValueError("checksum mismatch")
        version, items = found.pop("version", None), found.pop("items", None)
        if version not in range(1, _VERSION + 1):
            raise ValueError(f"version {version!r:.40}, supported up to {_VERSION}")
        if isinstance(items, bool) or not isinstance(items, int) or items < 1:
            raise ValueError("items must be a positive integer")
        passes = found.pop("passes", [])
        types = found.pop("column types", types_to_text({}))
        if not isinstance(passes, list) or not isinstance(types, str):
            raise ValueError("passes must be a list, column types a string")
        known = tuple(map(Pass.from_json, passes))
        ends = [each.rows for each in known]
        if ends != sorted(ends) or (version > 1 and (not known or known[0].first != 0)):
            raise ValueError("passes must follow each other")
        return cls(found, known, items, types_from_text(types), version)

    def to_bytes(self) -> bytes:
        """Serialize, with a checksum."""
        found = {
            "version": _VERSION,
            **self.facts,
            "items": self.items,
            "passes": [each.to_json() for each in self.passes],
            "column types": types_to_text(self.types),
        }
        return json.dumps({**found, "checksum": _checksum(found)}).encode()


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def open_tables(storage: Storage, passes: tuple[Pass, ...]) -> Iterator[list[RowTable]]:
    """Open the table of each pass. Raises ValueError if one is damaged or missing."""
    with ExitStack() as stack:
        tables: list[RowTable] = []
        for number, each in enumerate(passes):
            name = f"{TABLES}/{table_name(number, each)}"
            path = stack.enter_context(storage.local(name))
            if path is None:
                raise ValueError(f"{name} is missing")
            tables.append(read_table(path, each))
        yield tables


class Preparation:
    """Creates the state of a job, or continues or extends an existing one.

    Args:
        storage: the job's storage; the caller holds its lock.
        prompts: the prompt file.
        facts: the job's settings, by the names in `_FIXED`.
        update: accept changed rows.
    """

    def __init__(
        self,
        storage: Storage,
        prompts: PromptFile,
        facts: dict[str, Any],
        update: bool,
    ) -> None:
        self._storage, self._prompts, self._update = storage, prompts, update
        self._facts = facts

    def load(self) -> State | None:
        """State of an earlier run. Raises ValueError if damaged, JobError if unreadable."""
        try:
            content = self._storage.read(STATE_FILE)
        except OSError as error:
            raise JobError(f"cannot read {STATE_FILE} in {self._storage}: {error}") from error
        return None if content is None else State.from_bytes(content)

    def mismatches(self, known: State) -> list[str]:
        """Names of the settings that differ from the state."""
        facts = _DEFAULTS | known.facts
        return [shown for name, shown in _FIXED.items() if facts.get(name) != self._facts[name]]

    def update(self, known: State | None) -> State:
        """Return the state to continue with, and store it if it changed.

        Raises:
            JobError: the prompt file is unreadable or empty, or rows changed or were removed.
            ValueError: the known state is damaged.
        """
        # Compared with a second hash after reading.
        digest = _hash_of(self._prompts)
        reading = {
            "n": self._prompts.count,
            "format": self._prompts.kind,
            "prompt column": self._prompts.prompt_column,
            "encoding": self._prompts.encoding,
        }
        if known is not None and known.version == _VERSION:
            same = all(known.facts.get(name) == value for name, value in reading.items())
            if same and known.facts.get("prompts") == digest:
                with open_tables(self._storage, known.passes):
                    return known
        facts = {**self._facts, "prompts": digest, **reading}
        with tempfile.TemporaryDirectory(prefix="galip-edge-") as folder:
            state = self._scan(known, facts, Path(folder))
        if _hash_of(self._prompts) != digest:
            raise JobError(
                f"{self._prompts.path} changed while it was read: rerun the command once the file "
                "is complete"
            )
        with self._storage.new(STATE_FILE) as temporary:
            temporary.write_bytes(state.to_bytes())
        self._remove_unused_tables(state)
        return state

    def _scan(self, known: State | None, facts: dict[str, Any], folder: Path) -> State:
        types = TypeInference(self._prompts)
        passes = known.passes if known is not None and known.version > 1 else ()
        current, added = folder / "current", folder / "added"
        with (
            open_tables(self._storage, passes) as tables,
            current.open("wb") as now,
            added.open("wb") as new,
        ):
            rows = types.watch(self._prompts.rows())
            old_digests = known is not None and known.version < _VERSION
            found = compare(rows, passes, tables, now, new, trust_invalid=old_digests)
            now.flush()
            self._check(found, known, facts)
            found_types = types.result()
            self._check_types(known, found_types)
            if found.stale:
                passes = self._write_updated(passes, tables, current, folder)
        if found.added is not None:
            passes = (*passes, self._stored(len(passes), found.added, added))
        if known is not None and known.version == 1:
            for name in ("manifest.jsonl", "manifest.parquet"):  # of version 1
                self._storage.remove(name)
        return State(facts, passes, found.images, found_types)

    def _check(self, found: Difference, known: State | None, facts: dict[str, Any]) -> None:
        path, storage = self._prompts.path, self._storage
        if not found.rows:
            raise JobError(f"{path} has no prompts")
        if known is not None and known.version == 1:
            old = known.facts
            same = old.get("prompts") == facts["prompts"] and old.get("n") == facts["n"]
            if not same or known.items != found.images:
                raise JobError(
                    f"the job in {storage} was started by an early version of galip-edge: rerun it "
                    "once with its original prompts and -n, then change them; or pass --force to "
                    "remove its files and start again"
                )
        if found.rows < found.known:
            raise JobError(
                f"{path} has {found.rows:,} rows, the job in {storage} has {found.known:,}: "
                "rows can be added at the end and changed, not removed; choose another folder, or "
                "pass --force to remove the job's files and start again"
            )
        if found.changed and not self._update:
            more = f" and {found.changed - 1:,} more" if found.changed > 1 else ""
            raise JobError(
                f"row {found.first_changed}{more} of {path} changed since the job in {storage} was "
                "started (prompt, seed, id, kept columns or fewer images; rows count from 0): pass "
                "--update to regenerate only their images, choose another folder, or pass --force "
                "to start again"
            )

    def _check_types(self, known: State | None, found: ColumnTypes) -> None:
        if known is None or self._facts["output form"] != "parquet":
            return
        import pyarrow as pa

        for name, kind in found.items():
            before = known.types.get(name, pa.string())
            if kind != before:
                raise JobError(
                    f"column {name!r} of {self._prompts.path} is {kind}, but {before} in the "
                    f"shards of {self._storage}: convert it to that type, choose another folder, "
                    "or pass --force to start again"
                )

    def _write_updated(
        self, passes: tuple[Pass, ...], tables: list[RowTable], current: Path, folder: Path
    ) -> tuple[Pass, ...]:
        now, found = map_rows(current), []
        for number, (each, table) in enumerate(zip(passes, tables)):
            new = updated(table, each, now)
            if not np.array_equal(new, table):
                path = folder / "updated"
                new.tofile(path)
                each = self._stored(number, each, path)
            found.append(each)
        return tuple(found)

    def _stored(self, number: int, which: Pass, path: Path) -> Pass:
        """Store a table under a new name; return the pass with its hash."""
        found = replace(which, table=sha256_of(path))
        copy_to(self._storage, path, f"{TABLES}/{table_name(number, found)}")
        return found

    def _remove_unused_tables(self, state: State) -> None:
        used = {f"{TABLES}/{table_name(i, each)}" for i, each in enumerate(state.passes)}
        for name in self._storage.names(TABLES):
            if name not in used:
                self._storage.remove(name)


def _hash_of(prompts: PromptFile) -> str:
    try:
        return sha256_of(prompts.path)
    except OSError as error:
        raise JobError(
            f"cannot read the prompts in {prompts.path}: {error.strerror or error}"
        ) from error
