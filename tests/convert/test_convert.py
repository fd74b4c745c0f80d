import gc
import os
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from exports import export_once

from convert import ConvertOptions, convert
from convert.checks import check_paths
from convert.errors import ConversionError
from convert.fidelity import PROMPTS, make_reference, psnr_db
from galip_edge.checkpoints.format import save_checkpoint
from galip_edge.errors import CheckpointError
from galip_edge.models import GALIP, PRESETS
from galip_edge.tokenizer import build_tokenizer
from runtime import Pipeline
from runtime.bundle import Bundle, read_manifest
from runtime.errors import GalipEdgeError
from runtime.graph_io import read_graph

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("precision", "psnr", "cosine"),
    [
        ("fp32", 58, 0.99999),
        ("fp16", 55, 0.9999),
        ("bf16", 38, 0.999),
        ("int8", 30, 0.999),
    ],
)
def test_images_are_those_of_pytorch(precision, psnr, cosine, tiny_bundles, tiny_model):
    reference = make_reference(tiny_model, build_tokenizer(tiny_model.config.clip))
    pipeline = Pipeline.from_bundle(tiny_bundles[precision])
    images = pipeline.synthesize(pipeline.encode(PROMPTS), reference.noise)
    measured = psnr_db(images.astype(np.float32) / 127.5 - 1, reference.image)
    assert measured >= psnr
    reported = pipeline.manifest.fidelity[-1]
    assert reported["step"] == f"bundle {precision}"
    assert reported["image_psnr_db"] == pytest.approx(measured, abs=0.01)
    assert reported["sentence_cosine"] >= cosine


def test_nothing_overflows_without_vnni(tiny_bundles, tiny_model, tmp_path):
    """Sums of INT8 products have 16 bits there: whole-range weights fall to 21 dB."""
    reference = make_reference(tiny_model, build_tokenizer(tiny_model.config.clip))
    np.savez(tmp_path / "in.npz", noise=reference.noise)
    script = (
        "import sys, numpy as np\n"
        "from convert.fidelity import PROMPTS\n"
        "from runtime import Pipeline, PipelineOptions\n"
        "pipeline = Pipeline.from_bundle(sys.argv[1], PipelineOptions(cache=False))\n"
        "noise = np.load(sys.argv[2])['noise']\n"
        "np.save(sys.argv[3], pipeline.synthesize(pipeline.encode(PROMPTS), noise))\n"
    )
    files = [str(tiny_bundles["int8"]), str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
    # The first caps kernels, the second also what OpenVINO thinks it can ask of them (bfloat16).
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "avx2"}
    subprocess.run([sys.executable, "-c", script, *files], check=True, env=environment)
    images = np.load(tmp_path / "out.npy").astype(np.float32) / 127.5 - 1
    assert psnr_db(images, reference.image) >= 24


@pytest.mark.usefixtures("exported_once")
def test_nncf_quantizes_instead(tiny_checkpoint, tiny_model, tmp_path):
    options = ConvertOptions(quantizer="nncf", num_samples=20)
    manifest = convert(tiny_checkpoint, tmp_path / "bundle", options)
    assert manifest.quantization["quantizer"] == "nncf"
    counts = manifest.quantization["operations"]["generator"]
    assert counts["quantized"] > 20
    reference = make_reference(tiny_model, build_tokenizer(tiny_model.config.clip))
    pipeline = Pipeline.from_bundle(tmp_path / "bundle")
    images = pipeline.synthesize(pipeline.encode(PROMPTS), reference.noise)
    assert psnr_db(images.astype(np.float32) / 127.5 - 1, reference.image) >= 28


@pytest.fixture(scope="module")
def mapped_model():
    """A model with a mapping network whose choices are clear."""
    torch.manual_seed(0)
    model = GALIP(replace(PRESETS["tiny"], mapping_width=32, categories=(5, 3, 2))).eval()
    with torch.no_grad():
        model.generator.mapping.layers[-1].weight *= 30
    return model


def psnr_of(bundle, model):
    reference = make_reference(model, build_tokenizer(model.config.clip))
    pipeline = Pipeline.from_bundle(bundle)
    images = pipeline.synthesize(pipeline.encode(PROMPTS), reference.noise)
    return psnr_db(images.astype(np.float32) / 127.5 - 1, reference.image)


