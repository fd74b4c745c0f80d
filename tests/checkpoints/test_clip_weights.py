"""CLIP in every layout, its activation, and files that hold another one."""

import io
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from galip_edge.checkpoints.clip_weights import architecture, read_clip_weights
from galip_edge.checkpoints.format import _with_clip, read_clip, save_checkpoint
from galip_edge.errors import CheckpointError
from galip_edge.models import PRESETS, CLIPConfig
from galip_edge.models.clip import build_clip

TINY = PRESETS["tiny"].clip


@pytest.fixture(scope="module")
def clip() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: t.half().float() for name, t in build_clip(TINY).state_dict().items()}


def as_hugging_face(clip: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' names, written apart from the rules under test."""
    out = {
        "logit_scale": clip["logit_scale"],
        "text_projection.weight": clip["text_projection"].T,
        "visual_projection.weight": clip["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": clip["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": clip["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.class_embedding": clip["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": clip["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": clip["visual.positional_embedding"],
    }
    for part in ("weight", "bias"):
        out[f"text_model.final_layer_norm.{part}"] = clip[f"ln_final.{part}"]
        out[f"vision_model.pre_layrnorm.{part}"] = clip[f"visual.ln_pre.{part}"]
        out[f"vision_model.post_layernorm.{part}"] = clip[f"visual.ln_post.{part}"]
        for theirs, ours, layers in (
            ("text_model", "transformer", TINY.text_layers),
            ("vision_model", "visual.transformer", TINY.vision_layers),
        ):
            for i in range(layers):
                new, old = f"{theirs}.encoder.layers.{i}", f"{ours}.resblocks.{i}"
                out[f"{new}.layer_norm1.{part}"] = clip[f"{old}.ln_1.{part}"]
                out[f"{new}.layer_norm2.{part}"] = clip[f"{old}.ln_2.{part}"]
                out[f"{new}.mlp.fc1.{part}"] = clip[f"{old}.mlp.c_fc.{part}"]
                out[f"{new}.mlp.fc2.{part}"] = clip[f"{old}.mlp.c_proj.{part}"]
                out[f"{new}.self_attn.out_proj.{part}"] = clip[f"{old}.attn.out_proj.{part}"]
                for letter, tensor in zip("qkv", clip[f"{old}.attn.in_proj_{part}"].chunk(3)):
                    out[f"{new}.self_attn.{letter}_proj.{part}"] = tensor
    return {name: tensor.contiguous().clone() for name, tensor in out.items()}


def write_config(folder: Path, text: str = "quick_gelu", vision: str = "quick_gelu") -> None:
    values = {"text_config": {"hidden_act": text}, "vision_config": {"hidden_act": vision}}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"} | values))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("given", ["file", "folder"])
def test_hugging_face_layout(name, given, clip, tmp_path):
    theirs, path = as_hugging_face(clip), tmp_path / name
    save_file(theirs, path, {"format": "pt"}) if path.suffix == ".safetensors" else torch.save(
        theirs, path
    )
    write_config(tmp_path)
    read = read_clip(str(path if given == "file" else tmp_path), TINY)
    assert read.keys() == clip.keys()
    assert all(torch.equal(read[n], clip[n]) for n in clip)
    assert read_clip_weights(tmp_path).activation == "quick_gelu"


@pytest.mark.parametrize(
    ("file", "config", "expected"),
    [
        ("config.json", {"model_type": "clip"}, "quick_gelu"),  # their default, omitted
        ("config.json", {"model_type": "siglip"}, None),
        ("config.json", [1], None),
        ("config.json", {"model_type": "clip", "text_config": {"hidden_act": "gelu"}}, None),
        ("open_clip_config.json", {"model_cfg": {"embed_dim": 512}}, "gelu"),
        ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}, "quick_gelu"),
    ],
)
def test_activation_of_the_folder(file, config, expected, clip, tmp_path):
    torch.save(clip, tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / file).write_text(json.dumps(config))
    assert read_clip_weights(tmp_path).activation == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K/snapshots/1/model.bin", "gelu"),
        ("CLIP-ViT-B-32-DataComp.XL-s13B-b90K/model.bin", "gelu"),
        ("models--timm--vit_base_patch32_clip_224.openai/snapshots/1/model.bin", "quick_gelu"),
        ("models--openai--clip-vit-base-patch32/snapshots/1/pytorch_model.bin", "quick_gelu"),
        ("vit_b_32-laion2b_e16-af8dbd0c.pth", "gelu"),
        ("vit_b_32-quickgelu-laion400m_e32-46683a32.pt", "quick_gelu"),
        ("ViT-B-32.pt", None),
    ],
)
def test_activation_by_published_name(path, expected, clip, tmp_path):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(clip, tmp_path / path)
    assert read_clip_weights(tmp_path / path).activation == expected


@pytest.mark.parametrize("name", ["QuickGELU", "GELU"])
def test_activation_in_a_torchscript_archive(name, clip, tmp_path):
    class QuickGELU(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(1.702 * x)

    root = torch.nn.Module()
    root.gelu = QuickGELU() if name == "QuickGELU" else torch.nn.GELU()
    for tensor_name, tensor in clip.items():
        *parents, last = tensor_name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch.nn.Module())
            module = module._modules[parent]
        module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    torch.jit.save(torch.jit.script(root), tmp_path / "clip.pt")
    expected = {"QuickGELU": "quick_gelu", "GELU": "gelu"}[name]
    assert read_clip_weights(tmp_path / "clip.pt").activation == expected


def test_contradicting_activation_is_refused(clip, tmp_path):
    save_file(as_hugging_face(clip), tmp_path / "model.safetensors")
    write_config(tmp_path, "gelu", "gelu")
    with pytest.raises(CheckpointError, match=r"activation gelu.*model\.clip\.quick_gelu = false"):
        read_clip(tmp_path, TINY)
    assert read_clip(tmp_path, replace(TINY, quick_gelu=False)).keys() == clip.keys()
    with pytest.raises(CheckpointError, match="trained with gelu, not with the quick_gelu"):
        read_clip(tmp_path, TINY, "quick_gelu")


@pytest.fixture(scope="module")
def b32() -> tuple[CLIPConfig, dict[str, torch.Tensor]]:
    """The tensors that show the most ambiguous of OpenAI's architectures."""
    config = CLIPConfig(text_layers=1, vocabulary_size=600)
    shapes = {
        "visual.conv1.weight": (768, 3, 32, 32),
        "visual.positional_embedding": (50, 768),
        "visual.ln_pre.weight": (768,),
        "token_embedding.weight": (600, 512),
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "transformer.resblocks.0.ln_1.bias": (512,),
    }
    shapes |= {f"visual.transformer.resblocks.{i}.ln_1.bias": (768,) for i in range(12)}
    generator = torch.Generator().manual_seed(1)
    return config, {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}


def test_activation_that_nothing_states(b32, tmp_path, caplog):
    config, clip = b32
    path = tmp_path / "clip.safetensors"
    save_file(clip, path)
    with pytest.raises(CheckpointError, match=r"ViT-B/32 but not OpenAI's.*--clip-activation"):
        read_clip(path, config)
    assert read_clip(path, config, "quick_gelu").keys() == clip.keys()
    assert read_clip(path, replace(config, quick_gelu=False)).keys() == clip.keys()  # chosen
    with pytest.raises(CheckpointError, match=r"activation gelu.*quick_gelu = false"):
        read_clip(path, config, "gelu")
    save_file({n: t.half() for n, t in clip.items()}, path)  # as OpenAI published
    with caplog.at_level(logging.WARNING):
        assert read_clip_weights(path).resolve_activation() == "quick_gelu"
    assert "reading it as OpenAI's" in caplog.text


@pytest.mark.parametrize(
    ("layout", "unwrap"),
    [
        ("ours", lambda c: c),
        ("open_clip text tower", lambda c: {_with_tower(n): t for n, t in c.items()}),
        ("compiled", lambda c: {"state_dict": {f"module._orig_mod.{n}": t for n, t in c.items()}}),
    ],
)
def test_other_layouts(layout, unwrap, clip, tiny_model, tmp_path):
    path = tmp_path / "clip.pt"
    if layout == "ours":
        path = tmp_path / "model.safetensors"
        save_checkpoint(tiny_model, path)
        clip = tiny_model.clip.state_dict()
        assert read_clip_weights(path).infer_config() == TINY
    else:
        torch.save(unwrap(clip), path)
    read = read_clip(path, TINY)
    assert all(torch.equal(read[n], clip[n]) for n in clip)


def _with_tower(name: str) -> str:
    return name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}"


def test_own_clip_states_its_dimensions(clip, tmp_path):
    path, config = tmp_path / "clip.safetensors", replace(TINY, quick_gelu=False)
    save_file(clip, path, {"clip": json.dumps(asdict(config))})
    assert read_clip_weights(path).infer_config() == config
    save_file(clip, path, {"clip": json.dumps(asdict(config) | {"vocabulary_size": 10**10})})
    with pytest.raises(CheckpointError, match="does not fit its own configuration: vocabulary_siz"):
        read_clip_weights(path).infer_config()


@pytest.mark.parametrize(
    ("width", "patch", "layers", "places", "name"),
    [
        (768, 32, 12, 50, "ViT-B/32"),
        (768, 16, 12, 197, "ViT-B/16"),
        (1024, 14, 24, 257, "ViT-L/14"),
        (1024, 14, 24, 577, "ViT-L/14@336px"),
        (1280, 14, 32, 257, "ViT-H/14"),
        (1664, 14, 48, 257, "ViT-bigG/14"),
        (96, 8, 3, 785, "ViT (width 96, 3 layers)/8"),
    ],
)
def test_architectures_are_named(width, patch, layers, places, name):
    tensors = {
        "visual.conv1.weight": torch.empty(width, 3, patch, patch, device="meta"),
        "visual.positional_embedding": torch.empty(places, width, device="meta"),
    }
    for i in range(layers):
        tensors[f"visual.transformer.resblocks.{i}.ln_1.bias"] = torch.empty(0, device="meta")
    assert architecture(tensors) == name


def test_another_architecture_is_named(clip, tiny_model, tmp_path):
    other = replace(TINY, vision_width=64, vision_layers=2)
    torch.save(build_clip(other).state_dict(), tmp_path / "other.pt")
    with pytest.raises(
        CheckpointError, match=r"\(width 64, 2 layers\)/16@64px, not the CLIP that.*not 32"
    ):
        read_clip(tmp_path / "other.pt", TINY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda c: {n: t for n, t in c.items() if not n.startswith("visual")},
            "only the text transformer",
        ),
        (
            lambda c: {n: t for n, t in c.items() if n.startswith("visual")},
            r"only the image transformer of a CLIP \(ViT",
        ),
        (
            lambda c: {"visual.layer1.0.conv1.weight": torch.zeros(1)} | c,
            "is a CLIP with a ResNet",
        ),
        (lambda c: {"model": {"netG": {"fc_code.weight": torch.zeros(2)}}}, "GALIP checkpoint"),
        (lambda c: {"weight": torch.zeros(2)}, "not a CLIP .*it holds weight"),
        (lambda c: [1, 2], "holds no tensors"),
    ],
)
def test_other_content_is_named(content, message, clip, tmp_path):
    torch.save(content(clip), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=message):
        read_clip(tmp_path / "clip.pt", TINY)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "contains no CLIP weights: expected one of model.safetensors"),
        (["model.safetensors.index.json"], "is a sharded CLIP"),
    ],
)
def test_other_folders_are_named(files, message, tmp_path):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        read_clip(tmp_path, TINY)


