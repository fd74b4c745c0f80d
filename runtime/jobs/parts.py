"""A job's images in parts of equal length: what is kept track of, handed out, and made again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from runtime.jobs.prompt_file import Row


@dataclass(frozen=True)
class Item:
    """One image that is to be made, or a row of which none can be.

    Attributes:
        row, id, prompt, seed, carried, error: of its row.
        index: which image of the row, from 0.
    """

    row: int
    id: str
    prompt: str
    index: int
    seed: int
    carried: dict[str, Any]
    error: str | None

    @property
    def place(self) -> tuple[int, int]:
        """Row and index: no other item of the job has both."""
        return self.row, self.index

    @cached_property
    def key(self) -> str:
        """A name that sorts as the items do, that no other item of the job has, without dots."""
        words = self.prompt if self.id == f"{self.row:08d}" else self.id
        words = re.sub(r"[^a-z0-9]+", "-", words.lower())
        return f"{self.row:08d}-{self.index:05d}-{words[:40].strip('-') or 'image'}"


@dataclass(frozen=True)
class Part:
    """Consecutive items of a job."""

    number: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """Sorts as the numbers do, up to a hundred million."""
        return f"{self.number:08d}"


def parts_of(rows: Iterable[Row], size: int) -> Iterator[Part]:
    """Parts of `size` items, the last one shorter; the same for the same rows."""
    items = _items(rows)
    number = 0
    while part := tuple(islice(items, size)):
        yield Part(number, part)
        number += 1


def _items(rows: Iterable[Row]) -> Iterator[Item]:
    for row in rows:
        for index in range(row.count):
            yield Item(row.number, row.id, row.prompt, index, row.seed, row.carried, row.error)
