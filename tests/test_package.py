"""The package as programs import it, and foreign modules that hide its packages."""

import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import galip_edge
from galip_edge.config import parse_toml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

# As an editable install: our packages are found after everything on the search path.
EDITABLE = f"""
import sys
from importlib.machinery import PathFinder
from importlib.util import spec_from_file_location
class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("galip_edge", "convert", "runtime"):
            folder = {str(ROOT)!r} + "/" + name
            return spec_from_file_location(
                name, folder + "/__init__.py", submodule_search_locations=[folder])
sys.meta_path.insert(sys.meta_path.index(PathFinder) + 1, Editable)
"""


def run(*arguments: str, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
    )


def module(folder: Path, name: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text("print('the foreign module ran')")
    return path


def package(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("print('the foreign module ran')")
    return folder / name


def assert_names(result: subprocess.CompletedProcess, path: Path, *words: str) -> None:
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {path} hides the package")
    for word in words:
        assert word in line


def test_every_public_name_exists():
    for name in galip_edge.__all__:
        assert getattr(galip_edge, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'pictures'"):
        galip_edge.pictures  # noqa: B018


def test_convert_is_the_function_and_no_package():
    import convert

    assert galip_edge.convert is convert.convert


def test_the_api_generates_without_torch(tmp_path):
    code = """
import sys
from galip_edge import Job, Pipeline
image = Pipeline.from_bundle().generate("a bird on a branch")
print(image.shape, Job.__name__, {"torch", "onnx", "nncf"} & set(sys.modules))
"""
    result = run("-c", code, cwd=tmp_path)
    assert result.stdout.splitlines() == ["(1, 128, 128, 3) Job set()"], result.stderr


def test_importing_the_package_costs_nothing(tmp_path):
    code = "import galip_edge, sys; print({'numpy', 'openvino', 'click'} & set(sys.modules))"
    assert run("-c", code, cwd=tmp_path).stdout == "set()\n"


@pytest.mark.parametrize("make", [module, package])
def test_a_foreign_runtime_is_named_and_not_run(make, tmp_path):
    path = make(tmp_path, "runtime")
    result = run("-m", "galip_edge", "--version", cwd=tmp_path)
    assert_names(result, path, "'runtime'", "run galip-edge instead of python -m galip_edge")


@pytest.mark.parametrize("make", [module, package])
def test_a_foreign_convert_disturbs_only_what_needs_it(make, tmp_path):
    path = make(tmp_path, "convert")
    result = run("-m", "galip_edge", "convert", "galip.pth", cwd=tmp_path)
    assert_names(result, path, "'convert'", "run galip-edge instead of python -m galip_edge")
    assert run("-m", "galip_edge", "info", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(("name", "command"), [("runtime", "info"), ("convert", "convert")])
def test_a_folder_hides_the_packages_of_an_editable_install(name, command, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(EDITABLE)
    (tmp_path / "work" / name).mkdir(parents=True)
    cwd = tmp_path / "work"
    result = run("-m", "galip_edge", command, "x", cwd=cwd, path=tmp_path / "site")
    assert_names(result, cwd / name, repr(name))


def test_the_console_script_names_a_foreign_module_on_the_search_path(tmp_path):
    path = module(tmp_path, "runtime")
    script = "from galip_edge.__main__ import main; main()"
    result = run("-c", script, cwd=tmp_path.parent, path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert_names(result, path, f"remove {tmp_path} from Python's search path")
    entry = (ROOT / "pyproject.toml").read_text()
    assert 'galip-edge = "galip_edge.__main__:main"' in entry


def test_a_program_gets_an_import_error_that_names_the_module(tmp_path):
    for name, wanted in (("runtime", "Pipeline"), ("convert", "convert")):
        path = module(tmp_path, name)
        result = run("-c", f"from galip_edge import {wanted}", cwd=tmp_path)
        assert f"Error: {path} hides the package {name!r}" in result.stderr.splitlines()[-1]
        assert result.stdout == ""
        path.unlink()


def test_torchrun_names_a_foreign_module(tmp_path):
    path = module(tmp_path, "runtime")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "-m", "galip_edge", "train", "x")
    result = run(*torchrun, cwd=tmp_path)
    assert f"Error: {path} hides the package 'runtime'" in result.stderr
    assert "galip_edge/" not in result.stderr  # no traceback of ours


def test_commands_that_import_convert_are_known():
    from galip_edge.cli import _USING_CONVERT, COMMANDS, _installed, _module

    for name in filter(_installed, COMMANDS):
        text = (ROOT / _module(name).replace(".", "/")).with_suffix(".py").read_text()
        imports = any(
            line.startswith(("from convert", "import convert")) for line in text.split("\n")
        )
        assert imports == (name in _USING_CONVERT), name


def names_of(requirements) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def test_the_train_extra_has_every_package_that_data_sets_name():
    """Messages for missing packages of data sets say to install it."""
    extras = parse_toml((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = names_of(extras["train"])
    for name in list(installed - {"tomli"}):
        installed |= names_of(requires(name) or ())
    sources = [path.read_text() for path in (ROOT / "galip_edge/data").glob("*.py")]
    modules = set(re.findall(r'(?<!\.)require\("(\w+)', "\n".join(sources)))
    assert {"webdataset", "pyarrow"} <= modules
    distributions = packages_distributions()
    for module in sorted(modules):
        assert {canonicalize_name(name) for name in distributions[module]} & installed, module


def test_a_folder_of_leftovers_is_no_extension(tmp_path, monkeypatch):
    """Deleting a package with git leaves its compiled files."""
    from galip_edge import extensions

    (tmp_path / "deleted/data/__pycache__").mkdir(parents=True)
    package(tmp_path, "kept")
    monkeypatch.setattr(galip_edge, "__path__", [*galip_edge.__path__, str(tmp_path)])
    assert not extensions.installed("deleted")
    assert extensions.installed("kept")
    assert not extensions.installed("never_there")


def test_every_folder_of_modules_is_a_regular_package():
    for name in ("galip_edge", "convert", "runtime"):
        folders = {path.parent for path in (ROOT / name).rglob("*.py")}
        assert [str(f) for f in sorted(folders) if not (f / "__init__.py").exists()] == []


def test_no_second_core_leaves_the_process_with_a_freed_signal_stack():
    """A second core (see `openvino_core`) has crashed processes long after it was created."""
    makers = [
        path.relative_to(ROOT).as_posix()
        for folder in ("galip_edge", "convert", "runtime", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"\bCore\(\)", path.read_text(encoding="utf-8"))
    ]
    assert makers == ["runtime/openvino_core.py"]
