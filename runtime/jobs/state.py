"""The state of a job in its folder: which job it is, and what it knows of its rows."""

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
from runtime.jobs.place import STATE, LocalPlace, RemotePlace, copy_to
from runtime.jobs.prompt_file import PromptFile
from runtime.jobs.rows import (
    Difference,
    Pass,
    Records,
    as_table,
    compare,
    read_table,
    table_name,
    updated,
)
from runtime.jobs.tables import ColumnTypes, TypesOfColumns, types_from_text, types_to_text

STATE_FILE, JOURNALS, TABLES = f"{STATE}/job.json", f"{STATE}/parts", f"{STATE}/rows"

# Version 1 had no passes: its jobs continue if nothing changed, and have version 2 then.
_VERSION = 2

# What must be the same for a job to continue.
_FIXED = (
    *("seed", "carried columns", "model", "output form", "image format", "quality", "part size"),
    "precision",
)
# What a job that was recorded before a setting existed was run with.
_FORMER = {"precision": "auto"}


@dataclass(frozen=True)
class State:
    """What `job.json` holds.

    Attributes:
        facts: what must be the same for the job to continue, and how its prompts were read.
        passes: what was added by each run.
        items: images that are wanted, and invalid rows.
        types: Arrow types of the kept columns.
        version: of the file.
    """

    facts: dict[str, Any]
    passes: tuple[Pass, ...]
    items: int
    types: ColumnTypes
    version: int = _VERSION

    @classmethod
    def from_bytes(cls, content: bytes) -> State:
        """Raises ValueError if it is damaged."""
        try:
            found = json.loads(content)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        checksum = found.pop("checksum", None)
        if found.get("version") == _VERSION and checksum != _checksum(found):
            raise ValueError("its checksum is wrong")
        version, items = found.pop("version", None), found.pop("items", None)
        if version not in (1, _VERSION):
            raise ValueError(f"its version is {version!r:.40}, this program reads {_VERSION}")
        if isinstance(items, bool) or not isinstance(items, int) or items < 1:
            raise ValueError("it has no number of items")
        passes = found.pop("passes", [])
        types = found.pop("column types", types_to_text({}))
        if not isinstance(passes, list) or not isinstance(types, str):
            raise ValueError("its passes or types of columns are none")
        known = tuple(map(Pass.from_json, passes))
        ends = [each.rows for each in known]
        if ends != sorted(ends) or (version == _VERSION and (not known or known[0].first != 0)):
            raise ValueError("its passes do not follow each other")
        return cls(found, known, items, types_from_text(types), version)

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
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
def open_tables(place: LocalPlace | RemotePlace, passes: tuple[Pass, ...]) -> Iterator[Any]:
    """Each pass's table. Raises ValueError if one is damaged or missing."""
    with ExitStack() as stack:
        tables: list[Records] = []
        for number, each in enumerate(passes):
            name = f"{TABLES}/{table_name(number, each)}"
            path = stack.enter_context(place.local(name))
            if path is None:
                raise ValueError(f"{name} is missing")
            tables.append(read_table(path, each))
        yield tables


