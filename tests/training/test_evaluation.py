"""Evaluation during training: figures, the best model, grids; the same after any interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from galip_edge.data import DataConfig, DataError
from galip_edge.data.sources import open_source
from galip_edge.evaluation.models import CheckpointModel
from galip_edge.training.config import TrainConfig
from galip_edge.training.evaluation import read_held_out
from galip_edge.training.run import train

pytestmark = pytest.mark.slow

SETTINGS = {
    "data": {"held_out": 0.3},
    "ema_decay": 0.9,
    "evaluation": {"interval": 2, "count": 8, "diversity_captions": 2, "diversity_images": 2},
    "log": {"samples_interval": 2, "sample_count": 3, "tensorboard": True},
    "checkpoint": {"interval": 3, "best": "clip_score"},
}


def figures(config: TrainConfig) -> dict[int, dict[str, float]]:
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {
        record["step"]: {k: v for k, v in record.items() if k.startswith("evaluation/")}
        for record in records
        if any(name.startswith("evaluation/") for name in record)
    }


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.fixture
def evaluated(make_config, tmp_path):
    config = make_config(steps=6, output=str(tmp_path / "whole"), **SETTINGS)
    train(config)
    return config


def test_evaluation_by_the_clock(make_config, tmp_path):
    settings = {**SETTINGS, "evaluation": {**SETTINGS["evaluation"], "interval": 100}}
    settings["evaluation"]["minutes"] = 1e-9
    config = make_config(steps=2, output=str(tmp_path / "timed"), **settings)
    train(config)
    assert list(figures(config)) == [1, 2]
    assert (tmp_path / "timed" / "model-best.safetensors").exists()


@pytest.mark.parametrize(("steps", "expected"), [(6, [5, 6]), (3, [3])])
def test_no_evaluation_while_layers_are_trained_apart(make_config, tmp_path, steps, expected):
    settings = {**SETTINGS, "evaluation": {**SETTINGS["evaluation"], "interval": 1}}
    settings["evaluation"]["minutes"] = 1e-9
    settings["pretraining"] = {"kind": "vae", "autoencoder_steps": 2, "features_steps": 2}
    config = make_config(steps=steps, output=str(tmp_path / "apart"), **settings)
    train(config)
    assert list(figures(config)) == expected


def test_figures_the_best_model_and_grids(evaluated):
    found = figures(evaluated)
    assert list(found) == [2, 4, 6]
    names = {"clip_score", "cmmd", "clip_fd", "clip_precision", "clip_recall", "diversity_clip"}
    assert {f"evaluation/{name}" for name in names} <= found[2].keys()
    assert found[2] != found[6]

    folder = Path(evaluated.output)
    scores = {step: values["evaluation/clip_score"] for step, values in found.items()}
    best = max(scores, key=lambda step: scores[step])
    kept = metadata(folder / "model-best.safetensors")
    assert (kept["step"], float(kept["value"])) == (str(best), scores[best])

    sheet = np.array(Image.open(folder / "samples" / "step-00000006.png"))
    held_out = read_held_out(evaluated.held_out_data, 64, 8)
    assert sheet.shape == (2 * 68 + 4, 4 * 68 + 4, 3)
    assert np.array_equal(sheet[4:68, 72:136], held_out.pixels[0])  # to the right of the generated
    generated = CheckpointModel(folder / "model.safetensors").images(
        held_out.captions[:1], [0], evaluated.seed
    )
    assert np.abs(sheet[4:68, 4:68].astype(int) - generated[0]).max() <= 1


def test_an_interrupted_run_repeats_the_figures_of_a_whole_one(evaluated, make_config, tmp_path):
    """Killed after step 5 (state of step 3, figures of step 4), and stopped after step 3."""
    config = make_config(steps=5, output=str(tmp_path / "resumed"), **SETTINGS)
    config = replace(config, checkpoint=replace(config.checkpoint, interval=3))
    train(config)
    folder = Path(config.output)
    for path in (folder / "checkpoints").glob("step-*"):
        if path.name > "step-00000003":
            path.rename(tmp_path / path.name)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "evalu')  # killed while it wrote
    train(replace(config, steps=6))
    assert figures(config) == figures(evaluated)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(
        (Path(evaluated.output) / "metrics.jsonl").read_text().splitlines()
    )
    best, expected = (Path(c.output) / "model-best.safetensors" for c in (config, evaluated))
    assert metadata(best) == metadata(expected)
    ours, theirs = load_file(best), load_file(expected)
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]


def test_held_out_images_are_never_trained_on(make_config):
    config = make_config(data={"held_out": 0.3})
    train_source, test_source = (open_source(data) for data in (config.data, config.held_out_data))
    keys = [{s.key(i) for i in range(len(s))} for s in (train_source, test_source)]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 32
    assert 3 <= len(keys[1]) <= 16
    more = replace(config.held_out_data, held_out=0.5)
    assert keys[1] < {open_source(more).key(i) for i in range(len(open_source(more)))}
    with pytest.raises(DataError, match="held_out = 1e-09 leaves no image of 32"):
        open_source(replace(config.held_out_data, held_out=1e-9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluation": {"interval": 1}}, "no held-out images: set data.held_out"),
        ({"checkpoint": {"best": "cmmd"}}, "set evaluation.interval"),
        ({"checkpoint": {"best": "loss"}}, "not a metric of evaluate"),
        (
            {
                "data": {"held_out": 0.3},
                "evaluation": {"interval": 1},
                "checkpoint": {"best": "fid_tf"},
            },
            "set evaluation.inception_tf",
        ),
        ({"data": {"split": "test"}}, "only with held_out"),
    ],
)
def test_settings_that_cannot_be_evaluated_are_named(make_config, settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(**settings)


def test_held_out_data_takes_the_settings_of_the_training_data(make_config, squares):
    other = make_config(evaluation={"interval": 1, "data": {"root": str(squares / "other")}})
    data = other.held_out_data
    assert (data.root, data.image_size, data.augment) == (str(squares / "other"), 64, False)
    assert TrainConfig.from_dict(json.loads(json.dumps(other.to_dict()))) == other
    zero_shot = make_config(evaluation={"interval": 1, "data": {"kind": "coco", "root": "x"}})
    assert zero_shot.held_out_data == DataConfig("coco", "x", image_size=64, augment=False, seed=0)
