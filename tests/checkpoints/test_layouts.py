"""Original checkpoints in the layouts in which people have them."""

import logging
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published_files import nested, prefixed, published_networks, shifted
from safetensors.torch import save_file

from galip_edge.checkpoints.format import load_checkpoint, model_tensors, save_checkpoint
from galip_edge.checkpoints.layouts import flatten
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP, PRESETS, CLIPConfig

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def networks(tiny_model):
    return published_networks(tiny_model)


@pytest.fixture(scope="module")
def clip(tiny_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save({k: v.half() for k, v in tiny_model.clip.state_dict().items()}, path)
    return path


def assert_same_generator(model: GALIP, other: GALIP) -> None:
    others = model_tensors(other, discriminator=False)
    for name, tensor in model_tensors(model, discriminator=False).items():
        if not name.startswith("clip."):
            assert torch.equal(tensor, others[name]), name


LAYOUTS = {
    "compiled": lambda n: {"model": {"netG": prefixed("_orig_mod.", n["netG"])}},
    "ddp of compiled": lambda n: {"model": {"netG": prefixed("module._orig_mod.", n["netG"])}},
    "compiled ddp": lambda n: {"model": {"netG": prefixed("_orig_mod.module.", n["netG"])}},
    "ddp twice": lambda n: {"model": {"netG": prefixed("module.module.", n["netG"])}},
    "compiled inside": lambda n: {
        "netG": {k.replace("CLIP_ViT.", "CLIP_ViT._orig_mod."): v for k, v in n["netG"].items()}
    },
    "fsdp": lambda n: {"netG": prefixed("_fsdp_wrapped_module.", n["netG"])},
    "bare": lambda n: OrderedDict(n["netG"]),
    "bare, ddp": lambda n: prefixed("module.", n["netG"]),
    "without model": lambda n: {"netG": n["netG"], "netD": n["netD"], "netC": n["netC"]},
    "no netC": lambda n: {"netG": n["netG"], "netD": n["netD"]},
    "Lightning": lambda n: {
        "epoch": 3,
        "global_step": 9,
        "state_dict": prefixed("netG.", n["netG"]) | prefixed("netD.", n["netD"]),
        "optimizer_states": [{"state": {}, "param_groups": []}],
    },
    "Lightning with a metric": lambda n: {
        "state_dict": prefixed("model.netG.", n["netG"])
        | {"fid.inception.conv.weight": torch.zeros(3, 3)}
    },
    "other names": lambda n: {"generator": n["netG"], "discriminator": n["netD"]},
    "numpy numbers": lambda n: {
        "model": {"netG": n["netG"]},
        "epoch": np.int64(5),
        "best": np.float32(7.5),
        "random": ("MT19937", np.arange(624, dtype=np.uint32), 3),
    },
    "averaged only": lambda n: {"netG_ema": n["netG"]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_read(layout, networks, tiny_model, clip, tmp_path):
    torch.save(LAYOUTS[layout](networks), tmp_path / "galip.pth")
    loaded = load_checkpoint(str(tmp_path / "galip.pth"), str(clip), TINY)
    assert_same_generator(tiny_model, loaded.model)
    assert loaded.has_discriminator == (layout == "without model")


def test_flat_safetensors(networks, tiny_model, clip, tmp_path):
    save_file(prefixed("netG.", networks["netG"]), tmp_path / "flat.safetensors")
    loaded = load_checkpoint(tmp_path / "flat.safetensors", clip, TINY)
    assert_same_generator(tiny_model, loaded.model)
    assert loaded.generator == "netG"


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (lambda g, e: {"model": {"netG": g, "netG_ema": e}}, "model.netG_ema"),
        (lambda g, e: {"netG": g, "ema": prefixed("module.", e) | count()}, "ema"),
        (lambda g, e: prefixed("online_model.", g) | prefixed("ema_model.", e), "ema_model"),
        (lambda g, e: {"g": g, "g_ema": {k: v for k, v in e.items() if "CLIP" not in k}}, "g_ema"),
        (lambda g, e: {"state_dict": prefixed("netG.", g), "averaged": e}, "averaged"),
    ],
)
def test_moving_average_is_taken_and_named(content, taken, networks, clip, tmp_path, caplog):
    average = shifted(networks["netG"], 0.25)
    torch.save(content(networks["netG"], average), tmp_path / "galip.pth")
    loaded = load_checkpoint(tmp_path / "galip.pth", clip, TINY)
    assert loaded.generator == taken
    assert f"using the generator's moving average ({taken})" in caplog.text
    bias = loaded.model.state_dict()["generator.noise_projection.bias"]
    assert torch.equal(bias, average["fc_code.bias"])


def count() -> dict[str, torch.Tensor]:
    return {"n_averaged": torch.tensor(7)}


def test_several_generators_are_named(networks, clip, tmp_path):
    torch.save({"a": networks["netG"], "b": networks["netG"]}, tmp_path / "galip.pth")
    with pytest.raises(CheckpointError, match=r"galip\.pth holds several generators \(a, b\)"):
        load_checkpoint(tmp_path / "galip.pth", clip, TINY)


@pytest.mark.parametrize(
    ("extra", "named"),
    [("netG.extra.weight", r"netG\.extra\.weight"), ("netG.GBlocks.0.x", r"netG\.GBlocks\.0\.x")],
)
def test_no_tensor_of_the_generator_is_dropped(extra, named, networks, clip, tmp_path):
    content = prefixed("netG.", networks["netG"]) | {extra: torch.zeros(2)}
    torch.save(content, tmp_path / "galip.pth")
    with pytest.raises(CheckpointError, match=f"unexpected tensors: {named}"):
        load_checkpoint(tmp_path / "galip.pth", clip, TINY)


def test_loop_and_depth_end(networks, clip, tmp_path):
    loop: dict = {"netG": networks["netG"]}
    loop["again"] = loop
    with pytest.raises(CheckpointError, match="too deeply"):
        flatten(loop)
    shared: dict = {}
    for _ in range(15):
        shared = {str(i): shared for i in range(8)}  # 8**15 paths in a few bytes
    for content in (shared, nested(networks, 40), {"netG": [1]}, {"model": 5}, {"netG": 7}, [1, 2]):
        torch.save(content, tmp_path / "galip.pth")
        with pytest.raises(CheckpointError, match=r"too deeply|not a GALIP checkpoint"):
            load_checkpoint(tmp_path / "galip.pth", clip, TINY)


# A CLIP with 64 channels in each head, as all published ones have, so that shapes say it all.
SHAPES = replace(
    TINY,
    clip=CLIPConfig(
        embedding_dim=24,
        image_size=96,
        patch_size=32,
        vision_width=64,
        vision_layers=9,
        vision_heads=1,
        text_width=64,
        text_layers=1,
        text_heads=1,
        vocabulary_size=600,
    ),
    prompt_blocks=(1, 2, 3, 4, 5, 6, 7, 8),
    tap_blocks=(1, 4, 8),
    clip_input="original",
)


@pytest.mark.parametrize(
    ("sizes", "channels"),
    [
        ((8, 16, 32, 64, 128, 224), (32, 32, 32, 32, 16, 8, 4)),
        ((8, 16, 32, 64, 224), (48, 48, 48, 24, 12, 6)),
        ((8, 16, 32, 224), (16, 16, 8, 4, 2)),
    ],
)
def test_dimensions_are_read_from_shapes(sizes, channels, tmp_path):
    config = replace(SHAPES, block_sizes=sizes, block_channels=channels, noise_dim=20)
    model = GALIP(config)
    torch.save({"model": published_networks(model)}, tmp_path / "galip.pth")
    torch.save(
        {name: t.half().float() for name, t in model.clip.state_dict().items()},
        tmp_path / "clip.pt",
    )
    loaded = load_checkpoint(tmp_path / "galip.pth", tmp_path / "clip.pt")
    assert loaded.model.config == config
    assert_same_generator(model, loaded.model)


def test_sizes_that_shapes_do_not_show_are_named(tmp_path):
    sizes, channels = (8, 16, 32, 64, 128, 192, 224), (8, 8, 8, 8, 8, 4, 2, 1)
    model = GALIP(replace(SHAPES, block_sizes=sizes, block_channels=channels))
    torch.save({"model": published_networks(model)}, tmp_path / "galip.pth")
    torch.save(model.clip.state_dict(), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"galip\.pth has 7 upsampling blocks: .* config="):
        load_checkpoint(tmp_path / "galip.pth", tmp_path / "clip.pt", clip_activation="quick_gelu")


def test_files_of_ours_that_are_no_checkpoint_are_named(tiny_model, clip, tmp_path):
    torch.save({"version": 1, "parameters": {}, "moments": {}}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"training state of a run.*use model\.safetensors"):
        load_checkpoint(tmp_path / "state.pt", clip)
    with pytest.raises(CheckpointError, match="it is a CLIP: pass it as --clip"):
        load_checkpoint(clip)
    save_file(model_tensors(tiny_model), tmp_path / "lost.safetensors")
    with pytest.raises(CheckpointError, match="configuration in its metadata is missing"):
        load_checkpoint(tmp_path / "lost.safetensors")
    save_checkpoint(tiny_model, str(tmp_path / "ours.safetensors"))  # a path as text


def test_ignored_tensors_are_logged(networks, clip, tmp_path, caplog):
    torch.save({"netG": networks["netG"], "text": {"w": torch.zeros(2)}}, tmp_path / "galip.pth")
    with caplog.at_level(logging.INFO):
        load_checkpoint(tmp_path / "galip.pth", clip, TINY)
    assert "ignoring 1 tensors" in caplog.text
