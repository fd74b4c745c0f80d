"""Whole runs: resumed after every kind of end, exported, and visibly fitting their data."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from waiting import wait_until

from galip_edge.checkpoints.format import load_checkpoint
from galip_edge.data import Position
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP
from galip_edge.training.config import TrainConfig
from galip_edge.training.distributed import World
from galip_edge.training.resume import newest_state, only_run, save_state
from galip_edge.training.run import describe, train
from galip_edge.training.trainer import Trainer
from runtime.errors import GalipEdgeError

pytestmark = pytest.mark.slow


def leaves(value, name=""):
    """All tensors and plain values of nested dicts, by path."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in leaves(value[key], f"{name}/{key}").items()}
    return {name: value}


def assert_same_state(a: dict, b: dict) -> None:
    first, second = leaves(a), leaves(b)
    assert first.keys() == second.keys()
    different = [
        name
        for name, value in first.items()
        if not (
            torch.equal(value, second[name])
            if isinstance(value, torch.Tensor)
            else value == second[name]
        )
    ]
    assert not different


def state_of(config: TrainConfig) -> dict:
    return newest_state(Path(config.output) / "checkpoints")


def start(config: TrainConfig, file: Path) -> subprocess.Popen[bytes]:
    """`train` in a separate process, with as many threads as this one."""
    file.write_text(json.dumps(config.to_dict()))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), *sys.path])
    return subprocess.Popen(
        [sys.executable, __file__, str(file)], env=environment, stderr=subprocess.PIPE
    )


def wait_for(path: Path, process: subprocess.Popen[bytes], lines: int = 0) -> None:
    """Wait until `path` exists, and has so many lines."""

    def is_there() -> bool:
        return path.exists() and (not lines or path.read_bytes().count(b"\n") >= lines)

    wait_until(lambda: process.poll() is not None or is_there(), seconds=300)
    assert process.poll() is None, process.stderr.read().decode()


def test_resume_after_sigkill_is_exact_to_the_bit(make_config, tmp_path):
    settings = {
        "precision": "bfloat16",
        "ema_decay": 0.9,
        "batch_size": 12,  # with 32 images, epochs end between checkpoints
        "text_cache": str(tmp_path / "cache"),
        "data": {"workers": 1},
        "checkpoint": {"interval": 10},
    }
    whole = make_config(steps=20, output=str(tmp_path / "whole"), **settings)
    assert train(whole).finished

    killed = make_config(steps=1000, output=str(tmp_path / "killed"), **settings)
    process = start(killed, tmp_path / "config.json")
    wait_for(tmp_path / "killed" / "checkpoints" / "step-00000010", process)
    wait_for(tmp_path / "killed" / "metrics.jsonl", process, lines=13)  # between checkpoints
    process.kill()
    process.wait()
    for path in (tmp_path / "killed" / "checkpoints").glob("step-*"):  # if it was very fast
        if path.name > "step-00000010":
            path.rename(tmp_path / path.name)
    train(replace(killed, steps=20))
    assert_same_state(state_of(killed), state_of(whole))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_resume_is_exact_in_every_precision(make_config, tmp_path, precision):
    whole = make_config(steps=4, output=str(tmp_path / "whole"), precision=precision)
    train(whole)
    halves = make_config(steps=2, precision=precision)
    train(halves)
    train(replace(halves, steps=4))
    assert_same_state(state_of(halves), state_of(whole))


def test_a_run_continues_with_another_batch_size(make_config, caplog):
    config = make_config(steps=2, batch_size=4)
    train(config)
    with pytest.raises(GalipEdgeError, match="holds another run .seed was 0, is now 1"):
        train(replace(config, steps=4, seed=1))
    assert train(replace(config, steps=4, batch_size=6)).finished
    assert "batch_size was 4, is now 6" in caplog.text
    assert state_of(config)["step"] == 4


