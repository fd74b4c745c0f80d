"""Copies of the embedded bundle that a stranger changed, with right hashes."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.bundle import (
    MANIFEST,
    FileEntry,
    Manifest,
    _own_hash,
    read_manifest,
    save_manifest,
)
from runtime.files import sha256_of

EMBEDDED = Path(__file__).parents[1] / "galip_edge" / "default_model"


def copied(folder: Path) -> Path:
    """A copy whose large files are links; replace a file before you change it."""
    folder.mkdir()
    for path in EMBEDDED.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def changed(folder: Path, name: str, content: bytes) -> Path:
    """Replace one file, and make the hashes right."""
    manifest = read_manifest(folder)
    for replaced in (name, MANIFEST):
        (folder / replaced).unlink()
    path = folder / name
    path.write_bytes(content)
    files = manifest.files | {name: FileEntry(len(content), sha256_of(path))}
    save_manifest(folder, replace(manifest, files=files))
    return folder


def changed_graph(folder: Path, name: str, change: Callable[[str], str]) -> Path:
    text = gzip.decompress((folder / name).read_bytes()).decode()
    new = change(text)
    assert new != text
    return changed(folder, name, gzip.compress(new.encode(), 1))


def changed_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the manifest's values, and make its own hash right."""
    body = json.loads((folder / MANIFEST).read_text())
    del body["manifest_sha256"]
    change(body)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(json.dumps({**body, "manifest_sha256": _own_hash(body)}))
    return folder


def with_golden(folder: Path, **values: Any) -> Manifest:
    """Change the golden entry."""
    manifest = read_manifest(folder)
    assert manifest.golden
    (folder / MANIFEST).unlink()
    return save_manifest(folder, replace(manifest, golden=replace(manifest.golden, **values)))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
