"""Guidance, filters and draws agree with the published sampler."""

import re

import pytest
import torch
from golden.cases import load_case
from torch.testing import assert_close

from var_toolkit.core.filters import filter_top_k_top_p, guide, pick, soft_codes
from var_toolkit.heads.categorical import Categorical

CASE = load_case("topk-topp-filter")


def settings(name: str) -> dict[str, float]:
    """k5_p0p9_t1p1 -> {"k": 5, "p": 0.9, "t": 1.1}."""
    found = re.findall(r"(?:^|_)([kpt])(\d+(?:p\d+)?(?:em\d+)?)", name)
    return {letter: float(value.replace("em", "e-").replace("p", ".")) for letter, value in found}


@pytest.mark.parametrize("name", [n for n in CASE.tensors if n.startswith("filtered_")])
def test_filtered_logits_are_the_published_ones(name):
    chosen = settings(name.removeprefix("filtered_"))
    ours = filter_top_k_top_p(CASE.tensors["logits"], top_k=int(chosen["k"]), top_p=chosen["p"])
    assert torch.equal(ours, CASE.tensors[name])


@pytest.mark.parametrize("name", [n for n in CASE.tensors if n.startswith("probs_")])
def test_temperature_acts_after_the_filters(name):
    chosen = settings(name.removeprefix("probs_"))
    filtered = filter_top_k_top_p(CASE.tensors["logits"], top_k=int(chosen["k"]), top_p=chosen["p"])
    assert_close((filtered / chosen["t"]).softmax(-1), CASE.tensors[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["k0_p0", "k5_p0p9"])
def test_smooth_mode_mixes_as_published(name):
    chosen = settings(name)
    filtered = filter_top_k_top_p(CASE.tensors["logits"], top_k=int(chosen["k"]), top_p=chosen["p"])
    for k in range(4):
        mixed = soft_codes(filtered, CASE.tensors[f"smooth_noise_{name}"][k], torch.eye(24), progress=k / 3)
        assert_close(mixed, CASE.tensors[f"smooth_y_{name}"][k], atol=1e-4, rtol=0)


def by_sorting(logits, *, top_k, top_p):
    """The same filters as they are published, by a sort of all logits."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(stable=True)
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        dropped[..., -1:] = False
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return logits


@pytest.mark.parametrize("steps", [1, 3, 1000], ids=lambda steps: f"rounded to 1/{steps}")  # so, with many or few ties
# No whole number of equal masses is such a share, where rounding would decide.
@pytest.mark.parametrize("top_p", [1e-6, 0.117, 0.487, 0.963, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 200, 999, 1000])
def test_equal_logits_are_kept_and_dropped_as_by_a_stable_sort(steps, top_p, top_k):
    logits = torch.randn(3, 40, 1000, generator=torch.Generator().manual_seed(top_k)).mul(2 * steps).round() / steps
    logits[0, :20, 100:] = logits[1, :20, ::2] = -torch.inf
    found = filter_top_k_top_p(logits, top_k=top_k, top_p=top_p)
    assert torch.equal(found, by_sorting(logits, top_k=top_k, top_p=top_p))


def test_filtering_does_not_change_its_input():
    before = CASE.tensors["logits"].clone()
    filter_top_k_top_p(CASE.tensors["logits"], top_k=2, top_p=0.5)
    assert torch.equal(before, CASE.tensors["logits"])


def test_guidance_of_zero_is_the_conditional_half():
    logits = torch.randn(4, 3, 5)
    assert torch.equal(guide(logits, 0.0), logits[:2])


def test_draws_follow_the_softmax():
    from var_toolkit.core.noise import Noise, Stream

    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf]).expand(1, 100_000, 5)
    found = pick(Categorical(temperature=2.0).probabilities(logits), Noise([7]).uniform(Stream.TOKEN, 0, 100_000))
    frequency = found.flatten().bincount(minlength=5) / 100_000
    assert_close(frequency, (logits[0, 0] / 2.0).softmax(-1), atol=0.006, rtol=0)
    assert frequency[4] == 0


@pytest.mark.parametrize("uniform", [2.0**-33, 1 - 2.0**-24])
def test_the_ends_of_the_noise_draw_the_first_and_the_last_code_with_mass(uniform):
    logits = torch.randn(1, 50, 4096)
    logits[..., :7] = logits[..., -5:] = -torch.inf
    found = pick(Categorical(temperature=0.7).probabilities(logits), torch.full((1, 50), uniform))
    assert (found == (7 if uniform < 0.5 else 4090)).all()
