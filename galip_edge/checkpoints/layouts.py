"""Finding the networks of an original checkpoint in any nesting, with any prefixes.

Supported are the published layout (`{"model": {"netG", "netD", "netC"}}`), the networks without
`model`, a bare generator, Lightning's flat `state_dict`, flat safetensors, and all of them wrapped
by DDP, FSDP or torch.compile, with or without a moving average of the generator.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from galip_edge.checkpoints.names import shortened, translate_name
from galip_edge.errors import CheckpointError

_log = logging.getLogger(__name__)

# The first component of the names of each network's tensors.
_NETWORK_OF = {
    "fc_code": "netG",
    "mapping": "netG",
    "GBlocks": "netG",
    "to_rgb": "netG",
    "DBlocks": "netD",
    "main": "netD",
    "joint_conv": "netC",
}
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_AVERAGE = re.compile(r"^ema|ema$|_ema_|averag|(^|_)avg|shadow|(^|_)swa")

_MAX_DEPTH, _MAX_VALUES = 16, 200_000

Group = dict[str, Tensor]  # by the original's names


@dataclass(frozen=True)
class OriginalNetworks:
    """The networks of an original checkpoint.

    Attributes:
        tensors: under our names; the discriminator only if it is complete.
        generator: location of the selected generator in the file, such as `model.netG`.
    """

    tensors: dict[str, Tensor]
    generator: str


def flatten(content: object) -> dict[str, Tensor]:
    """All tensors in nested dictionaries by dotted names, without optimizer states.

    Raises:
        CheckpointError: the nesting is too deep, too large, or cyclic.
    """
    found: dict[str, Tensor] = {}
    waiting: list[tuple[tuple[str, ...], object]] = [((), content)]
    count = 0
    while waiting:
        names, value = waiting.pop()
        count += 1
        if count > _MAX_VALUES or len(names) > _MAX_DEPTH:
            raise CheckpointError("nests its values too deeply to be a checkpoint")
        if isinstance(value, Tensor):
            found[".".join(names)] = value
        elif isinstance(value, Mapping):
            waiting += [
                ((*names, str(key)), inner)
                for key, inner in reversed(list(value.items()))
                if isinstance(inner, (Tensor, Mapping)) and not str(key).startswith("optim")
            ]
    return found


def find_networks(content: object) -> OriginalNetworks | None:
    """The networks in `content` of `read_weights`; None without a generator.

    A moving average of the generator takes precedence over the generator, with a warning.

    Raises:
        CheckpointError: there are several generators, or unknown tensors, which are named.
    """
    flat = flatten(content)
    groups = _groups(flat)
    generator = _generator(groups)
    if generator is None:
        return None
    taken = {"netG": generator}
    for network in ("netD", "netC"):
        plain = [p for n, p in groups if n == network and not _is_average(p)]
        if len(plain) == 1:
            taken[network] = plain[0]
    if len(taken) == 2:
        _log.warning("omitting the discriminator: the file holds only one of netD and netC")
        taken = {"netG": generator}
    _refuse_unknown(flat, taken)
    tensors: dict[str, Tensor] = {}
    for network, prefix in taken.items():
        for name, tensor in groups[network, prefix].items():
            if ours := translate_name(network, name):
                tensors[ours] = tensor
    if _is_average(generator):
        _add_frozen(tensors, groups)
    return OriginalNetworks(tensors, generator or "the whole file")


def split_name(name: str) -> tuple[str | None, str, str]:
    """(network, prefix, name in the network) of a tensor; the network is None if unknown."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    for index, part in enumerate(parts):
        if part in _NETWORK_OF:
            return _NETWORK_OF[part], _prefix(parts[:index]), ".".join(parts[index:])
    return None, _prefix(parts), ""


def _prefix(parts: list[str]) -> str:
    while parts and parts[-1] == "module":
        parts = parts[:-1]
    return ".".join(parts)


def _groups(flat: Mapping[str, Tensor]) -> dict[tuple[str, str], Group]:
    """Tensors by network and prefix, without groups that have no known name."""
    groups: dict[tuple[str, str], Group] = {}
    for name, tensor in flat.items():
        network, prefix, inner = split_name(name)
        if network is not None:
            groups.setdefault((network, prefix), {})[inner] = tensor
    return {
        key: group
        for key, group in groups.items()
        if any(translate_name(key[0], name) is not None for name in group)
    }


def _is_average(prefix: str) -> bool:
    return any(_AVERAGE.search(part) for part in prefix.lower().split("."))


def _generator(groups: Iterable[tuple[str, str]]) -> str | None:
    """Prefix of the generator to use."""
    prefixes = [prefix for network, prefix in groups if network == "netG"]
    averages = [prefix for prefix in prefixes if _is_average(prefix)]
    choices = averages or prefixes
    if len(choices) > 1:
        raise CheckpointError(
            f"holds several generators ({shortened(p or 'the top level' for p in choices)}): save "
            "the one to use in a separate file"
        )
    if averages and len(prefixes) > 1:
        others = [prefix for prefix in prefixes if prefix not in averages]
        _log.warning(
            "using the generator's moving average (%s), not the generator itself (%s)",
            averages[0],
            others[0] or "the top level",
        )
    return choices[0] if choices else None


def _refuse_unknown(flat: Mapping[str, Tensor], taken: Mapping[str, str]) -> None:
    unknown, ignored = [], 0
    for name, tensor in flat.items():
        network, prefix, inner = split_name(name)
        if network is not None:
            if taken.get(network) == prefix and translate_name(network, inner) is None:
                unknown.append(f"{network}.{inner}")
        elif _is_inside(prefix, taken["netG"]) and tensor.ndim:  # scalars count steps
            unknown.append(f"netG.{prefix.removeprefix(taken['netG']).lstrip('.')}")
        else:
            ignored += 1
    if unknown:
        raise CheckpointError(f"has unexpected tensors: {shortened(unknown)}")
    if ignored:
        _log.info("ignoring %d tensors that belong to none of netG, netD and netC", ignored)


def _is_inside(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}.")


def _add_frozen(tensors: dict[str, Tensor], groups: Mapping[tuple[str, str], Group]) -> None:
    """Add the frozen CLIP of the generator, which averages often lack."""
    for (network, _), group in groups.items():
        for name, tensor in group.items() if network == "netG" else ():
            ours = translate_name(network, name) or ""
            if ours.startswith("clip."):
                tensors.setdefault(ours, tensor)


def looks_like_training_state(content: Any) -> bool:
    """True for the `state.pt` of a training run of ours."""
    return isinstance(content, Mapping) and {"version", "parameters", "moments"} <= content.keys()
