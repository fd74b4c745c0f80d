"""A bundle as OpenVINO models: the same tokens and images, from Python, C++ and a model server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from click.testing import CliRunner
from PIL import Image

from galip_edge.cli import galip_edge
from runtime import BundleError, GalipEdgeError, Pipeline, PipelineOptions, Tokenizer, draw_noise
from runtime.bundle import MERGES, Bundle, default_bundle
from runtime.compiled import has_bf16
from runtime.cpu import available_cores
from runtime.openvino_core import openvino_core
from runtime.openvino_export import export_openvino
from runtime.ovms import export_model_server
from runtime.tokenizer_graph import add_tokenizer_operations, extension_library

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROMPTS = ["a red bird on a branch", "a small bird " * 9, "a blue duck on the water " * 12]

# What `clean` repairs and OpenVINO Tokenizers' operations do not.
NOT_REPAIRED = ("mojibake", "ΣΊΣΥΦΟΣ", "İstanbul")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "models"
    export_openvino(default_bundle(), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(Bundle.open(default_bundle()).read(MERGES).decode().splitlines())


def test_tokens_are_the_same(exported, tokenizer):
    core = openvino_core()
    add_tokenizer_operations(core)
    model = core.compile_model(exported / "tokenizer.xml", "CPU")
    texts = [each["text"] for each in json.loads((ROOT / "tests/data/tokens.json").read_text())]
    for name in ("convert/captions.txt", "docs/embedded-model/captions.txt"):
        texts += (ROOT / name).read_text(encoding="utf-8").splitlines()
    texts += [
        "a " * 200,
        "x" * 3000,
        "<|endoftext|> x <|startoftext|>",
        "cost $5 ＄５ ａ＆ｂ",
        "a\0b",
    ]
    texts += ["Straße", "東京 タワー", "cafe\u0301", "🐦 I'LL", "\u3000x\ufeff", *NOT_REPAIRED]
    assert len(texts) > 600
    found = model(texts)["tokens"]
    assert found.dtype == np.int64
    wanted = tokenizer(texts)
    different = [text for text, a, b in zip(texts, found, wanted) if not np.array_equal(a, b)]
    assert len(different) == 3
    assert all(text.startswith(NOT_REPAIRED) for text in different)


def properties(model: ov.Model) -> dict:
    wanted = model.get_rt_info(["galip_edge", "inference_precision"]).astype(str)
    precision = wanted if wanted == "f32" or has_bf16() else "f32"
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": available_cores(),
        "ENABLE_CPU_PINNING": False,
    }


def test_the_models_give_the_pipelines_images(exported, tokenizer):
    core = openvino_core()
    described = json.loads((exported / "model.json").read_text())
    assert described["text_lengths"] == [20, 32, 77]
    encoder, generator = (
        core.read_model(exported / f"{n}.xml") for n in ("text_encoder", "generator")
    )
    settings = properties(generator)
    tokens = tokenizer([PROMPTS[0]])[:, :20]
    encoder.reshape({"tokens": [1, 20]})
    generator.reshape({"noise": [1, 100], "sentence": [1, 128]})
    sentence = core.compile_model(encoder, "CPU", settings)(tokens)[0]
    noise = draw_noise(7, PROMPTS[0], 0, 100)[None]
    image = core.compile_model(generator, "CPU", settings)({"noise": noise, "sentence": sentence})[
        0
    ]
    wanted = Pipeline.from_bundle().generate(PROMPTS[0], seed=7)
    np.testing.assert_array_equal(image, wanted)


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)
    with pytest.raises(GalipEdgeError, match=r"pip install .*\[export\]'"):
        export_openvino(default_bundle(), tmp_path / "models")
    assert not list(tmp_path.iterdir())
    export_openvino(default_bundle(), tmp_path / "models", tokenizer=False)
    assert not (tmp_path / "models" / "tokenizer.xml").exists()
    with pytest.raises(BundleError, match="exists: choose another folder, or pass --force"):
        export_openvino(default_bundle(), tmp_path / "models", tokenizer=False)
    export_openvino(default_bundle(), tmp_path / "models", force=True, tokenizer=False)
    (tmp_path / "other").mkdir()
    with pytest.raises(BundleError, match="is not an export"):
        export_openvino(default_bundle(), tmp_path / "other", force=True, tokenizer=False)


def test_a_model_server_can_read_text(tmp_path, tokenizer):
    folders = {text: tmp_path / str(text) for text in (False, True)}
    for text, folder in folders.items():
        arguments = [
            "export-ovms",
            str(default_bundle()),
            str(folder),
            *(["--text"] if text else []),
        ]
        assert CliRunner().invoke(galip_edge, arguments, obj={}).exit_code == 0
    core = openvino_core()
    add_tokenizer_operations(core)  # as the server's --cpu_extension does
    noise = draw_noise(7, PROMPTS[0], 0, 100)[None]
    images = []
    for text, folder in folders.items():
        (config,) = json.loads((folder / "config.json").read_text())["model_config_list"]
        plugin = config["config"]["plugin_config"]
        model = core.compile_model(next(folder.glob("*/1/model.xml")), "CPU", plugin)
        key, value = ("text", [PROMPTS[0]]) if text else ("tokens", tokenizer(PROMPTS[0]))
        images.append(model({key: value, "noise": noise})[0])
    np.testing.assert_array_equal(*images)


def test_a_model_server_needs_the_package_for_text(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)
    with pytest.raises(GalipEdgeError, match="openvino-tokenizers, which is not installed"):
        export_model_server(default_bundle(), tmp_path / "repository", text=True)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("no CMake, or no C++ compiler")
    import openvino.utils

    build = tmp_path_factory.mktemp("cpp")
    configure = ["cmake", "-S", ROOT / "examples" / "cpp", "-B", build]
    configure.append(f"-DOpenVINO_DIR={openvino.utils.get_cmake_path()}")
    for command in (configure, ["cmake", "--build", build]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "generate"


def test_cpp_gives_the_pipelines_images(program, exported, tokenizer, tmp_path):
    """Byte for byte, from tokens and from text."""
    pipeline = Pipeline.from_bundle(options=PipelineOptions(threads=2, cache=False))
    inputs = {"tokens": lambda prompt: ["--tokens", " ".join(map(str, tokenizer(prompt)[0]))]}
    inputs["text"] = lambda prompt: ["--text", prompt, "--tokenizers", extension_library()]
    for (seed, prompt), kind in zip(enumerate(PROMPTS), ("tokens", "text", "tokens")):
        noise = draw_noise(seed, prompt, 0, pipeline.manifest.noise_dim)
        noise.astype("<f4").tofile(tmp_path / "noise")
        options = ["--noise", str(tmp_path / "noise"), "--threads", "2", *inputs[kind](prompt)]
        command = [str(program), str(exported), str(tmp_path / "image.ppm"), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        wanted = pipeline.synthesize(pipeline.encode(prompt), noise[None])[0]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.ppm")), wanted)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "usage: generate MODELS OUT.ppm"),
        (("models", "out", "--what", "1"), "unknown option --what"),
        (("models", "out", "--tokens", "1"), "models/text_encoder.xml"),
    ],
)
def test_cpp_says_what_is_wrong(program, arguments, said, tmp_path):
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
