"""Settings of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Lowest PSNR against PyTorch in dB; a bundle below it is refused. Untrained and trained models lie
# well above: a lower value means that a step failed.
MIN_PSNR = {"fp32": 50.0, "fp16": 45.0, "bf16": 35.0, "int8": 20.0, "auto": 30.0}
QUANTIZERS = ("edge", "nncf")
# Settings that concern int8 alone.
OF_INT8 = ("calibration", "quantizer", "keep_float", "compress_weights")
# Former names of precisions.
_ALIASES = {"mixed": "int8"}


@dataclass(frozen=True)
class ConvertOptions:
    """Settings of a conversion.

    Attributes:
        precision: fp32, fp16 (float16 weights, float32 arithmetic), bf16, int8 (a few sensitive
            parts stay in floating point), or auto: the fastest on this machine that reaches
            `min_psnr`, of int8 and bf16 (fp16 where the CPU has no bfloat16). `mixed` is a former
            name of int8.
        name: display name of the model; by default the checkpoint's file name.
        calibration: text file with one prompt per line, for int8; by default 300 built-in captions.
        num_samples: calibration prompts to use, spread evenly over the file.
        quantizer: edge (`convert.quantize`, one pass of statistics) or nncf.
        keep_float: further parts of int8 models that stay in floating point, by a part of their
            weights' names, such as `to_rgb` or `upsampling.3`.
        compress_weights: store the weights of the parts of int8 models that stay in floating point
            in 8 bits, and those of a mapping network in 16: smaller bundles, a little less PSNR.
        keep_onnx: folder to write the ONNX files to.
        min_psnr: lowest PSNR in dB against PyTorch, below which the bundle is refused; by default
            `MIN_PSNR`.
        force: replace an existing bundle.
    """

    precision: str = "int8"
    name: str | None = None
    calibration: Path | None = None
    num_samples: int = 300
    quantizer: str = "edge"
    keep_float: tuple[str, ...] = ()
    compress_weights: bool = False
    keep_onnx: Path | None = None
    min_psnr: float | None = None
    force: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", _ALIASES.get(self.precision, self.precision))
        if self.precision not in MIN_PSNR:
            raise ValueError(
                f"precision must be one of {', '.join(MIN_PSNR)}, got {self.precision!r}"
            )
        if self.quantizer not in QUANTIZERS:
            raise ValueError(
                f"quantizer must be one of {', '.join(QUANTIZERS)}, got {self.quantizer!r}"
            )
        if self.precision not in ("int8", "auto"):
            for name in OF_INT8:
                if getattr(self, name) != getattr(ConvertOptions, name):
                    raise ValueError(f"{name} has no effect with {self.precision}, only with int8")
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")

    @property
    def lowest_psnr(self) -> float:
        """Lowest PSNR in dB that is accepted."""
        return MIN_PSNR[self.precision] if self.min_psnr is None else self.min_psnr

    @property
    def inference_precision(self) -> str:
        """Arithmetic of the parts that are not int8."""
        return "bf16" if self.precision in ("bf16", "int8") else "f32"
