"""Mistyped paths are reported before torch is imported; every command that writes takes -o."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

import galip_edge
from galip_edge.checkpoints.clip_weights import ACTIVATIONS
from galip_edge.cli import COMMANDS
from galip_edge.cli import galip_edge as group
from galip_edge.commands.init import PRESET_NAMES
from galip_edge.commands.options import clip_activation_option, require_config, require_path
from galip_edge.models import PRESETS
from runtime import errors
from runtime.errors import GalipEdgeError

ROOT = Path(galip_edge.__file__).parents[1]

# Runs each command line in one process that has not imported torch.
PROBE = """
import contextlib, io, json, sys
from galip_edge.cli import main
for arguments in json.loads(sys.argv[1]):
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, "torch" in sys.modules, text.getvalue()]))
"""


def test_mistyped_paths_are_reported_before_torch_is_imported(tmp_path):
    (tmp_path / "galip.safetensors").touch()
    cases = {
        ("evaluate", "galip.safetensor", "--captions", "x"): "cannot read x: no such file",
        ("evaluate", "galip.safetensor", "--data", "aviary"): "did you mean galip.safetensors?",
        ("evaluate", "galip.safetensors", "--data", "aviary", "--clip", "no"): "cannot read no",
        ("export-original", "no.safetensors"): "cannot read no.safetensors: no such file",
        ("init", "x.pth"): "ends in .safetensors",
        ("init", "-o", "galip.safetensors"): "galip.safetensors exists",
        ("train", "cubs"): "did you mean cub? pass a TOML file or one of ",
        ("train", "cub", "--set", "data.root=nowhere"): "data.root = nowhere: no such",
        ("train", "cub", "--set", "data.kind=cc3m", "--set", "data.root=x"): "data.root = x: no",
        ("train", "cub", "--set", "data.root=.", "--set", "clip=c.pt"): "clip = c.pt: no such",
        ("train", "cub", "--set", "data.root=.", "--set", "start=s.pth"): "start = s.pth: no",
        ("train-clip", "nothing.toml"): "cannot read nothing.toml",
        ("generate", "a", "--model", "nowhere"): "nowhere",
    }
    found = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(list(cases))],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    for (arguments, message), line in zip(cases.items(), found.stdout.splitlines(), strict=True):
        code, torch_imported, text = json.loads(line)
        assert code == 1, (arguments, text)
        assert message in text, arguments
        assert not torch_imported, arguments


def test_similar_names_are_suggested(tmp_path):
    (tmp_path / "clip.pt").touch()
    with pytest.raises(GalipEdgeError, match=r"clip\.pth: no such file or folder; did you mean .*"):
        require_path(tmp_path / "clip.pth")
    for path in (tmp_path / "no" / "clip.pt", tmp_path / "nul\0byte"):
        with pytest.raises(GalipEdgeError, match="no such file or folder$"):
            require_path(path)


def test_a_run_that_resumes_needs_no_other_file(tmp_path):
    settings = (f"output={tmp_path}", "clip=gone.pt", "data.kind=webdataset", "data.root=s3://x")
    with pytest.raises(GalipEdgeError, match="clip = gone"):
        require_config("own", settings)
    (tmp_path / "model.safetensors").touch()
    require_config("own", settings)
    require_config("own", ("data.kind=webdataset", "data.root=http://x/{0..9}.tar"))
    require_config("own", ("batch_sise=3",))  # its data is a place to fill: reported later


# What writes files that the user keeps, and the option that names them.
WRITERS = (
    "generate",
    "interpolate",
    "explore",
    "batch",
    "convert",
    "export-ovms",
    "export-original",
    "export-openvino",
    "export-web",
    "export-checkpoint",
    "train",
    "train-clip",
    "evaluate",
    "train-classifier",
    "init",
)


@pytest.mark.parametrize("name", WRITERS)
def test_writers_take_o(name):
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert any("-o" in parameter.opts for parameter in command.params)


def test_names_that_are_repeated_to_import_no_torch():
    assert list(PRESET_NAMES) == list(PRESETS)
    option = click.Command("x", params=[])
    clip_activation_option(option)
    assert tuple(option.params[0].type.choices) == ACTIVATIONS
    assert set(WRITERS) <= set(COMMANDS)


def test_missing_extra_is_named_also_when_a_command_imports_late(monkeypatch, capsys):
    from galip_edge.cli import main

    monkeypatch.setitem(sys.modules, "galip_edge.training.run", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "galip_edge.checkpoints.format", raising=False)
    monkeypatch.delitem(sys.modules, "galip_edge.models", raising=False)
    with pytest.raises(SystemExit):
        main(["init", "-o", "never.safetensors"])
    message = capsys.readouterr().err
    assert "galip-edge init needs torch, which is not installed: pip install " in message


def test_hints_install_from_the_checkout_or_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert errors.install_hint("serve") == "pip install -e '.[serve]'"
    monkeypatch.chdir(tmp_path)
    assert errors.install_hint("serve") == f"pip install -e '{ROOT.resolve()}[serve]'"
    monkeypatch.setattr(errors, "CHECKOUT", tmp_path)  # as in site-packages
    assert errors.install_hint("serve") == "pip install 'galip-edge[serve]'"


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_nothing_needs_the_package_to_be_installed():
    """In a source tree that is not installed, there is no metadata to ask for the version."""
    for path in [
        p for part in ("galip_edge", "convert", "runtime") for p in (ROOT / part).rglob("*.py")
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                argument = node.args[0]
                asked = isinstance(argument, ast.Constant) and argument.value == "galip-edge"
                named = getattr(node.func, "id", getattr(node.func, "attr", ""))
                assert not (asked and named in ("version", "distribution", "metadata")), path


def test_cuda_home_is_not_mentioned():
    code = (
        "import logging, galip_edge.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "logging.getLogger('torch.utils.cpp_extension').warning('CUDA_HOME')"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0
    assert "CUDA_HOME" not in found.stderr
