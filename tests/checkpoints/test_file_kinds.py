"""Files that are no weights are called what they are; hostile ones neither run, crash nor hang."""

import argparse
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from galip_edge.checkpoints.format import load_checkpoint, model_tensors, read_clip, save_checkpoint
from galip_edge.checkpoints.safe_load import read_weights
from galip_edge.data import DataError
from galip_edge.data.pickles import read_plain_pickle
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP, PRESETS

TINY = PRESETS["tiny"]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 505595379\n"


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("galip.pth"), io.BytesIO())
    return buffer.getvalue()


def zipped(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>",
            "is a web page titled 'Google Drive - Virus scan warning', not weights: .*confirm",
        ),
        (b"<html>", "is a web page, not weights"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is XML text"),
        (LFS.encode(), r"is a git-LFS pointer to a file of 505\.6 MB.*git lfs pull"),
        (b'{"metadata": {}, "weight_map": {}}', "JSON index of a sharded checkpoint"),
        (b'{"error": "not found"}', "is JSON text"),
        (b"Not Found", "is text, not a PyTorch or safetensors checkpoint"),
        ("Zugriff verweigert: \u00e4\u00f6".encode("utf-16"), "is text"),
        (gzip.compress(b"weights", mtime=0), r"compressed with gzip: unpack it \(gunzip\)"),
        (b"BZh91AY", "compressed with bzip2"),
        (b"\xfd7zXZ\x00\x00", "compressed with xz"),
        (b"\x28\xb5\x2f\xfd\x00", "compressed with Zstandard"),
        (b"7z\xbc\xaf\x27\x1c", "compressed with 7-Zip"),
        (b"Rar!\x1a\x07", "compressed with RAR"),
        (tar(), "is a tar archive"),
        (b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file"),
        (b"GGUF\x03\0\0\0", "is a GGUF file"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is a PNG image"),
        (b"\x93NUMPY\x01\0", "is a NumPy array"),
        (bytes(4096), "starts with zeros only: the download did not complete"),
        (arrays(), r"holds NumPy arrays \(\.npz\)"),
        (zipped(), "is an empty zip archive"),
        (zipped(notes_txt=b"a"), "is a zip archive without weights .it holds 'notes.txt'"),
        (zipped(models__galip_pth=b"a"), "is a zip archive: unpack it and pass 'models/galip.pth'"),
        (zipped(notes_txt=b"a" * 999)[:500], "is incomplete: it starts as a PyTorch file, but"),
        (
            b"\xe8" + zipped(archive__data_pkl=b"\x80\x04\x95" + bytes(8) + b"}.")[1:],
            "is damaged or incomplete",
        ),
        (
            b"PK\x03\x04" + bytes(60) + struct.pack("<4sLQL4s18x", b"PK\6\7", 0, 0, 2, b"PK\5\6"),
            "is damaged or incomplete .zipfiles that span multiple disks",
        ),
        (struct.pack("<Q", 4000) + b'{"a": ', "is incomplete: it ends after 14 bytes"),
        (pickle.dumps({"a": [1, 2]}), "is damaged or incomplete"),
        (os.urandom(1) and b"\x01\x02\x03\x04" * 99, "is damaged or incomplete"),
    ],
)
def test_files_that_are_no_weights(content, message, tmp_path):
    path = tmp_path / "galip.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=message):
        read_clip(path, TINY.clip)


def test_what_is_not_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_weights(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_weights("nul\0byte")


@pytest.mark.parametrize("legacy", [False, True])
def test_refused_objects_are_named_with_a_way_out(legacy, tmp_path, monkeypatch):
    path, proof = tmp_path / "galip.pth", torch.arange(3.0)
    content = {"model": {"netG": {"w": proof}}, "args": argparse.Namespace(nf=64)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"other than tensors \(argparse\.Namespace\)") as got:
        load_checkpoint(path)
    _, *lines = str(got.value).splitlines()
    assert len(lines) == 2
    exec("\n".join(line.strip() for line in lines), {})  # the advice works as it is printed
    found, _ = read_weights(tmp_path / "galip-tensors.pth")
    assert torch.equal(found["model"]["netG"]["w"], proof)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_code = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("content", [Net(), {"netG": Net()}], ids=["module", "in a dictionary"])
def test_pickled_modules_are_named_with_a_way_out(content, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, Net.__module__, argparse.Namespace(Net=Net))
    torch.save(content, tmp_path / "galip.pth")
    with pytest.raises(CheckpointError, match=r"Linear") as got:
        load_checkpoint(tmp_path / "galip.pth")
    exec("\n".join(line.strip() for line in str(got.value).splitlines()[1:]), {})
    assert "fc_code.weight" in str(read_weights(tmp_path / "galip-tensors.pth")[0])


def test_numpy_numbers_are_plain_numbers(tmp_path):
    content = {
        "epoch": np.int64(5),
        "fid": np.float32(7.5),
        "done": np.bool_(True),
        "big": np.array(3, ">i4")[()],
        "state": np.arange(4),
    }
    torch.save(content, tmp_path / "galip.pth")
    found, _ = read_weights(tmp_path / "galip.pth")
    assert found.pop("state") is not None
    assert found == {"epoch": 5, "fid": 7.5, "done": True, "big": 3}
    assert {type(value) for value in found.values()} == {int, float, bool}
    torch.save({"text": np.str_("x")}, tmp_path / "galip.pth")
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(tmp_path / "galip.pth")


def test_archive_that_unpacks_to_hundreds_of_times_its_size(tmp_path):
    path = tmp_path / "galip.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("galip/data.pkl", pickle.dumps({}, protocol=2))
        with archive.open("galip/data/0", "w", force_zip64=True) as entry:
            for _ in range(200):
                entry.write(bytes(1 << 20))
    assert path.stat().st_size < 2 << 20
    with pytest.raises(CheckpointError, match=r"would unpack from [\d,]+ to 209,71\d,\d+ bytes"):
        load_checkpoint(path)


def test_compressed_archive_of_weights_is_read(tmp_path):
    torch.save({"w": torch.arange(9.0)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert torch.equal(read_weights(tmp_path / "packed.pth")[0]["w"], torch.arange(9.0))


def torchscript(data: bytes) -> bytes:
    return zipped(archive__data_pkl=data, archive__constants_pkl=b"")


def test_torchscript_archive_that_contains_itself(tmp_path):
    # An object whose attribute `a` is the object.
    data = b"\x80\x02c__torch__\nModel\n)\x81q\x00}q\x01X\x01\x00\x00\x00ah\x00sb."
    (tmp_path / "clip.pt").write_bytes(torchscript(data))
    assert read_weights(tmp_path / "clip.pt")[0] == {}
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_clip(tmp_path / "clip.pt", TINY.clip)


DEEP_KEY = b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns."  # a tuple in a tuple ..., as a key


@pytest.mark.parametrize("kind", ["zip", "legacy", "TorchScript", "keys"])
def test_tuples_nested_a_million_times_do_not_crash(kind, tmp_path):
    path = tmp_path / "galip.pth"
    if kind == "zip":
        path.write_bytes(zipped(archive__data_pkl=DEEP_KEY, archive__version=b"3"))
    elif kind == "TorchScript":
        path.write_bytes(torchscript(DEEP_KEY))
    else:
        path.write_bytes(DEEP_KEY)
    with pytest.raises((CheckpointError, DataError), match="nested more than 100 levels"):
        read_plain_pickle(path) if kind == "keys" else read_weights(path)


@pytest.mark.parametrize("kind", ["TorchScript", "keys"])
def test_memo_index_of_two_billion_takes_no_memory(kind, tmp_path):
    path, data = tmp_path / "file", b"\x80\x02}r\xff\xff\xff\x7f."
    path.write_bytes(torchscript(data) if kind == "TorchScript" else data)
    assert (read_plain_pickle(path) if kind == "keys" else read_weights(path)[0]) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": {"vision_layers": 10**7}}, r"10000000 vision_layers are configured, 4 are in"),
        ({"clip": {"text_layers": 10**7}}, "10000000 text_layers are configured, 2 are in"),
        ({"clip": {"vocabulary_size": 10**10}}, r"wrong shape: clip\.token_embedding\.weight"),
        ({"clip": {"vocabulary_size": 10**30}}, "does not fit its own configuration"),
        ({"clip": {"context_length": 10**9}}, r"wrong shape|does not fit its own"),
        ({"clip": {"image_size": 64 * 10**6}}, r"block_sizes must grow|wrong shape"),
        ({"clip": {"vision_heads": 0}}, "vision_heads must be an integer"),
        ({"clip": {"quick_gelu": 1}}, "quick_gelu must be true or false"),
        ({"noise_dim": 10**12}, "wrong shape"),
        ({"noise_dim": True}, "noise_dim must be an integer"),
        ({"bridge_blocks": 10**8}, "100000000 bridge_blocks are configured"),
        ({"block_sizes": [8, 16, 32, 10**9]}, "block_sizes must be at most 4096 pixels"),
        ({"block_sizes": [8, 16, 32.5, 64]}, "block_sizes must be a list of integers"),
        ({"block_sizes": 8}, "block_sizes must be a list of integers"),
        ({"block_channels": [32, 32, 32, 16, 10**15]}, "wrong shape|does not fit its own"),
        ({"prompt_blocks": ["a"]}, "prompt_blocks must be a list of integers"),
        ({"visual_concept_scale": "much"}, "visual_concept_scale must be a number"),
        ({"visual_concept_scale": float("nan")}, "visual_concept_scale must be a number"),
    ],
)
def test_configuration_is_checked_against_the_tensors(change, message, tiny_checkpoint, tmp_path):
    tensors, metadata = read_weights(tiny_checkpoint)
    config = json.loads(metadata["config"])
    config["clip"] |= change.get("clip", {})
    config |= {name: value for name, value in change.items() if name != "clip"}
    save_file(tensors, tmp_path / "m.safetensors", metadata | {"config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("config", ["[1]", "[" * 100_000, "5", '{"clip": 5}', "null"])
def test_configuration_that_is_none(config, tiny_checkpoint, tmp_path):
    tensors, metadata = read_weights(tiny_checkpoint)
    save_file(tensors, tmp_path / "m.safetensors", metadata | {"config": config})
    with pytest.raises(CheckpointError, match="no valid configuration"):
        load_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "odd",
    [
        lambda t: t.to(torch.int32),
        lambda t: t.to(torch.complex64),
        lambda t: t.to_sparse(),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: t.to("meta"),
    ],
    ids=["integers", "complex", "sparse", "quantized", "meta"],
)
def test_tensors_that_are_no_weights(odd, tiny_model, tmp_path):
    from published_files import published_networks

    generator = published_networks(tiny_model)["netG"]
    generator["fc_code.weight"] = odd(generator["fc_code.weight"])
    torch.save({"netG": generator}, tmp_path / "galip.pth")
    torch.save(tiny_model.clip.state_dict(), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="not numbers in memory: generator.noise_projection"):
        load_checkpoint(tmp_path / "galip.pth", tmp_path / "clip.pt", TINY)


def test_ablations_without_parts_still_load(tmp_path):
    config = replace(TINY, tap_blocks=(), bridge_blocks=0)
    save_checkpoint(GALIP(config), tmp_path / "m.safetensors")
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    assert loaded.model.config == config
    assert model_tensors(loaded.model)
