"""Golden numbers for a bundle that was converted before bundles had them (format 2).

    python -m convert.golden CHECKPOINT BUNDLE

Graphs and weights stay as they are, and so do the images. CHECKPOINT is the one that the bundle was
made from.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from convert.errors import ConversionError
from convert.fidelity import make_reference
from convert.write import measured_tolerance, write_reference
from galip_edge.checkpoint import load_checkpoint
from galip_edge.tokenizer import build_tokenizer
from runtime.bundle import GOLDEN, Bundle, FileEntry, Manifest, save_manifest
from runtime.errors import GalipEdgeError
from runtime.files import atomic_folder, sha256_of


def add_golden_numbers(file: Path, folder: Path, clip: Path | None = None) -> Manifest:
    """Add what PyTorch computes to the bundle in `folder`, or replace it.

    Args:
        file: the checkpoint that the bundle was made from.
        folder: of the bundle, which is replaced as a whole or stays as it was.
        clip: CLIP weights, for an original checkpoint.

    Returns:
        The new manifest.

    Raises:
        BundleError: the bundle is damaged.
        CheckpointError: the checkpoint cannot be used.
        ConversionError: the bundle was made from another checkpoint.
    """
    bundle = Bundle.open(folder)
    checkpoint = load_checkpoint(file, clip)
    made_from = bundle.manifest.checkpoint.get("sha256")
    if made_from != checkpoint.sha256:
        raise ConversionError(
            f"{folder} was made from another checkpoint than {file}: SHA-256 {made_from}, not "
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
        golden = measured_tolerance(temporary, manifest)
        return save_manifest(temporary, replace(manifest, golden=golden))


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
