"""CLIP weights in all common layouts, under OpenAI's names.

The tensors of a CLIP do not show its number of attention heads, which is the width divided by 64 in
every published CLIP, and its activation. OpenAI used QuickGELU; LAION's and DataComp's CLIPs have
the same names and shapes, and GELU. With the wrong activation, a CLIP still works, but worse. The
activation is therefore read from the file, from a `config.json` next to it, or from the name under
which open_clip or the Hugging Face hub publish it. OpenAI published its weights in float16; if a
file states nothing and its weights are not float16 numbers, it is not OpenAI's, and the user must
state the activation.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from galip_edge.checkpoints.layouts import flatten
from galip_edge.checkpoints.names import indices, shortened
from galip_edge.checkpoints.safe_load import SCRIPTED_CLASSES, read_weights
from galip_edge.config import build
from galip_edge.errors import CheckpointError
from galip_edge.models.config import CLIPConfig

_log = logging.getLogger(__name__)

Activation: TypeAlias = Literal["quick_gelu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

# Files in the folder of a CLIP on the Hugging Face hub, best first.
_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# Architectures published by OpenAI, which others retrained with GELU.
_OPENAI = ("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
_HEAD_WIDTH = 64
_PATCHES = "visual.conv1.weight"
_TOKENS = "token_embedding.weight"

# Hugging Face's names and OpenAI's.
_HF_NAMES = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": _TOKENS,
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": _PATCHES,
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
}
_HF_NORMS = {
    "text_model.final_layer_norm": "ln_final",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
}
_HF_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_HF_TOWERS = {"text_model": "transformer", "vision_model": "visual.transformer"}


@dataclass(frozen=True)
class CLIPWeights:
    """CLIP weights and their metadata.

    Attributes:
        path: of the file.
        tensors: by OpenAI's names.
        activation: stated by the file, its folder or its name; None if unknown.
        config: dimensions in the metadata of a file of ours.
    """

    path: Path
    tensors: dict[str, Tensor]
    activation: Activation | None = None
    config: CLIPConfig | None = None

    @property
    def architecture(self) -> str:
        """In OpenAI's notation, such as ViT-B/32."""
        return architecture(self.tensors)

    def has_half_values(self) -> bool:
        """True if all matrices are float16 numbers, as in every copy of OpenAI's weights."""
        matrices = (t for n, t in self.tensors.items() if t.ndim > 1 and "embedding" not in n)
        return all(torch.equal(t.float(), t.half().float()) for t in matrices)

    def resolve_activation(self, stated: Activation | None = None) -> Activation:
        """The activation used in training.

        Args:
            stated: by the user; needed only if nothing else states it.

        Raises:
            CheckpointError: `stated` contradicts the file, or the activation is unknown and the
                weights are not OpenAI's.
        """
        if stated is not None and self.activation not in (None, stated):
            raise CheckpointError(
                f"{self.path} was trained with {self.activation}, not with the {stated} that was "
                "stated for it"
            )
        if activation := stated or self.activation:
            return activation
        if self.architecture not in _OPENAI:
            return "quick_gelu"
        if not self.has_half_values():
            raise CheckpointError(
                f"{self.path} is a {self.architecture} but not OpenAI's, and does not state its "
                "activation: state gelu for CLIPs by LAION and DataComp, quick_gelu for MetaCLIP, "
                "DFN and fine-tuned CLIPs of OpenAI (--clip-activation, or clip_activation in a "
                "training configuration), or pass the folder that contains its config.json"
            )
        _log.warning(
            "%s does not state its activation: reading it as OpenAI's (quick_gelu)", self.path
        )
        return "quick_gelu"

    def infer_config(self, stated: Activation | None = None) -> CLIPConfig:
        """Dimensions, inferred from shapes, and activation.

        Raises:
            CheckpointError: a tensor is missing, the number of heads is unknown, or as for
                `resolve_activation`.
        """
        shapes = dimensions(self.tensors, self.path)
        if self.config is not None:
            if differing := differences(self.config, self.tensors, self.path):
                raise CheckpointError(
                    f"{self.path} does not fit its own configuration: {', '.join(differing)}"
                )
            return self.config
        for tower in ("vision", "text"):
            width = shapes[f"{tower}_width"]
            if width % _HEAD_WIDTH:
                raise CheckpointError(
                    f"{self.path} does not state its number of attention heads, and its "
                    f"{tower} width {width} is no multiple of {_HEAD_WIDTH} from which to infer it"
                )
            shapes[f"{tower}_heads"] = width // _HEAD_WIDTH
        try:
            return CLIPConfig(**shapes, quick_gelu=self.resolve_activation(stated) == "quick_gelu")
        except ValueError as error:
            raise CheckpointError(f"{self.path} has invalid CLIP dimensions: {error}") from None


