"""What jobs are made of, and what they leave."""

from pathlib import Path

import pytest
from plain_model import PlainPipeline

from runtime.jobs import worker


@pytest.fixture
def plain_model(monkeypatch):
    monkeypatch.setattr(worker, "Pipeline", PlainPipeline)


@pytest.fixture
def bundle(tiny_bundles) -> Path:
    return tiny_bundles["int8"]
