"""Parts of images, rendered alone."""

from dataclasses import replace

import pytest
import torch

from galip_edge.models import PRESETS
from galip_edge.training.fast_blocks import use_fast_blocks
from galip_edge.training.image_parts import check_parts, part_of, render_part

# Two 3x3 convolutions in each block but the first, and the last convolution.
_REACH = 15


@pytest.mark.parametrize("fast", [False, True])
def test_a_part_is_that_of_the_image(perturbed_model, fast):
    generator = perturbed_model.generator
    if fast:
        use_fast_blocks(generator.to(memory_format=torch.channels_last))
    config = generator.config
    assert config.block_sizes == (8, 16, 32, 64)
    corners = torch.tensor([[0, 0], [4, 0], [0, 4], [4, 4], [2, 1]])
    noise, sentence = torch.randn(5, config.noise_dim), torch.randn(5, config.clip.embedding_dim)
    with torch.no_grad():
        condition = generator.condition(noise, sentence)
        features = generator.visual_features(noise, condition)
        wanted = part_of(generator.render(features, condition), corners, config)
        found = render_part(generator, features, condition, corners)
    assert found.shape == wanted.shape == (5, 3, 32, 32)
    for each, image, (column, row) in zip(found, wanted, corners.tolist(), strict=True):
        # The network sees all surroundings of these pixels; there are none outside of the image.
        x, y = (
            slice(0 if at == 0 else _REACH, 32 if at == 4 else 32 - _REACH) for at in (column, row)
        )
        torch.testing.assert_close(each[:, y, x], image[:, y, x], rtol=1e-3, atol=1e-4)
        assert (each - image).abs().max() > 1e-3


def test_corners_are_columns_and_rows():
    config = PRESETS["tiny"]
    images = torch.zeros(1, 1, 64, 64)
    images[0, 0, 8, 24] = 1  # row 1, column 3 of the 8x8 pixels of the first block
    (part,) = part_of(images, torch.tensor([[3, 1]]), config)
    assert part[0, 0, 0] == 1


@pytest.mark.parametrize("sizes", [(6, 12), (8, 12)])
def test_sizes_that_have_no_parts_are_refused(sizes):
    with pytest.raises(ValueError, match=rf"block_sizes.*{list(sizes)}".replace("[", r"\[")):
        check_parts(replace(PRESETS["tiny"], block_sizes=sizes, block_channels=(8, 8, 8)))
    check_parts(PRESETS["tiny"])
