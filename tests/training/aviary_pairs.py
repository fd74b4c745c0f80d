"""A tiny model that learns from pairs of noise and image: for tests of regression and warm-up."""

import torch

from galip_edge.models import GALIP
from galip_edge.training.config import load_config
from galip_edge.training.distributed import World
from galip_edge.training.trainer import Trainer

SETTINGS = [
    "model.preset=tiny", "data.image_size=64", "data.resize=64", "data.workers=0",
    "data.samples=64", "precision=float32", "clip=random", "text_cache=none", "batch_size=4",
    "log.tensorboard=false", "log.samples_every=0", "log.every=1", "translation=0",
    "model.noise_dim=100", "checkpoint.every=2",
]  # fmt: skip


def aviary_config(tmp_path, *changes):
    """The aviary's, with the tiny model."""
    path = tmp_path / "aviary.toml"
    path.write_text('[model]\n[data]\nkind = "aviary"\nflip = false\n[regression]\nweight = 10.0\n')
    return load_config(str(path), [*SETTINGS, f"output={tmp_path}/run", *changes])


def trainer(config) -> Trainer:
    torch.manual_seed(0)
    return Trainer(GALIP(config.model), config, World())


def batch(count=6):
    generator = torch.Generator().manual_seed(1)
    squares = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(squares, size=(64, 64))
    return (images, torch.randn(count, 32, generator=generator),
            torch.randn(count, 100, generator=generator))  # fmt: skip