def test_hostile_hugging_face_tensors(clip, tmp_path):
    theirs = as_hugging_face(clip)
    name = "text_model.encoder.layers.0.self_attn.k_proj.weight"
    for value in (None, torch.zeros(3), torch.zeros(())):
        changed = dict(theirs)
        del changed[name]
        if value is not None:
            changed[name] = value
        buffer = io.BytesIO()
        torch.save(changed, buffer)
        (tmp_path / "clip.pt").write_bytes(buffer.getvalue())
        with pytest.raises(CheckpointError, match="query, key and value"):
            read_clip(tmp_path / "clip.pt", TINY)


def test_original_takes_the_activation_of_its_clip(b32, tmp_path):
    """The authors' code uses OpenAI's CLIP; a fork with another one must state what it is."""
    path, clip = tmp_path / "galip.pth", tmp_path / "clip.safetensors"
    frozen = {f"clip.{n}": t.half() for n, t in b32[1].items() if n.startswith("visual.")}
    save_file(b32[1], clip)
    with pytest.raises(CheckpointError, match="does not state its activation"):
        _with_clip(path, frozen, clip, None, None)
    assert not _with_clip(path, frozen, clip, None, "gelu")[1].clip.quick_gelu
    save_file({n: t.half() for n, t in b32[1].items()}, clip)
    assert _with_clip(path, frozen, clip, None, None)[1].clip.quick_gelu
