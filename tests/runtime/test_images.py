import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from runtime.errors import GalipEdgeError
from runtime.images import ImageMetadata, contact_sheet, file_name, read_metadata, save_png
from runtime.latent import Keyframe

META = ImageMetadata("a bird, “quoted” 🐦\nsecond line", 42, 3, "coco", "ab" * 32)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def test_png_carries_its_pixels_and_its_recipe(tmp_path):
    save_png(picture(), tmp_path / "p.png", META)
    with Image.open(tmp_path / "p.png") as opened:
        np.testing.assert_array_equal(np.asarray(opened), picture())
        prompt, settings = opened.text["parameters"].rsplit("\n", 1)
        assert json.loads(opened.text["galip-edge"])["index"] == 3
    assert prompt == META.prompt
    assert "Steps: 1" in settings
    assert "Seed: 42" in settings
    assert "Size: 12x8" in settings
    assert "Model hash: ababababab" in settings
    assert read_metadata(tmp_path / "p.png") == META


def test_a_blend_is_recorded_whole(tmp_path):
    blend = replace(
        META, psi=0.7, end=Keyframe("a duck, at sea", 8), sentence_share=0.25, noise_share=1.0
    )
    save_png(picture(), tmp_path / "p.png", blend)
    assert read_metadata(tmp_path / "p.png") == blend
    settings = blend.parameters((12, 8)).rsplit("\n", 1)[1]
    assert settings.endswith(
        'Psi: 0.7, Toward: "a duck, at sea", Toward seed: 8, Toward image index: 0, '
        "Sentence share: 0.25, Noise share: 1.0"
    )
    assert set(META.recorded()) == {"prompt", "seed", "index", "model", "model_hash", "version"}


@pytest.mark.parametrize("text", ["[1]", "7", "{", '{"end": 5}', '{"prompt": "a"}'])
def test_a_recipe_that_is_none_is_none(text, tmp_path):
    info = PngInfo()
    info.add_text("galip-edge", text)
    Image.fromarray(picture()).save(tmp_path / "p.png", pnginfo=info)
    assert read_metadata(tmp_path / "p.png") is None


def test_foreign_png_has_no_recipe(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "p.png")
    assert read_metadata(tmp_path / "p.png") is None


def test_names_sort_and_never_collide():
    def name(prompt="a bird", seed=0, index=0, model="m"):
        return file_name(ImageMetadata(prompt, seed, index, "name", model))

    names = [name(seed=s, index=i) for s in (0, 9, 10, 12345) for i in (0, 9, 10, 4321)]
    assert names == sorted(names)
    others = [name(p) for p in ("a bird!", "A bird", "a  bird", "../../etc/passwd", "鳥", "!!!")]
    others += [name(model="other"), name("x" * 2000)]
    assert len({*names, *others}) == len(names) + len(others)
    assert all("/" not in n and len(n.encode()) < 200 for n in others)


def test_contact_sheet_places_images_row_by_row():
    images = [np.full((4, 6, 3), i, np.uint8) for i in range(5)]
    sheet = contact_sheet(images, columns=3, gap=1)
    assert sheet.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    assert (sheet[1:5, 8:14] == 1).all()
    assert (sheet[6:10, 1:7] == 3).all()
    assert (sheet[6:10, 15:21] == 255).all()


def test_unwritable_place_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(GalipEdgeError, match="cannot write .*; check the folder"):
        save_png(picture(), tmp_path / "file" / "p.png", META)
