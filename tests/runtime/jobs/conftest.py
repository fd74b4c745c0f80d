"""Inputs of jobs, and readers of their output."""

from pathlib import Path

import pytest
from plain_model import PlainPipeline

from runtime.bundle import default_bundle
from runtime.jobs import worker


@pytest.fixture
def plain_model(monkeypatch):
    monkeypatch.setattr(worker, "Pipeline", PlainPipeline)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The embedded model; most jobs have a plain model instead, which reads its manifest only."""
    return default_bundle()
