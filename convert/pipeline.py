"""The conversion from end to end: checkpoint -> ONNX -> OpenVINO -> (INT8) -> bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from convert.calibration import read_captions
from convert.errors import ConversionError
from convert.options import ConvertOptions
from convert.progress import OnCount, OnStep, Progress
from convert.workspace import publish, workspace
from runtime.bundle import Manifest, is_bundle

if TYPE_CHECKING:  # it imports torch, and a mistyped path is reported before that
    from galip_edge.checkpoints.clip_weights import Activation


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
        out: the bundle's folder, which appears whole or not at all. Temporary files lie next to
            it: at full size 0.8 GB. A symbolic link stays, and what it points to is written.
        options: precision and the rest; int8 by default.
        clip: CLIP weights, for an original checkpoint.
        clip_activation: of that CLIP, if neither its file nor its folder states it.
        on_step: called with a few words when a step begins.
        on_count: called inside of long steps with what is done and how much there is (0 if that
            is not known).

    Returns:
        The manifest of the new bundle, with the measured fidelity.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConversionError: `checkpoint` is a bundle already, `out` exists, another conversion to it
            is running, a step fails, the disk is full, or the result is further from PyTorch
            than allowed.
    """
    checkpoint, out, options = Path(checkpoint), Path(out), options or ConvertOptions()
    clip = None if clip is None else Path(clip)
    check_paths(checkpoint, out, options, clip)
    captions = read_captions(options.calibration, options.samples)
    # Only now, since it takes seconds to import PyTorch: a mistyped path is reported at once.
    try:
        from convert.auto import write_fastest
        from convert.write import read_source, write_bundle
    except ModuleNotFoundError as error:
        raise ConversionError(
            f"conversion needs {error.name}, which is not installed: "
            "pip install 'galip-edge[convert]'"
        ) from error

    out, progress = out.resolve(), Progress(on_step, on_count)
    keep_onnx = options.keep_onnx is not None
    with workspace(out) as folder, _onnx_folder(options, folder) as onnx_folder:
        source = read_source(
            checkpoint,
            clip,
            captions,
            onnx_folder,
            progress,
            clip_activation=clip_activation,
            keep_onnx=keep_onnx,
        )
        bundle = folder / "bundle"
        bundle.mkdir()
        write = write_fastest if options.precision == "auto" else write_bundle
        manifest = write(source, options, bundle, progress)
        publish(bundle, out, options.force)
    return manifest


def check_paths(checkpoint: Path, out: Path, options: ConvertOptions, clip: Path | None) -> None:
    """Refuse what cannot work, before anything slow begins.

    Raises ConversionError.
    """
    if is_bundle(checkpoint) or checkpoint.name.endswith((".xml", ".xml.gz", ".onnx")):
        raise ConversionError(
            f"{checkpoint} is converted already, and quantizing twice only loses quality: give "
            "the PyTorch checkpoint it was made from"
        )
    for path in (checkpoint, clip):
        if path is not None and not path.exists():
            raise ConversionError(f"cannot read {path}: no such file or folder")
    _refuse_overwriting(out, options.force)
    if options.keep_onnx is not None:
        _refuse_overwriting_onnx(options.keep_onnx, options.force)


def _refuse_overwriting(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise ConversionError(f"{out} exists: choose another folder with -o, or give --force")
    if not is_bundle(out):
        raise ConversionError(f"{out} exists and is no bundle, so --force does not replace it")


def _refuse_overwriting_onnx(folder: Path, force: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or any(path.suffix != ".onnx" for path in folder.iterdir()):
        raise ConversionError(
            f"{folder} exists and holds more than ONNX files: choose another for --keep-onnx"
        )
    if not force and any(folder.iterdir()):
        raise ConversionError(
            f"{folder} exists: choose another folder for --keep-onnx, or give --force"
        )


@contextmanager
def _onnx_folder(options: ConvertOptions, work: Path) -> Iterator[Path]:
    """Where ONNX files are written: the folder to keep them in, or one of the workspace."""
    if options.keep_onnx is None:
        folder = work / "onnx"
        folder.mkdir()
        yield folder
        return
    kept = options.keep_onnx.resolve()
    with workspace(kept) as other:
        folder = other / "onnx"
        folder.mkdir()
        yield folder
        publish(folder, kept, replace=True)
