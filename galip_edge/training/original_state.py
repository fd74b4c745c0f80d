"""Adam's moments from the authors' published training checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from galip_edge.checkpoints.layouts import split_name
from galip_edge.original import translate_name
from galip_edge.weights import read_weights
from runtime.errors import CheckpointError

# Each optimizer, and the parts whose parameters it was given, in this order.
_OPTIMIZERS = {"optimizer_G": ("netG",), "optimizer_D": ("netD", "netC")}


def original_moments(path: Path) -> dict[str, dict[str, Tensor]]:
    """The optimizers' state in an original `.pth`, by our parameter names.

    torch stores it by a parameter's number in the order of the module's state dict. That order
    includes the generator's frozen CLIP and the shortcuts that the authors never used; both have
    no counterpart among our parameters.

    Raises:
        CheckpointError: there are no optimizers, or they do not fit the checkpoint's parameters.
    """
    content, _ = read_weights(path)
    try:
        optimizers = content.get("optimizers") or {}
        moments: dict[str, dict[str, Tensor]] = {}
        for optimizer, parts in _OPTIMIZERS.items():
            if optimizer not in optimizers:
                raise CheckpointError(f"{path} has no {optimizer}")
            tensors = [
                (translate_name(part, split_name(name)[2]), tensor)
                for part in parts
                for name, tensor in content["model"][part].items()
            ]
            moments |= _by_name(optimizers[optimizer], tensors, f"{path}: {optimizer}")
        return moments
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has optimizers in an unknown layout ({error!r})") from error


def _by_name(
    optimizer: Mapping[str, Any], tensors: list[tuple[str | None, Tensor]], what: str
) -> dict[str, dict[str, Tensor]]:
    numbers = [n for group in optimizer["param_groups"] for n in group["params"]]
    if len(numbers) != len(tensors):
        raise CheckpointError(f"{what} has {len(numbers)} parameters, the model {len(tensors)}")
    moments: dict[str, dict[str, Tensor]] = {}
    for number, (name, tensor) in zip(numbers, tensors, strict=True):
        if not name or name.startswith("clip."):
            continue
        state = optimizer["state"].get(number)
        if state is None:
            raise CheckpointError(f"{what} has nothing for {name}")
        if not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
            raise CheckpointError(f"{what} is not Adam's: for {name} it has {', '.join(state)}")
        if any(state[key].shape != tensor.shape for key in ("exp_avg", "exp_avg_sq")):
            raise CheckpointError(f"{what} has another shape for {name} than the model")
        moments[name] = {key: state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    return moments
