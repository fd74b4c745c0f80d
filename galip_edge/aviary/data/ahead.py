"""Drawing images ahead of training, on all cores, into a folder of captioned images."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from galip_edge.aviary.data.config import AviaryConfig
from galip_edge.aviary.data.source import (
    BLOCK,
    SETTINGS,
    AviarySource,
    check_drawn,
    drawn_name,
    drawn_settings,
)
from galip_edge.data.errors import DataError
from runtime.files import atomic_folder, remove_temporary, write_whole


def draw_ahead(
    folder: Path,
    config: AviaryConfig,
    captions: int = 4,
    processes: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Draw the images of `config` into `folder`, each with its captions in a `.txt` file.

    One process draws each subfolder of 250 images, which is written completely or not at all.
    Existing images are kept: an interrupted call resumes, and `samples` may grow. The result does
    not depend on `processes`.

    Args:
        folder: for data of kind `folder`, or the `cache` of data of kind `aviary`.
        config: of the images.
        captions: number per image; all are true, the first is the source's.
        processes: number of drawing processes.
        report: called with the number of existing and of requested images.

    Returns:
        Number of newly drawn images.

    Raises:
        DataError: the folder holds images with other settings.
        GalipEdgeError: the folder cannot be written.
    """
    _check_settings(folder, config, captions)
    remove_temporary(folder)
    blocks = [
        range(first, min(first + BLOCK, config.samples))
        for first in range(0, config.samples, BLOCK)
    ]
    missing = [block for block in blocks if not _is_whole(folder, block)]
    drawn, total = 0, sum(map(len, missing))
    report(config.samples - total, config.samples)
    for count in _draw_blocks(folder, config, captions, missing, processes):
        drawn += count
        report(config.samples - total + drawn, config.samples)
    return drawn


def _check_settings(folder: Path, config: AviaryConfig, captions: int) -> None:
    path = folder / SETTINGS
    if path.exists():
        check_drawn(folder, config, captions=captions)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} holds other files: choose a new folder")
    settings = {**drawn_settings(config), "captions": captions}
    write_whole(path, (json.dumps(settings, indent=1) + "\n").encode())


def _block_folder(folder: Path, block: range) -> Path:
    return (folder / drawn_name(block.start)).parent


def _is_whole(folder: Path, block: range) -> bool:
    return (folder / f"{drawn_name(block[-1])}.txt").exists()


def _draw_blocks(
    folder: Path, config: AviaryConfig, captions: int, blocks: list[range], processes: int
) -> Iterable[int]:
    """Yield the sizes of blocks as they are finished."""
    if processes == 1 or len(blocks) < 2:
        for block in blocks:
            yield _draw_block(folder, config, captions, block)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(blocks)), mp_context=context) as pool:
        waiting = [pool.submit(_draw_block, folder, config, captions, block) for block in blocks]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _draw_block(folder: Path, config: AviaryConfig, captions: int, block: range) -> int:
    source = AviarySource(config)
    with atomic_folder(_block_folder(folder, block), replace=True) as temporary:
        for index in block:
            image = source.image(index)
            image.save(temporary / f"{index:07d}.png", compress_level=1)
            texts = [caption.text for caption in source.described(index, captions)]
            (temporary / f"{index:07d}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return len(block)
