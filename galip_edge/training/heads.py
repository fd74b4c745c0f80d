"""Heads of the projected discriminator next to an exported checkpoint, for further training."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from galip_edge.checkpoints.format import fill
from galip_edge.checkpoints.safe_load import read_weights
from galip_edge.training.projected import MATCHER, QUEUE, ProjectedDiscriminator
from galip_edge.training.resume import newest_state
from runtime.files import atomic_path

HEADS = "projected.safetensors"


def export_heads(run: Path, folder: Path, dtype: torch.dtype) -> Path | None:
    """Write the heads of the newest state of `run` to `folder`; None without heads.

    Raises GalipEdgeError if the state is damaged, or the file cannot be written.
    """
    state = newest_state(run / "checkpoints") or {"parameters": {}, "buffers": {}}
    tensors = {**state["parameters"], **state.get("buffers", {})}
    heads = {
        name.removeprefix("projected."): tensor.to(dtype).contiguous()
        for name, tensor in tensors.items()
        if name.startswith("projected.")
    }
    if not heads:
        return None
    with atomic_path(folder / HEADS) as temporary:
        save_file(heads, temporary)
    return folder / HEADS


def import_heads(projected: ProjectedDiscriminator, checkpoint: Path) -> bool:
    """Load the heads that `export_heads` wrote next to `checkpoint`; False without heads.

    The queue of negatives starts anew.

    Raises CheckpointError if they do not fit.
    """
    path = checkpoint.parent / HEADS
    if not path.is_file():
        return False
    known, stored = projected.heads.state_dict(), read_weights(path)[0]
    # Either run may have no contrastive loss.
    mine = {name: tensor for name, tensor in known.items() if name.startswith(MATCHER)}
    stored = {n: t for n, t in stored.items() if n in known or not n.startswith(MATCHER)}
    stored.pop(QUEUE, None)
    fill(projected.heads, known, {**mine, **stored}, str(path))
    return True
