"""What a job left in its folder."""

import json
import time
from collections.abc import Callable
from pathlib import Path

MANIFEST = "__manifest__/manifest.jsonl"

# Seconds: what never comes must not stop all other tests.
PATIENCE = 120


def made(folder: Path) -> dict[str, bytes]:
    """All files of a job but for what it remembers and the times in its manifest."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".job" not in path.parts and path.parent.name != "__manifest__"
    }
    files[MANIFEST] = "".join(
        json.dumps({**entry, "milliseconds": None}) + "\n" for entry in entries(folder)
    ).encode()
    return files


def entries(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


def orphans(folder: Path) -> list[Path]:
    """Files that are half written, and shards that were not finished."""
    left = [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    return [*left, *(folder / ".job" / "open").glob("*")]


def written(folder: Path) -> int:
    """Images of which a job that may still run has a record."""
    journals = (folder / ".job" / "parts").glob("*.jsonl")
    return sum(journal.read_bytes().count(b"\n") for journal in journals)


def wait_until(met: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < until
        time.sleep(0.02)


def wait_until_written(count: int, folder: Path) -> None:
    wait_until(lambda: written(folder) >= count)
