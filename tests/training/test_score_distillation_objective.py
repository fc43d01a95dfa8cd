"""Scores of noisy tokens in closed form, and the student and the guidance network that learn from them."""

import pytest
import torch
from torch.testing import assert_close

from var_toolkit.heads.code_flow import mean_code
from var_toolkit.training.draws import Draws
from var_toolkit.training.score_distillation_objective import denoised, inputs_of, memory_told, teacher_score

NAME = "score-distillation"


def some_points(images=2, tokens=5, codes=7, channels=3):
    torch.manual_seed(0)
    noisy, codes_Vc = torch.randn(images, tokens, channels), torch.randn(codes, channels)
    log_p = torch.randn(images, tokens, codes).log_softmax(-1)
    log_p[0, 0, :3] = -torch.inf  # excluded by a filter
    return noisy, torch.linspace(0.05, 1, images * tokens).view(images, tokens), log_p, codes_Vc


def test_the_score_is_the_gradient_of_the_log_density():
    noisy, times, log_p, codes = (one.double() for one in some_points())
    x = noisy.clone().requires_grad_()
    spread = torch.distributions.Normal((1 - times[..., None, None]) * codes, times[..., None, None])
    density = (log_p + spread.log_prob(x.unsqueeze(2)).sum(-1)).logsumexp(-1)
    (wanted,) = torch.autograd.grad(density.sum(), x)
    assert_close(teacher_score(noisy.float(), times.float(), log_p.float(), codes.float()).double(), wanted, rtol=1e-3,
                 atol=1e-3)  # fmt: skip


def test_tokens_of_different_times_are_denoised_as_each_is_alone():
    noisy, times, log_p, codes = some_points()
    together = denoised(noisy, times, log_p, codes)
    for image in range(2):
        for token in range(5):
            where = (image, slice(token, token + 1))
            alone = mean_code(noisy[where], float(times[where]), log_p[where], codes)
            assert_close(together[where], alone, rtol=1e-4, atol=1e-4)


def test_inputs_of_codes_are_those_that_the_tokenizer_gives(build):
    found, batch = build(NAME)
    _, wanted = found._forced(batch)
    assert_close(inputs_of(found.tokenizer.pyramid, found.codebook[batch.tokens]), wanted)


def test_the_two_learn_in_turns(build):
    found, _ = build(NAME, pretrain=2, align=3, guidance_updates=2)
    turns = [(phase.updates[0], phase.loss.__name__) for step in range(11) for phase in found.phases(step)]
    teacher, own, student = (
        ("guidance", "_teacher_score_loss"),
        ("guidance", "_guidance_loss"),
        ("var", "_student_loss"),
    )
    assert turns == [teacher] * 2 + [own] * 3 + [own, own, student] * 2


@pytest.mark.parametrize("loss", ["_teacher_score_loss", "_guidance_loss"])
def test_the_losses_of_guidance_fall_and_reach_nothing_else(build, loss):
    found, batch = build(NAME)
    guidance, student = found.networks["guidance"], found.networks["var"]
    optimiser = torch.optim.Adam([p for p in guidance.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(60):
        torch.manual_seed(step % 4)
        value = getattr(found, loss)(batch, Draws(0, step, 0, 1, 8, torch.device("cpu"))).total
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert all(p.grad is None for p in (*student.parameters(), *found.teacher.parameters()))


@pytest.mark.parametrize("loss", ["_teacher_score_loss", "_guidance_loss"])
def test_the_whole_guidance_network_learns_but_the_layers_that_name_tokens(build, loss):
    found, batch = build(NAME)
    guidance = found.networks["guidance"]
    getattr(found, loss)(batch, Draws(0, 0, 0, 1, 8, torch.device("cpu"))).total.backward()
    idle = {name.split(".")[1] for name, p in guidance.backbone.named_parameters(prefix="backbone") if p.grad is None}
    assert idle == {"head", "head_nm"}
    assert all(p.grad is None for p in found.teacher.parameters())


def test_gradients_of_the_student_flow_through_its_own_token_alone(build):
    found, batch = build(NAME)
    made = found._made(batch).detach().requires_grad_()
    found._made = lambda batch: made
    for token in (0, 3):
        torch.manual_seed(1)
        inputs, noisy, times, _ = found._noised(made)
        assert not inputs.requires_grad
        wanted = found.teacher_means(batch.labels, inputs, noisy, times)
        seen = noisy - times.unsqueeze(-1) * found.networks["guidance"](batch.labels, inputs, noisy, times)
        (grad,) = torch.autograd.grad(((wanted - seen) * (seen - made))[:, token].sum(), made)
        others = [place for place in range(grad.shape[1]) if place != token]
        assert grad[:, token].abs().min() > 0
        assert not grad[:, others].any()


def test_the_student_moves_to_where_the_teacher_is_and_guidance_says_it_is_not(build, monkeypatch):
    """With a guidance network that knows the student exactly, tokens move towards the teacher's code."""
    found, batch = build(NAME)
    made = torch.zeros(8, found.scales.total, found.codebook.shape[1]).requires_grad_()
    target = found.codebook[0]
    monkeypatch.setattr(found, "_made", lambda batch: made)
    monkeypatch.setattr(found, "teacher_means", lambda labels, inputs, noisy, times: target.expand_as(noisy))
    found.networks["guidance"] = lambda labels, inputs, noisy, times: (noisy - made.detach()) / times.unsqueeze(-1)
    optimiser = torch.optim.SGD([made], lr=10.0)
    before = (made - target).square().mean().item()
    for step in range(20):
        optimiser.zero_grad()
        found._student_loss(batch, Draws(0, step, 0, 1, 8, torch.device("cpu"))).total.backward()
        optimiser.step()
    assert (made - target).square().mean().item() < before


def test_memory_counts_both_networks_their_optimisers_and_the_teacher():
    one, two, teacher = torch.nn.Linear(1023, 1024), torch.nn.Linear(1023, 1024), torch.nn.Linear(1023, 1024)
    assert "36 MiB" in memory_told([one, two], teacher, ema=False)
    assert "40 MiB" in memory_told([one, two], teacher, ema=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"pretrain": -1}, "pretrain"), ({"guidance_updates": 0}, "guidance_updates"), ({"least_time": 0}, "least_time")],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_bad_options_are_refused(change, named, settings, tiny):
    with pytest.raises(ValueError, match=named):
        tiny(NAME, objective_options=settings(NAME)["objective_options"] | change)


def test_students_of_codes_and_other_teachers_are_refused(settings, tiny, build, parts):
    with pytest.raises(ValueError, match="coded"):
        tiny(NAME, model=settings(NAME)["model"] | {"coded": 1})
    with pytest.raises(ValueError, match="depth"):
        build(NAME, teacher=str(parts / "teacher"))
    with pytest.raises(ValueError, match="initial"):
        build(NAME, initial=str(parts / "var"))
