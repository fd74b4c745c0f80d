from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from made_data import jpeg, picture
from PIL import Image

from galip_edge.data.errors import SampleError
from galip_edge.data.images import Augmentation, Box, Chance, crop_around, read_image

CENTRE = Chance(0.0, 0.5, 0.5, 0.9)


def tensor_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (333, 517), (50, 50), (38, 1000)])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.999, 0.999), (0.31, 0.77)])
def test_equals_resize_then_crop(size: tuple[int, int], place: tuple[float, float]) -> None:
    image = picture(1, *size)
    scale = 38 / min(size)
    width, height = (int(round(n * scale, 6)) for n in size)
    left, top = int(place[0] * (width - 32 + 1)), int(place[1] * (height - 32 + 1))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    expected = tensor_of(resized.crop((left, top, left + 32, top + 32)))
    chance = Chance(0.0, top=place[1], left=place[0], flip=0.9)
    actual = Augmentation(38, 32)(image, chance)
    assert actual.shape == (3, 32, 32)
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() <= 1.01 / 127.5  # one grey level, of rounding


def test_agrees_with_torchvision() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = picture(2, 90, 70)
    reference = transforms.Compose(
        [
            transforms.Resize(38),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )(image)
    actual = Augmentation(38, 32, random=False)(image, CENTRE)
    assert (actual - reference).abs().max() <= 1.01 / 127.5


def test_flip_mirrors_and_range_is_full() -> None:
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (0, 0, 32, 64))
    plain = Augmentation(64, 64)(image, CENTRE)
    flipped = Augmentation(64, 64)(image, CENTRE._replace(flip=0.1))
    assert (plain.min(), plain.max()) == (-1.0, 1.0)
    assert torch.equal(flipped, plain.flip(-1))
    assert torch.equal(Augmentation(64, 64, flip=False)(image, CENTRE._replace(flip=0.1)), plain)
    unaugmented = Augmentation(64, 64, random=False)
    assert torch.equal(unaugmented(image, Chance(0, 0.9, 0.9, 0.1)), plain)


def test_bounding_box_is_cropped_at_one_and_a_half_times_its_longer_side() -> None:
    image = picture(3, 200, 150)
    # radius int(40*0.75) = 30 around (100, 75)
    assert np.array_equal(crop_around(image, Box(80, 60, 40, 30)), image.crop((70, 45, 130, 105)))
    # clipped at the image's edges
    assert crop_around(image, Box(0, 0, 40, 30)).size == (50, 45)
    with pytest.raises(ValueError, match="is outside the image of 200x150"):
        crop_around(image, Box(400, 400, 10, 10))


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    file = BytesIO()
    picture(4).convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    file.seek(0)
    assert read_image(file, "k").mode == "RGB"


def test_transparency_becomes_white() -> None:
    file = BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(file, "PNG")
    file.seek(0)
    assert read_image(file, "k").getpixel((1, 1)) == (255, 255, 255)


def test_large_jpegs_are_decoded_smaller_but_not_too_small() -> None:
    assert read_image(BytesIO(jpeg(5, 800, 600)), "k", shorter_side=76).size == (200, 150)
    assert read_image(BytesIO(jpeg(5, 100, 90)), "k", shorter_side=76).size == (100, 90)


def test_upright() -> None:
    file = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture(6, 60, 40).save(file, "JPEG", exif=exif)
    assert read_image(BytesIO(file.getvalue()), "k", upright=True).size == (40, 60)
    assert read_image(BytesIO(file.getvalue()), "k").size == (60, 40)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", jpeg(7)[: len(jpeg(7)) // 2], b"%!PS-Adobe-3.0 EPSF-3.0\n"],
)
def test_unreadable_image(content: bytes) -> None:
    with pytest.raises(SampleError, match="unreadable image: k"):
        read_image(BytesIO(content), "k")


def test_missing_image() -> None:
    with pytest.raises(SampleError, match=r"missing image: k .*no such file: /nowhere.jpg"):
        read_image("/nowhere.jpg", "k")