def dimensions(tensors: Mapping[str, Tensor], path: Path) -> dict[str, int]:
    """Sizes for `CLIPConfig`, except the numbers of heads, by the shapes of a CLIP's tensors.

    Raises CheckpointError if a needed tensor is missing or of another rank.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        tensor = tensors.get(name)
        if tensor is None or tensor.ndim != rank:
            found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise CheckpointError(f"{path} does not contain a complete CLIP: {name} {found}")
        return tuple(tensor.shape)

    vocabulary, text_width = shape(_TOKENS, 2)
    vision_width, _, patch, _ = shape(_PATCHES, 4)
    places = shape("visual.positional_embedding", 2)[0]
    grid = math.isqrt(max(places - 1, 0))
    if grid * grid + 1 != places:
        raise CheckpointError(f"{path} is not a CLIP with square images: it has {places} positions")
    return {
        "embedding_dim": shape("text_projection", 2)[1],
        "image_size": grid * patch,
        "patch_size": patch,
        "vision_width": vision_width,
        "vision_layers": indices(tensors, "visual.transformer.resblocks."),
        "text_width": text_width,
        "text_layers": indices(tensors, "transformer.resblocks."),
        "context_length": shape("positional_embedding", 2)[0],
        "vocabulary_size": vocabulary,
    }


def architecture(tensors: Mapping[str, Tensor]) -> str:
    """The architecture of CLIP's image transformer, by names and shapes, as OpenAI writes it."""
    patches = tensors.get(_PATCHES)
    if "visual.layer1.0.conv1.weight" in tensors:
        blocks = tuple(indices(tensors, f"visual.layer{i}.") for i in range(1, 5))
        return "RN50" if blocks == (3, 4, 6, 3) else f"a ResNet with {sum(blocks)} blocks"
    if any(name.startswith("visual.trunk.") for name in tensors):
        return "an image encoder of timm"
    if patches is None or patches.ndim != 4:
        return "an unknown architecture"
    width, _, patch, _ = patches.shape
    layers = indices(tensors, "visual.transformer.resblocks.")
    letter = {
        (384, 12): "S",
        (768, 12): "B",
        (1024, 24): "L",
        (1280, 32): "H",
        (1408, 40): "g",
        (1664, 48): "bigG",
    }.get((width, layers))
    name = f"ViT-{letter}/{patch}" if letter else f"ViT (width {width}, {layers} layers)/{patch}"
    places = tensors.get("visual.positional_embedding")
    size = math.isqrt(max(places.shape[0] - 1, 0)) * patch if places is not None else 224
    return name if size == 224 else f"{name}@{size}px"


