"""Checkpoints in several files of limited size, for repositories with a file size limit.

The layout is Hugging Face's: `model.safetensors.index.json` maps each tensor to its file. A file
holds tensors of one part of the model, so the files of a frozen CLIP are the same in all snapshots
of a run. The index also has each file's SHA-256, and the checkpoint's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from galip_edge.checkpoints.safe_load import read_weights
from galip_edge.errors import CheckpointError
from runtime.files import atomic_path, sha256_of, write_whole

INDEX = "model.safetensors.index.json"


def save_sharded(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], folder: Path, most: int
) -> Path:
    """Write `tensors` into `folder`, the index last.

    Args:
        tensors: contiguous; the first component of a name is the part of the model.
        metadata: of the checkpoint.
        folder: created if needed; existing files are replaced.
        most: maximum size of a file in bytes, unless a single tensor is larger.

    Returns:
        The index, which `load_checkpoint` reads.

    Raises:
        GalipEdgeError: the files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for part in dict.fromkeys(name.split(".")[0] for name in tensors):
        mine = {name: t for name, t in tensors.items() if name.split(".")[0] == part}
        # The header needs separate space.
        room = most - 200 * len(mine) - 4096
        shards = split_torch_state_dict_into_shards(
            mine, filename_pattern=part + "{suffix}.safetensors", max_shard_size=room
        )
        for file, names in shards.filename_to_tensors.items():
            with atomic_path(folder / file) as temporary:
                save_file({name: mine[name] for name in names}, temporary)
            weight_map |= dict.fromkeys(names, file)
    files = {name: sha256_of(folder / name) for name in sorted(set(weight_map.values()))}
    index = {"metadata": dict(metadata), "sha256": files, "weight_map": weight_map}
    write_whole(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())
    return folder / INDEX


def is_index(path: Path) -> bool:
    """True if `path` has the name of an index."""
    return path.name.endswith(".safetensors.index.json")


def read_sharded(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of the index at `path`, and its metadata.

    Raises:
        CheckpointError: the index or a file is missing or damaged, or the index names files in
            other folders.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        weight_map, known = dict(index["weight_map"]), dict(index.get("sha256", {}))
        metadata = {str(k): v for k, v in index.get("metadata", {}).items() if isinstance(v, str)}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not the index of a checkpoint ({error})") from error
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(file) for file in weight_map.values()}):
        tensors |= _read_file(path, name, known.get(name))
    if differing := sorted(set(tensors) ^ set(weight_map)):
        raise CheckpointError(f"{path} and its files differ in tensors such as {differing[0]}")
    return tensors, metadata


def _read_file(index: Path, name: str, sha256: Any) -> dict[str, Tensor]:
    if name != Path(name).name or not name.endswith(".safetensors"):
        raise CheckpointError(f"{index} names the file {name!r}: expected safetensors next to it")
    file = index.parent / name
    if sha256 is not None and file.exists() and sha256_of(file) != sha256:
        raise CheckpointError(f"{file} differs from the file that {index} was written with")
    tensors: dict[str, Tensor] = read_weights(file)[0]
    return tensors
