"""Benchmarks run with the package as it is now."""

import ast
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
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


def test_a_variant_of_the_ablations_is_trained_and_evaluated(tmp_path, monkeypatch, capsys):
    import ablations

    monkeypatch.setattr(ablations, "VARIANTS", {"no-bridge": ablations.VARIANTS["no-bridge"]})
    root = BENCHMARKS.parent
    settings = ["steps=1", "batch_size=2", "data.kind=aviary", "data.root=", "data.workers=0"]
    settings += ["log.tensorboard=false", "log.prompts=[]", "log.samples_interval=0"]
    settings += [f"clip={root}/models/aviary.safetensors", f"text_cache={tmp_path}/text"]
    options = [option for setting in settings for option in ("--set", setting)]
    options += ["--count", "12", "--midpoints", "4", "--two-sample", "4"]
    results = tmp_path / "ablations.json"
    ablations.main([str(tmp_path / "runs"), *options, "--results", str(results)])
    found = json.loads(results.read_text())
    assert found["images"] == 2
    row = found["results"]["no-bridge"]
    assert row["two_sample_accuracy"] >= 0
    assert set(row["attributes"]) >= {"body", "background"}
    head, _, body = capsys.readouterr().out.strip().splitlines()[-3:]
    assert head.count("|") == body.count("|")
    assert body.startswith("| no bridge feature predictor | ")
    # A finished variant is skipped, unless its model is newer.
    evaluation = tmp_path / "runs/no-bridge/evaluation.jsonl"
    evaluation.write_text(json.dumps({"metrics": {**row, "cmmd": 123.0}}))
    ablations.main([str(tmp_path / "runs"), *options, "--results", str(results)])
    assert "| 123.000 |" in capsys.readouterr().out
    commands = []
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command[3]))
    ablations.main([str(tmp_path / "runs"), *options, "--results", str(results)])
    os.utime(evaluation, (0, 0))
    ablations.main([str(tmp_path / "runs"), *options, "--results", str(results)])
    assert commands == ["train", "train", "evaluate"]
    # Results of other folders stay, if they have seen as many images.
    other = {"no-prompts": ("none", ())}
    monkeypatch.setattr(ablations, "VARIANTS", ablations.VARIANTS | other)
    ablations.main([str(tmp_path / "none"), *options, "--results", str(results)])
    assert "| 123.000 |" in (printed := capsys.readouterr().out)
    assert "| none | not measured |" in printed
    options += ["--set", "steps=2"]
    ablations.main([str(tmp_path / "none"), *options, "--results", str(results)])
    assert "| 123.000 |" not in capsys.readouterr().out


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


def test_small_changes_of_perfect_images_are_measured(tmp_path):
    import metric_sensitivity
    import tables

    out = tmp_path / "sensitivity.json"
    metric_sensitivity.main(["--count", "24", "--two-sample", "4", "--out", str(out)])
    measured = json.loads(out.read_text())
    found = measured["results"]
    assert list(found) == list(metric_sensitivity.CHANGES)
    assert found["no change"]["precision"] > found["warp, 1.5 pixels, 16² points"]["precision"]
    _, rows = tables.TABLES["metric-sensitivity"]
    assert [name for name, *_ in rows(measured)][1:] == list(found)


def test_a_warp_moves_edges_by_its_pixels():
    import metric_sensitivity

    image = np.zeros((128, 128, 3), np.uint8)
    image[:, 64:] = 255
    moved = metric_sensitivity.warp(1.5, 16, image, np.random.default_rng(0))
    edges = 128 - moved[..., 0].sum(axis=1) / 255  # of each row
    assert 0.5 < np.std(edges) < 2.0
    assert abs(edges.mean() - 64) < 1.5


def test_a_probe_finds_what_captions_state_in_their_embeddings(monkeypatch):
    import clip_probe

    monkeypatch.setattr(clip_probe, "_CAPTIONS", 800)
    checkpoint = BENCHMARKS.parent / "models/aviary.safetensors"
    found = clip_probe.probe(checkpoint, None, 40, None)
    assert found["images"] == 40
    assert found["linear_on_sentences"]["background"] > 0.8
    assert set(found["linear_on_taps"]) == set(found["linear_on_sentences"])
    assert 0 < found["r_precision"] <= 1
