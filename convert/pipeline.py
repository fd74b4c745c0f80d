"""The conversion from end to end: checkpoint -> ONNX -> OpenVINO -> (INT8) -> bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from convert.auto import write_fastest
from convert.calibration import read_captions
from convert.options import ConvertOptions
from convert.write import read_source, write_bundle
from runtime.bundle import Manifest, is_bundle
from runtime.errors import ConversionError
from runtime.files import atomic_folder

if TYPE_CHECKING:  # it imports torch, and a mistyped path is reported before that
    from galip_edge.checkpoints.clip_weights import Activation


def convert(
    checkpoint: Path,
    out: Path,
    options: ConvertOptions | None = None,
    *,
    clip: Path | None = None,
    clip_activation: Activation | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Convert a checkpoint to a bundle, comparing with PyTorch after each step.

    Args:
        checkpoint: our `.safetensors`, or an original `.pth`.
        out: the bundle's folder, which appears whole or not at all.
        options: precision and the rest; int8 by default.
        clip: CLIP weights, for an original checkpoint.
        clip_activation: of that CLIP, if neither its file nor its folder states it.
        on_step: told in a few words what is being done.

    Returns:
        The manifest of the new bundle, with the measured fidelity.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConversionError: `checkpoint` is a bundle already, `out` exists, a step fails, or the
            result is further from PyTorch than allowed.
    """
    checkpoint, out, options = Path(checkpoint), Path(out), options or ConvertOptions()
    _refuse_converted(checkpoint)
    _refuse_overwriting(out, options.force)
    captions = read_captions(options.calibration, options.samples)

    with atomic_folder(out, replace=options.force) as folder, _onnx_folder(options) as onnx_folder:
        source = read_source(
            checkpoint, clip, captions, onnx_folder, on_step, clip_activation=clip_activation
        )
        write = write_fastest if options.precision == "auto" else write_bundle
        return write(source, options, folder, on_step)


def _refuse_converted(checkpoint: Path) -> None:
    if is_bundle(checkpoint) or checkpoint.name.endswith((".xml", ".xml.gz", ".onnx")):
        raise ConversionError(
            f"{checkpoint} is converted already, and quantizing twice only loses quality: give "
            "the PyTorch checkpoint it was made from"
        )


def _refuse_overwriting(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise ConversionError(f"{out} exists: choose another folder with -o, or give --force")
    if not is_bundle(out):
        raise ConversionError(f"{out} exists and is no bundle, so --force does not replace it")


@contextmanager
def _onnx_folder(options: ConvertOptions) -> Iterator[Path]:
    """Where ONNX files are written: the folder to keep them in, or one that is removed."""
    if options.keep_onnx is not None:
        with atomic_folder(options.keep_onnx, replace=options.force) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
