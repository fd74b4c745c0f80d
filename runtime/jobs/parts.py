"""A job's images in parts of equal length: what is kept track of, handed out, and made again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any


@dataclass(frozen=True)
class Item:
    """One image to generate, or an invalid row, which has none.

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
        """A name that sorts as the items do, unique in the job, without dots."""
        words = self.prompt if self.id == f"{self.row:08d}" else self.id
        words = re.sub(r"[^a-z0-9]+", "-", words.lower())
        return f"{self.row:08d}-{self.index:05d}-{words[:40].strip('-') or 'image'}"

    def matches(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry of an earlier run has this item's outcome: nothing in the row changed
        since."""
        wanted = {"id": self.id, "prompt": self.prompt, "seed": self.seed, **self.carried}
        if any(entry.get(name) != value for name, value in wanted.items()):
            return False
        if self.error is not None:
            return bool(entry["error"] == self.error and entry.get("invalid"))
        return not entry.get("invalid")


@dataclass(frozen=True)
class Part:
    """Consecutive items of a job, in order."""

    number: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """Sorts as the numbers do, up to a hundred million."""
        return f"{self.number:08d}"


def parts_of(slots: Iterable[Item | None], size: int, first: int = 0) -> Iterator[Part]:
    """Parts of `size` slots, the last one shorter, numbered from `first`.

    A slot whose image is not wanted any more stays empty, so that no other item changes its part.
    """
    left = iter(slots)
    number = first
    while chunk := tuple(islice(left, size)):
        yield Part(number, tuple(item for item in chunk if item is not None))
        number += 1
