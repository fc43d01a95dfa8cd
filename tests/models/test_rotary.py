"""RoPE rotates channel pairs as complex numbers, and coarse grids are stretched over fine ones."""

import torch
from torch.testing import assert_close

from var_toolkit.models.layers.rotary import rotation_on_grids

CPU = torch.device("cpu")


def test_neighbouring_channels_rotate_as_a_complex_number():
    rotation = rotation_on_grids((2, 3), 6, 8, CPU)
    x = torch.randn(2, 3, 13, 8)
    places = [(3 * i, 3 * j) for i in range(2) for j in range(2)] + [(2 * i, 2 * j) for i in range(3) for j in range(3)]
    # Two frequencies for the row, then the same two for the column.
    angles = torch.tensor([[row, row / 100, column, column / 100] for row, column in places])
    expected = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones_like(angles), angles)
    assert_close(rotation(x), torch.view_as_real(expected).flatten(-2), atol=1e-5, rtol=0)


def test_a_position_has_the_same_angles_on_every_grid():
    coarse, fine = rotation_on_grids((4,), 16, 32, CPU), rotation_on_grids((8,), 16, 32, CPU)
    of_fine = fine.cos.unflatten(0, (8, 8))[::2, ::2].flatten(0, 1)
    assert torch.equal(coarse.cos, of_fine)
    assert coarse.cos[1, 8:].lt(1).any()
    assert coarse.cos[1, :8].eq(1).all()  # the second token lies in the row of the first


def test_scores_depend_only_on_the_distance_of_two_positions():
    rotation = rotation_on_grids((8,), 16, 32, CPU)
    q, k = torch.randn(2, 32).unsqueeze(1).expand(2, 64, 32)
    scores = (
        (rotation(q) @ rotation(k).T).unflatten(0, (8, 8)).unflatten(-1, (8, 8))
    )  # [row, column] of the query, of the key
    assert_close(scores[1, 2, 3, 6], scores[4, 1, 6, 5], atol=1e-4, rtol=0)
    assert (scores[1, 2, 3, 6] - scores[1, 2, 3, 5]).abs() > 1e-3


def test_the_result_has_the_dtype_of_the_input():
    rotation = rotation_on_grids((2,), 16, 8, CPU)
    x = torch.randn(1, 1, 4, 8)
    assert rotation(x.bfloat16()).dtype == torch.bfloat16
    assert_close(rotation(x.bfloat16()).float(), rotation(x), atol=0.05, rtol=0.02)


def test_compilation_does_not_change_the_result():
    rotation, x = rotation_on_grids((3,), 16, 8, CPU), torch.randn(2, 3, 9, 8)
    compiled = torch.compile(lambda x: rotation(x), backend="aot_eager", fullgraph=True)
    assert_close(compiled(x), rotation(x), atol=1e-6, rtol=0)
