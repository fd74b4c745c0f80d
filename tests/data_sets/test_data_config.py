from __future__ import annotations

from typing import Any

import pytest

from galip_edge.data import DataConfig


def test_defaults_are_galips() -> None:
    config = DataConfig("coco", "/data/coco")
    assert (config.image_size, config.shorter_side) == (256, 304)
    assert DataConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("settings", "shorter_side"),
    [
        ({"image_size": 64}, 76),
        ({"image_size": 224}, 266),
        ({"image_size": 224, "augment": False}, 224),
        ({"image_size": 224, "augment": False, "resize": 256}, 256),
    ],
)
def test_resize_follows_the_image_size(settings: dict[str, Any], shorter_side: int) -> None:
    assert DataConfig("folder", "x", **settings).shorter_side == shorter_side


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "flickr"}, "kind must be one of cub, coco, .*'flickr'"),
        ({"kind": "folder"}, "'folder' needs root"),
        ({"kind": "table", "root": "x"}, "'table' needs table"),
        ({"kind": "cub", "root": "x", "split": "val"}, "train or test, got 'val'"),
        ({"kind": "cub", "root": "x", "image_size": 0}, "image_size .* got 0"),
        ({"kind": "cub", "root": "x", "resize": 200}, "resize .* at least 256, got 200"),
        ({"kind": "cub", "root": "x", "workers": -1}, "workers .* got -1"),
        ({"kind": "folder", "root": "x", "split": "test"}, "has a test split only with held_out"),
        ({"kind": "coco", "root": "x", "shards": "a.tar"}, "shards='a.tar' has no effect"),
        ({"kind": "cub", "root": "x", "samples_per_epoch": 5}, "samples_per_epoch=5 has no"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)
