"""Opening the data set of a configuration. New kinds are registered here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from galip_edge import extensions
from galip_edge.data.coco import coco_records
from galip_edge.data.conceptual import conceptual_records
from galip_edge.data.config import DataConfig
from galip_edge.data.cub import cub_records
from galip_edge.data.dataset import CaptionedImages
from galip_edge.data.errors import DataError
from galip_edge.data.folder import folder_records
from galip_edge.data.images import Augmentation
from galip_edge.data.records import ImageRecord, RecordSource, Source
from galip_edge.data.stream import WebShards
from galip_edge.data.table import table_records

# Kinds with random access; their settings are in config.KINDS. Extensions add more kinds.
SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "cub": lambda config: RecordSource(cub_records(config)),
    "coco": lambda config: RecordSource(coco_records(config)),
    "cc3m": lambda config: RecordSource(conceptual_records(config)),
    "cc12m": lambda config: RecordSource(conceptual_records(config)),
    "folder": lambda config: RecordSource(_of_split(folder_records(config), config), upright=True),
    "table": lambda config: RecordSource(_of_split(table_records(config), config), upright=True),
}


def _of_split(records: Sequence[ImageRecord], config: DataConfig) -> Sequence[ImageRecord]:
    """Records of `config.split`, by a hash of their keys. Raises DataError if there are none."""
    if not config.held_out:
        return records
    test = config.split == "test"
    chosen = [r for r in records if _is_held_out(r.key, config.held_out) == test]
    if not chosen:
        raise DataError(
            f"held_out = {config.held_out} leaves no image of {len(records)} for the "
            f"{config.split} split of {config.root}: choose another share, or add images"
        )
    return chosen


def _is_held_out(key: str, share: float) -> bool:
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def open_source(config: DataConfig) -> Source:
    """The unprepared images of `config`, which is not of kind `webdataset`. Raises DataError."""
    if config.kind in SOURCES:
        return SOURCES[config.kind](config)
    source: Source = extensions.require("data source", config.kind)(config)
    return source


def build_dataset(config: DataConfig) -> CaptionedImages | WebShards:
    """Open the data set of `config`; no image is read yet.

    Raises DataError if the data set itself is missing, damaged or unsafe. Broken images or captions
    are detected when they are read.
    """
    augmentation = Augmentation(
        config.shorter_side, config.image_size, random=config.augment, flip=config.flip
    )
    if config.kind == "webdataset":
        return WebShards(config, augmentation)
    return CaptionedImages(open_source(config), augmentation, config.seed)
