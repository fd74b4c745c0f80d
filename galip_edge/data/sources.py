"""From a configuration to an open data set. New kinds are registered here."""

from __future__ import annotations

from collections.abc import Callable

from galip_edge.data.aviary import AviarySource
from galip_edge.data.coco import coco_records
from galip_edge.data.config import DataConfig
from galip_edge.data.cub import cub_records
from galip_edge.data.dataset import CaptionedImages
from galip_edge.data.folder import folder_records
from galip_edge.data.images import Augmentation
from galip_edge.data.records import RecordSource, Source
from galip_edge.data.stream import WebShards
from galip_edge.data.table import table_records

# Every kind that is read by number; its settings are named in config.KINDS.
SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "cub": lambda config: RecordSource(cub_records(config)),
    "coco": lambda config: RecordSource(coco_records(config)),
    "folder": lambda config: RecordSource(folder_records(config), upright=True),
    "aviary": AviarySource,
    "table": lambda config: RecordSource(table_records(config), upright=True),
}


def open_source(config: DataConfig) -> Source:
    """The images of `config`, unprepared. Raises DataError; not for web shards."""
    return SOURCES[config.kind](config)


def build_dataset(config: DataConfig) -> CaptionedImages | WebShards:
    """Open the data set of `config`; no image is read yet.

    Raises DataError, one clear sentence, if anything that all of the data depends on is missing,
    damaged or unsafe. Single broken images or captions are found when they are read.
    """
    augmentation = Augmentation(
        config.shorter_side, config.image_size, random=config.augment, flip=config.flip
    )
    if config.kind == "webdataset":
        return WebShards(config, augmentation)
    return CaptionedImages(open_source(config), augmentation, config.seed)
