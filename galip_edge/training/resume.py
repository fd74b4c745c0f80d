"""The state of a run on disk, written atomically, for bit-exact resume.

`<run>/checkpoints/step-00001000/` holds `state.pt`, tensors and plain values whose loading runs no
code, and `manifest.json` with its SHA-256. The state excludes the frozen CLIP. It needs no random
generators: noise, order and augmentation depend only on seed, step and position.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from galip_edge.checkpoints.safe_load import read_weights
from galip_edge.data import Position
from galip_edge.errors import CheckpointError
from galip_edge.training.optimized_module import OptimizedModule
from galip_edge.training.projected import MATCHER, QUEUE
from galip_edge.training.trainer import Trainer
from runtime.errors import GalipEdgeError
from runtime.files import atomic_folder, sha256_of
from runtime.locks import remove_locked, try_lock

VERSION = 1
_OPTIONAL = f"projected.{MATCHER}"  # parameters of the contrastive loss
_QUEUE = f"projected.{QUEUE}"
_LOCK = "lock"
_log = logging.getLogger(__name__)


def trainer_state(trainer: Trainer) -> dict[str, Any]:
    """All state that training changes, as plain containers of tensors by parameter name."""
    return {
        "parameters": {k: p.detach() for m in trainer.modules for k, p in m.parameters.items()},
        "buffers": {k: b for m in trainer.modules for k, b in m.buffers.items()},
        "moments": {k: v for m in trainer.modules for k, v in _moments(m).items()},
        "scales": {m.name: m.scale.state() for m in trainer.modules},
        "stream": trainer.stream,
        "average": dict(trainer.average.averages) if trainer.average else {},
        "average_updates": trainer.average.updates if trainer.average else 0,
    }


@torch.no_grad()
def load_trainer_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """Restore `state`. Raises CheckpointError if it belongs to another model."""
    # The run may have had no contrastive loss until now, or have one no longer.
    parameters = {
        name: parameter
        for module in trainer.modules
        for name, parameter in module.parameters.items()
        if name in state["parameters"] or not name.startswith(_OPTIONAL)
    }
    stored = (n for n in state["parameters"] if n in parameters or not n.startswith(_OPTIONAL))
    _check_names("parameters", parameters, stored)
    trainer.stream = state.get("stream", 1)
    for name, parameter in parameters.items():
        parameter.copy_(state["parameters"][name])
    for module in trainer.modules:
        for name, buffer in module.buffers.items():
            kept = state["buffers"].get(name)
            if name == _QUEUE and (kept is None or kept.shape != buffer.shape):
                continue  # a queue of another length starts anew
            buffer.copy_(state["buffers"][name])
        load_moments(module, state["moments"])
        module.scale.load(state["scales"][module.name])
    if trainer.average:
        # A run without an average until now starts one from its weights.
        stored = state["average"] or state["parameters"]
        for name, average in trainer.average.averages.items():
            average.copy_(stored[name])
        if state["average"]:  # without a count in states of earlier versions
            trainer.average.updates = state.get("average_updates", state.get("step", 0))


def _moments(module: OptimizedModule) -> dict[str, dict[str, torch.Tensor]]:
    states = module.optimizer.state
    return {name: dict(states[p]) for name, p in module.parameters.items() if p in states}


def load_moments(module: OptimizedModule, moments: dict[str, dict[str, torch.Tensor]]) -> None:
    """Load the moments of the optimizer's parameters that `moments` contains."""
    for name, parameter in module.parameters.items():
        if name not in moments:
            continue
        stored = moments[name]
        module.optimizer.state[parameter] = {
            "step": torch.as_tensor(float(stored["step"]), device=parameter.device),
            **{  # in the parameter's memory layout, which the fused optimizer relies on
                key: torch.empty_like(parameter).copy_(stored[key].view_as(parameter))
                for key in ("exp_avg", "exp_avg_sq")
            },
        }


def _check_names(what: str, expected: Iterable[str], found: Iterable[str]) -> None:
    if differing := sorted(set(expected) ^ set(found)):
        raise CheckpointError(
            f"the checkpoint's {what} belong to another model: {', '.join(differing[:4])}"
        )


def save_state(
    folder: Path,
    trainer: Trainer,
    step: int,
    position: Position,
    run: dict[str, Any],
    keep: int,
    *,
    keep_interval: int = 0,
    best: dict[str, Any] | None = None,
) -> None:
    """Write the state after `step` steps, then delete all but the newest `keep`.

    Args:
        folder: the run's `checkpoints`.
        trainer: its state is saved.
        step: finished steps.
        position: of the data.
        run: plain values that must be the same on resume.
        keep: number of states to keep.
        keep_interval: states of multiples of this step are never deleted; 0 for none.
        best: step, metric and value of the best model so far, if one is kept.

    Raises:
        GalipEdgeError: the state cannot be written; earlier states are intact.
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
    leftovers = folder.glob(".step-*")  # of a process that was killed while writing
    passing = [p for p in _folders(folder) if not keep_interval or _step_of(p) % keep_interval]
    for old in (*passing[keep:], *leftovers):
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert any failure to write `path`, also of torch and safetensors, to a GalipEdgeError."""
    try:
        yield
    except (GalipEdgeError, OSError, RuntimeError, SafetensorError) as error:
        raise GalipEdgeError(
            f"{_reason(error, path)}; earlier checkpoints are intact: free some space, and "
            "rerun the same command to resume"
        ) from error


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Be the only process that trains in `folder`.

    Raises GalipEdgeError if another one does, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder / _LOCK)
    except OSError as error:
        raise GalipEdgeError(f"cannot write {folder}: {error.strerror or error}") from error
    if lock is None:
        raise GalipEdgeError(
            f"another process is training in {folder}: wait for it, or set another output"
        )
    try:
        yield
    finally:
        remove_locked(lock, folder / _LOCK)
        with suppress(OSError):  # not empty, unless the run failed before its first checkpoint
            folder.rmdir()


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, GalipEdgeError):
        return str(error)
    return f"cannot write {path} ({str(error).splitlines()[0]})"


def newest_state(folder: Path) -> dict[str, Any] | None:
    """The newest intact state; None without any. Damaged states are skipped with a warning.

    Raises CheckpointError if all states are damaged.
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
        raise CheckpointError(f"{file} is damaged: its SHA-256 differs from the manifest's")
    content, _ = read_weights(file)
    if content["version"] != VERSION:
        raise GalipEdgeError(
            f"{path} has format {content['version']}, this version reads {VERSION}: use the "
            "galip-edge that wrote it"
        )
    return dict(content)
