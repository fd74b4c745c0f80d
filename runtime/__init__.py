"""Text-to-image on a CPU, without torch: pipeline, batch jobs, server.

Users import from `galip_edge`, which type checkers understand. Names are imported on first use, so
`import runtime` is free.
"""

import sys
from typing import Any

# No telemetry: OpenVINO and NNCF report each import over the network if they find this package,
# which comes with OpenVINO's wheel. Both run without it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

_NAMES = {
    "bundle": ("default_bundle",),
    "errors": ("BundleError", "GalipEdgeError", "JobError", "PromptError"),
    "jobs.job": ("Job", "JobOptions"),
    "jobs.prompts": ("PromptFile",),
    "noise": ("draw_noise",),
    "pipeline": ("Generated", "Pipeline", "PipelineOptions"),
    "tokenizer": ("Tokenizer",),
    "version": ("__version__",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"runtime.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'runtime' has no attribute {name!r}")
