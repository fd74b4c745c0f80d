"""Bundles as pages that generate in the browser: the models in ONNX, and the page in Chromium."""

import gzip
import html
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import openvino as ov
import pytest
from axe_playwright_python.sync_playwright import Axe
from openvino import opset13 as ops
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from static_host import static_host

from convert.errors import ConversionError
from convert.web import export_web
from convert.web.export import onnx_model
from convert.web.onnx_graph import to_onnx
from galip_edge.cli import main
from runtime import Pipeline
from runtime.bundle import GENERATOR, TEXT_ENCODER, Bundle
from runtime.errors import BundleError
from runtime.graph_io import read_graph
from runtime.images import read_metadata
from runtime.noise import MAX_SEED, draw_noise
from runtime.recipes import TRAINED_ALGORITHMIC_MEDIA, read_recipe, xmp_packet

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
EMBEDDED = ROOT / "runtime" / "default_model"
CAPTIONS = (ROOT / "convert" / "captions.txt").read_text().splitlines()
CHROMIUM = shutil.which("chromium")
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

expect.set_options(timeout=60_000)


def psnr(a, b):
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def sessions(bundle):
    """The page's text encoder and generator."""
    opened = Bundle.open(bundle)
    return [
        onnxruntime.InferenceSession(onnx_model(opened, graph).SerializeToString())
        for graph in (TEXT_ENCODER, GENERATOR)
    ]


def run(models, pipeline, prompt, seed):
    """The page's image (H,W,3) of a prompt."""
    text, generator = models
    (sentence,) = text.run(None, {"tokens": pipeline.tokenizer([prompt])})
    noise = draw_noise(seed, prompt, 0, pipeline.manifest.noise_dim)[None]
    return generator.run(None, {"noise": noise, "sentence": sentence})[0][0]


def test_float32_images_are_the_runtimes_within_one_level(tiny_bundles):
    pipeline = Pipeline.from_bundle(tiny_bundles["fp32"])
    image = run(sessions(tiny_bundles["fp32"]), pipeline, "a red bird", 7)
    reference = pipeline.generate(["a red bird"], n=1, seed=7)[0]
    assert np.abs(image.astype(int) - reference).max() <= 1


def test_float16_images_are_the_float32_bundles_within_one_level(tiny_bundles):
    reference = Pipeline.from_bundle(tiny_bundles["fp32"])
    models = sessions(tiny_bundles["fp16"])
    for caption in CAPTIONS[:8]:
        image = run(models, reference, caption, 0)
        exact = reference.generate([caption], n=1, seed=0)[0]
        assert np.abs(image.astype(int) - exact).max() <= 1


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
def test_every_precision_can_be_exported_and_stays_near_float32(precision, tiny_bundles):
    reference = Pipeline.from_bundle(tiny_bundles["fp32"]).generate(["two dogs"], n=1, seed=3)[0]
    pipeline = Pipeline.from_bundle(tiny_bundles[precision])
    image = run(sessions(tiny_bundles[precision]), pipeline, "two dogs", 3)
    assert psnr(image, reference) > 30


def test_int8_weights_stay_in_eight_bits(tiny_bundles):
    bundle = Bundle.open(tiny_bundles["int8"])
    stored = sum(
        int(np.prod(node.get_output_shape(0)))
        for node in read_graph(bundle, GENERATOR).get_ops()
        if node.get_type_name() == "Constant"
        and node.get_element_type().get_type_name() in ("i8", "u8")
    )
    model = onnx_model(bundle, GENERATOR)
    eight_bits = [t for t in model.graph.initializer if t.data_type in (2, 3)]
    assert sum(int(np.prod(t.dims, dtype=int)) for t in eight_bits) == stored > 100_000
    assert {node.op_type for node in model.graph.node} & {"Shape", "Range"} == set()