class Preparation:
    """Makes the state of a job, or continues or extends the one that is there.

    Args:
        place: where the job lives; it is locked.
        prompts: see there.
        facts: of this job, by the names in `_FIXED`.
        update: whether rows that changed are accepted.
    """

    def __init__(
        self,
        place: LocalPlace | RemotePlace,
        prompts: PromptFile,
        facts: dict[str, Any],
        update: bool,
    ) -> None:
        self._place, self._prompts, self._update = place, prompts, update
        self._facts = facts

    def known(self) -> State | None:
        """The state of an earlier run. Raises ValueError if it is damaged, JobError if it cannot
        be read."""
        try:
            content = self._place.read(STATE_FILE)
        except OSError as error:
            raise JobError(f"cannot read {STATE_FILE} in {self._place}: {error}") from error
        return None if content is None else State.from_bytes(content)

    def other(self, known: State) -> list[str]:
        """What is not as in the state."""
        facts = _FORMER | known.facts
        return [name for name in _FIXED if facts.get(name) != self._facts[name]]

    def state(self, known: State | None) -> State:
        """The state to continue with, which is written where it changed.

        Raises:
            JobError: the prompts cannot be read or are none, or rows changed or were removed.
            ValueError: what is known is damaged.
        """
        # The hash stands for what is read next only if it is the same afterwards.
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
                with open_tables(self._place, known.passes):
                    return known
        facts = {**self._facts, "prompts": digest, **reading}
        with tempfile.TemporaryDirectory(prefix="galip-edge-") as folder:
            state = self._scanned(known, facts, Path(folder))
        if _hash_of(self._prompts) != digest:
            raise JobError(
                f"{self._prompts.path} changed while it was read: rerun the command once the file "
                "is complete"
            )
        with self._place.new(STATE_FILE) as temporary:
            temporary.write_bytes(state.to_bytes())
        self._remove_other_tables(state)
        return state

    def _scanned(self, known: State | None, facts: dict[str, Any], folder: Path) -> State:
        types = TypesOfColumns(self._prompts)
        passes = known.passes if known is not None and known.version == _VERSION else ()
        current, added = folder / "current", folder / "added"
        with (
            open_tables(self._place, passes) as tables,
            current.open("wb") as now,
            added.open("wb") as new,
        ):
            rows = types.watch(self._prompts.rows())
            found = compare(rows, passes, tables, now, new)
            now.flush()
            self._check(found, known, facts)
            found_types = types.found()
            self._check_types(known, found_types)
            if found.stale:
                passes = self._write_updated(passes, tables, current, folder)
        if found.added is not None:
            passes = (*passes, self._stored(len(passes), found.added, added))
        if known is not None and known.version == 1:
            for name in ("manifest.jsonl", "manifest.parquet"):  # where version 1 had them
                self._place.remove(name)
        return State(facts, passes, found.images, found_types)

    def _check(self, found: Difference, known: State | None, facts: dict[str, Any]) -> None:
        path, place = self._prompts.path, self._place
        if not found.rows:
            raise JobError(f"{path} holds no prompts")
        if known is not None and known.version == 1:
            old = known.facts
            same = old.get("prompts") == facts["prompts"] and old.get("n") == facts["n"]
            if not same or known.items != found.images:
                raise JobError(
                    f"the job in {place} was begun by an earlier version of galip-edge: rerun it "
                    "once with its own prompts and -n, then change them; or give --force to "
                    "remove what it made and start again"
                )
        if found.rows < found.known:
            raise JobError(
                f"{path} has {found.rows:,} rows, the job in {place} has {found.known:,}: rows can "
                "be added at the end and changed, not removed; choose another folder, or give "
                "--force to remove what it made and start again"
            )
        if found.changed and not self._update:
            more = f" and {found.changed - 1:,} more" if found.changed > 1 else ""
            raise JobError(
                f"row {found.first_changed}{more} of {path} changed since the job in {place} was "
                "started (prompt, seed, id, kept columns or fewer images; rows count from 0): give "
                "--update to generate only their images again, choose another folder, or give "
                "--force to start again"
            )

    def _check_types(self, known: State | None, found: ColumnTypes) -> None:
        if known is None or self._facts["output form"] != "parquet":
            return
        import pyarrow as pa

        for name, kind in found.items():
            before = known.types.get(name, pa.string())
            if kind != before:
                raise JobError(
                    f"column {name!r} of {self._prompts.path} is {kind} now, and the shards in "
                    f"{self._place} have {before}: give it that type, choose another folder, or "
                    "give --force to start again"
                )

    def _write_updated(
        self, passes: tuple[Pass, ...], tables: list[Records], current: Path, folder: Path
    ) -> tuple[Pass, ...]:
        now, found = as_table(current), []
        for number, (each, table) in enumerate(zip(passes, tables)):
            new = updated(table, each, now)
            if not np.array_equal(new, table):
                path = folder / "updated"
                new.tofile(path)
                each = self._stored(number, each, path)
            found.append(each)
        return tuple(found)

    def _stored(self, number: int, which: Pass, path: Path) -> Pass:
        """The pass with this file as its table, which does not replace an earlier one."""
        found = replace(which, table=sha256_of(path))
        copy_to(self._place, path, f"{TABLES}/{table_name(number, found)}")
        return found

    def _remove_other_tables(self, state: State) -> None:
        used = {f"{TABLES}/{table_name(i, each)}" for i, each in enumerate(state.passes)}
        for name in self._place.names(TABLES):
            if name not in used:
                self._place.remove(name)


def _hash_of(prompts: PromptFile) -> str:
    try:
        return sha256_of(prompts.path)
    except OSError as error:
        raise JobError(
            f"cannot read the prompts in {prompts.path}: {error.strerror or error}"
        ) from error
