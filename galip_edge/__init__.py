"""GALIP: one-step text-to-image generation on CPUs.

    from galip_edge import Pipeline

    pipeline = Pipeline.from_bundle()  # the embedded model; a folder for any other
    images = pipeline.generate("a bird on a branch", n=4, seed=0)  # (4,H,W,3) uint8

`Pipeline` and `Job` run without torch; `convert` needs the extra `convert`. Names are imported on
first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from galip_edge.own_packages import require_own_package

if TYPE_CHECKING:
    from convert import ConversionError, ConvertOptions, convert
    from runtime import (
        BundleError,
        GalipEdgeError,
        Generated,
        Job,
        JobError,
        JobOptions,
        Pipeline,
        PipelineOptions,
        PromptError,
        PromptFile,
        Tokenizer,
        __version__,
        default_bundle,
        draw_noise,
    )

_PACKAGES = dict.fromkeys(("ConversionError", "ConvertOptions", "convert"), "convert")

__all__ = [
    "BundleError",
    "ConversionError",
    "ConvertOptions",
    "GalipEdgeError",
    "Generated",
    "Job",
    "JobError",
    "JobOptions",
    "Pipeline",
    "PipelineOptions",
    "PromptError",
    "PromptFile",
    "Tokenizer",
    "__version__",
    "convert",
    "default_bundle",
    "draw_noise",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'galip_edge' has no attribute {name!r}")
    package = _PACKAGES.get(name, "runtime")
    require_own_package(package)
    return getattr(import_module(package), name)