def test_large_files_are_compressed(tiny_bundles, tmp_path):
    export_web(tiny_bundles["fp16"], tmp_path / "site")
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert [path.name for path in files if path.suffix in (".wasm", ".onnx")] == []
    unpacked = {p.stem: gzip.decompress(p.read_bytes()) for p in files if p.suffix == ".gz"}
    expected = onnx_model(Bundle.open(tiny_bundles["fp16"]), GENERATOR).SerializeToString()
    assert unpacked["generator.onnx"] == expected
    assert unpacked["ort-wasm-simd-threaded.wasm"].startswith(b"\0asm")
    models = (tmp_path / "site" / "model").glob("*.onnx.gz")
    described = json.loads((tmp_path / "site" / "model" / "model.json").read_text())
    assert described["bytes"] == sum(path.stat().st_size for path in models)
    # Everything but the model; 35 MB leave room for the embedded one in float16 (27 MB).
    assert sum(path.stat().st_size for path in files) - described["bytes"] < 5e6


def test_a_layer_without_translation_is_named():
    data = ops.parameter([1, 4], np.float32, name="x")
    model = ov.Model([ops.result(ops.erf(data))], [data], "odd")
    model.inputs[0].set_names({"x"})
    model.outputs[0].set_names({"y"})
    with pytest.raises(ConversionError, match="is a Erf, which has no ONNX translation"):
        to_onnx(model, "odd")


