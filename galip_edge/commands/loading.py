"""The model that a command generates with."""

from __future__ import annotations

from pathlib import Path

from galip_edge.commands.console import console
from galip_edge.commands.options import default_model
from runtime.pipeline import Pipeline, PipelineOptions


def load_pipeline(model: Path | None, options: PipelineOptions) -> Pipeline:
    """The pipeline of the bundle that was asked for, or of the embedded one."""
    with console().status("loading the model"):
        return Pipeline.from_bundle(model or default_model(), options)