def test_a_mapping_network_is_converted_in_float(tiny_bundles, mapped_model, tmp_path):
    """Its choices decide what an image shows."""
    save_checkpoint(mapped_model, tmp_path / "mapped.safetensors")
    manifest = convert(tmp_path / "mapped.safetensors", tmp_path / "bundle", ConvertOptions("int8"))
    without = read_manifest(tiny_bundles["int8"]).quantization["operations"]["generator"]
    counts = manifest.quantization["operations"]["generator"]
    assert counts["float"] == without["float"] + 4
    assert counts["quantized"] == without["quantized"]
    assert psnr_of(tmp_path / "bundle", mapped_model) >= 30


@pytest.mark.parametrize("quantizer", ["edge", "nncf"])
def test_weights_kept_in_float_may_be_compressed(quantizer, mapped_model, tmp_path):
    save_checkpoint(mapped_model, tmp_path / "mapped.safetensors")
    sizes, counts = [], []
    for compress in (False, True):
        options = ConvertOptions(
            "int8", num_samples=20, quantizer=quantizer, compress_weights=compress
        )
        bundle = tmp_path / f"bundle-{compress}"
        manifest = convert(tmp_path / "mapped.safetensors", bundle, options)
        sizes.append(manifest.files["generator.bin"].size)
        operations = manifest.quantization["operations"]
        counts.append([operations[n]["float"] for n in ("generator", "text_encoder")])
    assert sizes[1] < 0.9 * sizes[0]
    assert counts[1] == counts[0]
    assert psnr_of(bundle, mapped_model) >= 28
    model = read_graph(Bundle.open(bundle), "generator.xml.gz")
    constants = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    kinds = {
        node.get_element_type().get_type_name()
        for node in constants
        if len(node.get_shape()) > 1 and node.get_data().size >= 1000
    }
    assert kinds == {"i8", "f16"}


@pytest.mark.parametrize("quantizer", ["edge", "nncf"])
def test_further_parts_may_be_kept_in_float(quantizer, tiny_checkpoint, tmp_path):
    in_float = []
    for parts in ((), ("hidden", "upsampling.1")):
        options = ConvertOptions("int8", num_samples=8, quantizer=quantizer, keep_float=parts)
        manifest = convert(tiny_checkpoint, tmp_path / f"bundle-{len(parts)}", options)
        in_float.append(manifest.quantization["operations"]["generator"]["float"])
    assert in_float[1] == in_float[0] + 3  # the merged affine layer, and two convolutions
    assert manifest.quantization["scheme"]["generator"]["keep_float"][-2:] == list(parts)


def test_an_unknown_part_to_keep_in_float_is_refused(tiny_checkpoint, tmp_path):
    options = ConvertOptions("int8", keep_float=("to_rgb", "head"))
    with pytest.raises(ConversionError, match=r"no layer is named 'head'.*choose one.*to_rgb"):
        convert(tiny_checkpoint, tmp_path / "bundle", options)
    assert not list(tmp_path.iterdir())


def test_reference_is_the_model_itself(tiny_model):
    """PSNR against PyTorch means nothing if the reference is not what a user would compute."""
    reference = make_reference(tiny_model, build_tokenizer(tiny_model.config.clip))
    with torch.no_grad():
        image = tiny_model(torch.from_numpy(reference.noise), torch.from_numpy(reference.tokens))
    theirs = image.clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(reference.image, theirs, atol=1e-5)
    assert reference.image.std() > 0.1


def test_everything_that_multiplies_is_quantized_but_attention_and_what_is_kept(tiny_bundles):
    operations = read_manifest(tiny_bundles["int8"]).quantization["operations"]
    # In each of the tiny model's two bridge blocks two convolutions and the last layers of eight
    # affine networks, which each of four upsampling blocks has, too; one layer to the feature, one
    # that reads the noise, and two shortcuts. In the text encoder, the last projection and one in
    # each of two blocks.
    kept = {"text_encoder": 1 + 2, "generator": 2 * (2 + 8) + 4 * 8 + 1 + 1 + 2}
    for part, blocks in (("text_encoder", 2), ("generator", 4)):
        counts = operations[part]
        reasons = [entry["reason"] for entry in counts["left_in_float"]]
        assert len(reasons) == counts["float"] == 2 * blocks + kept[part]
        assert sum("attention" in reason for reason in reasons) == 2 * blocks
        assert sum("kept in float" in reason for reason in reasons) == kept[part]
        model = read_graph(Bundle.open(tiny_bundles["int8"]), f"{part}.xml.gz")
        kinds = [op.get_type_name() for op in model.get_ordered_ops()]
        multiplying = kinds.count("MatMul") + kinds.count("Convolution")
        assert counts["quantized"] + counts["float"] == multiplying
        assert "FakeQuantize" in kinds


