"""Moving images before they are judged."""

from __future__ import annotations

import pytest
import torch

from galip_edge.training.diff_augment import cut_by_index, cut_slices, translate
from galip_edge.training.micro_batch import step_shifts, step_shifts_1


def images() -> torch.Tensor:
    return torch.arange(2 * 3 * 5 * 6.0).reshape(2, 3, 5, 6)


def test_each_image_moves_by_its_own_shift_and_reflects_at_the_border():
    moved = translate(images(), torch.tensor([[1, -2], [0, 0]]), 3)
    assert torch.equal(moved[0, :, 1:, :4], images()[0, :, :4, 2:])
    assert torch.equal(moved[0, :, 0, :4], images()[0, :, 1, 2:])  # the row beyond the border
    assert torch.equal(moved[1], images()[1])


def test_gradients_reach_the_pixels_that_stay():
    source = images().requires_grad_()
    translate(source, torch.tensor([[2, 0], [2, 0]]), 2).sum().backward()
    assert source.grad is not None
    assert (source.grad[:, :, 3:] == 0).all()  # moved out below
    assert (source.grad[:, :, 1:3] == 2).all()  # shown twice, the second time as a reflection


def test_shifts_are_uniform_and_belong_to_the_sample():
    shifts = step_shifts(0, 7, 0, 2000, 3)
    assert shifts.shape == (2000, 2, 2)
    values, counts = shifts.unique(return_counts=True)
    assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert counts.float().div(8000 / 7).sub(1).abs().max() < 0.15
    assert torch.equal(step_shifts(0, 7, 5, 2, 3), shifts[5:7])
    assert not torch.equal(step_shifts(0, 8, 5, 2, 3), shifts[5:7])


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_the_fraction_is_checked(make_config, value):
    with pytest.raises(ValueError, match=f"translation must be in .* got {value}"):
        make_config(translation=value)


def test_streams_of_both_versions_are_fixed():
    """Runs are continued with the stream that they began with."""
    assert step_shifts_1(3, 7, 5, 1, 9).flatten().tolist() == [-8, 5, -2, 7]
    assert step_shifts(3, 7, 5, 1, 9).flatten().tolist() == [4, 9, -8, 3]


def test_both_ways_to_cut_give_the_same_images_and_gradients():
    images = torch.randn(5, 3, 10, 12, requires_grad=True)
    corners = torch.tensor([[0, 0], [2, 4], [1, 3], [2, 0], [0, 4]])
    found = []
    for cut in (cut_slices, cut_by_index):
        images.grad = None
        parts = cut(images, corners, torch.Size((8, 8)))
        parts.square().sum().backward()
        found.append((parts.detach(), images.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
