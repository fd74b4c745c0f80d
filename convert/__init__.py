"""Checkpoint to bundle: PyTorch -> ONNX -> OpenVINO -> INT8, each step compared with PyTorch.

from convert import ConvertOptions, convert

manifest = convert("galip.pth", "galip-int8", clip="ViT-B-32.pt")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from convert.calibration import read_captions
from convert.checks import check_paths
from convert.errors import ConversionError
from convert.options import ConvertOptions
from convert.progress import OnCount, OnStep, Progress
from runtime.bundle import Manifest
from runtime.errors import install_hint

if TYPE_CHECKING:  # it imports PyTorch, which takes seconds
    from galip_edge.checkpoints.clip_weights import Activation

__all__ = ["ConversionError", "ConvertOptions", "convert"]


def convert(
    checkpoint: str | Path,
    out: str | Path,
    options: ConvertOptions | None = None,
    *,
    clip: str | Path | None = None,
    clip_activation: Activation | None = None,
    on_step: OnStep = lambda _: None,
    on_count: OnCount = lambda _, __: None,
) -> Manifest:
    """Convert a checkpoint to a bundle, comparing with PyTorch after each step.

    Args:
        checkpoint: our `.safetensors`, or an original `.pth`.
        out: folder of the bundle, which appears whole or not at all. Temporary files lie next to
            it (docs/conversion.md). A symbolic link is kept, and its target replaced.
        options: precision and the rest; int8 by default.
        clip: CLIP weights, for an original checkpoint.
        clip_activation: activation of that CLIP, if neither its file nor its folder states it.
        on_step: called with a few words at the start of each step.
        on_count: called in long steps with the finished and the total count (0 if unknown).

    Returns:
        Manifest of the new bundle, with the measured fidelity.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConversionError: `checkpoint` is already a bundle, `out` exists, another conversion to it
            is running, a step fails, the disk is full, or the result is further from PyTorch
            than allowed.
    """
    checkpoint, out, options = Path(checkpoint), Path(out), options or ConvertOptions()
    clip = None if clip is None else Path(clip)
    check_paths(checkpoint, out, options, clip)
    captions = read_captions(options.calibration, options.num_samples)
    # Imports PyTorch, which takes seconds: a mistyped path is reported before.
    try:
        from convert.pipeline import run
    except ModuleNotFoundError as error:
        raise ConversionError(
            f"conversion needs {error.name}, which is not installed: {install_hint('convert')}"
        ) from error
    progress = Progress(on_step, on_count)
    return run(checkpoint, clip, clip_activation, out.resolve(), captions, options, progress)
