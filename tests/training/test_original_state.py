"""Adam's moments from checkpoints that the authors' training script would have written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from galip_edge.checkpoints.names import translate_name
from galip_edge.checkpoints.published import original_moments
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP, PRESETS
from galip_edge.training.distributed import World
from galip_edge.training.resume import load_moments
from galip_edge.training.trainer import Trainer

pytestmark = pytest.mark.slow

SHAPES = {
    "netG": {
        "fc_code.weight": (6, 3),
        "mapping.CLIP_ViT.ln_pre.weight": (4,),
        "fc_code.bias": (6,),
    },
    "netD": {"DBlocks.0.conv_s.weight": (2, 2), "main.gamma": (1,), "main.conv_s.bias": (5,)},
    "netC": {"joint_conv.0.weight": (2, 2, 1, 1)},
}
UNUSED = ("mapping.CLIP_ViT.ln_pre.weight", "DBlocks.0.conv_s.weight")


def published(prefix: str = ""):
    """A checkpoint with a few of the original's parameters, after two steps of torch's Adam."""
    torch.manual_seed(0)
    parts = {
        part: {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
        for part, shapes in SHAPES.items()
    }
    optimizers = {}
    for name, chosen in (("optimizer_G", ("netG",)), ("optimizer_D", ("netD", "netC"))):
        parameters = {k: p for part in chosen for k, p in parts[part].items()}
        adam = torch.optim.Adam(parameters.values(), lr=1e-4, betas=(0.0, 0.9))
        for _ in range(2):
            for key, parameter in parameters.items():
                parameter.grad = None if key in UNUSED else torch.randn(parameter.shape)
            adam.step()
        optimizers[name] = adam.state_dict()
    model = {
        part: {prefix + k: p.detach() for k, p in parameters.items()}
        for part, parameters in parts.items()
    }
    return {"model": model, "optimizers": optimizers, "epoch": 7}


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_moments_are_found_by_name(tmp_path, prefix):
    content = published(prefix)
    torch.save(content, tmp_path / "state.pth")
    moments = original_moments(tmp_path / "state.pth")
    assert sorted(moments) == [
        "discriminator.joint.weight",
        "discriminator.reduction.gamma",
        "discriminator.reduction.shortcut.bias",
        "generator.noise_projection.bias",
        "generator.noise_projection.weight",
    ]
    expected = content["optimizers"]["optimizer_D"]["state"][3]
    joint = moments["discriminator.joint.weight"]
    assert torch.equal(joint["exp_avg_sq"], expected["exp_avg_sq"])
    assert joint["step"] == 2


def test_moments_reach_the_optimizer(make_config):
    trainer = Trainer(GALIP(PRESETS["tiny"]), make_config(), World())
    name, weight = "generator.to_rgb.weight", trainer.model.generator.to_rgb.weight
    moments = {k: torch.rand(weight.shape) for k in ("exp_avg", "exp_avg_sq")}
    load_moments(trainer.generator, {name: {"step": torch.tensor(5.0), **moments}})
    state = trainer.generator.optimizer.state[weight]
    assert state["step"] == 5
    assert torch.equal(state["exp_avg_sq"], moments["exp_avg_sq"])
    assert state["exp_avg"].stride() == weight.stride()  # the fused optimizer relies on it


def shorten(content):
    content["optimizers"]["optimizer_G"]["param_groups"][0]["params"].pop()


def reshape(content):
    content["optimizers"]["optimizer_D"]["state"][1]["exp_avg"] = torch.zeros(3)


def forget(content):
    del content["optimizers"]["optimizer_D"]["state"][1]


def without(content):
    del content["optimizers"]


def other_optimizer(content):
    content["optimizers"]["optimizer_G"]["state"][0] = {"momentum_buffer": torch.zeros(6, 3)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shorten, "optimizer_G has 2 parameters, the model 3"),
        (reshape, "optimizer_D has another shape for discriminator.reduction.gamma"),
        (forget, "optimizer_D has nothing for discriminator.reduction.gamma"),
        (without, "has no optimizer_G"),
        (other_optimizer, "is not Adam's"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, damage, message):
    content = published()
    damage(content)
    torch.save(content, tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match=message):
        original_moments(tmp_path / "state.pth")


def test_every_trained_parameter_has_a_name_in_the_original():
    """So that a full-size training checkpoint gives moments to all parameters, and to no others."""
    keys = json.loads((Path(__file__).parents[1] / "data" / "keys.json").read_text())
    translated = {translate_name(part, name) for part in SHAPES for name in keys[part]}
    with torch.device("meta"):
        model = GALIP(PRESETS["coco"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name in translated if name and not name.startswith("clip.")}


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(optimizers=[1, 2]),
        lambda c: c.update(optimizers={"optimizer_G": 5, "optimizer_D": 5}),
        lambda c: c["optimizers"]["optimizer_G"].pop("param_groups"),
        lambda c: c["optimizers"]["optimizer_G"].update(state=[]),
        lambda c: c.pop("model"),
        lambda c: c["model"].update(netG=3),
    ],
)
def test_unknown_layouts_are_one_sentence(change, tmp_path):
    content = published()
    change(content)
    torch.save(content, tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match="unknown layout|has no optimizer_G|has \\d+ param"):
        original_moments(tmp_path / "state.pth")
