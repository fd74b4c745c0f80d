import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from galip_edge.checkpoints.format import load_checkpoint, model_tensors, read_clip, save_checkpoint
from galip_edge.checkpoints.names import translate_name
from galip_edge.checkpoints.safe_load import read_weights
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP, PRESETS

DATA = Path(__file__).parents[1] / "data"
TINY = PRESETS["tiny"]

# Ours to the original's, written apart from the rules under test.
TO_ORIGINAL = [
    (r"generator\.noise_projection", "netG.fc_code"),
    (r"generator\.bridge\.blocks\.(\d+)", r"netG.mapping.FBlocks.\1"),
    (r"generator\.bridge\.to_feature", "netG.mapping.conv_fuse"),
    (r"generator\.prompt_predictor", "netG.mapping.fc_prompt"),
    (r"generator\.visual_projection", "netG.mapping.conv"),
    (r"generator\.upsampling\.(\d+)\.conv(\d)", r"netG.GBlocks.\1.c\2"),
    (r"generator\.upsampling\.(\d+)\.shortcut", r"netG.GBlocks.\1.c_sc"),
    (r"generator\.upsampling\.(\d+)", r"netG.GBlocks.\1"),
    (r"generator\.to_rgb", "netG.to_rgb.1"),
    (r"fusion(\d)\.affine(\d)\.(gamma|beta)\.0", r"fuse\1.affine\2.fc_\3.linear1"),
    (r"fusion(\d)\.affine(\d)\.(gamma|beta)\.2", r"fuse\1.affine\2.fc_\3.linear2"),
    (r"discriminator\.taps\.(\d+)\.residual\.conv1", r"netD.DBlocks.\1.conv_r.0"),
    (r"discriminator\.taps\.(\d+)\.residual\.conv2", r"netD.DBlocks.\1.conv_r.2"),
    (r"discriminator\.taps\.(\d+)", r"netD.DBlocks.\1"),
    (r"discriminator\.reduction\.residual\.conv1", "netD.main.conv_r.0"),
    (r"discriminator\.reduction\.residual\.conv2", "netD.main.conv_r.2"),
    (r"discriminator\.reduction\.shortcut", "netD.main.conv_s"),
    (r"discriminator\.reduction", "netD.main"),
    (r"discriminator\.joint", "netC.joint_conv.0"),
    (r"discriminator\.to_score", "netC.joint_conv.2"),
]


def as_original(model: GALIP, prefix: str = "") -> dict:
    """The layout of the published files, with a float16 ViT and unused shortcuts."""
    content: dict = {"netG": {}, "netD": {}, "netC": {}}
    for name, tensor in model_tensors(model).items():
        for ours, theirs in TO_ORIGINAL:
            name = re.sub(ours, theirs, name)
        part, _, rest = name.partition(".")
        if part in content:
            content[part][prefix + rest] = tensor.clone()
        elif rest.startswith("visual.") and not rest.startswith(("visual.ln_post", "visual.proj")):
            key = f"{prefix}mapping.CLIP_ViT.{rest.removeprefix('visual.')}"
            content["netG"][key] = tensor.half()
    width = model.config.clip.vision_width
    for i in range(len(model.config.tap_blocks) - 1):
        content["netD"][f"{prefix}DBlocks.{i}.conv_s.weight"] = torch.zeros(width, width, 1, 1)
        content["netD"][f"{prefix}DBlocks.{i}.conv_s.bias"] = torch.zeros(width)
    return {"model": content, "epoch": 3}


@pytest.fixture
def clip_file(tiny_model, tmp_path) -> Path:
    path = tmp_path / "clip.pt"
    torch.save({k: v.half() for k, v in tiny_model.clip.state_dict().items()}, path)
    return path


def assert_same(model: GALIP, other: GALIP, tolerance: float = 0) -> None:
    for name, tensor in model_tensors(model).items():
        torch.testing.assert_close(
            model_tensors(other)[name], tensor, rtol=0, atol=tolerance, msg=name
        )


