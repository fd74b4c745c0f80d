"""The model that a command generates with."""

from __future__ import annotations

from pathlib import Path

from galip_edge.commands.console import console
from runtime.pipeline import Pipeline, PipelineOptions


def load_pipeline(model: Path | None, options: PipelineOptions) -> Pipeline:
    """Pipeline of a bundle; None for the embedded model."""
    with console().status("loading the model"):
        return Pipeline.from_bundle(model, options)
