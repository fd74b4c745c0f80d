"""Checkpoint to bundle: PyTorch -> ONNX -> OpenVINO -> INT8, each step measured.

from convert import ConvertOptions, convert

manifest = convert(Path("galip.pth"), Path("galip-int8"), clip=Path("ViT-B-32.pt"))
"""

from convert.options import ConvertOptions
from convert.pipeline import convert

__all__ = ["ConvertOptions", "convert"]