def test_own_format_round_trips(tiny_model, tmp_path):
    save_checkpoint(tiny_model, tmp_path / "m.safetensors")
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    assert loaded.model.config == tiny_model.config
    assert (loaded.source, loaded.has_discriminator) == ("galip-edge", True)
    assert_same(tiny_model, loaded.model)


def test_float16_without_discriminator_is_a_quarter_of_the_work(tiny_model, tmp_path):
    save_checkpoint(tiny_model, tmp_path / "full.safetensors")
    save_checkpoint(
        tiny_model, tmp_path / "half.safetensors", discriminator=False, dtype=torch.float16
    )
    loaded = load_checkpoint(tmp_path / "half.safetensors")
    assert not loaded.has_discriminator
    for name, tensor in model_tensors(tiny_model, discriminator=False).items():
        assert torch.equal(model_tensors(loaded.model)[name], tensor.half().float()), name
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.55 * sizes[0]


def test_every_published_name_is_known_and_fills_the_model():
    keys = json.loads((DATA / "keys.json").read_text())
    translated = {
        translate_name(part, name): shape
        for part in ("netG", "netD", "netC")
        for name, shape in keys[part].items()
    }
    assert None not in translated
    translated.pop("")  # the unused shortcuts
    with torch.device("meta"):
        expected = model_tensors(GALIP(PRESETS["coco"]))
    for name, shape in translated.items():
        assert list(expected[name].shape) == shape, name
    only_in_clip = {name for name in expected if name not in translated}
    assert only_in_clip == {f"clip.{name}" for name in keys["clip"]} - translated.keys()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.slow
def test_original_checkpoint_is_imported(prefix, tiny_model, clip_file, tmp_path):
    torch.save(as_original(tiny_model, prefix), tmp_path / "galip.pth")
    loaded = load_checkpoint(tmp_path / "galip.pth", clip_file, TINY)
    assert (loaded.source, loaded.has_discriminator) == ("original", True)
    assert_same(tiny_model, loaded.model, tolerance=2e-3)  # CLIP went through float16
    trained = {n: t for n, t in model_tensors(tiny_model).items() if not n.startswith("clip.")}
    for name, tensor in trained.items():
        assert torch.equal(model_tensors(loaded.model)[name], tensor), name


@pytest.mark.parametrize("start", [b"\x80", b"PK"], ids=["like a pickle", "like a zip archive"])
def test_safetensors_whose_length_looks_like_another_format(start, tmp_path, tiny_model):
    """The file begins with its header's length, which may be any number."""
    path = tmp_path / "m.safetensors"
    wanted = int.from_bytes(start, "little")
    save_checkpoint(tiny_model, path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    filling = wanted - length
    while filling < 100:
        filling += 256 ** len(start)
    save_checkpoint(tiny_model, path, extra={"note": "x" * (filling - len(',"note":""'))})
    assert path.read_bytes().startswith(start)
    assert load_checkpoint(path).source == "galip-edge"


@pytest.mark.parametrize("layout", ["state_dict", "open_clip", "safetensors", "torchscript"])
def test_clip_is_read_in_every_published_layout(layout, tiny_model, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in tiny_model.clip.state_dict().items()}
    path = tmp_path / "clip"
    if layout == "state_dict":
        sizes = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}
        torch.save(tensors | {k: torch.tensor(v) for k, v in sizes.items()}, path)
    elif layout == "open_clip":
        training = {f"module.{k}": v for k, v in tensors.items()}
        torch.save({"epoch": 1, "name": "run", "state_dict": training}, path)
    elif layout == "safetensors":
        save_file(tensors | {"logit_scale": tensors["logit_scale"].reshape(1)}, path)
    else:
        write_torchscript(tensors, path)
    read = read_clip(path, TINY.clip)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def write_torchscript(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Nested scripted modules with the names of `tensors`, as OpenAI's archive has them."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch.nn.Module())
            module = module._modules[parent]
        module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))

    class Scripted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in root.named_children():
                self.add_module(name, child)
            for name, parameter in root.named_parameters(recurse=False):
                self.register_parameter(name, parameter)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.save(torch.jit.script(Scripted()), path)


