"""The paper's ablations: each is a configuration, is built, takes a step, is saved and read."""

from __future__ import annotations

import math

import pytest
import torch

from galip_edge.checkpoints.format import load_checkpoint, save_checkpoint
from galip_edge.config import named_configs
from galip_edge.models import GALIP, ConvolutionalDiscriminator, ModelConfig
from galip_edge.training.config import load_config
from galip_edge.training.distributed import World
from galip_edge.training.trainer import Trainer

pytestmark = pytest.mark.slow

# What each leaves out of the model: (part of a parameter's name, whether it is there).
ABSENT = {
    "cub-plain-discriminator": "discriminator.taps",
    "cub-no-visual-concept": "generator.prompt_predictor",
    "cub-no-bridge": "generator.bridge.blocks",
    "cub-no-prompts": "generator.prompt_predictor",
}
SMALL = ["model.preset=small", "model.block_channels=[16,16,16,16,8,8,8]"]


@pytest.mark.parametrize("ablation", [n for n in named_configs() if n.startswith("cub-")])
def test_ablation_trains(ablation, tmp_path):
    config = load_config(ablation, [*SMALL, "batch_size=2", "precision=float32"])
    torch.manual_seed(0)
    model = GALIP(config.model)
    names = list(model.state_dict())
    if ablation in ABSENT:
        assert not any(name.startswith(ABSENT[ablation]) for name in names)
        assert any(n.startswith(ABSENT[ablation]) for n in GALIP(small()).state_dict())
    assert isinstance(model.discriminator, ConvolutionalDiscriminator) == (
        ablation == "cub-plain-discriminator"
    )

    trainer = Trainer(model, config, World())
    before = {k: p.detach().clone() for n in trainer.modules for k, p in n.parameters.items()}
    size = config.data.image_size
    report = trainer.step(0, torch.rand(2, 3, size, size) * 2 - 1, torch.randn(2, 128))
    assert all(math.isfinite(value) for value in report.values.values())
    assert report.values["discriminator/penalty"] > 0
    after = {k: p for n in trainer.modules for k, p in n.parameters.items()}
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("generator"))
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("discr"))

    save_checkpoint(model, tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path / "model.safetensors").model
    noise, sentence = torch.randn(1, config.model.noise_dim), torch.randn(1, 128)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.generator(noise, sentence), model.generator(noise, sentence)
        )


def small() -> ModelConfig:
    return load_config("cub", SMALL).model


def test_visual_concept_of_zero_and_prompts_contradict_each_other():
    with pytest.raises(ValueError, match=r"prompt_blocks \(1, 2, 3.* no effect"):
        ModelConfig(visual_concept_scale=0.0)
