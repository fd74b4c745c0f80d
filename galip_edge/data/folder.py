"""Any folder of images, each with a text file of the same name."""

from __future__ import annotations

import os
from pathlib import Path

from galip_edge.data.config import DataConfig
from galip_edge.data.errors import DataError
from galip_edge.data.images import IMAGE_SUFFIXES
from galip_edge.data.records import ImageRecord


def folder_records(config: DataConfig) -> list[ImageRecord]:
    """Every image under `root`, at any depth, with its captions in `<same name>.txt`.

    The key is the path below `root` without the suffix. Hidden files and folders are skipped.
    Raises DataError without any image.
    """
    root = config.folder()
    records = []
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                key = path.relative_to(root).with_suffix("").as_posix()
                records.append(ImageRecord(key, str(path), str(path.with_suffix(".txt"))))
    if not records:
        raise DataError(
            f"no images in {root}: expected files ending in {', '.join(IMAGE_SUFFIXES)}, each "
            "next to a .txt of the same name"
        )
    return records
