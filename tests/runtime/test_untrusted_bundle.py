"""Bundles from strangers, with right hashes: each is one sentence, before OpenVINO sees it."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embedded import EMBEDDED, changed, changed_graph, changed_manifest, copied, fifo

from runtime import Pipeline, PipelineOptions, compiled_cache, verification
from runtime.bundle import (
    GENERATOR,
    MANIFEST,
    MERGES,
    TEXT_ENCODER,
    Bundle,
    read_manifest,
    verify_files,
)
from runtime.compiled_cache import VerifiedFiles, private_folder
from runtime.errors import BundleError
from runtime.files import FileState, describe
from runtime.graph_io import check_sizes, read_graph

PROMPT = "a bird on a branch"


@pytest.fixture
def bundle(tmp_path) -> Path:
    return copied(tmp_path / "bundle")


def test_a_linked_bundle_is_a_bundle(bundle):
    assert Bundle.open(bundle).manifest == read_manifest(EMBEDDED)


@pytest.mark.parametrize("kind", ["nf4", "string"])
@pytest.mark.slow
def test_an_odd_constant_does_not_reach_openvino(kind, bundle):
    changed_graph(
        bundle,
        GENERATOR,
        lambda text: re.sub(
            r'element_type="f32" (shape="1, \d+")', rf'element_type="{kind}" \1', text, count=1
        ),
    )
    with pytest.raises(BundleError, match=f"not a graph .*element_type cannot be {kind}"):
        Pipeline.from_bundle(bundle, PipelineOptions(cache=False)).generate(PROMPT)


@pytest.mark.parametrize("name", ["CPU", "cpu", "CPU.0"])
def test_loading_on_the_cpu_is_limited_by_any_of_its_names(name, monkeypatch):
    called = []
    monkeypatch.setattr(verification, "_limit_resources", lambda: called.append("limit"))
    monkeypatch.setattr(verification, "_load", lambda *_: iter(called.append("load") or ()))
    verification._main(str(EMBEDDED), "auto", name)
    assert called == ["limit", "load"]


@pytest.mark.slow
def test_verify_refuses_it_too(bundle):
    changed_graph(bundle, GENERATOR, lambda text: text.replace('"f32" shape', '"nf4" shape', 1))
    command = [sys.executable, "-m", "galip_edge", "verify", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"Error: .*generator.xml.gz is not a graph .*nf4", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", "ends the process .SIGSEGV"),
        ("exit 3", "exit code 3"),
        ("exec sleep 60", "did not load within 0.5 seconds"),
    ],
)
def test_what_crashes_or_hangs_the_child_is_a_sentence(script, message, monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(verification.sys, "executable", str(program))
    monkeypatch.setattr(verification, "_SECONDS", 0.5 if "sleep" in script else 60)
    with pytest.raises(BundleError, match=f"{message}.* do not use"):
        list(verification.verify_bundle(EMBEDDED))


@pytest.mark.slow
def test_verify_does_not_import_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    names = [step.name for step in verification.verify_bundle(EMBEDDED)]
    assert names == ["hashes", "loading", "golden", "inference"]


def test_tensors_that_would_fill_the_memory_are_refused(bundle):
    model = read_graph(Bundle.open(bundle), TEXT_ENCODER)
    model.reshape({model.inputs[0]: [1, 20]})
    check_sizes(model)
    model.reshape({model.inputs[0]: [100_000_000, 20]})
    with pytest.raises(BundleError, match="larger than any of a GALIP model"):
        check_sizes(model)


def test_a_graph_for_another_model_is_refused(bundle):
    def wider(body):
        body["image_size"] = 64
        body.pop("golden")
        body["files"].pop("golden.bin")
        body["format_version"] = 2

    changed_manifest(bundle, wider)
    with pytest.raises(BundleError, match="the manifest states .* image u8 .*64, 64, 3"):
        read_graph(Bundle.open(bundle), GENERATOR)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "change",
    [
        {"name": nested(30)},
        {"quantization": {"a": nested(300)}},
        {"name": None},
        {"name": 7},
        {"name": ""},
        {"name": "x" * 10_000_000},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"name": "\x1b]0;owned\x07"},
        {"name": "\u202egnp.exe"},
        {"tools": {"\x1b[31m": "1"}},
        {"tools": 5},
        {"checkpoint": []},
        {"fidelity": {}},
        {"image_size": True},
        {"image_size": 1e3},
        {"image_size": 10**9},
        {"image_size": 10**400},
        {"noise_dim": "16"},
        {"context_length": None},
        {"precision": ["int8"]},
        {"inference_precision": {}},
        {"files": None},
        {"files": {}},
        {"golden": None},
        {"golden": {"prompts": [], "seed": 0, "sentence_cosine": 1, "image_psnr_db": 1}},
        {"golden": {"prompts": ["a"], "seed": 0, "sentence_cosine": None, "image_psnr_db": 1}},
        {"format_version": None},
        {"format_version": "3"},
        {"format_version": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_odd_values_of_the_manifest_are_damage(change, bundle):
    changed_manifest(bundle, lambda body: body.update(change))
    with pytest.raises(BundleError, match="damaged") as error:
        read_manifest(bundle)
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "entry",
    [
        {"size": None, "sha256": "0" * 64},
        {"size": [1], "sha256": "0" * 64},
        {"size": "1", "sha256": "0" * 64},
        {"size": -1, "sha256": "0" * 64},
        {"size": True, "sha256": "0" * 64},
        {"size": 10**15, "sha256": "0" * 64},
        {"size": 1, "sha256": None},
        {"size": 1, "sha256": "x" * 64},
        {"size": 1},
        {"size": 1, "sha256": "0" * 64, "more": 1},
        None,
        7,
    ],
    ids=str,
)
def test_odd_entries_of_files_are_damage(entry, bundle):
    changed_manifest(bundle, lambda body: body["files"].update({MERGES: entry}))
    with pytest.raises(BundleError, match="damaged"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", ".x", "a\0", "\x1b[2J", "x" * 10**7]
)
def test_odd_names_of_files_are_damage(name, bundle):
    entry = {"size": 1, "sha256": "0" * 64}
    changed_manifest(bundle, lambda body: body["files"].update({name: entry}))
    with pytest.raises(BundleError, match="damaged") as error:
        read_manifest(bundle)
    assert len(str(error.value)) < 600


def test_a_manifest_nested_to_the_limit_of_the_parser_is_damage(bundle):
    for depth in (990, 100_000):
        (bundle / MANIFEST).unlink()
        (bundle / MANIFEST).write_text('{"format":' + "[" * depth + "]" * depth + "}")
        with pytest.raises(BundleError, match="damaged"):
            read_manifest(bundle)


@pytest.mark.parametrize("name", [MERGES, "generator.bin", MANIFEST, "golden.bin"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_only_regular_files_are_read(name, kind, bundle):
    path = bundle / name
    if kind == "fifo":
        fifo(path)
    elif kind == "device":
        path.unlink()
        path.symlink_to("/dev/zero")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(BundleError, match="cannot read .*(not a regular file|directory)"):
        Bundle.open(bundle)


def test_no_more_than_the_size_is_read(bundle):
    (bundle / MERGES).unlink()
    with (bundle / MERGES).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=r"has 1,099,511,627,776 bytes, expected"):
        verify_files(bundle, read_manifest(bundle))


def test_merges_are_bounded(bundle):
    with pytest.raises(ValueError, match="at most 2,097,152 bytes"):
        changed(bundle, MERGES, b"a b\n" * (1 << 20))


def test_a_deflate_bomb_is_refused(bundle):
    import gzip

    changed(bundle, TEXT_ENCODER, gzip.compress(b"<" + b" " * (65 * 1024**2), 9))
    with pytest.raises(BundleError, match="larger than 67,108,864 bytes"):
        read_graph(Bundle.open(bundle), TEXT_ENCODER)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 11631808\n"
HTML = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"


@pytest.mark.parametrize(("content", "kind"), [(LFS, "git-LFS pointer"), (HTML, "HTML page")])
@pytest.mark.parametrize("name", ["generator.bin", MANIFEST])
def test_a_pointer_or_a_page_is_named(name, content, kind, bundle):
    (bundle / name).unlink()
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"is an? {kind}"):
        Bundle.open(bundle)
    assert describe(b"\x1f\x8b") is None


def test_content_that_is_replaced_before_the_first_image_is_noticed(tmp_path):
    """Size and times are as before; the time of change is not."""
    bundle = copied(tmp_path / "bundle")
    for name in ("generator.bin", MERGES):
        content = (bundle / name).read_bytes()
        (bundle / name).unlink()
        (bundle / name).write_bytes(content)
    pipeline = Pipeline.from_bundle(bundle, PipelineOptions(cache=False))
    for name in ("generator.bin", MERGES):
        path = bundle / name
        status, content = path.stat(), bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_mtime_ns == status.st_mtime_ns
    with pytest.raises(BundleError, match="merges.txt was changed while it was in use"):
        pipeline.encode([PROMPT])
    with pytest.raises(BundleError, match="generator.bin was changed while it was in use"):
        pipeline.synthesize(np.zeros((1, 128)), np.zeros((1, 100)))


# The cache


def test_what_the_cache_makes_is_private(tmp_path, monkeypatch):
    old = os.umask(0o002)
    try:
        folder = private_folder(tmp_path / "new" / "cache", "compiled", "key")
    finally:
        os.umask(old)
    assert folder
    for made in (folder, folder.parent, folder.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.fixture
def said(monkeypatch):
    """Warnings about the cache; each one once."""
    texts = []
    monkeypatch.setattr(compiled_cache, "_warn", texts.append)
    return texts


@pytest.mark.parametrize("writable", ["", "compiled", "verified"])
def test_a_cache_that_others_may_write_to_is_not_used(writable, tmp_path, said):
    root = tmp_path / "cache"
    path = root / writable
    path.mkdir(parents=True)
    path.chmod(0o777)
    assert private_folder(root, "compiled", "k") is None or writable == "verified"
    verified, file = VerifiedFiles(root), tmp_path / "file"
    file.write_text("x")
    state = FileState.of(file)._replace(ctime_ns=0)
    verified.add(file, state, "0" * 64)
    assert verified.has(file, state, "0" * 64) is (writable == "compiled")
    assert any("other users may write to it" in text and str(path) in text for text in said)


def test_a_cache_of_another_user_is_not_used(tmp_path, said, monkeypatch):
    root = tmp_path / "cache"
    root.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: root.stat().st_uid + 1)
    assert private_folder(root, "compiled") is None
    assert f"belongs to user {root.stat().st_uid}" in said[0]
    (tmp_path / "blob").write_bytes(b"x")
    assert compiled_cache.read_kept(tmp_path / "blob") is None


def test_a_pipe_in_the_cache_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "blob")
    assert compiled_cache.read_kept(tmp_path / "blob") is None


def test_a_file_that_was_written_just_now_is_hashed_again(tmp_path):
    verified, file = VerifiedFiles(tmp_path / "cache"), tmp_path / "file"
    file.write_text("x")
    verified.add(file, FileState.of(file), "0" * 64)
    assert not verified.has(file, FileState.of(file), "0" * 64)


@pytest.mark.slow
def test_generate_says_that_the_cache_is_not_used(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-m", "galip_edge", "generate", PROMPT, "--out", str(tmp_path / "o")],
        capture_output=True,
        text=True,
        env={**os.environ, "GALIP_EDGE_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("other users may write to it") == 1
    assert os.listdir(tmp_path / "cache") == []
