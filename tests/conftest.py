"""What many tests need: a cache of their own, small models, and the reference weights."""

import os
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["GALIP_EDGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def parity() -> dict[str, np.ndarray]:
    """What the original implementation computed with the weights of `make_weights.py`."""
    return dict(np.load(DATA / "parity.npz"))


@pytest.fixture(scope="session")
def full_size_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reference weights as published: `galip`, `galip_ddp` and `clip`."""
    import make_weights
    import torch

    folder = tmp_path_factory.mktemp("full-size")

    def tensors(part: str, prefix: str = "") -> dict[str, torch.Tensor]:
        half = {True: torch.float16, False: torch.float32}
        return {
            prefix + name: torch.from_numpy(value).to(half["CLIP_ViT" in name or part == "clip"])
            for name, value in make_weights.state_dict(part, "dev").items()
        }

    parts = {part: tensors(part) for part in ("netG", "netD", "netC")}
    prefixed = {p: {f"module.{k}": v for k, v in t.items()} for p, t in parts.items()}
    files = {name: folder / f"{name}.pth" for name in ("galip", "galip_ddp", "clip")}
    # Optimizers and an epoch come with the published files and must not disturb.
    optimizers = {"optimizer_G": {"state": {}, "param_groups": []}}
    torch.save({"model": parts, "epoch": 7}, files["galip"])
    torch.save({"model": prefixed, "optimizers": optimizers, "epoch": 7}, files["galip_ddp"])
    torch.save(tensors("clip"), files["clip"])
    return files


@pytest.fixture(scope="session")
def full_size_model(full_size_files):
    from galip_edge.checkpoint import load_checkpoint

    return load_checkpoint(full_size_files["galip"], full_size_files["clip"]).model


@pytest.fixture(scope="session")
def tiny_model():
    """An untrained model whose pictures are nevertheless lively, so that differences show."""
    import torch

    from galip_edge.models import GALIP, PRESETS

    torch.manual_seed(0)
    model = GALIP(PRESETS["tiny"]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma.2.weight", "beta.2.weight")):
                parameter.normal_(std=0.3)
            elif name.startswith("discriminator.") and parameter.numel() == 1:
                parameter.fill_(0.5)
        model.generator.to_rgb.weight.mul_(4)
    return model


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from galip_edge.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(tiny_model, path)
    return path


@pytest.fixture(scope="session")
def tiny_bundles(tiny_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in every precision; do not change them, copy them."""
    from convert import ConvertOptions
    from convert.calibration import read_captions
    from convert.progress import Progress
    from convert.write import read_source, write_bundle

    captions, onnx = read_captions(None, 100), tmp_path_factory.mktemp("onnx")
    source = read_source(tiny_checkpoint, None, captions, onnx, Progress())
    folder = tmp_path_factory.mktemp("bundles")
    bundles = {precision: folder / precision for precision in ("fp32", "fp16", "bf16", "int8")}
    for precision, path in bundles.items():
        path.mkdir()
        write_bundle(source, ConvertOptions(precision, samples=100), path, Progress())
    return bundles


@pytest.fixture
def tiny_bundle(tiny_bundles, tmp_path: Path) -> Path:
    """A copy of the tiny INT8 bundle, to be damaged."""
    import shutil

    return Path(shutil.copytree(tiny_bundles["int8"], tmp_path / "bundle"))
