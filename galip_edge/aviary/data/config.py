"""Settings of data of kind `aviary`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from galip_edge.aviary.data.attributes import Variety
from galip_edge.config import check_integers
from galip_edge.data.config import DataConfig


@dataclass(frozen=True)
class AviaryConfig(DataConfig):
    """Drawn birds, without end; `root` and the settings of other kinds do not apply.

    Attributes:
        samples: number of images.
        variety: `wide` varies everything that a caption leaves open; `narrow` varies only color
            and background, among a few values.
        captions: number of captions per image; training samples one of them.
        cache: folder that keeps drawn images for later runs.
    """

    KIND_SETTINGS: ClassVar[tuple[str, ...]] = ("split", "samples", "variety", "captions", "cache")
    # Runs of earlier versions had no `variety`.
    FORMER_DEFAULTS: ClassVar[Mapping[str, Any]] = {"variety": "narrow"}

    kind: str = "aviary"
    samples: int = 20_000
    variety: Variety = "wide"
    captions: int = 1
    cache: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variety not in ("wide", "narrow"):
            raise ValueError(f"variety must be wide or narrow, got {self.variety!r}")
        check_integers(self, 1, "samples", "captions")

    def first(self, count: int) -> AviaryConfig:
        """Settings for `count` images; there is always one more to draw."""
        return replace(self, samples=count)
