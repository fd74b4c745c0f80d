"""Devices other than this CPU, on a core that pretends to have them and computes on the CPU."""

import json
import logging
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from click.testing import CliRunner
from embedded import EMBEDDED, changed_manifest

from galip_edge.cli import galip_edge
from runtime import BundleError, Pipeline, PipelineOptions, openvino_core, selection
from runtime import devices as devices_module
from runtime import pipeline as pipeline_module
from runtime.bundle import read_manifest
from runtime.compiled import CompiledModel
from runtime.devices import (
    AUTO,
    Device,
    DeviceError,
    available_devices,
    checked_name,
    device_named,
    total_memory,
)
from runtime.golden import Probe
from runtime.selection import Candidate, Measured, candidates, choose, fastest

pytestmark = pytest.mark.slow

PROMPT = "a bird on a branch"

PROPERTIES = {
    "GPU": {
        "FULL_DEVICE_NAME": "Intel(R) Arc(TM) A770 Graphics (dGPU)",
        "OPTIMIZATION_CAPABILITIES": ["FP32", "BIN", "FP16", "INT8", "GPU_HW_MATMUL"],
        "GPU_DEVICE_TOTAL_MEM_SIZE": 16 * 2**30,
    },
    "NPU": {
        "FULL_DEVICE_NAME": "Intel(R) AI Boost",
        "OPTIMIZATION_CAPABILITIES": ["FP16", "INT8", "EXPORT_IMPORT"],
        "NPU_DRIVER_VERSION": 1004514,
    },
}


class FakeCore:
    """OpenVINO's core with more devices; all of them compute on the CPU in float32.

    Args:
        folder: cache of models compiled for the other devices.

    Attributes:
        cpu_capabilities: replaces the capabilities of the CPU.
        compiled: device and properties of each compilation.
        imported: devices that blobs were imported for.
    """

    def __init__(self, *names: str, folder: Path) -> None:
        self._folder = folder
        self._core = openvino_core.openvino_core()
        self.available_devices = ["CPU", *names]
        self.cpu_capabilities: list[str] | None = None
        self.compiled: list[tuple[str, dict]] = []
        self.imported: list[str] = []

    def get_property(self, device, name):
        kind = device.partition(".")[0]
        if kind == "CPU" and name == "OPTIMIZATION_CAPABILITIES" and self.cpu_capabilities:
            return self.cpu_capabilities
        if kind == "CPU":
            return self._core.get_property(device, name)
        try:
            return PROPERTIES[kind][name]
        except KeyError:
            raise RuntimeError("Unsupported configuration key") from None

    def compile_model(self, model, device, properties):
        self.compiled.append((device, dict(properties)))
        if device != "CPU" or self.cpu_capabilities:
            properties = {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": 1,
                "CACHE_DIR": str(self._folder),
            }
        return self._core.compile_model(model, "CPU", properties)

    def import_model(self, blob, device, properties):
        self.imported.append(device)
        return self._core.import_model(blob, device, properties)

    def read_model(self, *arguments):
        return self._core.read_model(*arguments)


@pytest.fixture
def bundle(tiny_bundles) -> Path:
    return tiny_bundles["int8"]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GALIP_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake(monkeypatch, tmp_path_factory):
    """Makes a core the one that every module uses."""
    folder = tmp_path_factory.getbasetemp() / "compiled"

    def install(*names: str) -> FakeCore:
        core, real = FakeCore(*names, folder=folder), openvino_core.openvino_core

        def fake_core() -> FakeCore:
            return core

        for module in list(sys.modules.values()):
            if getattr(module, "openvino_core", None) is real:
                monkeypatch.setattr(module, "openvino_core", fake_core)
        return core

    return install


@pytest.fixture
def arm(monkeypatch):
    monkeypatch.setattr(devices_module.platform, "machine", lambda: "aarch64")


def generate(bundle, **options):
    return Pipeline.from_bundle(bundle, PipelineOptions(**options)).generate(PROMPT, seed=3)


def test_auto_and_cpu_give_the_same_bytes(cache, bundle):
    wanted = generate(bundle)
    for device in ("CPU", "cpu", "AUTO", "auto"):
        np.testing.assert_array_equal(generate(bundle, device=device), wanted)
    assert len(list(cache.rglob("generator*.blob"))) == 1


