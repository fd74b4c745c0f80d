"""Errors of data sets and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal, get_args

from runtime.errors import GalipEdgeError, install_hint

ProblemKind = Literal[
    "missing image",
    "unreadable image",
    "missing captions",
    "empty captions",
    "bad bounding box",
    "unknown image",
    "broken sample",
    "broken shard",
    "duplicate key",
]
PROBLEM_KINDS: tuple[ProblemKind, ...] = get_args(ProblemKind)


class DataError(GalipEdgeError):
    """A data set is unusable; the message states the reason and what to do."""


@dataclass(frozen=True)
class Problem:
    """A problem of one sample or shard.

    Attributes:
        kind: one of PROBLEM_KINDS.
        key: of the sample, or the shard's name.
        detail: description, often with the path.
    """

    kind: ProblemKind
    key: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.key} ({self.detail})"


class SampleError(Exception):
    """One sample is invalid; the rest of the data set is usable."""

    def __init__(self, kind: ProblemKind, key: str, detail: str) -> None:
        self.problem = Problem(kind, key, detail)
        super().__init__(str(self.problem))


class ProblemLog:
    """Counts problems by kind, and keeps the first few of each."""

    def __init__(self, examples: int = 20) -> None:
        self.counts: Counter[ProblemKind] = Counter()
        self.examples: dict[ProblemKind, list[Problem]] = {}
        self._limit = examples

    @property
    def total(self) -> int:
        """Problems of all kinds."""
        return self.counts.total()

    def add(self, problems: Iterable[Problem]) -> None:
        """Count `problems`."""
        for problem in problems:
            self.counts[problem.kind] += 1
            kept = self.examples.setdefault(problem.kind, [])
            if len(kept) < self._limit:
                kept.append(problem)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `{kind: {"count": n, "examples": [...]}}`, in a fixed order."""
        return {
            kind: {
                "count": self.counts[kind],
                "examples": [asdict(problem) for problem in self.examples[kind]],
            }
            for kind in PROBLEM_KINDS
            if self.counts[kind]
        }

    def __str__(self) -> str:
        parts = [
            f"{self.counts[kind]} {kind} (first: {self.examples[kind][0].key})"
            for kind in PROBLEM_KINDS
            if self.counts[kind]
        ]
        return ", ".join(parts) or "none"


def require(module: str, purpose: str) -> Any:
    """Import `module`, needed by some data sets. Raises DataError that names the extra."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(
            f"{purpose} needs the package {module.partition('.')[0]}, which is not installed: "
            f"{install_hint('train')}"
        ) from error
