"""Benchmarks run with the package as it is now."""

import ast
import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OURS = ("convert", "galip_edge", "runtime")


def imported(script):
    """(module, name) for each name that a script imports from our packages."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            yield from ((node.module, alias.name) for alias in node.names)


def exists(module, name):
    try:
        return hasattr(importlib.import_module(module), name) or bool(
            importlib.util.find_spec(f"{module}.{name}")
        )
    except ModuleNotFoundError:
        return False


def test_what_benchmarks_import_exists():
    wanted = {
        (script.name, *each) for script in BENCHMARKS.glob("*.py") for each in imported(script)
    }
    assert len(wanted) > 100
    assert [each for each in sorted(wanted) if not exists(*each[1:])] == []


def test_each_part_of_a_training_step_is_timed():
    import training_parts

    settings = ["data.root=x", "batch_size=2", "precision=float32", "projected.weight=1"]
    settings += ["projected.width=8", "projected.projection=8", "ema_decay=0.9"]
    settings += ["pretraining.kind=vae", "pretraining.steps=2"]
    settings += ["pretraining.autoencoder_steps=1", "pretraining.features_steps=1"]
    found = training_parts.measure("tiny", settings, repetitions=1)
    assert {"step", "generator, backward", "heads' loss, backward", "moving average"} <= set(found)
    assert {"step, autoencoder", "step, features", "step, all"} <= set(found)
    assert min(found.values()) >= 0
