"""Damaged weights files: every outcome is success or one of our errors.

    nice python tests/fuzz/test_checkpoints.py --count 20000 --seed 1

damages as many files as asked, reports what happened, and keeps each file that ended in anything
else. The test does the same for a few seconds with a fixed seed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import logging
import pickle
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_safetensors

from galip_edge.checkpoint import load_checkpoint, model_tensors, read_clip, save_checkpoint
from galip_edge.checkpoints.published import published_state
from galip_edge.data.pickles import read_keys
from galip_edge.models import GALIP, CLIPConfig, ModelConfig
from runtime.errors import GalipEdgeError

SECONDS_EACH = 10

# As small as it gets, so that thousands are read in seconds.
CONFIG = ModelConfig(
    clip=CLIPConfig(
        embedding_dim=4,
        image_size=32,
        patch_size=16,
        vision_width=8,
        vision_layers=3,
        vision_heads=2,
        text_width=8,
        text_layers=1,
        text_heads=2,
        context_length=8,
        vocabulary_size=520,
    ),
    noise_dim=4,
    block_sizes=(4, 8),
    block_channels=(4, 4, 2),
    bridge_channels=4,
    bridge_hidden=2,
    bridge_blocks=1,
    prompt_blocks=(1,),
    tap_blocks=(0, 1, 2),
    discriminator_channels=4,
    score_channels=2,
)

Reader = Callable[[Path], object]
Kind = tuple[bytes, Reader]


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def scripted(tensors: dict[str, torch.Tensor]) -> bytes:
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch.nn.Module())
            module = module._modules[parent]
        module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(root), buffer)
    return buffer.getvalue()


def kinds(folder: Path) -> dict[str, Kind]:
    """Sound files of each kind, and how each is read."""
    torch.manual_seed(0)
    model = GALIP(CONFIG)
    clip = {name: tensor.clone() for name, tensor in model.clip.state_dict().items()}
    clip_file, ours = folder / "clip.pt", folder / "ours.safetensors"
    torch.save(clip, clip_file)
    save_checkpoint(model, ours)
    original = published_state(model_tensors(model), CONFIG) | {"epoch": 3}

    def read_original(path: Path) -> object:
        return load_checkpoint(path, clip_file, CONFIG)

    def read_as_clip(path: Path) -> object:
        return read_clip(path, CONFIG.clip)

    return {
        "zip": (saved(original), read_original),
        "legacy": (saved(original, _use_new_zipfile_serialization=False), read_original),
        "TorchScript": (scripted(clip), read_as_clip),
        "safetensors": (ours.read_bytes(), load_checkpoint),
        "clip": (save_safetensors(clip, {"format": "pt"}), read_as_clip),
        "keys": (pickle.dumps([f"birds/{i}" for i in range(40)], protocol=2), read_keys),
    }


def structure(content: bytes) -> list[tuple[int, int]]:
    """Ranges that are not tensors: headers, names and pickles."""
    ranges = [(0, min(len(content), 4096)), (max(0, len(content) - 8192), len(content))]
    for match in re.finditer(rb"PK\x03\x04.{26}[^\0]*?data\.pkl", content, re.DOTALL):
        ranges.append((match.start(), min(len(content), match.start() + 40_000)))
    return ranges


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one to three changes, mostly of single bytes where the structure is."""
    data = bytearray(content)
    ranges = structure(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        start, end = rng.choice(ranges) if rng.random() < 0.9 else (0, len(data))
        place = rng.randrange(start, max(start + 1, min(end, len(data))))
        match rng.randrange(10):
            case 0:
                del data[place:]
            case 1:
                data[place:place] = data[place : place + rng.randrange(1, 64)]
            case 2:
                data[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"))
            case 3:
                del data[place : place + rng.randrange(1, 16)]
            case 4 | 5:
                data[place : place + 1] = bytes([rng.randrange(256)])
            case _:
                for byte in data[place : place + 1]:
                    data[place] = byte ^ 1 << rng.randrange(8)
    return bytes(data)


class TooSlowError(Exception):
    pass


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Ends what takes more than `SECONDS_EACH` of the CPU; the time of other programs is free."""

    def stop(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(path: Path, read: Reader) -> str:
    """`loaded`, `refused`, or what else happened."""
    try:
        with limited():
            read(path)
    except GalipEdgeError:
        return "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
    return "loaded"


def fuzz(folder: Path, count: int, seed: int, report: Callable[[str], None]) -> dict[str, int]:
    """Damage and read `count` files; the outcomes by kind. Files with odd ones are kept."""
    rng = random.Random(seed)
    outcomes: dict[str, int] = collections.Counter()
    sources = kinds(folder)
    started = time.monotonic()
    for number in range(count):
        name = list(sources)[number % len(sources)]
        content, read = sources[name]
        path = folder / f"damaged-{name}"  # still there after a crash
        path.write_bytes(damaged(content, rng))
        found = outcome(path, read)
        if found not in ("loaded", "refused"):
            path.rename(folder / f"odd-{number}-{name}")
            report(f"{number} {name}: {found}")
            found = "odd"
        outcomes[f"{name} {found}"] += 1
        if number % 1000 == 999:
            report(f"{number + 1} files, {time.monotonic() - started:.0f} s, {dict(outcomes)}")
    return outcomes


def test_sound_files_load(tmp_path: Path) -> None:
    for name, (content, read) in kinds(tmp_path).items():
        (tmp_path / "sound").write_bytes(content)
        assert outcome(tmp_path / "sound", read) == "loaded", name


@pytest.mark.parametrize("seed", range(2))
def test_damaged_files_end_in_our_errors(seed: int, tmp_path: Path) -> None:
    odd: list[str] = []
    outcomes = fuzz(tmp_path, 150, seed, odd.append)
    assert not odd
    assert sum(n for name, n in outcomes.items() if name.endswith("refused")) > 50


def report(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where odd files are kept")
    arguments = parser.parse_args()
    logging.disable()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = fuzz(folder, arguments.count, arguments.seed, report)
    report(str(dict(sorted(outcomes.items()))))
    odd = sum(count for name, count in outcomes.items() if name.endswith("odd"))
    sys.exit(f"{odd} odd outcomes, files in {folder}" if odd else 0)


if __name__ == "__main__":
    main()
