"""Web shards: tar files of images and captions, as img2dataset writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from galip_edge.data.captions import parse_captions, tidy_all
from galip_edge.data.config import DataConfig
from galip_edge.data.errors import DataError, Problem, SampleError, require
from galip_edge.data.images import IMAGE_SUFFIXES, read_image

# webdataset also supports pipe:, which runs a shell command.
_SCHEMES = ("http://", "https://", "gs://", "hf://")

_TAR_END = bytes(1024)

RawSample = dict[str, Any]


def list_shards(config: DataConfig) -> list[str]:
    """Paths or URLs of the shards that `root` and `shards` name, in order.

    Raises DataError if there are none, or for an unsupported URL.
    """
    require("webdataset", "reading WebDataset shards")  # here, not later in a worker
    if "://" in config.root or config.root.startswith("pipe:"):
        if not config.root.startswith(_SCHEMES):
            raise DataError(
                f"shards cannot be read from {config.root}: expected a folder or a URL starting "
                f"with {', '.join(_SCHEMES)}"
            )
        if "*" in config.shards:
            raise DataError(
                f"shards={config.shards!r} cannot be listed at a URL: write the numbers, as in "
                "{00000..00331}.tar"
            )
        return [f"{config.root.rstrip('/')}/{name}" for name in _expand(config.shards)]
    root = config.folder()
    if "*" in config.shards:
        shards = sorted(str(path) for path in root.glob(config.shards))
    else:
        shards = [str(root / name) for name in _expand(config.shards)]
    if not shards:
        raise DataError(f"no shards in {root}: no file matches {config.shards}")
    return shards


def _expand(pattern: str) -> list[str]:
    expanded: list[str] = list(require("braceexpand", "naming shards").braceexpand(pattern))
    return expanded


def samples_per_epoch(config: DataConfig, shards: list[str]) -> int:
    """The setting of that name, or the sum over img2dataset's statistics next to the shards.

    Raises DataError if both are missing.
    """
    if config.samples_per_epoch is not None:
        return config.samples_per_epoch
    total = 0
    for shard in shards:
        statistics = shard.removesuffix(".tar") + "_stats.json"
        try:
            total += int(json.loads(Path(statistics).read_text(encoding="utf-8"))["successes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"unknown number of samples in the shards: cannot read {statistics} "
                f"({type(error).__name__}); set samples_per_epoch (galip-edge data check "
                "counts the samples)"
            ) from error
    if total < 1:
        raise DataError(f"the shards' statistics in {config.root} count no samples")
    return total


def read_shard(shard: str, report: Callable[[Problem], None]) -> Iterator[RawSample]:
    """Yield the undecoded samples of a shard: `__key__`, and file contents by suffix.

    A truncated shard yields the samples before the break. `report` is called once with it, and
    with every sample in another format.
    """
    webdataset = require("webdataset", "reading WebDataset shards")
    broken = False

    def handle(error: Exception) -> bool:
        nonlocal broken
        # webdataset raises ValueError for a file that it cannot group, others for the shard.
        if isinstance(error, ValueError):
            report(Problem("broken sample", _name(shard), str(error.args[0])))
        elif not broken:
            broken = True
            cause = error.args[0] if error.args else error
            if isinstance(error, OSError):
                cause = error.strerror or cause
            report(Problem("broken shard", _name(shard), f"{type(error).__name__}: {cause}"))
        return True  # continue

    try:
        with webdataset.gopen(shard) as stream:
            tar = webdataset.tariterators
            files = tar.tar_file_expander([{"url": shard, "stream": stream}], handler=handle)
            yield from tar.group_by_keys(files, handler=handle)
        if not broken and shard.endswith(".tar") and "://" not in shard:
            _check_end(Path(shard))
    except OSError as error:  # also for an interrupted download
        handle(error)


def _check_end(path: Path) -> None:
    """Raise OSError if a tar file lacks its end mark, which detects truncation between files."""
    with path.open("rb") as file:
        file.seek(-min(len(_TAR_END), path.stat().st_size), 2)
        if file.read() != _TAR_END:
            raise OSError("no end mark: samples may be missing, download it again")


def raw_image(raw: RawSample, shorter_side: int | None = None) -> Image.Image:
    """The sample's RGB image with EXIF orientation applied. Raises SampleError."""
    for suffix in IMAGE_SUFFIXES:
        if content := raw.get(suffix[1:]):
            return read_image(BytesIO(content), raw["__key__"], shorter_side, upright=True)
    raise SampleError("missing image", raw["__key__"], f"{_found(raw)}, no image")


def raw_captions(raw: RawSample) -> tuple[str, ...]:
    """The sample's captions: the lines of its .txt, or one or a list in its .json.

    Raises SampleError without captions.
    """
    key = raw["__key__"]
    if "txt" in raw:
        captions = parse_captions(raw["txt"])
    elif "json" in raw:
        try:
            value = json.loads(raw["json"])["caption"]
        except (ValueError, KeyError, TypeError) as error:
            raise SampleError("missing captions", key, "its .json has no caption") from error
        several = value if isinstance(value, list) else [value]
        captions = tidy_all(str(one) for one in several if one is not None)
    else:
        raise SampleError("missing captions", key, f"{_found(raw)}, no .txt or .json")
    if not captions:
        raise SampleError("empty captions", key, f"in {_name(raw['__url__'])}")
    return captions


def _found(raw: RawSample) -> str:
    suffixes = [f".{name}" for name in raw if not name.startswith("__")]
    return f"{_name(raw['__url__'])} has {', '.join(suffixes) or 'nothing'} of it"


def _name(shard: str) -> str:
    return shard.rpartition("/")[2]
