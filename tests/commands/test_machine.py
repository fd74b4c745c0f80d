"""`galip-edge benchmark`, `doctor`, `completion`, `--quiet` and environment variables."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from galip_edge import cli, doctor, measure
from galip_edge.commands.generate import command as generate
from galip_edge.variables import variables
from runtime.errors import GalipEdgeError
from runtime.pipeline import PipelineOptions

pytestmark = pytest.mark.slow

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def galip_edge(*arguments, **variables) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "galip_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)


def test_benchmark_measures_without_torch():
    code = "import sys; sys.modules['torch'] = None; from galip_edge.cli import main; main()"
    command = [sys.executable, "-c", code, "benchmark", "--runs", "5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["p50"] <= found["p95"]
    assert found["images_per_second"] > 0
    assert 0 < found["start"] < found["first_start"]
    assert found["peak_bytes"] > 50e6
    assert found["machine"]["cores"] >= 1
    assert set(found["versions"]) == {"galip-edge", "openvino", "python"}


def test_starts_are_measured_without_the_users_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("GALIP_EDGE_GENERATE_N", "1000")
    monkeypatch.setenv("GALIP_EDGE_GENERATE_SIGN_KEY", "missing.pem")
    commands = []

    def run(command, env, **_):
        commands.append({name for name in env if name.startswith("GALIP_EDGE_")})
        assert command[command.index("--device") + 1] == "AUTO"
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(measure.subprocess, "run", run)
    measure._starts(tmp_path, PipelineOptions(device="AUTO"))
    assert commands == [{"GALIP_EDGE_CACHE"}] * 2


def test_the_line_for_an_issue():
    from galip_edge.measure import Measurement

    machine = {
        "device": "CPU (X)",
        "cpu": "X",
        "cores": 2,
        "instruction_sets": ["AVX2"],
        "load": 0.25,
        "system": "L m",
    }
    versions = {"galip-edge": "1", "openvino": "2", "python": "3"}
    numbers = (0.0123, 0.02, 81.24, 2.5, 0.9, 310e6, 30, 16)
    found = Measurement("m", "ab" * 32, 128, "int8", "bf16", *numbers, machine, versions)
    assert found.line == (
        "galip-edge 1, m abababab, 128 px, int8, rest in bf16: p50 12.3 ms, p95 20.0 ms, 81.2 "
        "images/s, start 0.90 s (first 2.50 s), peak 310 MB; X, 2 cores (load 0.2), AVX2; OpenVINO "
        "2, Python 3, L m"
    )
    machine["device"] = "GPU (an Arc)"
    assert "peak 310 MB; on GPU (an Arc), X, 2 cores" in found.line


def test_the_doctor_finds_a_healthy_machine():
    done = galip_edge("doctor", "--json")
    found = json.loads(done.stdout)
    states = {each["name"]: each["state"] for each in found["findings"]}
    assert {"python", "openvino", "cpu", "cores", "memory", "extras", "cache"} <= set(states)
    assert states["embedded"] == doctor.OK
    assert found["healthy"] == (done.returncode == 0)
    assert found["healthy"] == (doctor.PROBLEM not in states.values())


def findings(name) -> list[doctor.Finding]:
    return [each for each in doctor.examine() if each.name == name]


@pytest.fixture
def _no_model(monkeypatch):
    monkeypatch.setattr(doctor, "_models", lambda: iter(()))


@pytest.mark.usefixtures("_no_model")
def test_the_doctor_finds_what_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("GALIP_EDGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    (cache,) = findings("cache")
    assert cache.state == doctor.PROBLEM
    assert "chmod go-w" in cache.text
    (tmp_path / "cache").chmod(stat.S_IRWXU)
    assert findings("cache")[0].state == doctor.OK
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "set GALIP_EDGE_CACHE" in findings("cache")[0].text
    monkeypatch.setattr(doctor, "version", lambda _: "2026.2.1-21919-abc")
    (openvino,) = findings("openvino")
    assert openvino.state == doctor.PROBLEM
    assert "openvino>=2026.3" in openvino.text
    monkeypatch.setattr(doctor, "memory_limit", lambda: 100_000_000)
    assert findings("memory")[0].state == doctor.PROBLEM
    monkeypatch.setattr(doctor, "memory_limit", lambda: None)
    sysconf = os.sysconf

    def as_on_macos(name):
        if name == "SC_AVPHYS_PAGES":
            raise ValueError("unrecognized configuration name")
        return sysconf(name)

    monkeypatch.setattr(os, "sysconf", as_on_macos)
    assert re.fullmatch(r"[\d.]+ .B", findings("memory")[0].text)
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 0.5)
    assert "a quota of 0.5" in findings("cores")[0].text
    assert findings("quota")[0].state == doctor.NOTE
    monkeypatch.setattr(doctor, "lacks_vnni", lambda: True)
    assert findings("int8")[0].state == doctor.NOTE
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "ray" else object())
    assert "not installed: ray (pip install" in findings("extras")[0].text


def test_a_damaged_model_is_a_problem(monkeypatch, tmp_path):
    from embedded import changed, copied

    monkeypatch.setattr(doctor, "default_bundle", lambda: tmp_path / "bundle")
    monkeypatch.setattr(doctor, "available_models", lambda: iter(()))
    changed(copied(tmp_path / "bundle"), "generator.xml.gz", b"text")
    (embedded,) = findings("embedded")
    assert embedded.state == doctor.PROBLEM
    assert not doctor.is_healthy([embedded])


def test_the_doctors_extras_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"dev", "bench", "docs"}
    least = next(it for it in project["project"]["dependencies"] if it.startswith("openvino"))
    assert least == f"openvino>={'.'.join(map(str, doctor._LEAST_OPENVINO))}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    done = galip_edge("completion", shell)
    assert done.returncode == 0, done.stderr
    assert "_GALIP_EDGE_COMPLETE" in done.stdout
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=done.stdout, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


def completed(words: str) -> list[str]:
    """Completions that bash would offer after `words`, by click's protocol."""
    runner, count = CliRunner(), len(words.split(" ")) - 1
    environment = {"_GALIP_EDGE_COMPLETE": "bash_complete", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(count)
    done = runner.invoke(cli.galip_edge, env=environment, prog_name="galip-edge")
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return list(filter(None, (line.partition(",")[2] for line in done.stdout.splitlines())))


def test_completion_of_commands_and_options(monkeypatch):
    imported = set(sys.modules)
    assert completed("galip-edge ex") == [it for it in cli.COMMANDS if it.startswith("ex")]
    assert set(cli.COMMANDS) <= set(completed("galip-edge "))
    assert not {it for it in set(sys.modules) - imported if it.startswith("galip_edge.commands")}
    assert completed("galip-edge generate --pr") == ["--precision"]
    assert completed("galip-edge generate --precision b") == ["bf16"]
    assert completed("galip-edge completion z") == ["zsh"]
    # No download and no missing extra interrupts a TAB.
    monkeypatch.setitem(sys.modules, "galip_edge.hub", None)
    assert completed("galip-edge generate --model hf:me/x --se") == ["--seed"]
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.delitem(sys.modules, "galip_edge.commands.serve", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert completed("galip-edge serve --po") == []


def test_each_option_has_a_variable(tmp_path):
    context = click.Context(cli.galip_edge)
    for name in ("generate", "batch", "serve", "mcp", "info", "data"):
        command = cli.galip_edge.get_command(context, name)
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_eager:
                (*_, last) = variables(option, name)
                assert re.fullmatch(r"GALIP_EDGE_[A-Z0-9_]+", last)
                assert last in option.envvar
    data = cli.galip_edge.get_command(context, "data")
    for name in data.list_commands(context):
        for option in data.get_command(context, name).params:
            if isinstance(option, click.Option):
                (*_, last) = variables(option, "data", name)
                assert last in option.envvar
    names = {
        it: variables(it, "generate") for it in generate.params if isinstance(it, click.Option)
    }
    assert ["GALIP_EDGE_GENERATE_N"] in names.values()
    assert ["GALIP_EDGE_GENERATE_SEED"] in names.values()


@pytest.mark.parametrize(
    ("variables", "arguments", "precision"),
    [
        ({}, (), "int8"),
        ({"BF16": "1"}, (), "bf16"),
        ({"BF16": "1"}, ("--fp16",), "fp16"),
        ({"BF16": "0"}, (), "int8"),
    ],
)
def test_variables_of_precisions(variables, arguments, precision, monkeypatch, tmp_path):
    module = pytest.importorskip("galip_edge.commands.convert")

    def convert(*values, **_):
        (options,) = (it for it in values if isinstance(it, module.ConvertOptions))
        raise GalipEdgeError(options.precision)

    monkeypatch.setattr(module, "convert", convert)
    names = {f"GALIP_EDGE_CONVERT_{name}": it for name, it in variables.items()}
    command = ["convert", str(tmp_path / "x.safetensors"), *arguments]
    done = CliRunner().invoke(cli.galip_edge, command, env=names, obj={})
    assert str(done.exception) == precision


def test_variables_and_quiet(tmp_path):
    out = tmp_path / "x.png"
    values = {"GALIP_EDGE_GENERATE_SEED": "7", "GALIP_EDGE_GENERATE_OUT": str(out)}
    long = "bird " * 80
    done = galip_edge("generate", long, "--json", **values)
    assert json.loads(done.stdout)["seed"] == 7
    assert "Warning: the prompt has" in done.stderr
    done = galip_edge("generate", long, "--seed", 8, "--json", "--quiet", **values)
    assert json.loads(done.stdout)["seed"] == 8
    assert done.stderr == ""
    done = galip_edge("--quiet", "generate", " ")
    assert "the prompt is empty" in done.stderr
    (tmp_path / "p.txt").write_text("a bird\n")
    job = ("batch", tmp_path / "p.txt", "--out", tmp_path / "job", "--dry-run")
    assert "p.txt: lines" in galip_edge(*job).stderr
    assert galip_edge(*job, GALIP_EDGE_QUIET="1").stderr == ""
    wrong = galip_edge("generate", "a", GALIP_EDGE_GENERATE_SEED="x")
    assert wrong.returncode == 2
    assert "--seed" in wrong.stderr
