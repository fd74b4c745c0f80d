"""Data sets and the preparation of their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from galip_edge import extensions
from galip_edge.config import check_fractions, check_integers
from galip_edge.data.errors import DataError

# Settings of each kind of data set; settings not listed here apply to every kind.
KINDS: dict[str, tuple[str, ...]] = {
    "cub": ("root", "split", "text"),
    "coco": ("root", "split", "annotations"),
    "cc3m": ("root", "split"),
    "cc12m": ("root", "split"),
    "folder": ("root", "split", "held_out"),
    "table": ("root", "split", "held_out", "table", "image_column", "caption_column"),
    "webdataset": ("root", "shards", "samples_per_epoch", "shuffle_block"),
}
_REQUIRED = ("root", "table")

# GALIP resizes to 304 pixels before it crops 256.
RESIZE_RATIO = 304 / 256


@dataclass(frozen=True)
class DataConfig:
    """A data set and the preparation of its images. The defaults are GALIP's.

    Attributes:
        kind: `cub`, `coco`, `cc3m` or `cc12m` (in the layout of DF-GAN and GALIP), `folder`,
            `table`, `webdataset`, or a kind of an extension.
        root: the data set's folder; for WebDataset shards also an http(s), gs or hf URL.
        split: `train` or `test`, where the data set has splits.
        held_out: for folder and table, the share of images in the `test` split, excluded from
            training, such as 0.05. A hash of an image's key decides, so adding images moves none.
        image_size: side of the square images in pixels.
        resize: length of the shorter side before cropping. Default: 304/256 of `image_size`,
            or `image_size` itself without `augment`.
        augment: crop at random; otherwise crop the centre, and never flip.
        flip: with `augment`, mirror images with probability 1/2.
        seed: for order, crops, flips and choice of captions.
        workers: data-loading processes; 0 loads in the training process.
        text: for cub, the folder of captions. Default: `text` or `text_c10`.
        annotations: for coco, a captions JSON in the official format, relative to `root`.
        table: .csv, .tsv, .jsonl or .parquet file, relative to `root`.
        image_column: the table's column of image paths, relative to `root`.
        caption_column: the table's column of captions.
        shards: names of the tar files under `root`: a pattern with `*`, or `{00000..00331}.tar`.
        samples_per_epoch: samples of the shards in one epoch. Default: the sum over
            img2dataset's `_stats.json` files.
        shuffle_block: consecutive samples of a shard that are shuffled in memory.
    """

    KIND_SETTINGS: ClassVar[tuple[str, ...] | None] = None
    FORMER_DEFAULTS: ClassVar[Mapping[str, Any]] = {}

    kind: str
    root: str = ""
    split: str = "train"
    held_out: float = 0.0
    image_size: int = 256
    resize: int | None = None
    augment: bool = True
    flip: bool = True
    seed: int = 0
    workers: int = 2
    text: str | None = None
    annotations: str | None = None
    table: str | None = None
    image_column: str = "image"
    caption_column: str = "caption"
    shards: str = "*.tar"
    samples_per_epoch: int | None = None
    shuffle_block: int = 1000

    @classmethod
    def class_for(cls, values: Mapping[str, Any]) -> type[DataConfig]:
        """The class with the settings of the kind in `values`."""
        found: type[DataConfig] = extensions.find("data settings", values.get("kind")) or cls
        return found

    def __post_init__(self) -> None:
        if self.KIND_SETTINGS is None and self.kind not in KINDS:
            known = ", ".join([*KINDS, *extensions.names("data settings")])
            raise ValueError(f"kind must be one of {known}, got {self.kind!r}")
        if self.split not in ("train", "test"):
            raise ValueError(f"split must be train or test, got {self.split!r}")
        check_integers(self, 1, "image_size", "shuffle_block", "samples_per_epoch")
        check_integers(self, 0, "seed", "workers")
        check_integers(self, self.image_size, "resize")
        check_fractions(self, "held_out")
        if self.split == "test" and not self.has_test_split:
            raise ValueError(
                f"data of kind {self.kind!r} has a test split only with held_out, such as 0.05"
            )
        special = {name for names in KINDS.values() for name in names}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in special and name not in self.kind_settings and value != field.default:
                raise ValueError(
                    f"{name}={value!r} has no effect on data of kind {self.kind!r}: omit it"
                )
            if name in self.kind_settings and name in _REQUIRED and not value:
                raise ValueError(f"data of kind {self.kind!r} needs {name}, got {value!r}")

    @property
    def kind_settings(self) -> tuple[str, ...]:
        """Settings that only some kinds have, of this kind."""
        return KINDS[self.kind] if self.KIND_SETTINGS is None else self.KIND_SETTINGS

    @property
    def has_test_split(self) -> bool:
        """True if some of the data is held out of training."""
        return "split" in self.kind_settings and (
            "held_out" not in self.kind_settings or bool(self.held_out)
        )

    def first(self, count: int) -> DataConfig:
        """Settings for reading no more than `count` images, where the kind has such a setting."""
        return self

    def folder(self) -> Path:
        """The root as an absolute path. Raises DataError if it is not a folder."""
        folder = Path(self.root).expanduser().absolute()
        if not folder.is_dir():
            raise DataError(
                f"no such folder: {self.root}; set root to the folder of the {self.kind!r} data"
            )
        return folder

    @property
    def shorter_side(self) -> int:
        """Length in pixels of an image's shorter side before cropping."""
        if self.resize is not None:
            return self.resize
        return round(self.image_size * RESIZE_RATIO) if self.augment else self.image_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `galip_edge.config.build` is the inverse."""
        return asdict(self)

    @classmethod
    def changed_settings(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings in stored `values` that differ from today's defaults.

        Stored values may lack settings that were added later, and have some that were removed.
        """
        defaults = {f.name: f.default for f in fields(cls)}
        values = {**cls.FORMER_DEFAULTS, **values}
        return {k: v for k, v in values.items() if k in defaults and v != defaults[k]}
