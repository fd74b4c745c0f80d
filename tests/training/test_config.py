"""Configurations: what files and --set may say, and every mistake named."""

from __future__ import annotations

import json

import pytest

from galip_edge.config import named_configs
from galip_edge.errors import ConfigError
from galip_edge.models import PRESETS
from galip_edge.training.config import CheckpointConfig, TrainConfig, load_config

MINIMAL = 'output = "runs/x"\nsteps = 1\n[data]\nkind = "folder"\nroot = "images"\n'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", named_configs().values(), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid_and_survive_json(path):
    config = load_config(path.stem)
    assert config.output == f"runs/{path.stem}"
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config


@pytest.mark.parametrize("name", ["cub", "coco", "cc12m"])
def test_published_recipes(name):
    config = load_config(name)
    assert config.model == PRESETS[name]
    assert config.model.clip_input == "original"
    assert config.batch_size == 512
    assert (config.optimizer.generator_lr, config.optimizer.discriminator_lr) == (1e-4, 4e-4)
    assert config.optimizer.betas == (0.0, 0.9)
    assert config.data.image_size == 256


def test_assignments_override_the_file(file):
    config = load_config(
        str(file),
        [
            "steps=7",
            "output=elsewhere",
            "optimizer.generator_lr=2e-4",
            "optimizer.betas=[0.5, 0.99]",
            'log.prompts=["a bird", "a bus"]',
            "model.preset=tiny",
            "model.clip.text_layers=1",
            "ema_decay=0",
            "channels_last=false",
        ],
    )
    assert (config.steps, config.output) == (7, "elsewhere")
    assert config.optimizer.generator_lr == 2e-4
    assert config.optimizer.betas == (0.5, 0.99)
    assert config.log.prompts == ("a bird", "a bus")
    assert config.model.noise_dim == 16
    assert (config.model.clip.text_layers, config.model.clip.vision_layers) == (1, 4)
    assert config.ema_decay == 0.0
    assert config.channels_last is False


def test_an_empty_assignment_restores_the_default(file):
    config = load_config(str(file), ["ema_decay=0.5", "ema_decay=", "clip=random", "clip="])
    assert (config.ema_decay, config.clip) == (0.0, None)
    assert load_config(str(file), ["threads="]).threads is None  # not set before


def test_new_training_uses_the_standard_clip_input(file):
    assert load_config(str(file)).model.clip_input == "standard"


def test_data_takes_the_seed_unless_it_has_its_own(file):
    assert load_config(str(file), ["seed=5"]).data.seed == 5
    assert load_config(str(file), ["seed=5", "data.seed=2"]).data.seed == 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stepz=3", "unknown setting stepz; known at the top are output, data, model"),
        (
            "optimizer.rate=1",
            "unknown setting optimizer.rate; known in optimizer are generator_lr",
        ),
        ("model.clip.width=1", "unknown setting model.clip.width; known in model.clip"),
        ("steps=many", "steps must be an integer, got 'many'"),
        ("steps=0", "steps must be an integer of at least 1, got 0"),
        ("compile=1", "compile must be true or false, got 1"),
        ("precision=half", "precision must be one of 'float32', 'float16', 'bfloat16', got 'half'"),
        ("optimizer.betas=0.9", "optimizer.betas must be a list of numbers, got 0.9"),
        ("optimizer.betas=[0, 1]", r"optimizer: betas must be in \[0, 1\)"),
        ("data=3", "data must be a table of settings, got 3"),
        ("data.workers=true", "data.workers must be an integer, got True"),
        ("data.kind=films", "data: kind must be one of"),
        ("model.preset=huge", "model.preset must be one of .*tiny, got 'huge'"),
        ("model.tap_blocks=[]", "data.image_size 256 must be the model's 224"),
        ("ema_decay=1.0", "ema_decay must be in .* got 1.0"),
        ("batch_size=1", "batch_size must be an integer of at least 2"),
        ("evaluation.minutes=5", "evaluation: minutes = 5.0 has no effect without interval"),
        ("output.x=1", "--set output.x: output is a value"),
        ("steps", "--set needs NAME=VALUE, got 'steps'"),
    ],
)
def test_mistakes_are_named(file, assignment, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(str(file), [assignment])
    assert str(file) in str(error.value)


@pytest.mark.parametrize("other", ["precision=float16", "micro_batch_size=2"])
def test_cuda_graphs_that_would_not_be_used_are_refused(file, other):
    load_config(str(file), ["cuda_graphs=true"])
    with pytest.raises(ConfigError, match="cuda_graphs supports neither"):
        load_config(str(file), ["cuda_graphs=true", other])


def test_length_of_training_and_data_are_required(file):
    file.write_text('output = "x"\n[data]\nkind = "folder"\nroot = "images"\n')
    with pytest.raises(ConfigError, match="set epochs or steps"):
        load_config(str(file))
    file.write_text('output = "x"\nsteps = 1\n[data]\nroot = "images"\n')
    with pytest.raises(ConfigError, match="data.kind is not set"):
        load_config(str(file))


def test_missing_and_broken_files(file, tmp_path):
    with pytest.raises(ConfigError, match="cannot read nothing .*coco"):
        load_config("nothing")
    file.write_text("output = ")
    with pytest.raises(ConfigError, match="Invalid value"):
        load_config(str(file))


def test_former_names_of_settings_are_accepted(file):
    former = ["optimizer.generator_rate=3e-4", "optimizer.discriminator_rate=2e-4",
              "checkpoint.every=7", "checkpoint.keep_every=14", "log.every=3",
              "log.samples_every=9", "evaluation.every=0"]  # fmt: skip
    config = load_config(str(file), former)
    assert (config.optimizer.generator_lr, config.optimizer.discriminator_lr) == (3e-4, 2e-4)
    assert (config.checkpoint.interval, config.checkpoint.keep_interval) == (7, 14)
    assert (config.log.interval, config.log.samples_interval) == (3, 9)
    # An override applies to the file's value, whichever name either uses.
    assert load_config(
        "own-small", ["data.root=x", "checkpoint.every=7", "clip=random"]
    ).checkpoint == (CheckpointConfig(interval=7, keep=2, best="cmmd"))