def test_sigterm_ends_with_a_checkpoint(make_config, tmp_path):
    config = make_config(steps=100_000, checkpoint={"interval": 100_000})
    process = start(config, tmp_path / "config.json")
    wait_for(Path(config.output) / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert b"rerun to resume" in errors
    assert state_of(config)["step"] > 0


def test_damaged_newest_checkpoint_is_skipped(make_config, caplog):
    config = make_config(steps=4, checkpoint={"interval": 2})
    train(config)
    folder = Path(config.output) / "checkpoints"
    expected = state_of(config)
    state = folder / "step-00000004" / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    assert state_of(config)["step"] == 2
    assert "step-00000004" in caplog.text
    train(config)  # from step 2 again
    assert_same_state(state_of(config), expected)

    for file in folder.glob("*/manifest.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        train(config)


def test_keeps_the_last_checkpoints_and_clears_leftovers(make_config):
    config = make_config(steps=4, checkpoint={"interval": 1, "keep": 2})
    leftover = Path(config.output) / "checkpoints" / ".step-00000009.1-1.tmp"
    leftover.mkdir(parents=True)
    (leftover / "state.pt").write_bytes(b"killed while writing")
    train(config)
    names = sorted(p.name for p in leftover.parent.iterdir())
    assert names == ["step-00000003", "step-00000004"]


def test_every_nth_checkpoint_is_kept_for_good_with_its_model(make_config):
    config = make_config(steps=5, checkpoint={"interval": 3, "keep": 1, "keep_interval": 2})
    train(config)
    folder = Path(config.output)
    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000004", "step-00000005"]
    models = sorted(p.name for p in folder.glob("model-step-*"))
    assert models == ["model-step-00000002.safetensors", "model-step-00000004.safetensors"]
    state = torch.load(folder / "checkpoints" / kept[0] / "state.pt", weights_only=True)
    name = "generator.to_rgb.weight"
    model = load_checkpoint(folder / models[0]).model
    assert torch.equal(model.get_parameter(name), state["parameters"][name])


@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, [1, 2, 3]), (0, [3]), (60, [3])])
def test_checkpoints_are_saved_when_the_last_one_is_too_old(make_config, minutes, steps):
    config = make_config(steps=3, checkpoint={"interval": 1000, "keep": 9, "minutes": minutes})
    train(config)
    names = sorted(p.name for p in (Path(config.output) / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in steps]


def test_sample_prompts_are_chosen_once_and_again_if_their_file_is_damaged(make_config, caplog):
    config = make_config(steps=1, log={"samples_interval": 1, "sample_count": 3})
    train(config)
    path = Path(config.output) / "samples" / "prompts.json"
    chosen = json.loads(path.read_text())
    assert len(chosen) == 3
    train(replace(config, steps=2))
    assert json.loads(path.read_text()) == chosen
    path.write_text(path.read_text()[:10])  # of an earlier version that was killed meanwhile
    train(replace(config, steps=3))
    assert "choosing new prompts" in caplog.text
    assert len(json.loads(path.read_text())) == 3
    assert [p.name for p in path.parent.iterdir() if p.suffix not in (".png", ".json")] == []


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """As on a full disk, nothing can be written after so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_full_disk_is_one_sentence_and_earlier_checkpoints_stay(make_config):
    config = make_config(steps=2)
    train(config)
    model = Path(config.output) / "model.safetensors"
    exported, state = model.read_bytes(), state_of(config)
    with files_limited_to(len(exported) // 2):
        with pytest.raises(GalipEdgeError, match=r"cannot write .*safetensors.*command to resume"):
            train(replace(config, steps=3))
    assert model.read_bytes() == exported

    trainer = Trainer(GALIP(config.model), config, World())
    folder = Path(config.output) / "checkpoints"
    with files_limited_to(100_000):
        with pytest.raises(GalipEdgeError, match=r"cannot write .*step-0.*3.*command to resume"):
            save_state(folder, trainer, 3, Position(), {}, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]
    assert_same_state(state_of(config), state)
    assert train(replace(config, steps=3)).finished
    assert state_of(config)["step"] == 3


def test_steps_that_are_not_finite_are_reported_and_end_the_run(make_config, caplog):
    config = make_config(
        steps=9, non_finite_limit=3, optimizer={"generator_lr": 1e30, "discriminator_lr": 1e30}
    )
    with pytest.raises(GalipEdgeError, match="3 consecutive steps .*'float32'"):
        train(config)
    events = [
        json.loads(line)
        for line in (Path(config.output) / "metrics.jsonl").open()
        if "event" in line
    ]
    assert [event["step"] for event in events] == [1, 2, 3]
    assert len(events[0]["keys"]) == 8
    assert "step 2: discriminator/total" in caplog.text


def test_another_run_in_the_folder_is_refused(make_config):
    config = make_config(steps=1)
    train(config)
    with pytest.raises(GalipEdgeError, match=r"seed was 0, is now 1.*choose another output"):
        train(replace(config, seed=1))


def test_two_runs_in_one_folder_at_once_are_refused(make_config):
    config = make_config(steps=1)
    with only_run(Path(config.output)), pytest.raises(GalipEdgeError, match="another process is"):
        train(config)
    assert not Path(config.output).exists()
    assert train(config).finished
    assert "lock" not in {path.name for path in Path(config.output).iterdir()}


def test_finished_run_is_left_alone(make_config):
    config = make_config(steps=2)
    train(config)
    expected = state_of(config)
    assert train(config).finished
    assert_same_state(state_of(config), expected)


def test_broken_image_is_replaced_and_counted(make_config, squares, tmp_path, caplog):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in squares.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "003.png").write_bytes(b"no image")
    config = make_config(data={"root": str(folder)}, steps=4)
    assert train(config).finished
    last = json.loads((Path(config.output) / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped_images"] >= 1
    assert "003" in caplog.text


def test_starts_from_an_exported_model(make_config, tmp_path):
    first = make_config(steps=2, output=str(tmp_path / "first"))
    train(first)
    config = make_config(steps=1, start=str(tmp_path / "first" / "model.safetensors"), clip=None)
    train(config)
    with pytest.raises(CheckpointError, match="noise_dim is 16, configured 8"):
        train(
            make_config(
                start=config.start, clip=None, model={"noise_dim": 8}, output=str(tmp_path / "x")
            )
        )


def test_description_says_what_would_happen(make_config):
    config = make_config(steps=2)
    text = describe(config)
    assert "32 samples, 4 steps an epoch" in text
    assert "starts with new weights" in text
    assert not Path(config.output).exists()
    train(config)
    assert "resumes after step 2" in describe(config)
    broken = replace(config, data=replace(config.data, root="/nowhere"))
    assert "/nowhere" in describe(broken)


def test_tiny_training_fits_its_data(make_config, clip_file, colours, captions):
    """In a minute the generator paints what the captions say, in CLIP's eyes and in ours."""
    config = make_config(
        clip=str(clip_file),
        steps=120,
        batch_size=16,
        precision="bfloat16",
        ema_decay=0.9,
        optimizer={"generator_lr": 1e-3, "discriminator_lr": 1e-3},
        log={"interval": 5, "samples_interval": 60, "prompts": captions, "tensorboard": True},
        checkpoint={"interval": 60},
    )
    result = train(config)
    assert result.finished
    folder = Path(config.output)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    similarity = [record["generator/similarity"] for record in metrics]
    assert similarity[-1] > similarity[0] + 0.5
    assert {"config.json", "environment.json", "tensorboard"} <= {p.name for p in folder.iterdir()}
    assert next((folder / "tensorboard").iterdir()).stat().st_size > 1000
    samples = np.array(Image.open(folder / "samples" / "step-00000120.png")).astype(int)
    assert samples.shape == (140, 140, 3)
    centres = samples[[36, 36, 104, 104], [36, 104, 36, 104]]  # of four images of 64 pixels
    assert np.abs(centres - list(colours.values())).max() < 80

    loaded = load_checkpoint(result.model)
    assert loaded.has_discriminator
    state = state_of(config)
    name = "generator.to_rgb.weight"
    exported = loaded.model.get_parameter(name)
    assert torch.equal(exported, state["average"][name])
    assert not torch.equal(exported, state["parameters"][name])
    assert np.isfinite(metrics[-1]["images_per_second"])


if __name__ == "__main__":  # a process to be killed
    settings = json.loads(Path(sys.argv[1]).read_text())
    train(TrainConfig.from_dict(settings))