def test_an_export_replaces_only_an_export(tiny_bundles, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(BundleError, match="exists: choose another folder, or pass --force"):
        export_web(tiny_bundles["int8"], tmp_path / "mine")
    with pytest.raises(BundleError, match="is not a web export, so --force does not replace"):
        export_web(tiny_bundles["int8"], tmp_path / "mine", force=True)
    export_web(tiny_bundles["int8"], tmp_path / "site")
    export_web(tiny_bundles["int8"], tmp_path / "site", force=True)
    listed = (tmp_path / "site" / "sw.js").read_text()
    written = {
        p.relative_to(tmp_path / "site").as_posix() for p in (tmp_path / "site").rglob("*.*")
    }
    assert all(json.dumps(name) in listed for name in written - {"sw.js"})


# ---- In Chromium ----


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The export of the embedded model on a static host, under a path."""
    root = tmp_path_factory.mktemp("host")
    with pytest.raises(SystemExit) as ended:
        main(["export-web", str(EMBEDDED), str(root / "birds" / "site")])
    assert ended.value.code == 0
    with static_host(root) as (address, requested, host):
        yield f"{address}birds/site/", requested, host


@pytest.fixture(scope="module")
def context(site):
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
            with browser.new_context(viewport={"width": 390, "height": 844}) as context:
                yield context


@pytest.fixture(scope="module")
def page(site, context):
    """The page after its first image; nothing went wrong, and nothing foreign was asked for."""
    address, _, _ = site
    foreign, errors = [], []
    context.on(
        "request", lambda it: it.url.startswith((address, "blob:")) or foreign.append(it.url)
    )
    context.on("weberror", lambda error: errors.append(str(error.error)))
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#image")).to_be_visible()
    yield page
    assert (foreign, errors) == ([], [])


def downloaded(page, prompt, seed, path):
    page.locator("#start-prompt").fill(prompt)
    page.locator("#start-seed").fill(str(seed))
    expect(page.locator("#recipe")).to_contain_text(f"{prompt} (seed {seed}")
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(path)
    return np.asarray(Image.open(path))


@needs_chromium
def test_the_page_generates_the_runtimes_image(page, tmp_path):
    prompt = "a red bird on a branch"
    image = downloaded(page, prompt, 7, tmp_path / "image.png")
    pipeline = Pipeline.from_bundle(EMBEDDED)
    assert psnr(image, pipeline.generate([prompt], n=1, seed=7)[0]) > 36  # INT8 on both sides
    recipe = read_metadata(tmp_path / "image.png")
    assert (recipe.prompt, recipe.seed, recipe.index) == (prompt, 7, 0)
    assert recipe.model_hash == pipeline.manifest.model_hash


@needs_chromium
def test_large_seeds_and_other_scripts_survive(page, tmp_path):
    downloaded(page, "un oiseau – 鳥", MAX_SEED, tmp_path / "image.png")
    recipe = read_metadata(tmp_path / "image.png")
    assert (recipe.prompt, recipe.seed) == ("un oiseau – 鳥", MAX_SEED)


@needs_chromium
def test_images_carry_the_label_of_generated_media(page, tmp_path):
    downloaded(page, "a <bird> & “鳥”", 7, tmp_path / "image.png")
    found = read_recipe(tmp_path / "image.png")
    assert found.source_type == TRAINED_ALGORITHMIC_MEDIA
    with Image.open(tmp_path / "image.png") as image:
        packet = image.info["XML:com.adobe.xmp"]
    expected = xmp_packet(read_metadata(tmp_path / "image.png")).decode()
    stored = re.compile("<galip:recipe>(.*)</galip:recipe>")
    assert stored.sub("", packet) == stored.sub("", expected)
    assert json.loads(html.unescape(stored.search(packet)[1])) == found.recorded


@needs_chromium
def test_the_page_is_isolated_so_that_threads_exist(page):
    assert page.evaluate("crossOriginIsolated")


@needs_chromium
def test_tokens_equal_the_runtimes(page):
    texts = [entry["text"] for entry in json.loads((ROOT / "tests/data/tokens.json").read_text())]
    texts += CAPTIONS + (ROOT / "docs/embedded-model/captions.txt").read_text().splitlines()
    texts += [f"{a}, {b}" for a, b in pairwise(CAPTIONS)]
    texts += mojibake()
    pipeline = Pipeline.from_bundle(EMBEDDED)
    found = page.evaluate(
        """async (texts) => {
          const { Tokenizer } = await import("./browser/tokenizer.js");
          const of = async (name) => (await fetch(`model/${name}`));
          const merges = (await (await of("merges.txt")).text()).split("\\n").filter((it) => it);
          const tokenizer = new Tokenizer(merges, 77, await (await of("text_tables.json")).json());
          return texts.map((text) => Array.from(tokenizer.row(text).row, Number));
        }""",
        texts,
    )
    assert len(texts) > 1000
    assert found == pipeline.tokenizer(texts).tolist()


def mojibake():
    words = ["café", "naïve", "“quotes”", "Ångström", "жизнь", "señor…", "€5", "à la", "&NTILDE;"]
    random = np.random.default_rng(0)
    texts = []
    for encoding in ("latin-1", "cp1252", "cp1251", "cp1250", "cp437", "mac-roman"):
        for _ in range(40):
            text = " ".join(random.choice(words, random.integers(1, 6)))
            texts.append(text.encode().decode(encoding, errors="replace"))
    return texts


@needs_chromium
def test_noise_equals_the_runtimes_to_the_bit(page):
    random = np.random.default_rng(0)
    cases = [
        (str(random.choice([0, 7, MAX_SEED, int(random.integers(2**62))])), caption, int(index))
        for caption, index in zip([*CAPTIONS, "鳥 🐦"], random.integers(0, 5000, 400))
    ]
    found = page.evaluate(
        """async (cases) => {
          const { drawNoise } = await import("./browser/noise.js");
          const bits = (noise) => Array.from(new Uint32Array(noise.buffer));
          return cases.map(([seed, prompt, index]) =>
            bits(drawNoise(BigInt(seed), prompt, index, 101)));
        }""",
        cases,
    )
    for (seed, prompt, index), bits in zip(cases, found, strict=True):
        assert draw_noise(int(seed), prompt, index, 101).view(np.uint32).tolist() == bits


@needs_chromium
def test_a_blank_prompt_and_a_long_one_are_reported(page):
    page.locator("#start-prompt").fill("bird " * 120)
    expect(page.locator("#status")).to_contain_text("120 tokens, the model reads the first 75")
    page.locator("#start-prompt").fill("a bird")
    expect(page.locator("#status")).to_have_text("")


@needs_chromium
def test_the_page_is_accessible_and_fits_a_phone(page):
    results = Axe().run(page)
    serious = [v for v in results.response["violations"] if v["impact"] in ("serious", "critical")]
    assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@needs_chromium
def test_hosts_may_label_compressed_files(context, tiny_bundles, tmp_path):
    export_web(tiny_bundles["int8"], tmp_path / "site")
    with static_host(tmp_path / "site", encodings=True) as (address, _, _):
        with context.browser.new_page() as page:
            page.goto(address)
            expect(page.locator("#image")).to_be_visible()


@needs_chromium
def test_it_works_offline_and_downloads_large_files_once(page, site, context):
    _, requested, host = site
    large = [path for path in requested if path.endswith(".gz")]
    assert len(large) == len(set(large)) == 3
    host.shutdown()
    host.server_close()
    page.reload()
    expect(page.locator("#image")).to_be_visible()
