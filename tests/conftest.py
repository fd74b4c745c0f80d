"""Fixtures of many tests: a separate cache, small models, and the reference weights."""

import os
import shutil
import sys
import tempfile
from collections import Counter
from functools import wraps
from pathlib import Path
from typing import Any

from exports import export_once
from workers import built_once, default_workers, share_cores

share_cores()  # before the libraries start their threads

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from _pytest.faulthandler import fault_handler_stderr_fd_key  # noqa: E402

DATA = Path(__file__).parent / "data"
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return default_workers()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let `full_size` imply `slow`, and start the files with most slow tests first."""
    for item in items:
        if item.get_closest_marker("full_size"):
            item.add_marker("slow")
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # that of `--dist loadfile`: by number of tests
    if getattr(config.option, "maxworkerrestart", None) is None:
        config.option.maxworkerrestart = "0"  # xdist waits forever for a lost worker's last tests


def pytest_sessionstart(session: pytest.Session) -> None:
    """Workers write the stacks of a crash to a file: their stderr is lost."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run:
        with _stacks_file(run, os.environ["PYTEST_XDIST_WORKER"]).open("w") as file:
            os.dup2(file.fileno(), session.config.stash[fault_handler_stderr_fd_key])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    file = _stacks_file(node.workerinput["testrunuid"], node.workerinput["workerid"])
    if file.is_file():
        sys.stderr.write(file.read_text())
        file.unlink()


def _stacks_file(run: str, worker: str) -> Path:
    return Path(tempfile.gettempdir()) / f"galip-edge-tests-{run}-{worker}.txt"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["GALIP_EDGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def parity() -> dict[str, np.ndarray]:
    """Results of the original implementation with the weights of `make_weights.py`."""
    return dict(np.load(DATA / "parity.npz"))


@pytest.fixture(scope="session")
def full_size_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reference weights as published: `galip`, `galip_ddp` and `clip`."""
    pytest.importorskip("torch")
    folder = built_once(tmp_path_factory, "full-size", write_full_size_files)
    return {name: folder / f"{name}.pth" for name in ("galip", "galip_ddp", "clip")}


def write_full_size_files(folder: Path) -> None:
    import make_weights
    import torch

    def tensors(part: str, prefix: str = "") -> dict[str, torch.Tensor]:
        half = {True: torch.float16, False: torch.float32}
        return {
            prefix + name: torch.from_numpy(value).to(half["CLIP_ViT" in name or part == "clip"])
            for name, value in make_weights.state_dict(part, "dev").items()
        }

    parts = {part: tensors(part) for part in ("netG", "netD", "netC")}
    prefixed = {p: {f"module.{k}": v for k, v in t.items()} for p, t in parts.items()}
    # Optimizers and an epoch come with the published files and must not disturb.
    optimizers = {"optimizer_G": {"state": {}, "param_groups": []}}
    torch.save({"model": parts, "epoch": 7}, folder / "galip.pth")
    ddp = {"model": prefixed, "optimizers": optimizers, "epoch": 7}
    torch.save(ddp, folder / "galip_ddp.pth")
    torch.save(tensors("clip"), folder / "clip.pth")


@pytest.fixture(scope="session")
def full_size_model(full_size_files):
    from galip_edge.checkpoints.format import load_checkpoint

    return load_checkpoint(full_size_files["galip"], full_size_files["clip"]).model


@pytest.fixture(scope="session")
def tiny_model():
    """An untrained model whose images are nevertheless lively, so that differences show."""
    torch = pytest.importorskip("torch")

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
    from galip_edge.checkpoints.format import save_checkpoint

    def save(folder: Path) -> None:
        save_checkpoint(tiny_model, folder / "tiny.safetensors")

    return built_once(tmp_path_factory, "checkpoint", save) / "tiny.safetensors"


@pytest.fixture
def exported_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Export each checkpoint to ONNX once, because that takes longest."""
    from convert import pipeline

    @wraps(pipeline.export)
    def export(
        checkpoint: Path, clip: Path | None, activation: Any, folder: Path, progress: Any
    ) -> Any:
        return export_once(tmp_path_factory, checkpoint, folder, clip, activation)

    monkeypatch.setattr(pipeline, "export", export)


@pytest.fixture(scope="session")
def tiny_bundles(tiny_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in every precision; do not change them, copy them."""

    def convert_all(folder: Path) -> None:
        from convert import ConvertOptions
        from convert.calibration import read_captions
        from convert.pipeline import write_bundle
        from convert.progress import Progress

        captions, onnx = read_captions(None, 100), tmp_path_factory.mktemp("onnx")
        exported = export_once(tmp_path_factory, tiny_checkpoint, onnx, None, None)
        for precision in PRECISIONS:
            (folder / precision).mkdir()
            options = ConvertOptions(precision)
            write_bundle(exported, captions, options, folder / precision, Progress())

    folder = built_once(tmp_path_factory, "bundles", convert_all)
    return {precision: folder / precision for precision in PRECISIONS}


@pytest.fixture
def tiny_bundle(tiny_bundles, tmp_path: Path) -> Path:
    """A copy of the tiny INT8 bundle, to be damaged."""
    return Path(shutil.copytree(tiny_bundles["int8"], tmp_path / "bundle"))