def read_clip_weights(path: str | os.PathLike[str]) -> CLIPWeights:
    """Read CLIP from a file or folder.

    Args:
        path: OpenAI's TorchScript archive, a state dict, a checkpoint of open_clip, a model of
            Hugging Face's transformers (`model.safetensors` or `pytorch_model.bin`), the folder
            of either, or a checkpoint or CLIP of ours.

    Raises:
        CheckpointError: the file is missing, damaged, or of another kind, which is named.
    """
    path = _file_in(Path(path))
    content, metadata = read_weights(path)
    try:
        tensors = {_unwrapped(name): tensor for name, tensor in flatten(content).items()}
        tensors = _in_openai_names(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error
    # OpenAI's files also have three numbers that describe the model, and open_clip's a mask.
    for name in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
        tensors.pop(name, None)
    if _PATCHES not in tensors or _TOKENS not in tensors or architecture(tensors)[0] != "V":
        raise CheckpointError(f"{path} {_not_a_clip(tensors)}")
    if "logit_scale" in tensors:  # a scalar, which some open_clip checkpoints store as (1,)
        if tensors["logit_scale"].numel() != 1:
            raise CheckpointError(f"{path} is damaged: its logit_scale is not a scalar")
        tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    tensors.pop("logit_bias", None)
    config = _own_config(metadata)
    activation: Activation | None
    if config is not None:
        activation = "quick_gelu" if config.quick_gelu else "gelu"
    else:
        activation = _in_archive(metadata) or _in_folder(path) or _by_name(path)
    return CLIPWeights(path, tensors, activation, config)


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _FILES:
        if (path / name).is_file():
            return path / name
    if any(path.glob("*.index.json")):
        raise CheckpointError(
            f"{path} is a sharded CLIP, which is not supported: save it as one file"
        )
    raise CheckpointError(f"{path} contains no CLIP weights: expected one of {', '.join(_FILES)}")


def _unwrapped(name: str) -> str:
    """Name of a tensor without prefixes of wrappers, files and outer models."""
    parts = [p for p in name.split(".") if p not in ("module", "_orig_mod")]
    while len(parts) > 1 and parts[0] in ("state_dict", "model", "clip", "clip_model"):
        parts = parts[1:]
    # open_clip's models with a separate text tower.
    if len(parts) > 1 and parts[0] == "text":
        parts = parts[1:]
    return ".".join(parts)


def _in_openai_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of transformers' CLIPModel under OpenAI's names; others unchanged."""
    own = [name for name in tensors if name.startswith(("generator.", "discriminator."))]
    if not any(name.startswith(("text_model.", "vision_model.")) for name in tensors):
        return {name: t for name, t in tensors.items() if name not in own}
    found: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        if name.endswith((".position_ids", "logit_bias")):
            continue
        if name in ("text_projection.weight", "visual_projection.weight"):
            target = "text_projection" if name.startswith("text") else "visual.proj"
            found[target] = tensor.t() if tensor.ndim == 2 else tensor
        elif match := re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            block = _block(match[1])
            attention.setdefault(f"{block}.attn.in_proj_{match[3]}", {})[match[2]] = tensor
        elif ours := _openai_name(name):
            found[ours] = tensor
        else:
            unknown.append(name)
    for name, parts in attention.items():
        if parts.keys() != {"q", "k", "v"} or len({t.shape for t in parts.values()}) != 1:
            raise CheckpointError(f"is damaged: query, key and value of {name} do not match")
        found[name] = torch.cat([parts[letter] for letter in "qkv"])
    if unknown and _PATCHES in found and _TOKENS in found:
        raise CheckpointError(f"is not a CLIP: it has unexpected tensors: {shortened(unknown)}")
    return found


def _block(name: str) -> str:
    match = re.fullmatch(r"(text_model|vision_model)\.encoder\.layers\.(\d{1,9})", name)
    return f"{_HF_TOWERS[match[1]]}.resblocks.{match[2]}" if match else name


def _openai_name(name: str) -> str | None:
    if name in _HF_NAMES:
        return _HF_NAMES[name]
    module, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if module in _HF_NORMS:
        return f"{_HF_NORMS[module]}.{kind}"
    match = re.fullmatch(r"((?:text_model|vision_model)\.encoder\.layers\.\d{1,9})\.(.+)", module)
    if match and match[2] in _HF_LAYERS:
        return f"{_block(match[1])}.{_HF_LAYERS[match[2]]}.{kind}"
    return None


def _not_a_clip(tensors: Mapping[str, Tensor]) -> str:
    """Description of a file that is not a CLIP with a vision transformer."""
    needed = "pass a CLIP with both transformers, such as OpenAI's ViT-B/32"
    kind = architecture(tensors)
    if kind[0] != "V" and kind != "an unknown architecture":
        return f"is a CLIP with {kind}, and GALIP needs one with a vision transformer: {needed}"
    if _TOKENS in tensors:
        return f"holds only the text transformer of a CLIP: {needed}"
    if _PATCHES in tensors:
        return f"holds only the image transformer of a CLIP ({kind}): {needed}"
    if any(re.search(r"(^|\.)(GBlocks|fc_code|mapping)\.", name) for name in tensors):
        return f"is a GALIP checkpoint, which has no text transformer inside: {needed}"
    shown = f"holds {shortened(sorted(tensors), 3)}" if tensors else "holds no tensors"
    return f"is not a CLIP with a vision transformer (it {shown}): {needed}"


def _own_config(metadata: Mapping[str, str]) -> CLIPConfig | None:
    """Dimensions in the metadata of a CLIP or a checkpoint of ours."""
    try:
        values = json.loads(metadata.get("clip") or "null")
        if values is None and "config" in metadata:
            values = json.loads(metadata["config"]).get("clip")
        return build(CLIPConfig, values) if isinstance(values, dict) else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _in_archive(metadata: Mapping[str, str]) -> Activation | None:
    """The activation among the classes of a TorchScript archive."""
    classes = metadata.get(SCRIPTED_CLASSES, "").split()
    if "QuickGELU" in classes:
        return "quick_gelu"
    return "gelu" if "GELU" in classes else None


def _in_folder(path: Path) -> Activation | None:
    """The activation in a configuration of transformers or open_clip next to a file."""
    for name in ("config.json", "open_clip_config.json"):
        try:
            file = path.with_name(name)
            if not file.is_file() or file.stat().st_size > 1 << 20:
                continue
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if activation := _in_config(values):
            return activation
    return None


def _in_config(values: Any) -> Activation | None:
    if not isinstance(values, dict):
        return None
    if isinstance(model := values.get("model_cfg"), dict):  # open_clip's: GELU by default
        return "quick_gelu" if model.get("quick_gelu") else "gelu"
    if values.get("model_type") != "clip":
        return None
    acts = set()
    for tower in ("text_config", "vision_config"):
        part = values.get(tower)
        # transformers omits its default, quick_gelu.
        acts.add(str((part if isinstance(part, dict) else {}).get("hidden_act", "quick_gelu")))
    if len(acts) == 1 and (act := acts.pop()) in ("quick_gelu", "gelu"):
        return "quick_gelu" if act == "quick_gelu" else "gelu"
    return None


def _by_name(path: Path) -> Activation | None:
    """The activation of the CLIP that open_clip or the Hugging Face hub publish by this name."""
    from open_clip import pretrained

    folders = [parent.name.lower() for parent in path.absolute().parents[:3]]
    repositories = [name.removeprefix("models--").split("--")[-1] for name in folders]
    if any(name.startswith("models--openai--clip-vit") for name in folders):
        return "quick_gelu"
    found = set()
    for model, tags in pretrained._PRETRAINED.items():
        for values in tags.values():
            repository = (values.get("hf_hub") or "").rstrip("/").rpartition("/")[2].lower()
            file = (values.get("url") or "").rpartition("/")[2].lower()
            named = repository and repository in repositories
            # OpenAI's file names are too common to prove anything.
            if named or (path.name.lower() == file and "openaipublic" not in values["url"]):
                found.add(bool(values.get("quick_gelu")) or "quickgelu" in model)
    if len(found) != 1:
        return None
    return "quick_gelu" if found.pop() else "gelu"


def differences(ours: CLIPConfig, tensors: Mapping[str, Tensor], path: Path) -> list[str]:
    """Dimensions in which a CLIP is not `ours`, such as `vision_width 1024 (not 768)`."""
    expected = asdict(ours)
    return [
        f"{name} {value} (not {expected[name]})"
        for name, value in dimensions(tensors, path).items()
        if expected[name] != value
    ]
