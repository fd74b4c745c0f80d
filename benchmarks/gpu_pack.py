"""The folder that a GPU machine without network needs for gpu.py and gpu_train.py.

    pip download --no-deps --dest wheels open_clip_torch ftfy wcwidth platformdirs resvg_py
    python benchmarks/gpu_pack.py kit --wheels wheels --start models/aviary.safetensors

Copies the packages and benchmarks of the commit, writes EfficientNet-Lite0's features in float16
(6 MB instead of a wheel of 17 MB), and reports the size. Fails above 64 MiB.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import torch
from gpu_train import FEATURES, ROOT
from safetensors.torch import save_file

from galip_edge.models.efficientnet import EfficientNetLite, folded_weights

LIMIT = 64 * 2**20
TREES = ("benchmarks", "galip_edge", "runtime", "pyproject.toml", "LICENSE")
UNNEEDED = (".bin", ".svg", ".png", ".webp")  # the embedded bundle's weights, plots


def write_features(path: Path) -> None:
    """Weights of the projected discriminator's frozen features, for `projected.features`."""
    tensors = folded_weights(EfficientNetLite(0))
    save_file({name: t.to(torch.float16).contiguous() for name, t in tensors.items()}, path)


def pack(folder: Path, wheels: Path | None, start: Path | None) -> int:
    """Fill `folder`; its size in bytes."""
    folder.mkdir(parents=True)
    command = ["git", "archive", "--format=tar", "HEAD", *TREES]
    archive = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [m for m in tar.getmembers() if not m.name.endswith(UNNEEDED)]
        tar.extractall(folder, members, filter="data")
    write_features(folder / FEATURES.name)
    if wheels:
        shutil.copytree(wheels, folder / "wheels")
    if start:
        shutil.copy(start, folder)
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--wheels", type=Path, help="folder of downloaded wheels to include")
    parser.add_argument("--start", type=Path, help="checkpoint to include")
    args = parser.parse_args()
    if args.folder.exists():
        sys.exit(f"{args.folder} exists: choose a new folder")
    size = pack(args.folder, args.wheels, args.start)
    print(f"{args.folder}: {size / 2**20:.1f} MiB of {LIMIT / 2**20:.0f}")
    if size > LIMIT:
        sys.exit(f"{args.folder} is too large: leave --start out")


if __name__ == "__main__":
    main()
