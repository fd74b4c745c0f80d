"""A run's state on disk: everything that exact resume needs, whole or not at all.

`<run>/checkpoints/step-00001000/` holds `state.pt`, plain tensors and values that are loaded
without unpickling code, and `manifest.json` with its SHA-256. The frozen CLIP is not in it.
There is no state of random generators: noise, order and augmentation depend on the seed and on
step or position alone, and those are in it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from galip_edge.data import Position
from galip_edge.training.network import Network
from galip_edge.training.trainer import Trainer
from galip_edge.weights import read_weights
from runtime.errors import CheckpointError, GalipEdgeError
from runtime.files import atomic_folder, sha256_of

VERSION = 1
_log = logging.getLogger(__name__)


def trainer_state(trainer: Trainer) -> dict[str, Any]:
    """What training has changed: plain containers of tensors, by parameter name."""
    return {
        "parameters": {k: p.detach() for n in trainer.networks for k, p in n.parameters.items()},
        "buffers": {k: b for n in trainer.networks for k, b in n.buffers.items()},
        "moments": {k: m for n in trainer.networks for k, m in _moments(n).items()},
        "scales": {n.name: n.scale.state() for n in trainer.networks},
        "stream": trainer.stream,
        "average": dict(trainer.average.averages) if trainer.average else {},
        "average_updates": trainer.average.updates if trainer.average else 0,
    }


@torch.no_grad()
def load_trainer_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put `state` in place. Raises CheckpointError if it is of another model."""
    parameters = {k: p for n in trainer.networks for k, p in n.parameters.items()}
    _check_names("parameters", parameters, state["parameters"])
    trainer.stream = state.get("stream", 1)
    for name, parameter in parameters.items():
        parameter.copy_(state["parameters"][name])
    for network in trainer.networks:
        for name, buffer in network.buffers.items():
            buffer.copy_(state["buffers"][name])
        load_moments(network, state["moments"])
        network.scale.load(state["scales"][network.name])
    if trainer.average:
        # A run that had no average until now starts one from its weights.
        stored = state["average"] or state["parameters"]
        for name, average in trainer.average.averages.items():
            average.copy_(stored[name])
        if state["average"]:  # states of earlier versions, without the count, are as old as the run
            trainer.average.updates = state.get("average_updates", state.get("step", 0))


def _moments(network: Network) -> dict[str, dict[str, torch.Tensor]]:
    states = network.optimizer.state
    return {name: dict(states[p]) for name, p in network.parameters.items() if p in states}


def load_moments(network: Network, moments: dict[str, dict[str, torch.Tensor]]) -> None:
    """Give the optimizer the moments of those of its parameters that `moments` has."""
    for name, parameter in network.parameters.items():
        if name not in moments:
            continue
        stored = moments[name]
        network.optimizer.state[parameter] = {
            "step": torch.as_tensor(float(stored["step"]), device=parameter.device),
            **{  # in the parameter's memory layout, which the fused optimizer relies on
                key: torch.empty_like(parameter).copy_(stored[key].view_as(parameter))
                for key in ("exp_avg", "exp_avg_sq")
            },
        }


def _check_names(what: str, expected: Iterable[str], found: Iterable[str]) -> None:
    if differing := sorted(set(expected) ^ set(found)):
        raise CheckpointError(
            f"the checkpoint's {what} are those of another model: {', '.join(differing[:4])}"
        )


def save_state(
    folder: Path,
    trainer: Trainer,
    step: int,
    position: Position,
    run: dict[str, Any],
    keep: int,
    *,
    keep_every: int = 0,
    best: dict[str, Any] | None = None,
) -> None:
    """Write the state after `step` steps, then delete all but the newest `keep`.

    Args:
        folder: the run's `checkpoints`.
        trainer: whose state.
        step: finished steps.
        position: of the data.
        run: what must be the same when the run is resumed, plain values.
        keep: how many to keep.
        keep_every: states of steps that this divides are never deleted; 0 for none.
        best: step, figure and value of the best model so far, if it is kept.

    Raises:
        GalipEdgeError: it cannot be written; those before it are untouched.
    """
    path = folder / f"step-{step:08d}"
    content = {
        "version": VERSION,
        "step": step,
        "epoch": position.epoch,
        "samples": position.samples,
        "run": run,
        "best": best or {},
        **trainer_state(trainer),
    }
    with writing(path), atomic_folder(path, replace=True) as temporary:
        file = temporary / "state.pt"
        torch.save(content, file)
        manifest = {"step": step, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    leftovers = folder.glob(".step-*")  # of a process that was killed while it wrote
    passing = [p for p in _folders(folder) if not keep_every or _step_of(p) % keep_every]
    for old in (*passing[keep:], *leftovers):
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns any failure to write `path` into a GalipEdgeError of one sentence.

    torch and safetensors raise errors of their own when, say, the disk is full.
    """
    try:
        yield
    except (GalipEdgeError, OSError, RuntimeError, SafetensorError) as error:
        raise GalipEdgeError(
            f"{_reason(error, path)}; earlier checkpoints are intact, and once there is space "
            "the same command resumes from them"
        ) from error


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, GalipEdgeError):
        return str(error)
    return f"cannot write {path} ({str(error).splitlines()[0]})"


def newest_state(folder: Path) -> dict[str, Any] | None:
    """The newest state that is whole; None if there is none. Damaged ones get a warning.

    Raises CheckpointError if all there are have been damaged.
    """
    folders = _folders(folder)
    for path in folders:
        try:
            return _read(path)
        except CheckpointError as error:
            _log.warning("skipping a damaged checkpoint: %s", error)
    if folders:
        raise CheckpointError(
            f"none of the {len(folders)} checkpoints in {folder} can be read: restore one, or "
            "delete the folder to start over"
        )
    return None


def _folders(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-" + "[0-9]" * 8), reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _read(path: Path) -> dict[str, Any]:
    file = path / "state.pt"
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        intact = manifest["sha256"] == sha256_of(file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is incomplete ({error})") from error
    if not intact:
        raise CheckpointError(f"{file} is not what was written: its SHA-256 differs")
    content, _ = read_weights(file)
    if content["version"] != VERSION:
        raise GalipEdgeError(
            f"{path} has format {content['version']}, this version reads {VERSION}: use the "
            "galip-edge that wrote it"
        )
    return dict(content)