def test_a_gpu_computes_in_float16_without_weightless_blobs(fake, cache, bundle):
    core = fake("GPU")
    pipeline = Pipeline.from_bundle(bundle, PipelineOptions(device="GPU"))
    pipeline.generate(PROMPT)
    assert pipeline.device.name == "GPU"
    assert len(core.compiled) == 2
    for device, properties in core.compiled:
        assert device == "GPU"
        assert properties["INFERENCE_PRECISION_HINT"] == "f16"
        assert "INFERENCE_NUM_THREADS" not in properties
        assert Path(properties["CACHE_DIR"]).is_relative_to(cache)
        assert "CACHE_MODE" not in properties
    assert not core.imported
    assert not list(cache.rglob("*.blob"))


def test_each_device_has_its_own_cache(fake, cache, bundle):
    core = fake("GPU.0", "GPU.1", "NPU")
    for device in ("GPU.0", "GPU.1", "NPU", "CPU"):
        generate(bundle, device=device)
    folders = [properties.get("CACHE_DIR") for _, properties in core.compiled]
    assert len({folder for folder in folders if folder}) == 3
    assert len(list(cache.rglob("*.blob"))) == 2  # of the CPU
    assert [device for device, _ in core.compiled[::2]] == ["GPU.0", "GPU.1", "NPU", "CPU"]


def test_golden_numbers_are_compared_on_the_first_use_of_a_device(fake, cache, monkeypatch, bundle):
    fake("GPU", "NPU")
    compared = []
    check = Probe.check
    monkeypatch.setattr(Probe, "check", lambda *a: compared.append(a) or check(*a))
    for device, count in (("CPU", 2), ("GPU", 2), ("GPU", 0), ("NPU", 2), ("CPU", 0)):
        compared.clear()
        generate(bundle, device=device)
        assert (device, len(compared)) == (device, count)


def wrong(monkeypatch, core, *precisions):
    """Make the device give a black image in these precisions."""
    real = core.compile_model

    def compile_model(model, device, properties):
        if device != "CPU" and properties["INFERENCE_PRECISION_HINT"] in precisions:
            (result,) = model.get_results()
            zero = ov.opset13.convert(np.array(0, np.float32), result.get_element_type())
            black = ov.opset13.multiply(result.input_value(0), zero)
            result.input(0).replace_source_output(black.output(0))
        return real(model, device, properties)

    monkeypatch.setattr(core, "compile_model", compile_model)


def test_a_gpu_that_is_wrong_in_float16_falls_back_and_says_so(
    fake, cache, monkeypatch, caplog, bundle
):
    core = fake("GPU")
    wrong(monkeypatch, core, "f16")
    for first in (True, False):
        core.compiled.clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            generate(bundle, device="GPU")
        used = [properties["INFERENCE_PRECISION_HINT"] for _, properties in core.compiled]
        assert sorted(used) == (["f16", "f16", "f32", "f32"] if first else ["f32", "f32"])
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 2
        assert all("computes wrong numbers in f16 on GPU (Intel(R) Arc" in each for each in said)


def test_a_gpu_that_is_wrong_is_refused(fake, cache, monkeypatch, bundle):
    wrong(monkeypatch, fake("GPU"), "f16", "f32")
    pipeline = Pipeline.from_bundle(bundle, PipelineOptions(device="GPU"))
    with pytest.raises(BundleError, match=r"wrong numbers in f32 on GPU .*: use --device CPU"):
        pipeline.encode([PROMPT])


def test_an_npu_has_no_float32_to_fall_back_to(fake, cache, monkeypatch, bundle):
    core = fake("NPU")
    wrong(monkeypatch, core, "f16")
    pipeline = Pipeline.from_bundle(bundle, PipelineOptions(device="NPU"))
    with pytest.raises(BundleError, match=r"wrong numbers in f16 on NPU .*: use --device CPU"):
        pipeline.encode([PROMPT])
    assert core.compiled
    assert all("NUM_STREAMS" not in properties for _, properties in core.compiled)
    with pytest.raises(BundleError, match=r"NPU .* has no f32, it has f16: use --precision auto"):
        generate(bundle, device="NPU", precision="f32")


