"""Which data to train or evaluate on, and how its images are prepared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from galip_edge.data.errors import DataError

# Each kind of data set, and its own settings; all settings not named here serve every kind.
KINDS: dict[str, tuple[str, ...]] = {
    "cub": ("root", "split", "text"),
    "coco": ("root", "split", "annotations"),
    "cc3m": ("root", "split"),
    "cc12m": ("root", "split"),
    "folder": ("root", "split", "held_out"),
    "table": ("root", "split", "held_out", "table", "image_column", "caption_column"),
    "aviary": ("split", "samples", "variety", "cache"),
    "webdataset": ("root", "shards", "samples_per_epoch", "shuffle_block"),
}
_REQUIRED = ("root", "table")

# GALIP resizes to 304 pixels before it crops 256.
RESIZE_RATIO = 304 / 256


@dataclass(frozen=True)
class DataConfig:
    """A data set and the preparation of its images. The defaults are GALIP's.

    Attributes:
        kind: `cub`, `coco`, `cc3m` or `cc12m` (in this family's folders), `folder`, `table`,
            `webdataset`, or `aviary`, which is drawn.
        root: the data set's folder; for web shards also an http(s), gs or hf URL.
        split: `train` or `test`, where the data set has splits.
        held_out: for folder and table, the share of images that make up the `test` split and are
            not trained on, such as 0.05. An image's key decides, so new images move no others.
        image_size: side of the square images in pixels.
        resize: length of the shorter side before cropping. By default 304/256 of `image_size`,
            or `image_size` itself without `augment`.
        augment: crop at random; otherwise the centre is taken, and nothing is flipped.
        flip: with `augment`, mirror every second image.
        seed: of the order, crops, flips and choice of captions.
        workers: processes that read ahead; 0 reads in the training process.
        text: for cub, the folder of captions; `text` or `text_c10` by default.
        annotations: for coco, a captions JSON in the official format, relative to `root`.
        table: a .csv, .tsv, .jsonl or .parquet file, relative to `root`.
        image_column: the table's column of image paths, relative to `root`.
        caption_column: the table's column of captions.
        shards: names of the tar files under `root`: a pattern with `*`, or `{00000..00331}.tar`.
        samples_per_epoch: how much of the shards is one epoch; by default what the
            `_stats.json` files say that img2dataset writes beside them.
        shuffle_block: consecutive samples of a shard that are shuffled in memory.
        samples: for aviary, how many images there are.
        variety: for aviary, `wide`, where all that a caption leaves open varies freely, or
            `narrow`, where only colour and background do, among a few.
        cache: for aviary, a folder where drawn pictures are kept for the next time.
    """

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
    samples: int = 20_000
    variety: Literal["wide", "narrow"] = "wide"
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.split not in ("train", "test"):
            raise ValueError(f"split must be train or test, got {self.split!r}")
        if self.variety not in ("wide", "narrow"):
            raise ValueError(f"variety must be wide or narrow, got {self.variety!r}")
        for name, least in (
            ("image_size", 1),
            ("seed", 0),
            ("workers", 0),
            ("shuffle_block", 1),
            ("samples", 1),
        ):
            _at_least(least, name, getattr(self, name))
        if self.samples_per_epoch is not None:
            _at_least(1, "samples_per_epoch", self.samples_per_epoch)
        if self.resize is not None:
            _at_least(self.image_size, "resize", self.resize)
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {self.held_out!r}")
        if self.split == "test" and not self.has_test_split:
            raise ValueError(
                f"data of kind {self.kind!r} has a test split only with held_out, such as 0.05"
            )
        own, special = KINDS[self.kind], {name for names in KINDS.values() for name in names}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in special and name not in own and value != field.default:
                raise ValueError(
                    f"{name}={value!r} has no effect on data of kind {self.kind!r}: leave it out"
                )
            if name in own and name in _REQUIRED and not value:
                raise ValueError(f"data of kind {self.kind!r} needs {name}, got {value!r}")

    @property
    def has_test_split(self) -> bool:
        """Whether some of the data is never trained on."""
        return "split" in KINDS[self.kind] and (
            "held_out" not in KINDS[self.kind] or bool(self.held_out)
        )

    def folder(self) -> Path:
        """The root as an absolute path. Raises DataError if there is no such folder."""
        folder = Path(self.root).expanduser().absolute()
        if not folder.is_dir():
            raise DataError(
                f"there is no folder {self.root}: set root to where the data of kind "
                f"{self.kind!r} is"
            )
        return folder

    @property
    def shorter_side(self) -> int:
        """Length of an image's shorter side before it is cropped."""
        if self.resize is not None:
            return self.resize
        return round(self.image_size * RESIZE_RATIO) if self.augment else self.image_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `DataConfig(**values)` is the inverse."""
        return asdict(self)


def _at_least(least: int, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
