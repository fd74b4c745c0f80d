"""Checks of a conversion's paths, before anything slow is imported or begun."""

from __future__ import annotations

from pathlib import Path

from convert.errors import ConversionError
from convert.options import ConvertOptions
from runtime.bundle import is_bundle


def check_paths(checkpoint: Path, out: Path, options: ConvertOptions, clip: Path | None) -> None:
    """Refuse missing inputs and existing outputs.

    Raises ConversionError.
    """
    if is_bundle(checkpoint) or checkpoint.name.endswith((".xml", ".xml.gz", ".onnx")):
        raise ConversionError(
            f"{checkpoint} is already converted, and quantizing twice only loses quality: use "
            "the PyTorch checkpoint it was converted from"
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
        raise ConversionError(f"{out} exists: choose another folder with -o, or pass --force")
    if not is_bundle(out):
        raise ConversionError(f"{out} exists and is not a bundle, so --force does not replace it")


def _refuse_overwriting_onnx(folder: Path, force: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or any(".onnx" not in path.suffixes for path in folder.iterdir()):
        raise ConversionError(
            f"{folder} exists and holds more than ONNX files: choose another for --keep-onnx"
        )
    if not force and any(folder.iterdir()):
        raise ConversionError(
            f"{folder} exists: choose another folder for --keep-onnx, or pass --force"
        )
