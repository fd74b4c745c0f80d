"""A target machine has no torch: nothing on the way to an image may import it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "nncf", "open_clip", "safetensors")

# Importing any of HEAVY fails, as on a machine where they are not installed.
BLOCK = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""

# Imports each module before all others, in a fork of a process with the large libraries.
IMPORT_EACH = """
import importlib, os, numpy, openvino, PIL.Image
for name in {names!r}:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(name)
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], capture_output=True, text=True, check=False
    )


def test_every_runtime_module_imports_without_torch():
    files = sorted((ROOT / "runtime").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    assert "runtime.pipeline" in names
    result = run(IMPORT_EACH.format(names=names))
    assert result.stdout.split() == names, result.stderr


@pytest.mark.parametrize("arguments", [["generate", "a bird", "-n", "2"], ["verify"], ["info"]])
def test_commands_of_an_edge_box_run_without_torch(arguments, tiny_bundles, tmp_path):
    bundle = str(tiny_bundles["int8"])
    if arguments[0] == "generate":
        arguments = [*arguments, "--model", bundle, "--out", str(tmp_path), "--json"]
    else:
        arguments = [*arguments, bundle]
    result = run(f"from galip_edge.cli import main; main({arguments!r})")
    assert result.returncode == 0, result.stderr
    if arguments[0] == "generate":
        paths = [json.loads(line)["path"] for line in result.stdout.splitlines()]
        assert len(paths) == 2
        assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_batch_job_runs_without_torch(workers, tiny_bundles, tmp_path):
    (tmp_path / "p.txt").write_text("a bird\ntwo dogs\n")
    arguments = [str(tmp_path / "p.txt"), "--out", str(tmp_path / "out"), "--workers", workers]
    arguments += ["--shard-size", "1", "--model", str(tiny_bundles["int8"]), "--json"]
    result = run(f"from galip_edge.cli import main; main(['batch', *{arguments!r}])")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["done"] == 2


def test_a_model_repository_is_written_without_torch(tiny_bundles, tmp_path):
    arguments = ["export-ovms", str(tiny_bundles["int8"]), str(tmp_path / "repository")]
    result = run(f"from galip_edge.cli import main; main({arguments!r})")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "repository" / "config.json").exists()


def test_batch_says_which_extra_is_missing():
    result = run(
        "sys.modules['pyarrow'] = None\n"
        "from galip_edge.cli import main; main(['batch', 'p.txt', '--out', 'x'])"
    )
    assert result.returncode == 1
    assert "galip-edge batch needs pyarrow, which is not installed: pip install" in result.stderr


def test_convert_says_which_extra_is_missing():
    result = run("from galip_edge.cli import main; main(['convert', __import__('sys').executable])")
    assert result.returncode == 1
    assert "[convert]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_runtime_itself_costs_nothing_to_import():
    result = run("import runtime; print('numpy' in sys.modules, 'openvino' in sys.modules)")
    assert result.stdout.split() == ["False", "False"]


# Notes what any Python process asks of the network, or of the folder of OpenVINO's telemetry.
WATCH = """
import os, sys
def watch(event, arguments):
    asked = event == "socket.getaddrinfo" or (
        event == "socket.connect" and not isinstance(arguments[1], (str, bytes)))
    if asked or (event == "open" and "/intel/" in str(arguments[0])):
        descriptor = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{event} {arguments}\\n".encode())
        os.close(descriptor)
sys.addaudithook(watch)
"""


@pytest.mark.parametrize(
    ("code", "tells"),
    [
        ("import socket; socket.getaddrinfo('127.0.0.1', 80)", True),
        ("import runtime.pipeline", False),
        ("import convert.pipeline, openvino", False),
    ],
)
def test_nobody_is_told(code, tells, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    watched = tmp_path / "watched"
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {
        "HOME": str(tmp_path),
        "WATCHED": str(watched),
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
    }
    code += "; import time; time.sleep(1)"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert watched.exists() == tells
