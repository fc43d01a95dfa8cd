"""E-CAR's objective: states of training are those of sampling."""

import pytest
import torch
from torch.testing import assert_close

from var_toolkit.models.ecar import renoised


def test_the_state_that_a_scale_begins_with_is_that_of_sampling(build):
    objective, batch = build("ecar")
    latent, fine = objective.tokenizer.latents(batch.moments), torch.randn(8, 64, 4)
    starts, ends = objective._states(latent, fine)
    noise = fine.transpose(1, 2).unflatten(2, (8, 8))
    assert_close(renoised(ends[-2], noise, len(ends) - 1, objective.scales), starts[-1], atol=1e-5, rtol=1e-5)
    assert_close(ends[-1], latent)
    assert [state.shape[-1] for state in starts] == list(objective.scales.patch_nums)
    assert float(starts[0].std()) == pytest.approx(1.0, abs=0.3)
