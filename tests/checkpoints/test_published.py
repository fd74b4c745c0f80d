"""Export to the authors' layout and back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_files import published_networks

from galip_edge.checkpoints.format import load_checkpoint, model_tensors, save_checkpoint
from galip_edge.checkpoints.names import translate_name
from galip_edge.checkpoints.published import published_name, save_published, unlike_published
from galip_edge.cli import main
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP, PRESETS

DATA = Path(__file__).parents[1] / "data"
COCO = PRESETS["coco"]


def test_names_and_shapes_are_those_of_the_published_files():
    """Each key of the original's state dicts, which its strict loading needs, and no other."""
    keys = json.loads((DATA / "keys.json").read_text())
    with torch.device("meta"):
        tensors = model_tensors(GALIP(COCO))
    found: dict[str, dict[str, list[int]]] = {"netG": {}, "netD": {}, "netC": {}}
    for name, tensor in tensors.items():
        if (where := published_name(name)) is not None:
            found[where[0]][where[1]] = list(tensor.shape)
            assert translate_name(*where) == name
        else:
            assert name.startswith("clip.")
    for i in range(2):
        found["netD"][f"DBlocks.{i}.conv_s.weight"] = [768, 768, 1, 1]
        found["netD"][f"DBlocks.{i}.conv_s.bias"] = [768]
    assert found == {part: keys[part] for part in found}


def test_round_trip(tiny_model, tmp_path):
    torch.save({"model": published_networks(tiny_model)}, tmp_path / "galip.pth")
    torch.save(tiny_model.clip.state_dict(), tmp_path / "clip.pt")
    loaded = load_checkpoint(tmp_path / "galip.pth", tmp_path / "clip.pt", PRESETS["tiny"])
    assert loaded.has_discriminator
    for name, tensor in model_tensors(loaded.model).items():
        assert torch.equal(tensor, model_tensors(tiny_model)[name]), name


def test_frozen_clip_is_in_float16_and_nothing_shares_memory(tiny_model):
    networks = published_networks(tiny_model)
    for name, tensor in networks["netG"].items():
        assert tensor.dtype == (torch.float16 if "CLIP_ViT" in name else torch.float32), name
    assert networks["netG"]["fc_code.bias"].data_ptr() != (
        tiny_model.generator.noise_projection.bias.data_ptr()
    )
    assert all(t.eq(0).all() for n, t in networks["netD"].items() if "conv_s" in n and "DB" in n)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, None),
        ({"noise_dim": 64}, None),
        ({"block_channels": tuple(32 * c for c in (8, 8, 8, 8, 4, 2, 1))}, None),
        ({"clip_input": "standard"}, None),
        ({"bridge_blocks": 3}, r"bridge_blocks 3 \(theirs: 4\)"),
        ({"prompt_blocks": (1, 2)}, r"prompt_blocks \(1, 2\)"),
        ({"visual_concept_scale": 0.2}, "visual_concept_scale 0.2"),
        ({"block_sizes": (8, 16, 32, 64, 128, 256)}, r"block_sizes .*256\) \(theirs: .*224"),
        ({"block_channels": (512, 512, 512, 512, 256, 128, 32)}, "block_channels"),
        ({"clip": replace(COCO.clip, quick_gelu=False)}, "quick_gelu False"),
        ({"clip": replace(COCO.clip, text_layers=6)}, "text_layers 6"),
    ],
)
def test_what_their_code_cannot_have_is_named(
    change, named, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    config = replace(COCO, **change)
    found = unlike_published(config)
    assert bool(found) == bool(named)
    if named:
        with torch.device("meta"):
            model = GALIP(config)
        with pytest.raises(CheckpointError, match=f"authors' code cannot load .* {named}"):
            save_published(model, tmp_path / "galip.pth")
        assert not list(tmp_path.iterdir())


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def as_theirs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the tiny model pass for one of theirs: the published size takes minutes."""
    monkeypatch.setattr("galip_edge.checkpoints.published._PUBLISHED", PRESETS["tiny"])
    monkeypatch.setattr("galip_edge.checkpoints.published.unlike_published", lambda _: [])
    return lambda: None


def test_command(as_theirs, tiny_model, tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "galip.pth"
    assert run("export-original", tiny_checkpoint, "-o", out) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(out)
    assert "not to continue training" in captured.err
    content = torch.load(out, weights_only=True)
    assert content.keys() == {"model"}
    assert run("export-original", tiny_checkpoint, "-o", out) == 1
    assert "exists: choose another file with -o" in capsys.readouterr().err
    save_checkpoint(tiny_model, tmp_path / "half.safetensors", discriminator=False)
    assert run("export-original", tmp_path / "half.safetensors") == 0
    assert "netD and netC are empty" in capsys.readouterr().err
    assert torch.load(tmp_path / "half.pth", weights_only=True)["model"]["netC"] == {}


def test_command_names_what_differs(tiny_checkpoint, tmp_path, capsys):
    assert run("export-original", tiny_checkpoint, "-o", tmp_path / "galip.pth") == 1
    assert "the authors' code cannot load this model: it differs in" in capsys.readouterr().err
    assert run("export-original", tmp_path / "nothing.safetensors") == 1


@pytest.mark.full_size
def test_full_size_round_trip(full_size_model, full_size_files, tmp_path):
    """Equal to the file that it was imported from, except the shortcuts that are never used."""
    save_published(full_size_model, tmp_path / "galip.pth")
    exported = torch.load(tmp_path / "galip.pth", weights_only=True)["model"]
    source = torch.load(full_size_files["galip"], weights_only=True)["model"]
    for part, tensors in source.items():
        assert exported[part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            if "conv_s" not in name or "main" in name:
                assert torch.equal(exported[part][name], tensor), name
