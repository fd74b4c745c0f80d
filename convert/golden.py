"""Golden numbers: written by a conversion, or added to an older bundle (format 2).

    python -m convert.golden CHECKPOINT BUNDLE

adds them without changing graphs and weights, and so the images. CHECKPOINT is the checkpoint that
the bundle was converted from.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert.errors import ConversionError
from convert.fidelity import PROMPTS, Reference, make_reference
from galip_edge.checkpoints.format import load_checkpoint
from galip_edge.tokenizer import build_tokenizer
from runtime.bundle import GOLDEN, Bundle, FileEntry, GoldenEntry, Manifest, save_manifest
from runtime.errors import GalipEdgeError
from runtime.files import atomic_folder, sha256_of
from runtime.golden import tolerance, write_golden
from runtime.pipeline import Pipeline, PipelineOptions

# Indices of the golden prompts in `PROMPTS`: the first two that fit the shortest text encoder.
GOLDEN_ROWS = (0, 7)


def write_reference(folder: Path, reference: Reference) -> GoldenEntry:
    """Write the golden numbers of a bundle; the entry returned tolerates any deviation."""
    rows = list(GOLDEN_ROWS)
    image = np.round(reference.image[rows] * 127.5 + 127.5).astype(np.uint8)
    write_golden(folder, reference.sentence[rows], image)
    return GoldenEntry(tuple(PROMPTS[row] for row in rows), 0, -1.0, 0.0)


def measured_tolerance(pipeline: Pipeline) -> GoldenEntry:
    """The golden entry of a bundle, with the tolerance that follows from this machine's results."""
    report = pipeline.compare_with_golden()
    assert report is not None
    return tolerance(pipeline.manifest, report.sentence_cosine, report.image_psnr_db)


def add_golden_numbers(file: Path, folder: Path, clip: Path | None = None) -> Manifest:
    """Add or replace the golden numbers of the bundle in `folder`.

    Args:
        file: checkpoint that the bundle was converted from.
        folder: bundle, which is replaced atomically.
        clip: CLIP weights, for an original checkpoint.

    Returns:
        The new manifest.

    Raises:
        BundleError: the bundle is damaged.
        CheckpointError: the checkpoint cannot be used.
        ConversionError: the bundle was converted from another checkpoint.
    """
    bundle = Bundle.open(folder)
    checkpoint = load_checkpoint(file, clip)
    made_from = bundle.manifest.checkpoint.get("sha256")
    if made_from != checkpoint.sha256:
        raise ConversionError(
            f"{folder} was converted from another checkpoint than {file}: SHA-256 {made_from}, not "
            f"{checkpoint.sha256}"
        )
    reference = make_reference(checkpoint.model, build_tokenizer(checkpoint.model.config.clip))
    with atomic_folder(folder, replace=True) as temporary:
        for name in bundle.manifest.files:
            (temporary / name).write_bytes(bundle.read(name))
        golden = write_reference(temporary, reference)
        path = temporary / GOLDEN
        entry = FileEntry(path.stat().st_size, sha256_of(path))
        files = bundle.manifest.files | {GOLDEN: entry}
        manifest = replace(bundle.manifest, files=files, golden=golden)
        save_manifest(temporary, manifest)
        pipeline = Pipeline.from_bundle(temporary, PipelineOptions(cache=False))
        return save_manifest(temporary, replace(manifest, golden=measured_tolerance(pipeline)))


def main(arguments: list[str] | None = None) -> None:
    """Command line: CHECKPOINT BUNDLE."""
    file, folder = map(Path, sys.argv[1:] if arguments is None else arguments)
    try:
        manifest = add_golden_numbers(file, folder)
    except GalipEdgeError as error:
        sys.exit(f"Error: {error}")
    print(manifest.golden)  # noqa: T201


if __name__ == "__main__":
    main()
