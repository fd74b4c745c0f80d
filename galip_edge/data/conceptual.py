"""CC3M and CC12M in the layout of this family of models (DF-GAN, GALIP).

Web shards by img2dataset are data of kind `webdataset`.
"""

from __future__ import annotations

from galip_edge.data.config import DataConfig
from galip_edge.data.errors import DataError
from galip_edge.data.pickles import read_keys
from galip_edge.data.records import ImageRecord


def conceptual_records(config: DataConfig) -> list[ImageRecord]:
    """The images that `<root>/<split>/filenames.pickle` lists.

    An image is `images/<key>.jpg`. Its captions are in `text/<key up to the first "_">.txt`, so
    several images may share one file. CC3M has both in a folder for each split,
    `images/<split>` and `text/<split>`.

    Raises DataError naming a missing or damaged file or folder.
    """
    root = config.folder()
    keys = read_keys(root / config.split / "filenames.pickle")
    images, text = root / "images", root / "text"
    if config.kind == "cc3m":
        images, text = images / config.split, text / config.split
    for folder, content in ((images, "images as <key>.jpg"), (text, "captions as <key>.txt")):
        if not folder.is_dir():
            raise DataError(
                f"no such folder: {folder}; it must hold {config.kind.upper()}'s {content}. For "
                'tar files by img2dataset set kind = "webdataset"'
            )
    return [
        ImageRecord(key, str(images / f"{key}.jpg"), str(text / f"{key.partition('_')[0]}.txt"))
        for key in keys
    ]