def test_another_clip_is_refused(tiny_model, tmp_path):
    torch.save(as_original(tiny_model), tmp_path / "galip.pth")
    tensors = {name: tensor.clone() for name, tensor in tiny_model.clip.state_dict().items()}
    tensors["visual.ln_pre.weight"] += 0.5
    torch.save(tensors, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"not the one .* visual\.ln_pre\.weight differs"):
        load_checkpoint(tmp_path / "galip.pth", tmp_path / "clip.pt", TINY)


def test_missing_clip_offline_says_how_to_supply_it(tiny_model, tmp_path, monkeypatch):
    torch.save(as_original(tiny_model), tmp_path / "galip.pth")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)

    def no_network(*_: object) -> None:
        raise OSError("name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(CheckpointError, match=r"https://huggingface\.co/.*--clip PATH"):
        load_checkpoint(tmp_path / "galip.pth", None, TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.pop("fc_code.bias"), r"missing: generator\.noise_projection\.bias"),
        (
            lambda g: g.update({"GBlocks.0.extra.weight": torch.zeros(1)}),
            r"unexpected tensors: netG\.GBlocks\.0\.extra\.weight",
        ),
        (
            lambda g: g.update({"fc_code.bias": torch.zeros(5)}),
            r"wrong shape: generator\.noise_projection\.bias is \(5,\), must be \(256,\)",
        ),
        (
            lambda g: g["to_rgb.1.weight"].fill_(float("nan")),
            r"NaN or infinite values in: generator\.to_rgb\.weight",
        ),
    ],
)
def test_every_tensor_is_accounted_for(change, message, tiny_model, clip_file, tmp_path):
    content = as_original(tiny_model)
    change(content["model"]["netG"])
    torch.save(content, tmp_path / "galip.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "galip.pth", clip_file, TINY)


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["torch", "pickle", "torchscript"])
def test_pickled_code_is_refused_and_does_not_run(how, tmp_path):
    path, proof = tmp_path / "galip.pth", tmp_path / "ran"
    if how == "torch":
        torch.save({"model": {"netG": Bomb(proof)}}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(proof)))
    else:
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(proof), protocol=2))
            archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="could run code hidden in it"):
        load_checkpoint(path)
    assert not proof.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["ours", "original"])
def test_truncated_file_is_one_clear_sentence(kind, share, tiny_model, tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(tiny_model, path) if kind == "ours" else torch.save(
        as_original(tiny_model), path
    )
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="damaged|incomplete|is empty"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "cannot read .*No such file"),
        (lambda p: p.mkdir(), "cannot read .*folder"),
        (lambda p: p.write_text("hello " * 99), "is text, not a PyTorch or safetensors checkpoint"),
        (lambda p: torch.save({"weights": torch.zeros(2)}, p), "is not a GALIP checkpoint"),
        (lambda p: save_file({"a": torch.zeros(2)}, p), "is not a GALIP checkpoint"),
    ],
)
def test_other_files_are_refused(make, message, tmp_path):
    make(tmp_path / "file")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "file")


def test_newer_format_says_so(tiny_model, tmp_path):
    path = tmp_path / "m.safetensors"
    metadata = {"format": "galip-edge checkpoint", "format_version": "2", "config": "{}"}
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(CheckpointError, match="checkpoint format 2, this version reads 1"):
        load_checkpoint(path)


def test_full_disk_leaves_the_old_file(tiny_model, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"precious")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("galip_edge.checkpoints.format.save_file", full)
    with pytest.raises(Exception, match="No space left on device"):
        save_checkpoint(tiny_model, path)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.full_size
def test_prefixed_full_size_checkpoint_is_the_same_model(full_size_files, full_size_model):
    other = load_checkpoint(full_size_files["galip_ddp"], full_size_files["clip"])
    assert_same(full_size_model, other.model)


def test_weights_reader_shares_storages(tmp_path):
    shared = torch.arange(6.0)
    torch.save({"a": shared[:3], "b": shared.view(2, 3).t()}, tmp_path / "w.pt")
    read, metadata = read_weights(tmp_path / "w.pt")
    assert metadata == {}
    assert torch.equal(read["b"], shared.view(2, 3).t())
