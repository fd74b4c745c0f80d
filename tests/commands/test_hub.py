"""Models of a hub, with a stub of its HTTP API."""

import functools
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from embedded import renamed
from hub import TOKEN, Hub
from PIL import Image

from galip_edge.cli import main
from galip_edge.model_card import model_card
from runtime.bundle import MANIFEST, read_manifest
from runtime.errors import BundleError, GalipEdgeError
from runtime.pipeline import Pipeline
from runtime.recipes import read_recipe

pytestmark = pytest.mark.slow

constants = pytest.importorskip("huggingface_hub.constants")


# Models are loaded once for all tests.
from_bundle = functools.cache(Pipeline.from_bundle)


@pytest.fixture(autouse=True)
def _load_once(monkeypatch):
    monkeypatch.setattr(Pipeline, "from_bundle", from_bundle)


def galip_edge(*arguments) -> subprocess.CompletedProcess:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as done:
        main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, done.value.code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub, and caches that nothing is in."""
    hub = Hub()
    for name, value in {
        "ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("GALIP_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return renamed(tmp_path_factory.mktemp("bundle") / "tiny", "tiny")


@pytest.fixture(scope="session")
def newer_bundle(tmp_path_factory):
    return renamed(tmp_path_factory.mktemp("bundle") / "newer", "newer")


@pytest.fixture
def published(hub, bundle):
    """`me/tiny`, with a file that is no part of the bundle; its commit."""
    return hub.commit("me/tiny", contents(bundle) | {"huge.bin": b"x" * 1000})


def test_the_second_run_is_offline_and_gives_the_same(hub, published, bundle, tmp_path):
    wanted = galip_edge("generate", "a bird", "--model", bundle, "--out", tmp_path / "a")
    first = galip_edge("generate", "a bird", "--model", "hf:me/tiny", "--out", tmp_path / "b")
    assert first.returncode == 0, first.stderr
    assert "downloading hf:me/tiny (" in first.stderr
    assert f"from {hub.url}" in first.stderr
    assert "1/" in first.stderr
    assert not any("huge.bin" in request for request in hub.requests)
    hub.close()
    hub.requests.clear()
    # A new revision on the hub changes nothing here; neither does the missing library.
    hub.commit("me/tiny", {MANIFEST: b"{}"})
    sys.modules["huggingface_hub"], kept = None, sys.modules["huggingface_hub"]
    try:
        second = galip_edge("generate", "a bird", "--model", "hf:me/tiny", "--out", tmp_path / "c")
    finally:
        sys.modules["huggingface_hub"] = kept
    assert second.returncode == 0, second.stderr
    assert second.stderr == ""
    assert hub.requests == []
    files = [Path(done.stdout.strip()).read_bytes() for done in (wanted, first, second)]
    assert files[0] == files[1] == files[2]


def test_pull_updates_and_revisions_are_pinned(hub, published, newer_bundle, tmp_path):
    newer = hub.commit("me/tiny", contents(newer_bundle))
    pinned = galip_edge("pull", f"me/tiny@{published}")
    assert pinned.returncode == 0, pinned.stderr
    folder = Path(pinned.stdout.strip())
    assert read_manifest(folder).name == "tiny"
    done = galip_edge("pull", "hf:me/tiny", "--out", tmp_path / "copy")
    assert newer in done.stderr
    assert contents(tmp_path / "copy") == contents(newer_bundle)
    assert not any(file.is_symlink() for file in (tmp_path / "copy").iterdir())
    listed = {it["source"]: it for it in json.loads(galip_edge("models", "--json").stdout)}
    assert listed["hf:me/tiny"]["option"] == f"hf:me/tiny@{newer}"
    assert listed[f"hf:me/tiny@{published}"]["name"] == "tiny"
    assert listed["embedded"]["option"] is None
    assert "hf:me/tiny" in galip_edge("models").stdout
    for text in (f"hf:me/tiny@{published}", "hf:me/tiny"):
        assert galip_edge("info", text).returncode == 0
    made = galip_edge("generate", "a", "--model", "hf:me/tiny", "--out", tmp_path / "x.png")
    found = json.loads(galip_edge("info", tmp_path / "x.png", "--json").stdout)
    assert found["command"] == f"galip-edge generate --model hf:me/tiny@{newer} --seed 0 -- a"
    assert made.returncode == 0


def test_similar_names_of_revisions_are_not_confused(hub, published, newer_bundle, tmp_path):
    newer = hub.commit("me/tiny", contents(newer_bundle))
    long = "a" * 200
    hub.branches = {"a/b": published, "a--b": newer, "V1": published, "v1": newer, long: newer}
    names = {}
    for branch in hub.branches:
        done = galip_edge("info", f"hf:me/tiny@{branch}", "--json")
        assert done.returncode == 0, done.stderr
        names[branch] = json.loads(done.stdout)["name"]
    assert names == {
        branch: "tiny" if commit == published else "newer"
        for branch, commit in hub.branches.items()
    }
    sources = [it["source"] for it in json.loads(galip_edge("models", "--json").stdout)]
    assert sources == ["embedded", *sorted(f"hf:me/tiny@{branch}" for branch in hub.branches)]
    pins = [file.name.lower() for file in (tmp_path / "cache" / "hub").iterdir()]
    assert len(set(pins)) == len(hub.branches)  # where file systems ignore case, too


def test_a_cache_that_cannot_be_written_is_no_error(hub, published, monkeypatch, caplog):
    def full(path, _):
        raise GalipEdgeError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr("galip_edge.hub.write_whole", full)
    assert galip_edge("info", "hf:me/tiny").returncode == 0
    assert "later runs will query the hub again" in caplog.text


def test_all_commands_take_a_model_of_a_hub(hub, published, tmp_path):
    (tmp_path / "p.txt").write_text("a bird\n")
    model = ("--model", "hf:me/tiny")
    for command in (
        ("explore", "a", "-n", 1, *model, "--out", tmp_path / "s.png"),
        ("interpolate", "a", "b", "--steps", 1, *model, "--out", tmp_path / "f"),
        ("batch", tmp_path / "p.txt", *model, "--out", tmp_path / "job"),
        ("info", "hf:me/tiny"),
        ("export-ovms", "hf:me/tiny", "--out", tmp_path / "ovms"),
        ("export-openvino", "hf:me/tiny", "--out", tmp_path / "ov", "--no-tokenizer"),
    ):
        done = galip_edge(*command)
        assert done.returncode == 0, done.stderr
    from galip_edge.commands.serve import model_sources
    from runtime.pipeline import PipelineOptions

    sources = model_sources(("a=hf:me/tiny", "hf:me/tiny"), PipelineOptions())
    assert list(sources) == ["a", "tiny"]


def test_damaged_and_hostile_repositories(hub, published, bundle, tmp_path):
    def refused(*arguments):
        done = galip_edge(*arguments)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "o").exists()
        return done.stderr

    command = ("generate", "a", "--model", "hf:me/tiny", "--out", tmp_path / "o")
    hub.damage = lambda name, it: it[:-1] + b"?" if name == "generator.bin" else it
    assert "hf:me/tiny is not an intact bundle" in refused(*command)
    assert "galip-edge pull --force hf:me/tiny" in refused(*command)
    hub.damage = lambda name, it: it
    assert galip_edge("pull", "--force", "me/tiny").returncode == 0
    hub.damage = lambda name, it: it * 3 if name == "merges.txt" else it
    assert "merges.txt of hf:me/tiny is larger than" in refused("pull", "--force", "me/tiny")
    hub.commit("me/big", {MANIFEST: b" " * (5 << 20)})
    assert "is larger than 4,194,304 bytes" in refused("pull", "me/big")
    hub.commit("me/other", {"README.md": b"text"})
    assert "is not a galip-edge bundle" in refused("pull", "me/other")
    hub.commit("me/text", {MANIFEST: b"text"})
    assert "damaged or not a bundle's manifest" in refused("pull", "me/text")
    hub.commit("me/half", {MANIFEST: (bundle / MANIFEST).read_bytes()})
    assert "a file is missing" in refused("pull", "me/half")
    assert "does not exist on the hub, or is private" in refused("pull", "me/none")
    assert "has no such revision" in refused("pull", "me/tiny@v9")
    for text in ("hf:tiny", "hf:../tiny", "hf:a/b@", "hf:a/b@../../x", "hf:a/b/c", "hf:a--b/c"):
        assert "is not a hub model" in refused("info", text)


def test_without_a_hub_or_the_library(hub, monkeypatch, tmp_path):
    hub.close()
    done = galip_edge("info", "hf:me/tiny")
    assert done.returncode == 1
    assert "cannot reach the hub for hf:me/tiny" in done.stderr
    assert "copy the bundle's folder" in done.stderr
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = galip_edge("info", "hf:me/tiny")
    assert re.search(r"pip install .*\[hub\]", done.stderr)


@pytest.mark.parametrize("step", [{}, {"image_psnr_db": "x", "sentence_cosine": 1}, "text"])
def test_a_card_of_a_damaged_report_is_one_sentence(bundle, step):
    manifest = replace(read_manifest(bundle), fidelity=[step])
    with pytest.raises(BundleError, match="report of its fidelity is damaged"):
        model_card(manifest, "hf:me/mine", None, ("a duck",))


def test_push_uploads_a_bundle_with_a_card(hub, bundle, tmp_path):
    refused = galip_edge("push", bundle, "me/mine", "--license", "apache-2.0")
    assert refused.returncode == 1
    assert "hf auth login" in refused.stderr
    (tmp_path / "token").write_text(TOKEN)
    revision = galip_edge("push", bundle, "me/mine@v2")
    assert revision.returncode == 2
    assert "push goes to main" in revision.stderr
    dry = galip_edge("push", bundle, "me/mine", "--license", "apache-2.0", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "me/mine" not in hub.repositories
    done = galip_edge("push", bundle, "hf:me/mine", "--license", "apache-2.0", "--prompt", "a duck")
    assert done.returncode == 0, done.stderr
    commit, files = hub.repositories["me/mine"][-1]
    assert done.stdout.strip() == f"{hub.url}/me/mine/commit/{commit}"
    assert {name: files[name] for name in contents(bundle)} == contents(bundle)
    card = files["README.md"].decode()
    manifest = read_manifest(bundle)
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert 'galip-edge generate "a duck" --model hf:me/mine' in card
    assert manifest.model_hash in card
    assert f"{manifest.fidelity[0]['image_psnr_db']:.1f} dB" in card
    (tmp_path / "samples.png").write_bytes(files["samples.png"])
    side = manifest.image_size
    assert np.asarray(Image.open(tmp_path / "samples.png")).shape == (side + 8, 4 * side + 20, 3)
    assert read_recipe(tmp_path / "samples.png").recorded["prompts"] == ["a duck"]
    # What a person wrote there is kept.
    hub.commit("me/mine", {"README.md": b"mine"})
    again = galip_edge("push", bundle, "me/mine")
    assert "README.md was kept" in again.stderr
    assert "the card states no licence" in again.stderr
    assert hub.repositories["me/mine"][-1][1]["README.md"] == b"mine"
    assert galip_edge("push", bundle, "me/mine", "--force").returncode == 0
    assert hub.repositories["me/mine"][-1][1]["README.md"] != b"mine"
    assert galip_edge("pull", "me/mine").returncode == 0
