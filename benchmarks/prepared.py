"""Models for the benchmarks, created once and cached in a folder named after the checkpoint.

Ours are bundles. The naive ones are the tools' results for the published order of operations: ONNX
as PyTorch exports it, ONNX Runtime's two kinds of INT8, NNCF's with its defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.files import atomic_folder, cache_folder, sha256_of

# A few samples suffice: latency does not depend on the ranges.
_SAMPLES = 16


class Prepared:
    """Files created from one checkpoint, each on first use.

    Args:
        checkpoint: None for an untrained one of the published dimensions: latency does not depend
            on the values of weights.
        clip: CLIP weights, for an original checkpoint.
        work: folder that keeps the files; by default in the user's cache folder.
        image_size: of the untrained one.
    """

    def __init__(
        self,
        checkpoint: Path | None = None,
        clip: Path | None = None,
        work: Path | None = None,
        image_size: int = 224,
    ) -> None:
        work = work_folder(work)
        source = checkpoint or _untrained(work, image_size)
        self.folder = work / sha256_of(source)[:12]
        self.folder.mkdir(exist_ok=True)
        # One file of ours that includes CLIP, from which all others are created.
        self.checkpoint = source if clip is None else self.folder / "own.safetensors"
        if not self.checkpoint.exists():
            from galip_edge.checkpoints.format import load_checkpoint, save_checkpoint

            save_checkpoint(load_checkpoint(source, clip).model, self.checkpoint)

    def bundles(self, precisions: Iterable[str]) -> dict[str, Path]:
        """Our bundle of each precision."""
        return {precision: self.bundle(precision) for precision in precisions}

    def bundle(self, precision: str) -> Path:
        """Our bundle."""
        from convert import ConvertOptions, convert

        def make(path: Path) -> None:
            options = ConvertOptions(precision=precision, num_samples=_SAMPLES, min_psnr=0)
            convert(self.checkpoint, path, options)

        return self._made(precision, make)

    def onnx(self) -> Path:
        """A folder with the text encoder and the generator in the published order, float32."""
        from published import in_published_order

        from convert.export import export_onnx
        from galip_edge.checkpoints.format import load_checkpoint

        def make(path: Path) -> None:
            model = load_checkpoint(self.checkpoint).model
            in_published_order(model.generator)
            with atomic_folder(path) as folder:
                export_onnx(model, folder, rewritten=False)

        return self._made("onnx", make)

    def rewritten(self) -> tuple[Path, Path]:
        """ONNX of our text encoder and generator with their rewrites, float32."""
        from convert.export import GENERATOR_ONNX, TEXT_ENCODER_ONNX, export_onnx
        from galip_edge.checkpoints.format import load_checkpoint

        def make(path: Path) -> None:
            with atomic_folder(path) as folder:
                export_onnx(load_checkpoint(self.checkpoint).model, folder)

        folder = self._made("onnx-rewritten", make)
        return folder / TEXT_ENCODER_ONNX, folder / GENERATOR_ONNX

    def onnx_int8(self, static: bool) -> Path:
        """The same in INT8 by ONNX Runtime's own tools, as its guide has them."""
        from onnxruntime.quantization import quantize_dynamic, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        from convert.export import GENERATOR_ONNX, TEXT_ENCODER_ONNX

        source = self.onnx()

        def make(path: Path) -> None:
            text_rows, generator_rows = self._samples()
            with atomic_folder(path) as folder:
                for name in (TEXT_ENCODER_ONNX, GENERATOR_ONNX):
                    ready = folder / f"ready-{name}"
                    quant_pre_process(source / name, ready, skip_symbolic_shape=True)
                    if static:
                        rows = text_rows if "text" in name else generator_rows
                        reader = _Reader(ready, rows)
                        quantize_static(ready, folder / name, reader, per_channel=True)
                    else:
                        quantize_dynamic(ready, folder / name)
                    ready.unlink()

        return self._made("onnx-static" if static else "onnx-dynamic", make)

    def naive(self) -> Path:
        """NNCF's INT8 with its defaults for transformers, as a folder of OpenVINO files."""
        import nncf
        import openvino as ov

        from convert.export import GENERATOR_ONNX, TEXT_ENCODER_ONNX, to_openvino
        from convert.quiet import quiet

        source = self.onnx()

        def make(path: Path) -> None:
            text_rows, generator_rows = self._samples()
            with atomic_folder(path) as folder:
                for name, out, rows in (
                    (TEXT_ENCODER_ONNX, "text_encoder.xml", text_rows),
                    (GENERATOR_ONNX, "generator.xml", generator_rows),
                ):
                    with quiet("nncf"):
                        model = nncf.quantize(
                            to_openvino(source / name),
                            nncf.Dataset(rows, list),
                            preset=nncf.QuantizationPreset.MIXED,
                            model_type=nncf.ModelType.TRANSFORMER,
                            subset_size=len(rows),
                        )
                    ov.save_model(model, folder / out, compress_to_fp16=False)

        return self._made("naive-int8", make)

    def _samples(self) -> Any:
        """Inputs of the text encoder and of the generator, a batch of one each, as two lists."""
        import torch

        from convert.calibration import generator_samples, read_captions
        from galip_edge.checkpoints.format import load_checkpoint
        from galip_edge.tokenizer import build_tokenizer

        model = load_checkpoint(self.checkpoint).model
        captions = read_captions(None, _SAMPLES)
        tokens = build_tokenizer(model.config.clip)(captions)
        with torch.inference_mode():
            sentences = model.text_encoder(torch.from_numpy(tokens)).numpy()
        rows = [sentence[None] for sentence in sentences]
        generator = generator_samples(captions, rows, model.config.noise_dim)
        return [(row[None],) for row in tokens], generator

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """Create a file or folder atomically: `make` writes to a path that does not exist yet."""
        path = self.folder / name
        if not path.exists():
            print(f"making {name}", file=sys.stderr)
            make(path)
        return path


class _Reader:
    """Calibration samples as ONNX Runtime reads them."""

    def __init__(self, path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
        import onnx

        names = [i.name for i in onnx.load(path, load_external_data=False).graph.input]
        self._rows = iter([dict(zip(names, row)) for row in rows])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)


def _untrained(work: Path, image_size: int) -> Path:
    """The published dimensions; another size of image needs fewer blocks, or a larger last one."""
    path = work / f"untrained-{image_size}.safetensors"
    if not path.exists():
        import torch

        from galip_edge.checkpoints.format import save_checkpoint
        from galip_edge.models import GALIP, PRESETS

        config = PRESETS["coco"]
        sizes = (*(size for size in config.block_sizes[:-1] if size < image_size), image_size)
        channels = config.block_channels[: len(sizes) + 1]
        torch.manual_seed(0)
        save_checkpoint(GALIP(replace(config, block_sizes=sizes, block_channels=channels)), path)
    return path


def work_folder(path: Path | None = None) -> Path:
    """Folder of created models: `path`, or a folder in the user's cache folder."""
    path = path or cache_folder() / "benchmarks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def full_size_bundle() -> Path:
    """Our INT8 bundle of the untrained model."""
    return Prepared().bundle("int8")
