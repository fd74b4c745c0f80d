"""Checkpoints in several files: whole, bounded, and continued from."""

import json
from pathlib import Path

import pytest
import torch
from clip_runs import write_images

from galip_edge.checkpoints.format import load_checkpoint, model_tensors, save_sharded_checkpoint
from galip_edge.checkpoints.sharded import INDEX, read_sharded, save_sharded
from galip_edge.cli import main
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP, PRESETS


@pytest.fixture(scope="module")
def model() -> GALIP:
    torch.manual_seed(0)
    return GALIP(PRESETS["tiny"])


@pytest.fixture
def index(model, tmp_path):
    return save_sharded_checkpoint(model, tmp_path / "model", 2**18, dtype=torch.float16)


def test_it_loads_as_one_checkpoint_does(model, index):
    loaded = load_checkpoint(index)
    assert loaded.has_discriminator
    assert loaded.model.config == model.config
    theirs = model_tensors(loaded.model)
    for name, tensor in model_tensors(model).items():
        assert torch.equal(tensor.half().float(), theirs[name].float()), name


def test_files_are_bounded_and_have_one_part_each(index):
    weight_map = json.loads(index.read_text())["weight_map"]
    files = set(weight_map.values())
    assert len(files) > 4
    largest = max(torch.Size((1,)).numel(), *(f.stat().st_size for f in index.parent.iterdir()))
    tensors, _ = read_sharded(index)
    single = max(t.numel() * t.element_size() for t in tensors.values())
    assert largest <= max(2**18, single + 4096)
    for file in files:
        assert len({n.split(".")[0] for n, f in weight_map.items() if f == file}) == 1


def test_a_frozen_part_stays_in_the_same_files(model, index, tmp_path):
    frozen = {p.name: p.read_bytes() for p in index.parent.glob("clip*")}
    changed = GALIP(PRESETS["tiny"])
    changed.clip.load_state_dict(model.clip.state_dict())
    save_sharded_checkpoint(changed, index.parent, 2**18, dtype=torch.float16)
    assert frozen
    assert {p.name: p.read_bytes() for p in index.parent.glob("clip*")} == frozen


def test_damage_is_named(index):
    with pytest.raises(CheckpointError, match=r"cannot read .*x\.safetensors\.index\.json"):
        load_checkpoint(index.parent / "x.safetensors.index.json")
    file = next(index.parent.glob("generator*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=file.name):
        load_checkpoint(index)
    file.unlink()
    with pytest.raises(CheckpointError, match=file.name):
        load_checkpoint(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not the index"),
        ("{", "not the index"),
        ('{"weight_map": {"a": "../other.safetensors"}}', "other"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "passwd"),
        ('{"weight_map": {"a": "code.pt"}}', "code.pt"),
        ('{"weight_map": {"a": 3}}', "3"),
    ],
)
def test_an_index_may_only_name_files_next_to_it(tmp_path, content, message):
    path = tmp_path / INDEX
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_sharded(path)


def test_a_tensor_without_a_place_is_found(tmp_path):
    index = save_sharded({"a.x": torch.ones(2), "b.y": torch.ones(3)}, {}, tmp_path / "m", 2**16)
    content = json.loads(index.read_text())
    del content["weight_map"]["b.y"]
    content["weight_map"]["b.z"] = "b.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"b\.[yz]"):
        read_sharded(index)


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    return exit_.value.code


@pytest.mark.slow
def test_a_run_is_exported_and_continued_with_its_heads(tmp_path, capsys):
    settings = [
        "model.preset=tiny", "data.image_size=64", "data.resize=64", "data.workers=0",
        f"data.root={write_images(tmp_path / 'images', 8)}", "precision=float32", "clip=random",
        "text_cache=none", "batch_size=4",
        "log.tensorboard=false", "log.samples_interval=0", "projected.width=8",
        "projected.projection=4", "steps=2",
    ]  # fmt: skip
    config = tmp_path / "run.toml"
    config.write_text('[model]\n[data]\nkind = "folder"\n[projected]\nweight = 1.0\n')
    sets = [part for s in settings for part in ("--set", s)]
    assert run("train", config, *sets, "--set", f"output={tmp_path}/run") == 0
    capsys.readouterr()
    exported = tmp_path / "exported"
    assert run("export-checkpoint", tmp_path / "run", exported, "--half", "--file-size", 1,
               "--json") == 0  # fmt: skip
    index = Path(json.loads(capsys.readouterr().out)["checkpoint"])
    assert sorted(p.name for p in exported.glob("projected*")) == ["projected.safetensors"]
    heads, _ = read_weights_of(exported / "projected.safetensors")
    # A rate of next to nothing shows what the second run started from.
    still = [part for s in ("optimizer.generator_lr=1e-9", "optimizer.discriminator_lr=1e-9",
                            "projected.learning_rate=1e-9", "steps=1", f"start={index}",
                            "projected.matching_weight=0.1",
                            f"output={tmp_path}/next") for part in ("--set", s)]  # fmt: skip
    kept = [part for s in settings if not s.startswith("clip") for part in ("--set", s)]
    assert run("train", config, *kept, *still) == 0
    capsys.readouterr()
    assert run("export-checkpoint", tmp_path / "next", tmp_path / "again", "--half",
               "--file-size", 1) == 0  # fmt: skip
    again, _ = read_weights_of(tmp_path / "again/projected.safetensors")
    for name, tensor in heads.items():
        if not name.endswith(("_u", "_v")):
            assert torch.allclose(again[name].float(), tensor.float(), atol=2e-3), name
    # Heads are the same with and without the contrastive loss.
    assert "matcher.to_image.weight" in again
    third = [part for s in ("steps=1", f"start={tmp_path}/again/{index.name}",
                            f"output={tmp_path}/third") for part in ("--set", s)]  # fmt: skip
    assert run("train", config, *kept, *third) == 0
    capsys.readouterr()
    assert run("export-checkpoint", index, tmp_path / "one.safetensors", "--half") == 0
    assert load_checkpoint(tmp_path / "one.safetensors").has_discriminator
    assert run("export-checkpoint", index, tmp_path / "one", "--half") == 2


def read_weights_of(path):
    from galip_edge.checkpoints.safe_load import read_weights

    return read_weights(path)
