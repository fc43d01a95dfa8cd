"""Maps of a continuous latent, and the input of each scale from the previous map."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.core.schedule import Schedule
from var_toolkit.tokenizers.latent_pyramid import LatentPyramid, sequence

SCALES = Schedule((1, 2, 3, 6))


@pytest.fixture
def latent() -> torch.Tensor:
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def test_each_map_is_an_area_average_and_the_last_is_the_latent(latent):
    maps = SCALES.split(LatentPyramid(SCALES).maps(latent))
    for tokens, side in zip(maps, SCALES.patch_nums, strict=True):
        assert_close(tokens, sequence(F.avg_pool2d(latent, 6 // side)))
    assert torch.equal(maps[-1], sequence(latent))
    assert torch.equal(maps[-1][0, 1], latent[0, :, 0, 1])  # raster order


def test_teacher_inputs_equal_the_inputs_of_sampling(latent):
    pyramid, grown, inputs = LatentPyramid(SCALES), None, []
    for k, tokens in enumerate(SCALES.split(pyramid.maps(latent))[:-1]):
        grown = pyramid.grow(grown, tokens, k)
        assert grown.shape == (2, 4, *(SCALES.patch_nums[k],) * 2)
        inputs.append(pyramid.shrink(grown, k + 1))
    assert_close(torch.cat(inputs, dim=1), pyramid.teacher_inputs(latent))


def test_a_map_replaces_the_previous_one(latent):
    pyramid = LatentPyramid(SCALES)
    assert torch.equal(pyramid.grow(torch.randn(2, 4, 3, 3), sequence(latent), 3), latent)


def test_a_map_is_enlarged_to_the_finest_side_unless_another_is_given(latent):
    coarse, size = latent[..., :3, :3], {"mode": "bicubic", "align_corners": False}
    for side, expected in ((None, 6), (16, 16)):
        grown = F.interpolate(coarse, size=(expected, expected), **size)
        ours = LatentPyramid(SCALES, side).shrink(coarse, 2)
        assert_close(ours, sequence(F.adaptive_avg_pool2d(grown, 3)))
    assert not torch.allclose(LatentPyramid(SCALES).shrink(coarse, 2), ours, atol=1e-3)


def test_a_single_scale_has_no_inputs(latent):
    pyramid = LatentPyramid(Schedule((6,)))
    assert pyramid.teacher_inputs(latent).shape == (2, 0, 4)
    assert torch.equal(pyramid.maps(latent), sequence(latent))
