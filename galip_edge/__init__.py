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
    from runtime.bundle import default_bundle
    from runtime.errors import BundleError, GalipEdgeError, JobError, PromptError
    from runtime.jobs.job import Job, JobOptions
    from runtime.jobs.prompts import PromptFile
    from runtime.noise import draw_noise
    from runtime.pipeline import Generated, Pipeline, PipelineOptions
    from runtime.tokenizer import Tokenizer
    from runtime.version import __version__

_OF_CONVERT = ("ConversionError", "ConvertOptions", "convert")

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
    package = "convert" if name in _OF_CONVERT else "runtime"
    require_own_package(package)
    return getattr(import_module(package), name)
