"""Conversions in tests."""

import shutil
from dataclasses import replace

import pytest


@pytest.fixture(scope="session")
def exports():
    """Exports by checkpoint, with the folder of the ONNX files."""
    return {}


@pytest.fixture
def exported_once(exports, monkeypatch, tmp_path_factory):
    """Export each checkpoint to ONNX once, because that takes longest."""
    from convert import pipeline

    real = pipeline.export

    def export(checkpoint, clip, clip_activation, onnx_folder, progress):
        key = checkpoint, checkpoint.stat().st_mtime_ns, clip, clip_activation
        if key not in exports:
            folder = tmp_path_factory.mktemp("exported")
            exports[key] = real(checkpoint, clip, clip_activation, folder, progress), folder
        exported, folder = exports[key]
        shutil.copytree(folder, onnx_folder, dirs_exist_ok=True)
        return replace(
            exported,
            text_encoder=onnx_folder / exported.text_encoder.relative_to(folder),
            generator=onnx_folder / exported.generator.relative_to(folder),
        )

    monkeypatch.setattr(pipeline, "export", export)