def test_a_missing_device_is_one_line_with_those_that_exist(fake):
    fake("GPU")
    with pytest.raises(DeviceError) as error:
        device_named("NPU")
    (line,) = str(error.value).splitlines()
    for word in ("no NPU", "available: CPU (", ", GPU (Intel(R) Arc(TM) A770"):
        assert word in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", PROMPT),
        ("explore", PROMPT),
        ("interpolate", "a", "b", "--out", "x.gif"),
        ("batch", "prompts.txt", "--out", "job"),
        ("serve", "--port", "0"),
        ("mcp",),
        ("verify",),
        ("benchmark",),
        ("evaluate", str(EMBEDDED), "--captions", "prompts.txt"),
    ],
)
def test_every_command_that_runs_a_model_reports_a_missing_device(arguments, tmp_path):
    (tmp_path / "prompts.txt").write_text("a bird\n")
    command = [sys.executable, "-m", "galip_edge", *arguments, "--device", "npu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert "OpenVINO finds no NPU" in lines[0]
    assert "available: CPU (" in lines[0]
    assert "Traceback" not in done.stderr


def test_a_device_that_states_no_precision_computes_in_float32():
    assert Device("GPU", "a GPU", ()).precision("bf16") == "f32"


def test_gpu_means_the_first_one(fake):
    fake("GPU.0", "GPU.1")
    assert device_named("gpu").name == "GPU.0"
    assert device_named("GPU.1").name == "GPU.1"
    fake("GPU")
    assert device_named("GPU.0").name == "GPU"
    with pytest.raises(DeviceError):
        device_named("GPU.1")


@pytest.mark.parametrize("value", ["TPU", "", "GPU.", "GPU.x", "HETERO:GPU,CPU", None, 3, "CPU\n"])
def test_other_names_are_refused(value):
    with pytest.raises(ValueError, match="device must be CPU, GPU, GPU.1, NPU or AUTO"):
        PipelineOptions(device=value)
    if isinstance(value, str):
        done = CliRunner().invoke(galip_edge, ["generate", PROMPT, "--device", value], obj={})
        assert done.exit_code == 2
    assert checked_name("npu") == "NPU"


def test_devices_are_listed(fake):
    fake("GPU", "NPU")
    done = CliRunner().invoke(galip_edge, ["devices"], obj={})
    assert done.exit_code == 0
    cpu, gpu, npu, auto = done.stdout.splitlines()
    assert cpu.startswith("CPU ")
    assert "A770 Graphics (dGPU); f32, f16, int8; 17.2 GB" in gpu
    assert "AI Boost; f16, int8; memory unknown" in npu
    assert auto.startswith("AUTO ")
    listed = json.loads(CliRunner().invoke(galip_edge, ["devices", "--json"], obj={}).stdout)
    assert [each["name"] for each in listed["devices"]] == ["CPU", "GPU", "NPU"]
    assert listed["devices"][0]["memory"] == total_memory() > 2**28
    assert listed["devices"][2]["driver"] == "1004514"


def test_weightless_blobs_are_for_what_they_were_tested_with(monkeypatch, arm):
    (cpu,) = available_devices()
    assert not cpu.keeps_weightless
    monkeypatch.undo()
    assert cpu.keeps_weightless, "run test_blobs.py with this OpenVINO, then add its release"
    monkeypatch.setattr(devices_module.ov, "__version__", "2027.0.0-1-abc")
    assert not cpu.keeps_weightless


def test_an_untested_openvino_uses_its_own_cache(fake, cache, monkeypatch, bundle):
    wanted = generate(bundle, cache=False)
    core = fake()
    monkeypatch.setattr(devices_module, "_WEIGHTLESS_RELEASES", ())
    for _ in range(2):
        np.testing.assert_array_equal(generate(bundle), wanted)
    assert not core.imported
    assert all("CACHE_DIR" in properties for _, properties in core.compiled)
    assert list(cache.rglob("openvino/*.blob"))


def test_openvinos_own_cache_is_private_too(fake, cache, bundle):
    core, before = fake("GPU"), os.umask(0)
    try:
        Pipeline.from_bundle(bundle, PipelineOptions(device="GPU")).encode(PROMPT)
        ((_, properties),) = core.compiled
        folder = Path(properties["CACHE_DIR"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        folder.chmod(0o777)
        core.compiled.clear()
        Pipeline.from_bundle(bundle, PipelineOptions(device="GPU")).encode(PROMPT)
    finally:
        os.umask(before)
    ((_, properties),) = core.compiled
    assert "CACHE_DIR" not in properties  # others may have written blobs there


def test_arm_computes_in_float16(fake, cache, arm, monkeypatch, bundle):
    core = fake()
    core.cpu_capabilities = ["FP32", "FP16", "INT8"]
    monkeypatch.setattr(selection, "_RUNS", 1)
    pipeline = Pipeline.from_bundle(bundle)
    pipeline.generate(PROMPT)
    assert {p["INFERENCE_PRECISION_HINT"] for _, p in core.compiled} == {"f16"}
    assert not core.imported


@pytest.mark.parametrize(
    ("keep_float", "dequantize", "images"),
    [([], False, 2), ([], True, 1), (["mapping"], False, 1)],
)
def test_images_in_parallel_in_float16(
    fake, cache, arm, tiny_bundle, keep_float, dequantize, images
):
    """Only where all layers are INT8: other sums depend on the number of threads."""
    fake().cpu_capabilities = ["FP32", "FP16", "INT8"]

    def change(body):
        body["quantization"]["scheme"]["generator"]["keep_float"] = keep_float

    changed_manifest(tiny_bundle, change)
    options = PipelineOptions(dequantize=dequantize, threads=2)
    assert Pipeline.from_bundle(tiny_bundle, options).parallel_images(1000) == images


def test_arm_does_not_use_int8_where_its_text_encoder_is_wrong(
    fake, cache, arm, monkeypatch, bundle
):
    """As OpenVINO 2026.4 on aarch64 in emulation was."""
    core = fake()
    core.cpu_capabilities = ["FP32", "INT8"]
    monkeypatch.setattr(selection, "_RUNS", 1)
    real = core.compile_model

    def compile_model(model, device, properties):
        rounded = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
        if rounded and model.outputs[0].get_any_name() == "sentence":
            (result,) = model.get_results()
            wrong = ov.opset13.multiply(result.input_value(0), np.array(0, np.float32))
            result.input(0).replace_source_output(wrong.output(0))
        return real(model, device, properties)

    monkeypatch.setattr(core, "compile_model", compile_model)
    pipeline = Pipeline.from_bundle(bundle)
    assert pipeline.settled_options.dequantize
    pipeline.generate(PROMPT)


CPU = Device("CPU", "a CPU", ("f32", "f16", "int8"))
GPU = Device("GPU", "a GPU", ("f32", "f16", "int8"))


def test_int8_may_be_computed_in_floating_point_where_that_may_be_faster(arm, monkeypatch, bundle):
    manifest = read_manifest(bundle)
    assert candidates([CPU], manifest) == [Candidate(CPU), Candidate(CPU, True)]
    assert candidates([GPU], manifest) == [Candidate(GPU)]
    assert candidates([CPU], replace(manifest, precision="fp16")) == [Candidate(CPU)]
    monkeypatch.undo()
    assert candidates([CPU, GPU], manifest) == [Candidate(CPU), Candidate(GPU)]


def test_the_fastest_is_chosen_and_the_nearer_one_of_two_alike():
    slow, fast = Measured(Candidate(CPU), 1.0, 50), Measured(Candidate(GPU), 0.5, 40)
    assert fastest([slow, fast]) is fast
    alike = Measured(Candidate(CPU, True), 0.51, 45)
    assert fastest([slow, fast, alike]) is alike


class FakeModel(CompiledModel):
    """Takes a given time for an image, by a clock that it moves."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def infer(self, *_):
        self._clock[0] += self._seconds
        return np.zeros((2, 2, 3), np.uint8)


def test_a_choice_is_measured_once(tmp_path, monkeypatch, bundle):
    clock, made = [0.0], []
    monkeypatch.setattr(selection.time, "perf_counter", lambda: clock[0])
    among = [Candidate(CPU), Candidate(GPU), Candidate(CPU, True)]
    seconds = {Candidate(CPU): 3.0, Candidate(GPU): 1.0}

    def compiled(candidate):
        made.append(candidate)
        if candidate not in seconds:
            raise BundleError("out of tolerance")
        return FakeModel(clock, seconds[candidate])

    manifest, file = read_manifest(bundle), tmp_path / "choice.json"
    for _ in range(2):
        assert choose(among, compiled, manifest, None, file) == Candidate(GPU)
    assert made == among
    # A damaged file, or other devices, are another matter.
    file.write_text('{"chosen": "x"')
    assert choose(among[:2], compiled, manifest, None, file) == Candidate(GPU)
    assert choose(among[::-1], compiled, manifest, None, file) == Candidate(GPU)
    assert len(made) == 8
    with pytest.raises(BundleError, match="out of tolerance"):
        choose([among[2], among[2]], compiled, manifest, None, None)


def test_auto_measures_the_devices(fake, cache, monkeypatch, bundle):
    core = fake("GPU")
    times = {"CPU": 2.0, "GPU": 1.0}
    monkeypatch.setattr(
        selection,
        "_measured",
        lambda candidate, *_: Measured(candidate, times[candidate.device.name], 40.0),
    )
    assert Pipeline.from_bundle(bundle, PipelineOptions(device=AUTO)).device.name == "GPU"
    core.compiled.clear()
    pipeline = Pipeline.from_bundle(bundle, PipelineOptions(device=AUTO))
    assert pipeline.device.name == "GPU"
    assert not core.compiled
    assert pipeline.settled_options.device == "GPU"


def test_auto_chooses_for_each_precision(fake, cache, monkeypatch, bundle):
    """An NPU, which computes in float16 alone, is no choice for f32 because it was one before."""
    fake("NPU")
    times = {"CPU": 2.0, "NPU": 1.0}

    def measured(candidate, *_):
        return Measured(candidate, times[candidate.device.name], 40.0)

    def compiled(pipeline, candidate):
        return pipeline._precision_on(candidate.device)

    monkeypatch.setattr(selection, "_measured", measured)
    monkeypatch.setattr(Pipeline, "_generator_on", compiled)
    for precision, device in (("auto", "NPU"), ("f32", "CPU"), ("auto", "NPU")):
        options = PipelineOptions(device=AUTO, precision=precision)
        assert Pipeline.from_bundle(bundle, options).device.name == device


def test_auto_tolerates_bfloat16_on_request_as_the_cpu_does(fake, cache, monkeypatch, tiny_bundle):
    fake("GPU").cpu_capabilities = ["FP32", "BF16", "INT8"]
    changed_manifest(tiny_bundle, lambda body: body.update(inference_precision="f32"))
    loosened, real = [], pipeline_module.read_golden

    def read_golden(bundle, loose=False):
        loosened.append(loose)
        return real(bundle, loose)

    monkeypatch.setattr(pipeline_module, "read_golden", read_golden)
    monkeypatch.setattr(selection, "_RUNS", 1)
    options = PipelineOptions(device=AUTO, precision="bf16", cache=False)
    assert Pipeline.from_bundle(tiny_bundle, options).device.name == "CPU"
    assert loosened == [False, True]  # to compare images, and as tolerance


def test_float16_is_refused_for_one_arithmetic_alone(fake, cache, arm, monkeypatch, bundle):
    core = fake()
    core.cpu_capabilities = ["FP32", "FP16", "INT8"]
    real, used = core.compile_model, set()

    def compile_model(model, device, properties):
        rounded = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
        precision = properties["INFERENCE_PRECISION_HINT"]
        used.add((rounded, precision))
        if rounded and precision == "f16":
            (result,) = model.get_results()
            zero = ov.opset13.convert(np.array(0, np.float32), result.get_element_type())
            black = ov.opset13.multiply(result.input_value(0), zero)
            result.input(0).replace_source_output(black.output(0))
        return real(model, device, properties)

    monkeypatch.setattr(core, "compile_model", compile_model)
    for dequantize in (False, True):
        Pipeline.from_bundle(bundle, PipelineOptions(dequantize=dequantize)).encode(PROMPT)
    assert used == {(True, "f16"), (True, "f32"), (False, "f16")}


def test_int8_layers_in_floating_point_come_nearer_to_float(cache, bundle):
    found = [
        Pipeline.from_bundle(
            bundle, PipelineOptions(cache=False, precision="f32", dequantize=each)
        ).compare_with_golden()
        for each in (False, True)
    ]
    assert found[1].image_psnr_db > found[0].image_psnr_db
    assert found[1].sentence_cosine > found[0].sentence_cosine
    generate(bundle, dequantize=True, precision="f32")
    generate(bundle, dequantize=False, precision="f32")
    assert len(list(cache.rglob("generator*.blob"))) == 2


def test_a_job_does_not_continue_on_another_device(fake, cache, tmp_path, bundle):
    from runtime import Job, JobError, JobOptions, PromptFile

    fake("GPU")
    (tmp_path / "prompts.txt").write_text("a bird\n")
    prompts = PromptFile(tmp_path / "prompts.txt")

    def job(device):
        options = JobOptions(pipeline=PipelineOptions(device=device))
        return Job(prompts, bundle, tmp_path / "job", options)

    assert [entry["status"] for entry in job("CPU")] == ["done"]
    with pytest.raises(JobError, match="a job with another device"):
        job("GPU")
    assert not list(job("cpu"))
