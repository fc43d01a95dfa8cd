"""The map from noise to codes is that of the case, and codes of normal noise have the distribution they come from."""

import pytest
import torch
from golden.cases import load_case
from torch.testing import assert_close

from var_toolkit.heads.code_flow import (
    SOLVERS,
    codes_of_noise,
    flowed,
    mean_code,
    posterior,
    score,
    velocity,
)

CASE = load_case("dd-flow")
TENSORS = CASE.tensors
TIMES = [name.removeprefix("x_") for name in TENSORS if name.startswith("x_")]
RUNS = [name.removesuffix("_idx") for name in TENSORS if name.endswith("_idx") and name.split("_")[0] in SOLVERS]
STABLE = TENSORS["stable"].bool()


def given(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, -inf where a code is excluded, and the codebook."""
    logits = TENSORS["logits"].masked_fill(TENSORS["allowed"] == 0, -torch.inf)
    return logits.to(dtype), TENSORS["codebook"].to(dtype)


@pytest.mark.parametrize("time", TIMES)
def test_posterior_velocity_and_score_are_those_of_the_case(time):
    (logits, codes), x, t = given(), TENSORS[f"x_{time}"], float(time.replace("p", "."))
    mean = mean_code(x, t, logits, codes)
    assert_close(posterior(x, t, logits, codes), TENSORS[f"w_{time}"], atol=CASE.facts["tolerance"]["w_*"], rtol=0)
    assert_close(mean, TENSORS[f"mean_{time}"], atol=CASE.facts["tolerance"]["mean_*"], rtol=0)
    assert_close(velocity(x, t, mean), TENSORS[f"v_{time}"], atol=2e-4, rtol=2e-5)
    assert_close(score(x, t, mean), TENSORS[f"score_{time}"], atol=1e-2, rtol=2e-5)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-4), (torch.float64, 1e-6)], ids=["float32", "float64"])
@pytest.mark.parametrize("run", RUNS)
def test_a_noise_leads_where_it_does_in_the_case(run, dtype, atol):
    (logits, codes), (solver, steps) = given(dtype), run.split("_")
    how = {"solver": solver, "steps": int(steps)}
    noise = TENSORS["noise"].to(dtype)
    assert_close(flowed(noise, logits, codes, **how)[STABLE], TENSORS[run][STABLE].to(dtype), atol=atol, rtol=0)
    same = codes_of_noise(noise, logits, codes, **how) == TENSORS[f"{run}_idx"]
    assert same[STABLE].all()


def test_codes_of_normal_noise_have_the_probabilities_that_they_come_from():
    told = CASE.facts["mass_1d"]
    quantiles = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    noise = torch.special.ndtri(quantiles).unsqueeze(1)
    codes = torch.tensor(told["codebook"], dtype=torch.float64).unsqueeze(1)
    logits = torch.tensor(told["logits"], dtype=torch.float64).expand(2000, -1)
    for run, fractions in told["fractions"].items():
        solver, steps = run.split("_")
        found = codes_of_noise(noise, logits, codes, solver=solver, steps=int(steps)).bincount(minlength=len(codes))
        assert_close(found / 2000, torch.tensor(fractions, dtype=torch.float32), atol=1.1e-3, rtol=0)


def test_an_excluded_code_is_never_reached():
    logits = torch.tensor([[0.0, -torch.inf, 0.0]]).expand(64, -1)
    codes = torch.tensor([[1.0], [1.0], [-1.0]])  # the first two are equal: only the filter tells them apart
    noise = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    found = codes_of_noise(noise, logits, codes, steps=16)
    assert set(found.tolist()) == {0, 2}
