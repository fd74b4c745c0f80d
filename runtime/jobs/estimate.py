"""What a job will take, before it is started."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from runtime.images import ImageMetadata
from runtime.jobs.job import JobOptions
from runtime.jobs.prompt_file import PromptFile
from runtime.pipeline import Pipeline

# The first few compile the model; then so many are measured.
_MEASURED = 8


@dataclass(frozen=True)
class Estimate:
    """A job's size.

    Attributes:
        rows: of the prompt file.
        images: that would be made.
        refused: rows of which none can be made.
        cut: rows whose prompt has more tokens than the model reads.
        bytes: of all images, about.
        seconds: on this machine, about.
    """

    rows: int
    images: int
    refused: int
    cut: int
    bytes: int
    seconds: float


def estimate(prompts: PromptFile, bundle: str | Path, options: JobOptions) -> Estimate:
    """Count the prompts and make a few images, of which none is kept.

    Raises:
        JobError: the prompts cannot be read.
        BundleError: the bundle is missing or damaged.
    """
    pipeline = Pipeline.from_bundle(bundle, options.pipeline)
    tokenizer = pipeline.tokenizer
    rows = images = refused = cut = 0
    some: list[str] = []
    for row in prompts.rows():
        rows += 1
        if row.error is not None:
            refused += 1
            continue
        images += row.count
        # A token has at least a byte: most prompts are too short to be counted.
        if len(row.prompt.encode()) > tokenizer.room and tokenizer.cut(row.prompt):
            cut += 1
        if len(some) < _MEASURED:
            some.append(row.prompt)
    if not images:
        return Estimate(rows, 0, refused, cut, 0, 0.0)
    some = (some * _MEASURED)[:_MEASURED]
    pipeline.generate(some[:1], n=_MEASURED)  # compiles what the job would use
    start, size = time.perf_counter(), 0
    for item in pipeline.generate_each(some):
        recipe = ImageMetadata(item.prompt, item.seed, item.index, "", "")
        size += len(options.image_format.encode(item.image, recipe))
    seconds = time.perf_counter() - start
    each = images / _MEASURED
    return Estimate(rows, images, refused, cut, round(size * each), seconds * each)
