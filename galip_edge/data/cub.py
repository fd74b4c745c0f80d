"""CUB-200-2011, in the layout of this family of models or as its authors published it."""

from __future__ import annotations

from pathlib import Path

from galip_edge.data.config import DataConfig
from galip_edge.data.errors import DataError, Problem
from galip_edge.data.images import Box
from galip_edge.data.pickles import read_keys
from galip_edge.data.records import ImageRecord

# Reed et al. published the captions as text_c10.
_TEXT_FOLDERS = ("text", "text_c10", "cvpr2016_cub/text_c10")


def cub_records(config: DataConfig) -> list[ImageRecord]:
    """The images of CUB, with their bounding boxes.

    `<root>/<split>/filenames.pickle` determines the split if it exists (150 classes for training
    and 50 for testing, in the files of DF-GAN and GALIP); otherwise CUB's `train_test_split.txt`
    (all 200 classes in both).

    Raises DataError naming a missing or damaged file.
    """
    root = config.folder()
    images = root / "CUB_200_2011"
    if not images.is_dir():
        images = root  # root is the folder in the official archive
    by_number = _read_table(images / "images.txt", columns=2)
    names = {number: name.rpartition(".")[0] for number, (name,) in by_number.items()}
    boxes = {
        names[number]: Box(*values)
        for number, values in _read_boxes(images / "bounding_boxes.txt").items()
        if number in names
    }
    listed = root / config.split / "filenames.pickle"
    if listed.is_file():
        keys = read_keys(listed)
    elif (images / "train_test_split.txt").is_file():
        split = _read_table(images / "train_test_split.txt", columns=2)
        wanted = "1" if config.split == "train" else "0"
        keys = [name for number, name in names.items() if split.get(number) == (wanted,)]
    else:
        raise DataError(
            f"no split of CUB: neither {listed} nor {images / 'train_test_split.txt'} exists; "
            "download one of them"
        )
    text = _text_folder(config, root, images)
    return [_record(key, images / "images", text, boxes.get(key)) for key in keys]


def _record(key: str, images: Path, text: Path, box: Box | None) -> ImageRecord:
    fault = None
    if box is None:
        fault = Problem("unknown image", key, "images.txt or bounding_boxes.txt does not list it")
    return ImageRecord(key, str(images / f"{key}.jpg"), str(text / f"{key}.txt"), box, fault)


def _text_folder(config: DataConfig, root: Path, images: Path) -> Path:
    names = (config.text,) if config.text else _TEXT_FOLDERS
    candidates = [folder / name for name in names for folder in (root, images)]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise DataError(
        f"no folder of captions for CUB: none of {', '.join(map(str, candidates))} exists; "
        "download the captions or name their folder with the text setting"
    )


def _read_table(path: Path, columns: int) -> dict[str, tuple[str, ...]]:
    """Lines of `number value ...` -> values by number. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}; root must hold "
            "CUB_200_2011 as its authors published it"
        ) from error
    table: dict[str, tuple[str, ...]] = {}
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        number, *values = line.split()
        if len(values) != columns - 1:
            raise DataError(
                f"{path} is damaged at line {line_number}: expected {columns} columns, "
                f"got {line!r}; download it again"
            )
        table[number] = tuple(values)
    return table


def _read_boxes(path: Path) -> dict[str, tuple[int, ...]]:
    """Left, top, width, height by image number. Raises DataError."""
    table = _read_table(path, columns=5)
    try:
        # Rounded down, as this family of models does.
        return {number: tuple(int(float(v)) for v in values) for number, values in table.items()}
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path} is damaged: {error}; download it again") from error