def test_mixed_is_a_former_name_of_int8():
    assert ConvertOptions(precision="mixed") == ConvertOptions(precision="int8")


def test_precisions_differ_in_size(tiny_bundles):
    def size(precision: str) -> int:
        return (tiny_bundles[precision] / "generator.bin").stat().st_size

    assert size("bf16") == size("fp16") < 0.52 * size("fp32")
    assert size("int8") < 0.6 * size("fp32")


@pytest.mark.usefixtures("exported_once")
def test_onnx_files_are_kept_and_valid(tiny_checkpoint, tmp_path):
    options = ConvertOptions(precision="fp32", keep_onnx=tmp_path / "onnx")
    convert(tiny_checkpoint, tmp_path / "bundle", options)
    assert sorted(os.listdir(tmp_path / "onnx")) == [
        "generator.onnx",
        "generator.onnx.data",
        "text_encoder.onnx",
        "text_encoder.onnx.data",
    ]
    for path in (tmp_path / "onnx").glob("*.onnx"):
        onnx.checker.check_model(path, full_check=True)
    forced = ConvertOptions(precision="fp32", keep_onnx=tmp_path / "onnx", force=True)
    with pytest.raises(ConversionError, match="choose another folder for --keep-onnx, or pass"):
        convert(tiny_checkpoint, tmp_path / "other", options)
    check_paths(tiny_checkpoint, tmp_path / "other", forced, None)


def test_nothing_keeps_the_weights_after_an_export(tmp_path):
    """torch.export keeps its last graph, 0.6 GB at full size."""
    from convert.export import export_generator
    from galip_edge.models import GALIP, PRESETS

    model = GALIP(PRESETS["tiny"])
    weight = weakref.ref(next(model.generator.vit.parameters()))
    export_generator(model, tmp_path)
    del model
    gc.collect()
    assert weight() is None


def test_onnx_runs_with_any_batch_in_onnx_runtime(
    tiny_checkpoint, tiny_model, tmp_path, tmp_path_factory
):
    import onnxruntime

    file = export_once(tmp_path_factory, tiny_checkpoint, tmp_path, None, None).generator
    noise = torch.randn(5, 16)
    sentence = torch.randn(5, 32)
    with torch.no_grad():
        image = tiny_model.generator(noise, sentence).clamp(-1, 1).permute(0, 2, 3, 1)
    session = onnxruntime.InferenceSession(file)
    theirs = session.run(None, {"noise": noise.numpy(), "sentence": sentence.numpy()})[0]
    assert theirs.dtype == np.uint8
    assert np.abs(theirs - (image.numpy() * 127.5 + 127.5)).max() < 0.51


def test_built_in_captions_are_many_and_distinct():
    from convert.calibration import read_captions

    captions = read_captions(None, 1000)
    assert len(captions) == len(set(captions)) == 300
    assert not set(captions) & set(PROMPTS[1:])


def test_fewer_captions_are_spread_over_the_file():
    from convert.calibration import read_captions

    few = read_captions(None, 30)
    assert len(few) == 30
    every = read_captions(None, 300)
    assert np.diff([every.index(caption) for caption in few]).min() >= 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "contains no prompts"),
        (b"\n \n", "contains no prompts"),
        (b"a bird\n" + b"x" * 5000, "line 2 of .*5,000 characters"),
        (b"a \xff", "is not UTF-8 text"),
    ],
)
def test_bad_calibration_file_is_explained(content, message, tiny_checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(content)
    options = ConvertOptions(calibration=tmp_path / "prompts.txt")
    with pytest.raises(GalipEdgeError, match=message):
        convert(tiny_checkpoint, tmp_path / "bundle", options)
    with pytest.raises(GalipEdgeError, match="cannot read prompts from .*No such file"):
        convert(tiny_checkpoint, tmp_path / "b", ConvertOptions(calibration=tmp_path / "none"))


@pytest.mark.usefixtures("exported_once")
def test_nothing_is_overwritten_unasked(tiny_checkpoint, tiny_bundle, tmp_path):
    options = ConvertOptions(precision="fp32")
    with pytest.raises(ConversionError, match="exists: choose another folder .* or pass --force"):
        convert(tiny_checkpoint, tiny_bundle, options)
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConversionError, match="is not a bundle, so --force does not replace it"):
        convert(tiny_checkpoint, tmp_path / "photos", ConvertOptions(precision="fp32", force=True))
    manifest = convert(tiny_checkpoint, tiny_bundle, ConvertOptions(precision="fp32", force=True))
    assert read_manifest(tiny_bundle) == manifest
    assert manifest.precision == "fp32"


