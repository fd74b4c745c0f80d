import json

import pytest

from galip_edge.models import PRESETS, CLIPConfig, ModelConfig


@pytest.mark.parametrize("name", PRESETS)
def test_plain_values_round_trip(name):
    text = json.dumps(PRESETS[name].to_dict())
    assert ModelConfig.from_dict(json.loads(text)) == PRESETS[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_dim": 0}, "noise_dim must be an integer of at least 1, got 0"),
        ({"block_sizes": (8, 8, 16)}, r"block_sizes must grow .* got \(8, 8, 16\)"),
        ({"block_sizes": (7, 8)}, "above the CLIP grid 7"),
        ({"block_channels": (512,)}, r"block_channels needs 7 positive values.*got \(512,\)"),
        ({"prompt_blocks": (12,)}, r"prompt_blocks must be .* in 0\.\.11, got \(12,\)"),
        ({"tap_blocks": (4, 1)}, r"tap_blocks must be distinct, rising.*got \(4, 1\)"),
        ({"mapping_width": 8}, r"needs mapping_width and categories .* got 8 and \(\)"),
        ({"categories": (3,)}, r"needs mapping_width and categories .* got 0 and \(3,\)"),
        ({"mapping_width": 8, "categories": (3, 1)}, r"of at least 2 values, got 8 and \(3, 1\)"),
        ({"clip_input": "odd"}, "clip_input must be standard or original, got 'odd'"),
    ],
)
def test_invalid_model_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision_width": 100}, "vision_width 100 is not a multiple of vision_heads 12"),
        ({"image_size": 225}, "image_size 225 is not a multiple of patch_size 32"),
        ({"text_layers": -1}, "text_layers must be an integer of at least 1, got -1"),
    ],
)
def test_invalid_clip_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        CLIPConfig(**settings)


def test_unknown_setting_is_named():
    with pytest.raises(ValueError, match="unknown setting nose_dim; known at the top are clip,"):
        ModelConfig.from_dict({"nose_dim": 3})
