"""The CLIP that a run is given: its dimensions, its formats, and what is said without it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from galip_edge.checkpoints.format import save_checkpoint
from galip_edge.errors import CheckpointError, ConfigError
from galip_edge.models import GALIP, PRESETS, CLIPConfig
from galip_edge.models.clip import build_clip
from galip_edge.training.config import load_config
from galip_edge.training.init import build_model
from galip_edge.training.run import train

pytestmark = pytest.mark.slow

# Heads 64 wide, as those of all published CLIPs, so that shapes show their number.
SMALL = CLIPConfig(
    embedding_dim=24,
    image_size=32,
    patch_size=8,
    vision_width=128,
    vision_layers=3,
    vision_heads=2,
    text_width=64,
    text_layers=1,
    text_heads=1,
    vocabulary_size=600,
)
MODEL = {
    "block_sizes": [8, 16], "block_channels": [8, 8, 8], "bridge_channels": 8,
    "bridge_hidden": 4, "bridge_blocks": 1, "prompt_blocks": [1], "tap_blocks": [0, 2],
    "discriminator_channels": 8, "score_channels": 8,
}  # fmt: skip


def clip_tensors(config: CLIPConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {n: t.contiguous() for n, t in build_clip(config).state_dict().items()}


@pytest.fixture
def ours(tmp_path):
    """A file as train-clip writes it; its heads are of an unusual width."""
    config = replace(SMALL, vision_heads=4, quick_gelu=False)
    path = tmp_path / "clip.safetensors"
    save_file(clip_tensors(config), path, {"clip": json.dumps(asdict(config))})
    return path, config


def resolved(*assignments: str, tmp_path):
    """The configuration `tiny` with MODEL instead of its preset."""
    model = [f"model.{name}={value}" for name, value in MODEL.items()]
    paths = [f"output={tmp_path / 'run'}", f"data.root={tmp_path}"]
    return load_config("tiny", [*paths, "model={}", *model, *assignments])


def test_a_clip_of_train_clip_brings_its_dimensions(ours, tmp_path):
    path, dimensions = ours
    config = resolved(f"clip={path}", tmp_path=tmp_path)
    assert config.model.clip == dimensions
    model, _ = build_model(config, resuming=False)
    for name, tensor in clip_tensors(dimensions).items():
        assert torch.equal(model.clip.state_dict()[name], tensor), name


def test_a_checkpoint_of_ours_is_a_clip(tmp_path):
    torch.manual_seed(1)
    model = GALIP(PRESETS["tiny"])
    save_checkpoint(model, tmp_path / "model.safetensors")
    config = resolved(f"clip={tmp_path / 'model.safetensors'}", "model.tap_blocks=[0, 3]",
                      tmp_path=tmp_path)  # fmt: skip
    assert config.model.clip == PRESETS["tiny"].clip
    built, _ = build_model(config, resuming=False)
    assert torch.equal(built.clip.visual.proj, model.clip.visual.proj)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_clip_of_open_clip_brings_its_dimensions(activation, tmp_path):
    tensors = {f"module.{name}": tensor for name, tensor in clip_tensors(SMALL).items()}
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "epoch_3.pt")
    config = resolved(
        f"clip={tmp_path / 'epoch_3.pt'}", f"clip_activation={activation}", tmp_path=tmp_path
    )
    assert config.model.clip == replace(SMALL, quick_gelu=activation == "quick_gelu")
    build_model(config, resuming=False)


def test_the_preset_gives_way_to_the_clip(ours, tmp_path):
    path, dimensions = ours
    settings = [f"clip={path}", f"output={tmp_path}", f"data.root={tmp_path}",
                "model.block_sizes=[8, 16, 32, 64]", "model.tap_blocks=[0, 2]"]  # fmt: skip
    assert load_config("tiny", settings).model.clip == dimensions


def test_other_dimensions_than_the_files_are_refused(ours, tmp_path):
    path, _ = ours
    with pytest.raises(ConfigError, match=r"text_width is 96, the file has 64.*omit"):
        resolved(f"clip={path}", "model.clip.text_width=96", tmp_path=tmp_path)
    resolved(f"clip={path}", "model.clip.text_width=64", tmp_path=tmp_path)
    with pytest.raises(ConfigError, match=r"unknown .*width"):
        resolved(f"clip={path}", "model.clip.width=96", tmp_path=tmp_path)


def test_a_file_that_is_no_clip_is_named(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt is not a CLIP"):
        resolved(f"clip={tmp_path / 'other.pt'}", tmp_path=tmp_path)


def test_a_missing_file_is_named_when_it_is_needed(tmp_path):
    config = resolved(f"clip={tmp_path / 'none.pt'}", tmp_path=tmp_path)
    with pytest.raises(CheckpointError, match=r"none\.pt"):
        build_model(config, resuming=False)


def test_a_run_that_began_needs_its_clip_no_longer(ours, squares, tmp_path):
    path, dimensions = ours
    settings = [f"clip={path}", f"data.root={squares}", "batch_size=4", "log.samples_interval=0",
                "log.tensorboard=false", "data.image_size=16"]  # fmt: skip
    result = train(resolved(*settings, "steps=1", tmp_path=tmp_path))
    path.unlink()
    config = resolved(*settings, "steps=2", tmp_path=tmp_path)
    assert config.model.clip == dimensions
    assert train(config).step == 2
    assert result.model.exists()


def test_without_a_network_the_option_that_exists_is_named(tmp_path, monkeypatch):
    def no_network(*_: object) -> None:
        raise OSError("name or service not known")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    config = load_config("own", [f"data.root={tmp_path}", f"output={tmp_path / 'run'}"])
    with pytest.raises(CheckpointError, match=r"--set clip=PATH.*train-clip own"):
        build_model(config, resuming=False)


@pytest.fixture
def drawings(tmp_path):
    """64 images of four random ellipses: more variety than squares of four colours."""
    folder, random = tmp_path / "drawings", np.random.default_rng(0)
    folder.mkdir()
    for i in range(64):
        image = Image.new("RGB", (64, 64), "white")
        for _ in range(4):
            (x, y), (w, h) = random.integers(8, 40, 2).tolist(), random.integers(8, 24, 2).tolist()
            colour = tuple(random.integers(0, 256, 3).tolist())
            ImageDraw.Draw(image).ellipse((x, y, x + w, y + h), fill=colour)
        image.save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"drawing {i}")
    return folder


def test_tiny_keeps_a_living_discriminator(drawings, tmp_path):
    # Hinge losses add up to 2 where the scores of real and generated images are alike.
    settings = [f"data.root={drawings}", f"output={tmp_path / 'run'}", "steps=30",
                "log.samples_interval=0", "log.tensorboard=false"]  # fmt: skip
    train(load_config("tiny", settings))
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    totals = [record["discriminator/total"] for record in log if "discriminator/total" in record]
    assert len(totals) == 3
    assert max(totals[1:]) < 1.8
