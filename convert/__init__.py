"""Checkpoint to bundle: PyTorch -> ONNX -> OpenVINO -> INT8, each step measured.

from convert import ConvertOptions, convert

manifest = convert("galip.pth", "galip-int8", clip="ViT-B-32.pt")
"""

from convert.options import ConvertOptions
from convert.pipeline import convert

__all__ = ["ConvertOptions", "convert"]
