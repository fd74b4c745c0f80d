"""Text-to-image on a CPU, without torch: pipeline, batch jobs, server.

Users import from `galip_edge`. Names are imported on first use, so `import runtime` is free.
"""

import sys
from typing import TYPE_CHECKING, Any

from runtime.version import __version__

if TYPE_CHECKING:
    from runtime.bundle import default_bundle
    from runtime.errors import BundleError, GalipEdgeError, JobError, PromptError
    from runtime.jobs.job import Job, JobOptions
    from runtime.jobs.prompts import PromptFile
    from runtime.noise import draw_noise
    from runtime.pipeline import Generated, Pipeline, PipelineOptions
    from runtime.tokenizer import Tokenizer

# No telemetry: OpenVINO and NNCF report each import over the network if they find this package,
# which comes with OpenVINO's wheel. Both run without it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

_HOME = {
    "BundleError": "errors",
    "GalipEdgeError": "errors",
    "Generated": "pipeline",
    "Job": "jobs.job",
    "JobError": "errors",
    "JobOptions": "jobs.job",
    "Pipeline": "pipeline",
    "PipelineOptions": "pipeline",
    "PromptError": "errors",
    "PromptFile": "jobs.prompts",
    "Tokenizer": "tokenizer",
    "default_bundle": "bundle",
    "draw_noise": "noise",
}

__all__ = [
    "BundleError",
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
    "default_bundle",
    "draw_noise",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"runtime.{_HOME[name]}"), name)
    raise AttributeError(f"module 'runtime' has no attribute {name!r}")
