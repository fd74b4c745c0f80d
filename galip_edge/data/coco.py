"""COCO, in the layout of this family of models or as its authors published it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from galip_edge.data.captions import tidy_all
from galip_edge.data.config import DataConfig
from galip_edge.data.errors import DataError, Problem
from galip_edge.data.pickles import read_keys
from galip_edge.data.records import ImageRecord

# COCO has no public captions of its test images: this family tests on the validation part.
_OFFICIAL_SPLIT = {"train": "train", "test": "val"}
_PROBED = 20


def coco_records(config: DataConfig) -> list[ImageRecord]:
    """The images of COCO, or of any data in COCO's caption format.

    Read `<root>/<split>/filenames.pickle` with `text/<key>.txt` if it exists, otherwise
    `annotations/captions_{train,val}*.json`, or the file that the `annotations` setting names.

    Raises DataError naming a missing or damaged file.
    """
    root = config.folder()
    listed = root / config.split / "filenames.pickle"
    if config.annotations is None and listed.is_file():
        return _family_records(root, config.split, listed)
    annotations = _find_annotations(config, root, listed)
    return _official_records(root, annotations)


def _family_records(root: Path, split: str, listed: Path) -> list[ImageRecord]:
    keys = read_keys(listed)
    part = f"{_OFFICIAL_SPLIT[split]}2014"
    folders = (f"images/{part}/jpg", f"images/{part}", "images", part)
    images = _folder_with([root / folder for folder in folders], [f"{key}.jpg" for key in keys])
    text = root / "text"
    if not text.is_dir():
        raise DataError(f"no such folder: {text}; it must hold COCO's captions as <key>.txt")
    return [ImageRecord(key, str(images / f"{key}.jpg"), str(text / f"{key}.txt")) for key in keys]


def _find_annotations(config: DataConfig, root: Path, listed: Path) -> Path:
    if config.annotations is not None:
        return root / config.annotations
    pattern = f"captions_{_OFFICIAL_SPLIT[config.split]}*.json"
    found = sorted([*(root / "annotations").glob(pattern), *root.glob(pattern)])
    if not found:
        raise DataError(
            f"no list of COCO's images: neither {listed} nor annotations/{pattern} in {root} "
            "exists; check root and split, or name the file with the annotations setting"
        )
    if len(found) > 1:
        raise DataError(
            f"{root} has several lists of captions ({', '.join(path.name for path in found)}): "
            "choose one with the annotations setting"
        )
    return found[0]


def _official_records(root: Path, annotations: Path) -> list[ImageRecord]:
    images, captions = _read_annotations(annotations)
    part = annotations.stem.removeprefix("captions_")
    folders = (part, f"images/{part}", f"images/{part}/jpg", "images", ".")
    folder = _folder_with([root / name for name in folders], list(images.values()))
    records = [
        ImageRecord(
            Path(name).stem,
            str(folder / name),
            tidy_all(captions.pop(number, [])),
        )
        for number, name in images.items()
    ]
    # The remaining captions belong to images that are not listed.
    for number in captions:
        detail = f"{annotations.name} has captions for it, but does not list it"
        fault = Problem("unknown image", str(number), detail)
        records.append(ImageRecord(str(number), "", (), fault=fault))
    return records


def _read_annotations(path: Path) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """File names and captions, both by image id. Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions: dict[Any, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(str(annotation["caption"]))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}; check the annotations setting"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not in COCO's caption format ({type(error).__name__}: {error}): it must "
            "have images with id and file_name, and annotations with image_id and caption"
        ) from error
    if not images:
        raise DataError(f"{path} lists no images; download it again")
    return images, captions


def _folder_with(folders: list[Path], names: list[str]) -> Path:
    """The folder with most of the first few files. Raises DataError if none has any."""
    probed = names[:_PROBED]
    hits = [sum((folder / name).is_file() for name in probed) for folder in folders]
    if not any(hits):
        raise DataError(
            f"no image of COCO found: {probed[0]} and the next ones are in none of "
            f"{', '.join(map(str, folders))}; unpack the images into one of these folders"
        )
    return folders[hits.index(max(hits))]
