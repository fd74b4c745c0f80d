"""Coloured squares with captions, a tiny CLIP that knows them, and configurations to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from galip_edge.data import DataConfig, build_dataset
from galip_edge.models import GALIP, PRESETS
from galip_edge.models.clip import build_clip, clip_pixels
from galip_edge.tokenizer import build_tokenizer
from galip_edge.training.config import TrainConfig

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "black": (9, 9, 9)}
CAPTIONS = [f"a {colour} square on white paper" for colour in COLOURS]


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny operations gain nothing from more threads, and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    with nullcontext() if request.node.get_closest_marker("full_size") else one_thread():
        yield


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 images of 4 kinds."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for i in range(32):
        image = np.full((72, 72, 3), 255.0)
        image[16:56, 16:56] = list(COLOURS.values())[i % 4]
        noisy = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(CAPTIONS[i % 4] + "\n")
    return folder


@pytest.fixture(scope="session")
def colours() -> dict[str, tuple[int, int, int]]:
    """Data of the squares."""
    return COLOURS


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """Captions of the squares, one for each kind."""
    return CAPTIONS


@pytest.fixture(scope="session")
def clip_file(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP, trained until it distinguishes the squares: a random one does not."""
    config = PRESETS["tiny"].clip
    torch.manual_seed(0)
    clip = build_clip(config).requires_grad_(True)
    data = build_dataset(DataConfig("folder", str(squares), image_size=64, augment=False))
    pixels = clip_pixels(torch.stack([data[i].image for i in range(32)]), config.image_size)
    tokens = torch.from_numpy(build_tokenizer(config)(CAPTIONS))
    labels = torch.arange(32) % 4
    optimizer = torch.optim.Adam(clip.parameters(), lr=3e-3)
    with one_thread():
        for _ in range(120):
            images = F.normalize(clip.encode_image(pixels + 0.1 * torch.randn_like(pixels)), dim=1)
            texts = F.normalize(clip.encode_text(tokens), dim=1)
            loss = F.cross_entropy(10 * images @ texts.T, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(clip.state_dict(), path)
    return path


@pytest.fixture
def make_config(squares: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration of the tiny model, in float32, without any extras."""

    def make(**settings: Any) -> TrainConfig:
        values = {
            "output": str(tmp_path / "run"),
            "data": {"kind": "folder", "root": str(squares), "image_size": 64, "workers": 0},
            "model": {"preset": "tiny"},
            "log": {"tensorboard": False, "samples_interval": 0, "interval": 1},
            "batch_size": 8,
            "steps": 4,
            "precision": "float32",
            "clip": "random",
            "text_cache": "none",
            "threads": 1,
        }
        for name, value in settings.items():
            if isinstance(value, dict):
                value = {**values.get(name, {}), **value}
            values[name] = value
        return TrainConfig.from_dict(values)

    return make


@pytest.fixture
def perturbed_model() -> GALIP:
    """The tiny model with weights that no initialization sets to zero."""
    torch.manual_seed(0)
    model = GALIP(PRESETS["tiny"])
    for parameter in model.generator.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model
