"""The GPU kit must run on a bare CUDA machine: torch and open_clip, nothing of the runtime."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cpu_latency
import pytest

from galip_edge.training.config import load_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TREES = ("benchmarks", "galip_edge", "runtime")
HIDDEN = ("openvino", "nncf", "onnx", "onnxruntime", "onnxscript", "tensorboard", "pyarrow", "ray")

# None in sys.modules makes an import fail as that of a missing package does; and the packages are
# found in the packed folder alone.
SITE = f"""
import sys
sys.modules.update(dict.fromkeys({HIDDEN!r}))
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in f"{{f}} {{f.__module__}}"]
sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]
"""


def run_on_bare_machine(folder, script, *arguments):
    """Output of a script of a copied tree on a CPU, in a process without HIDDEN."""
    kit, site = folder / "kit", folder / "site"
    if not kit.exists():
        for tree in TREES:
            shutil.copytree(ROOT / tree, kit / tree, ignore=shutil.ignore_patterns("*.bin"))
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
    command = [sys.executable, f"benchmarks/{script}", "--device", "cpu", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        command, env=environment, cwd=kit, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    out = folder / "results" / "gpu.json"
    arguments = ["--preset", "tiny", "--no-compile", "--limit", "3", "--out", str(out)]
    run_on_bare_machine(folder, "gpu.py", *arguments)
    return json.loads(out.read_text())


def test_every_part_is_measured_without_openvino_nncf_and_onnx(report):
    generator = [r for r in report["inference"] if r["what"] == "generator" and "skipped" not in r]
    assert {r["mode"] for r in generator} == {"eager", "eager, published order"}
    assert all(r["median_s"] > 0 for r in generator)
    assert {r["precision"] for r in report["training"]} == {"float32", "float16", "bfloat16"}
    assert all(r["images_per_second"] > 0 for r in report["training"])


@pytest.mark.parametrize(
    "check",
    [
        "five_float32_steps",
        "five_bfloat16_steps",
        "float16_halves_its_scale",
        "one_process_joins",
        "images_agree",
        "killed_run_resumes",
    ],
)
def test_every_check_of_correctness_passes_on_a_cpu(report, check):
    found = {r["check"]: r for r in report["correctness"]}
    assert found[check]["passed"], found[check]


def record(what, batch, median, **more):
    return {"what": what, "precision": "float16", "batch": batch, "median_s": median, **more}


def test_cpu_latency_states_the_ratio_to_the_fastest_float16_mode(tmp_path, monkeypatch):
    known = {
        "device": "Some GPU",
        "torch": "9",
        "date": "2030-01-01",
        "inference": [
            record("text encoder", 1, 0.001),
            record("generator", 1, 0.010, mode="eager"),
            record("generator", 1, 0.003, mode="cuda graph"),
            {**record("generator", 1, 0.001, mode="eager"), "precision": "bfloat16"},
            record("generator", 64, 0.064, mode="eager"),
        ],
    }
    monkeypatch.setattr(cpu_latency, "GPU_RESULTS", tmp_path / "gpu.json")
    ours = {cpu_latency.DEPLOYED: {"median_s": 0.040}}
    assert cpu_latency.gpu_reference(ours).endswith("not measured")
    (tmp_path / "gpu.json").write_text(json.dumps(known))
    said = cpu_latency.gpu_reference(ours)
    assert (
        "10.0 times as long as Some GPU in float16 (4.0 ms, cuda graph; 1.00 ms per image" in said
    )


def test_a_part_that_hangs_costs_only_itself(tmp_path, capfd, monkeypatch):
    import gpu

    (tmp_path / "slow.py").write_text(
        "import json, time\nprint(json.dumps({'part': 'x', 'n': 1}), flush=True)\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "slow.py"))
    records = gpu.run_part("x", [], 5.0)
    assert records[0] == {"part": "x", "n": 1}
    assert records[1]["ended"] == "stopped after 5 s"


@pytest.mark.parametrize("may_stop", [False, True])
def test_a_stage_stopped_at_its_limit_succeeds_only_if_it_may(may_stop, tmp_path, monkeypatch):
    """Half of the images to draw are a failure; adversarial training without an end is not."""
    import gpu_train

    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(gpu_train.sys, "executable", str(slow))
    log = gpu_train.Log(tmp_path)
    assert gpu_train.galip_edge(log, tmp_path, "x", [], 0.1, may_stop=may_stop) == may_stop
    ended, *errors = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert ended["stopped"]
    assert len(errors) == (not may_stop)


def test_a_stage_stopped_while_drawing_ends_the_training(tmp_path, monkeypatch):
    import gpu_train

    stages = []

    def stage(log, out, name, arguments, limit, metrics=None, *, may_stop=False):
        stages.append((name, may_stop))
        return may_stop

    monkeypatch.setattr(gpu_train, "galip_edge", stage)
    monkeypatch.setattr("sys.argv", ["gpu_train.py", str(tmp_path), "--device", "cpu"])
    (tmp_path / "messages.log").touch()
    with pytest.raises(SystemExit, match="a stage failed"):
        gpu_train.main()
    assert stages == [("draw", False)]


def test_further_settings_reach_training(tmp_path, monkeypatch):
    import gpu_train

    commands = {}

    def stage(log, out, name, arguments, limit, metrics=None, *, may_stop=False):
        commands[name] = arguments
        return name == "clip"

    monkeypatch.setattr(gpu_train, "galip_edge", stage)
    given = [str(tmp_path), "--images", "x", "--clip", "y", "--set", "cuda_graphs=false"]
    monkeypatch.setattr("sys.argv", ["gpu_train.py", *given])
    (tmp_path / "messages.log").touch()
    with pytest.raises(SystemExit):
        gpu_train.main()
    assert commands["train"][-2:] == ["--set", "cuda_graphs=false"]  # the last one applies
    assignments = commands["train"][commands["train"].index("--set") + 1 :: 2]
    assert not load_config("aviary", assignments).cuda_graphs


def test_a_start_is_trained_adversarially_at_once():
    import gpu_train

    given = gpu_train.settings(gpu_train._start(Path("start.safetensors")))[1::2]
    config = load_config("aviary", ["data.root=x", *given])
    assert config.pretraining.total_steps == 0
    assert config.augmentation.blur == 0


def test_the_blur_fades_over_the_same_images_as_in_the_configuration():
    import gpu_train

    chosen, config = gpu_train.plan("full"), load_config("aviary", ["data.root=x"])
    images = config.batch_size * config.augmentation.blur_steps
    assert chosen.batch * chosen.train["augmentation.blur_steps"] == images


def test_the_whole_training_runs_and_resumes_without_openvino_nncf_and_onnx(tmp_path):
    out = tmp_path / "out"
    arguments = [str(out), "--preset", "small", "--steps", "3", "--minutes", "60"]
    printed = run_on_bare_machine(tmp_path, "gpu_train.py", *arguments, "--samples", "250")
    records = [json.loads(line) for line in printed.splitlines()]
    ended = {r["stage"]: r for r in records if "exit_code" in r}
    assert list(ended) == ["draw", "clip", "train", "export", "export best"]
    assert not any(r["exit_code"] or r["stopped"] for r in ended.values())
    assert any("evaluation/cmmd" in r for r in records if r["stage"] == "train")
    assert any("top1" in r for r in records if r["stage"] == "clip")
    files = records[-1]["files"]
    assert {"checkpoint/projected.safetensors", "checkpoint/model.safetensors.index.json"} <= set(
        files
    )
    assert max(files.values()) <= 16 * 2**20
    assert records[-1]["grids"]
    assert [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] == records

    # What exists is not computed again.
    printed = run_on_bare_machine(
        tmp_path, "gpu_train.py", *arguments, "--images", str(out / "images")
    )
    skipped = [r["stage"] for r in map(json.loads, printed.splitlines()) if "skipped" in r]
    assert skipped == ["draw", "clip"]
