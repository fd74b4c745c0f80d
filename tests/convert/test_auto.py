"""The precision chosen by measurement."""

import pytest

from convert import ConvertOptions, auto, convert
from convert.auto import Candidate, choose
from convert.errors import ConversionError
from convert.options import OF_INT8
from runtime import Pipeline
from runtime.compiled import has_bf16

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("exported_once")]

FAST, SLOW = Candidate("int8", 31.0, 0.10), Candidate("bf16", 50.0, 0.20)


@pytest.mark.parametrize(
    ("candidates", "lowest", "chosen"),
    [
        ([FAST, SLOW], 30.0, "int8"),
        ([FAST, SLOW], 35.0, "bf16"),  # too far from PyTorch
        ([Candidate("int8", 31.0, 0.21), SLOW], 30.0, "bf16"),  # slower
        ([Candidate("int8", 31.0, 0.198), SLOW], 30.0, "bf16"),  # no faster to speak of, and worse
        ([FAST, Candidate("bf16", 34.0, 0.102), SLOW], 30.0, "bf16"),  # same speed, nearer
        ([FAST, Candidate("bf16", 34.0, 0.108), SLOW], 30.0, "int8"),
    ],
)
def test_the_fastest_that_is_faithful(candidates, lowest, chosen):
    assert choose(candidates, lowest).precision == chosen


def test_none_is_faithful():
    with pytest.raises(ConversionError, match=r"60\.0 dB.*int8 31\.0 dB, bf16 50\.0 dB"):
        choose([FAST, SLOW], 60.0)


@pytest.mark.parametrize("fastest", ["int8", "bf16"])
def test_a_bundle_says_what_it_was_chosen_from(fastest, tiny_checkpoint, tmp_path, monkeypatch):
    if fastest == "bf16" and not has_bf16():
        pytest.skip("this CPU chooses between int8 and fp16")

    measure = auto._seconds

    def measured_seconds(bundles, progress):
        seconds = measure(bundles, progress)
        assert min(seconds.values()) > 0
        return {name: 0.1 if name == fastest else 0.2 for name in bundles}

    monkeypatch.setattr("convert.auto._seconds", measured_seconds)
    manifest = convert(
        tiny_checkpoint, tmp_path / "b", ConvertOptions("auto", num_samples=8, min_psnr=10)
    )
    candidates = {c["precision"]: c for c in manifest.quantization["chosen_from"]}
    assert len(candidates) == 2
    assert manifest.precision == fastest
    assert candidates[fastest]["seconds"] == 0.1
    measured = candidates[manifest.precision]["image_psnr_db"]
    assert manifest.fidelity[-1]["image_psnr_db"] == measured
    pipeline = Pipeline.from_bundle(tmp_path / "b")
    assert pipeline.manifest == manifest
    assert pipeline.generate("a bird").shape == (1, 64, 64, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_nothing_is_left_if_none_is_faithful(tiny_checkpoint, tmp_path):
    with pytest.raises(ConversionError, match="no precision reaches"):
        convert(tiny_checkpoint, tmp_path / "b", ConvertOptions("auto", num_samples=8, min_psnr=99))
    assert not list(tmp_path.iterdir())


def test_settings_of_int8_are_for_int8_alone(tmp_path):
    seen = []

    def write(options, folder):
        settings = [getattr(options, name) for name in OF_INT8]
        seen.append((options.precision, *settings))
        if len(seen) == 2:
            raise ConversionError("stop")

    options = ConvertOptions(
        "auto", quantizer="nncf", keep_float=("to_rgb",), compress_weights=True
    )
    with pytest.raises(ConversionError, match="stop"):
        auto.write_fastest(write, options, tmp_path, None)
    assert seen[0] == ("int8", None, "nncf", ("to_rgb",), True)
    assert seen[1][1:] == (None, "edge", (), False)
