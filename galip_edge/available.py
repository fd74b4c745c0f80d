"""The models that this machine has: the embedded one, and those that were pulled from a hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from galip_edge.hub import HubModel, pulled_models
from runtime.bundle import Manifest, default_bundle, read_manifest
from runtime.errors import BundleError


@dataclass(frozen=True)
class AvailableModel:
    """A model whose files are on this machine.

    Attributes:
        option: value of `--model`, pinned to a commit; None for the embedded model.
        folder: of its bundle.
        manifest: of its bundle.
        source: embedded, or the hub's name for it.
    """

    option: str | None
    folder: Path
    manifest: Manifest
    source: str


def available_models() -> Iterator[AvailableModel]:
    """The embedded model if there is one, then those of hubs."""
    try:
        folder = default_bundle()
        yield AvailableModel(None, folder, read_manifest(folder), "embedded")
    except BundleError:
        pass
    for pulled in pulled_models():
        pinned = HubModel(pulled.model.repository, pulled.commit)
        yield AvailableModel(str(pinned), pulled.folder, pulled.manifest, str(pulled.model))
