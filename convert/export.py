"""PyTorch to ONNX, and ONNX to OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx.experimental import proxy_tensor

from convert.errors import ConversionError
from convert.quiet import quiet
from convert.rewrite import deployed, dynamic_text_length
from galip_edge.models import GALIP
from runtime.openvino_core import openvino_core

OPSET = 18
TEXT_ENCODER_ONNX = "text_encoder.onnx"
GENERATOR_ONNX = "generator.onnx"


class DeployedGenerator(nn.Module):
    """The generator followed by clamping, rounding and layout, to spare the runtime."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """noise (B,Z), sentence (B,E) -> images (B,H,W,3) uint8."""
        image = self.generator(noise, sentence).clamp(-1, 1)
        return (image * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def export_onnx(model: GALIP, folder: Path, *, rewritten: bool = True) -> None:
    """Write both models to `folder`: `export_text_encoder` and `export_generator`."""
    export_text_encoder(model, folder, rewritten=rewritten)
    export_generator(model, folder, rewritten=rewritten)


def export_text_encoder(model: GALIP, folder: Path, *, rewritten: bool = True) -> Path:
    """Write the text encoder to `folder` as ONNX with external data, and check it.

    The batch stays dynamic.

    Args:
        model: model to export.
        folder: existing folder.
        rewritten: apply `convert.rewrite`: the number of tokens is dynamic, too.

    Raises:
        ConversionError: PyTorch cannot export it, or onnx.checker rejects the file.
    """
    length = model.config.clip.context_length
    # Two rows: torch.export would treat a batch of one as a constant.
    tokens = torch.ones(2, length, dtype=torch.int64)
    dimensions = {0: _batch()}
    text_encoder: nn.Module = model.text_encoder
    if rewritten:
        text_encoder = dynamic_text_length(model.text_encoder)
        dimensions |= {1: torch.export.Dim("length", min=2, max=length)}
    path = folder / TEXT_ENCODER_ONNX
    _export(text_encoder.eval(), {"tokens": (tokens, dimensions)}, "sentence", path)
    return path


def export_generator(model: GALIP, folder: Path, *, rewritten: bool = True) -> Path:
    """Write the generator to `folder` as ONNX with external data, and check it.

    The batch stays dynamic.

    Args:
        model: model to export.
        folder: existing folder.
        rewritten: apply `convert.rewrite`; False keeps the order of operations.

    Raises:
        ConversionError: PyTorch cannot export it, or onnx.checker rejects the file.
    """
    config, batch = model.config, _batch()
    noise = torch.zeros(2, config.noise_dim)
    sentence = torch.zeros(2, config.clip.embedding_dim)
    generator: nn.Module = deployed(model.generator) if rewritten else model.generator
    inputs = {"noise": (noise, {0: batch}), "sentence": (sentence, {0: batch})}
    path = folder / GENERATOR_ONNX
    _export(DeployedGenerator(generator).eval(), inputs, "image", path)
    return path


def _batch() -> Any:
    return torch.export.Dim("batch", min=1, max=1024)


def _export(
    module: nn.Module, inputs: dict[str, tuple[Tensor, dict[int, Any]]], output: str, path: Path
) -> None:
    """Export; `inputs` maps names to an example and its dynamic dimensions."""
    try:
        with torch.no_grad(), quiet("torch.onnx"):
            program = torch.onnx.export(
                module,
                tuple(example for example, _ in inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple(dynamic for _, dynamic in inputs.values()),
                opset_version=OPSET,
                optimize=False,  # below, once
                external_data=True,
                verbose=False,
            )
            assert program is not None
            program.optimize()
            program.save(path, external_data=True)
            # The graph outlives the program, and must not keep the weights.
            for value in program.model.graph.initializers.values():
                value.const_value = None
            del program
        onnx.checker.check_model(path, full_check=True)
    except OSError:
        raise
    except Exception as error:
        raise ConversionError(f"PyTorch could not export {path.stem} to ONNX: {error}") from error
    finally:
        _forget_graph()


def _forget_graph() -> None:
    """Release the graph that torch.export keeps until its next call: it holds all weights."""
    nodes = getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", None)
    if nodes is not None:
        nodes.clear()


def weights_of(path: Path) -> Path:
    """The external data of an ONNX file."""
    return path.with_name(f"{path.name}.data")


def to_openvino(path: Path) -> Any:
    """Read an ONNX file as an `openvino.Model`, which maps the external data into memory."""
    return openvino_core().read_model(path)