def test_a_bundle_is_not_quantized_again(tiny_bundle, tmp_path):
    for source in (tiny_bundle, tiny_bundle / "generator.xml.gz"):
        with pytest.raises(ConversionError, match="already converted, and quantizing twice"):
            convert(source, tmp_path / "again")


@pytest.mark.usefixtures("exported_once")
def test_unfaithful_bundle_is_refused_and_leaves_nothing(tiny_checkpoint, tmp_path):
    options = ConvertOptions(precision="bf16", min_psnr=99)
    with pytest.raises(ConversionError, match=r"only \d+\.\d dB .* below the required 99\.0 dB"):
        convert(tiny_checkpoint, tmp_path / "bundle", options)
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("exported_once")
def test_failing_in_the_middle_keeps_the_old_bundle(
    tiny_checkpoint, tiny_bundle, tmp_path, monkeypatch
):
    before = read_manifest(tiny_bundle)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.graph_io.ov.save_model", full)
    with pytest.raises(GalipEdgeError, match="the disk of .* is full: free some space"):
        convert(tiny_checkpoint, tiny_bundle, ConvertOptions(precision="fp32", force=True))
    assert read_manifest(tiny_bundle) == before
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int4"}, "precision must be one of .* got 'int4'"),
        ({"precision": "fp32", "num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"quantizer": "gptq"}, "quantizer must be one of edge, nncf, got 'gptq'"),
        ({"quantizer": "nncf", "precision": "bf16"}, "quantizer has no effect with bf16"),
        ({"keep_float": ("to_rgb",), "precision": "fp16"}, "keep_float has no effect with fp16"),
        ({"compress_weights": True, "precision": "fp32"}, "compress_weights has no effect with"),
    ],
)
def test_invalid_options_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ConvertOptions(**settings)


def test_calibration_without_int8_is_refused(tmp_path):
    with pytest.raises(ValueError, match="calibration has no effect with bf16"):
        ConvertOptions(precision="bf16", calibration=tmp_path / "x")


def test_checkpoint_errors_come_before_any_work(tmp_path):
    with pytest.raises(ConversionError, match="cannot read .*missing.pth: no such file"):
        convert(tmp_path / "missing.pth", tmp_path / "bundle")
    (tmp_path / "notes.pth").write_text("no weights")
    with pytest.raises(CheckpointError):
        convert(tmp_path / "notes.pth", tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["notes.pth"]


def test_a_mistyped_path_is_reported_before_torch_is_imported(tmp_path):
    script = (
        "import sys\n"
        "from galip_edge.cli import main\n"
        "try:\n"
        "    main(['convert', sys.argv[1]])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 1\n"
        "assert 'torch' not in sys.modules\n"
    )
    missing = str(tmp_path / "galip.pth")
    done = subprocess.run([sys.executable, "-c", script, missing], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"cannot read {missing}" in done.stderr


def test_an_onnx_folder_with_other_files_is_not_replaced(tiny_checkpoint, tmp_path):
    (tmp_path / "photo.png").touch()
    options = ConvertOptions(precision="fp32", keep_onnx=tmp_path, force=True)
    with pytest.raises(ConversionError, match="holds more than ONNX files"):
        convert(tiny_checkpoint, tmp_path / "bundle", options)
    assert os.listdir(tmp_path) == ["photo.png"]


@pytest.mark.full_size
@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize(("precision", "psnr"), [("fp32", 50), ("int8", 30)])
def test_full_size_conversion_reproduces_the_original(
    precision, psnr, full_size_files, parity, tmp_path
):
    """From the published layout to images, compared with those of the original code."""
    # Few samples: this is about the way, and 300 gain 2 dB over minutes.
    options = ConvertOptions(precision=precision, num_samples=32)
    convert(full_size_files["galip_ddp"], tmp_path / "b", options, clip=full_size_files["clip"])
    pipeline = Pipeline.from_bundle(tmp_path / "b")
    sentence = pipeline.encode(list(parity["prompts"]))
    images = pipeline.synthesize(sentence, parity["z"]).astype(np.float32) / 127.5 - 1
    reference = parity["image"].astype(np.float32).clip(-1, 1).transpose(0, 2, 3, 1)
    assert psnr_db(images, reference) >= psnr
    one, eight = pipeline.generate("a bird", n=1), pipeline.generate("a bird", n=8)
    assert np.abs(one[0].astype(int) - eight[0]).max() <= (1 if precision == "fp32" else 0)
    shutil.rmtree(tmp_path / "b")
