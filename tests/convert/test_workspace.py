"""A conversion leaves a whole bundle or nothing: signals, full disks, links, and two at once."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from convert import ConvertOptions, convert
from convert.errors import ConversionError
from convert.workspace import publish, workspace, workspace_of
from galip_edge.cli import main
from runtime.bundle import is_bundle, read_manifest
from runtime.graph_io import write_graph

pytestmark = pytest.mark.slow

FP32 = ConvertOptions(precision="fp32")


# The command with a conversion that stops in the middle of a file.
HANGING = """
import sys, time
import convert.pipeline

def export(checkpoint, clip, clip_activation, onnx_folder, progress):
    progress.step("exporting")
    (onnx_folder / "generator.onnx").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(600)

convert.pipeline.export = export
from galip_edge.cli import main
main(["convert", *sys.argv[1:]])
"""


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts small file systems on new folders of `tmp_path`."""
    mounted = []

    def mount(name: str, size: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_conversion_leaves_nothing_or_what_the_next_one_removes(
    number, tiny_checkpoint, tmp_path
):
    out, onnx = tmp_path / "bundle", tmp_path / "onnx"
    command = [sys.executable, "-c", HANGING, tiny_checkpoint, "-o", out, "--keep-onnx", onnx]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, command)), **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        message = process.communicate(timeout=300)[1]
    if number == signal.SIGKILL:
        assert sorted(os.listdir(tmp_path)) == [workspace_of(p).name for p in (out, onnx)]
        for path in (out, onnx):
            with workspace(path) as folder:  # as the next conversion does
                assert not os.listdir(folder)
    else:
        assert process.returncode == 128 + number
        assert message.splitlines()[-1].startswith("interrupted:")
        assert "Traceback" not in message
    assert os.listdir(tmp_path) == []


def test_killed_between_two_renames_the_old_bundle_comes_back(tiny_bundle, tmp_path):
    old = read_manifest(tiny_bundle)
    folder = workspace_of(tiny_bundle)
    folder.mkdir()
    tiny_bundle.rename(folder / "old")
    with workspace(tiny_bundle):
        assert read_manifest(tiny_bundle) == old
    assert os.listdir(tmp_path) == ["bundle"]


def test_two_conversions_to_one_output(tiny_checkpoint, tmp_path):
    out = tmp_path / "bundle"
    with workspace(out) as folder:
        with pytest.raises(ConversionError, match="another conversion to .*bundle is running"):
            convert(tiny_checkpoint, out, FP32)
        assert folder.is_dir()
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("exported_once")
def test_a_symbolic_link_stays_and_points_to_the_new_bundle(tiny_checkpoint, tiny_bundle, tmp_path):
    link = tmp_path / "current"
    link.symlink_to("bundle")
    with pytest.raises(ConversionError, match="current exists"):
        convert(tiny_checkpoint, link, FP32)
    options = ConvertOptions(precision="fp32", force=True)
    manifest = convert(tiny_checkpoint, link, options)
    assert link.readlink() == Path("bundle")
    assert read_manifest(link) == read_manifest(tiny_bundle) == manifest
    assert manifest.precision == "fp32"
    assert sorted(os.listdir(tmp_path)) == ["bundle", "current"]


def test_a_folder_that_appears_meanwhile_is_not_lost(tmp_path):
    out = tmp_path / "bundle"
    message = "cannot write .*it appeared during"
    with pytest.raises(ConversionError, match=message), workspace(out) as folder:
        (folder / "bundle").mkdir()
        out.write_text("foreign")
        publish(folder / "bundle", out, replace=False)
    assert out.read_text() == "foreign"
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_disk_that_is_full_while_onnx_is_written_is_named(tiny_checkpoint, tmpfs):
    disk = tmpfs("disk", "1m")
    with pytest.raises(ConversionError, match=f"the disk of {disk} is full: free some space"):
        convert(tiny_checkpoint, disk / "bundle", FP32)
    assert os.listdir(disk) == []


@pytest.mark.usefixtures("exported_once")
def test_a_disk_that_is_full_while_the_bundle_is_written_is_named(
    tiny_checkpoint, tmpfs, monkeypatch
):
    disk = tmpfs("disk", "64m")

    def write_to_a_full_disk(model, graph, *settings):
        (graph.parent / "filling").write_bytes(bytes(shutil.disk_usage(disk).free - (1 << 20)))
        write_graph(model, graph, *settings)

    monkeypatch.setattr("convert.pipeline.write_graph", write_to_a_full_disk)
    with pytest.raises(ConversionError, match=f"the disk of {disk} is full: free some space"):
        convert(tiny_checkpoint, disk / "bundle", FP32)
    assert os.listdir(disk) == []


def test_a_full_output_disk_keeps_the_old_bundle(tiny_checkpoint, tiny_bundles, tmpfs):
    disk = tmpfs("disk", "16m")
    shutil.copytree(tiny_bundles["int8"], disk / "bundle")
    filling = disk / "filling"
    filling.write_bytes(bytes(shutil.disk_usage(disk).free - (1 << 20)))
    options = ConvertOptions(precision="fp32", force=True)
    with pytest.raises(ConversionError, match=f"the disk of {disk} is full"):
        convert(tiny_checkpoint, disk / "bundle", options)
    assert is_bundle(disk / "bundle")
    assert sorted(os.listdir(disk)) == ["bundle", "filling"]


@pytest.mark.usefixtures("exported_once")
def test_a_full_temporary_disk_does_not_matter(tiny_checkpoint, tmp_path, tmpfs, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmpfs("temporary", "4k")))
    convert(tiny_checkpoint, tmp_path / "bundle", FP32)
    assert is_bundle(tmp_path / "bundle")


def test_progress_is_lines_without_a_terminal(tiny_checkpoint, tmp_path, capfd):
    with pytest.raises(SystemExit) as end:
        main(["convert", str(tiny_checkpoint), "--samples", "8", "-o", str(tmp_path / "bundle")])
    assert end.value.code == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'bundle'}\n"
    steps = [line.split(" s  ", 1)[1] for line in err.splitlines() if " s  " in line]
    assert steps[0] == "loading the checkpoint"
    assert "quantizing the generator: 8/8" in steps
    assert "\x1b" not in err
