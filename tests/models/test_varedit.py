"""VAREdit agrees with the published transformer and sampler; a source image is read once, whatever the batch."""

from functools import cache

import pytest
import torch
from golden.cases import fill, load_case
from small_infinity import PublishedNoise, embeds, plan_of_run, schedule_of, small_bsq, small_varedit, varedit_networks
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition, Request
from var_toolkit.conditions.images import WithImage
from var_toolkit.conditions.text import Prompts
from var_toolkit.core.bind import bind, run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import BACKBONE
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.fitting import fitted
from var_toolkit.heads.bits import Bits

CASES = {name: load_case(name) for name in ("varedit-generate", "varedit-generate-patchify")}
RUNS = [pytest.param(name, run, id=f"{name}-{run}") for name, case in CASES.items() for run in case.facts["runs"]]
LOGITS = load_case("varedit-logits")


@cache
def networks(name):
    case = CASES[name]
    found = varedit_networks(case, case.facts["config"]["rotary_reference_hw"])
    return fitted(found["tokenizer"], found["backbone"], ("tokenizer", "backbone")), found["backbone"]


def source_of(tensors, tokenizer, schedule):
    """The condition of a source whose features are known."""
    tokens = tokenizer.pyramid_of(schedule).unquantised(tensors["source_features"])
    assert_close(tokens, tensors["source_inputs"], atol=1e-6, rtol=0)
    return Request(Condition(prefix=tokens), Condition(prefix=tokens))


@pytest.mark.parametrize("run", LOGITS.facts["runs"])
def test_logits_are_the_published_ones(run):
    told, tensors = LOGITS.facts["runs"][run], LOGITS.tensors
    network = varedit_networks(LOGITS, told["rotary_reference_hw"])["backbone"]
    prompt = embeds(tensors["text"], LOGITS.facts["config"]["text_lens"])
    schedule = Schedule(tuple((h, w) for _, h, w in told["schedule_thw"]))
    source, inputs = tensors[f"{run}.source"], tensors[f"{run}.inputs"]
    with torch.no_grad():
        found = network(prompt.features, prompt.mask, source, inputs, schedule=schedule)
    assert_close(found, tensors[f"{run}.logits"], atol=2e-5, rtol=0)
    with torch.no_grad():
        asked = WithImage(network.request(prompt), Request(Condition(prefix=source), Condition(prefix=source)))
        condition, cache, parts = network.condition(asked.rows(network, 1)), None, []
        cache = network.new_cache(len(prompt), [source.shape[1] + schedule.total] * network.config.depth)
        for k, part in enumerate((None, *inputs.split(schedule.lengths[1:], dim=1))):
            hidden = network.hidden(condition, part, scales=range(k, k + 1), schedule=schedule, cache=cache)
            parts.append(network.logits(condition, hidden))
    assert_close(torch.cat(parts, dim=1), tensors[f"{run}.logits"], atol=2e-5, rtol=0)


def drawn_as_published(name, run, copies, monkeypatch):
    """What is drawn for a prompt and a source that are repeated, and the logits."""
    case, (tokenizer, backbone) = CASES[name], networks(name)
    told, tensors, schedule, found = case.facts["runs"][run], case.tensors, schedule_of(case), []
    prompt = embeds(tensors["text"], case.facts["config"]["text_lens"]).of_rows([0] * copies)
    choices = Bits.choices
    monkeypatch.setattr(Bits, "choices", lambda *given: found.append(choices(*given)) or found[-1])
    noise = PublishedNoise(tensors[f"{run}.noise"]) if f"{run}.noise" in tensors else Noise([0] * copies)
    plan = bind(plan_of_run(schedule, told, len(backbone.blocks)), {BACKBONE: backbone}, tokenizer)
    drawn = decode(plan, WithImage(Prompts(prompt), source_of(tensors, tokenizer, schedule)), noise)
    return drawn, torch.cat(found, dim=1)


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_bits_and_images_are_those_of_the_published_sampler(name, run, monkeypatch):
    case, (tokenizer, _) = CASES[name], networks(name)
    drawn, logits = drawn_as_published(name, run, case.facts["config"]["B"], monkeypatch)
    bits = [tokenizer.pyramid_of(schedule_of(case))._cells(one, k) for k, one in enumerate(drawn.tokens)]
    found = torch.cat([cells.flatten(2).transpose(1, 2) for cells in bits], dim=1)
    assert torch.equal(found, case.tensors[f"{run}.bits"])
    assert_close(logits, case.tensors[f"{run}.logits"], atol=case.facts["tolerance"]["logits_atol"][run], rtol=0)
    assert_close(drawn.latent, case.tensors[f"{run}.codes_sum"], atol=1e-5, rtol=0)
    if f"{run}.image" in case.tensors:  # blue first
        image = ((tokenizer.decode(drawn.latent) + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(-1)
        assert (image.int() - case.tensors[f"{run}.image"].int()).abs().max() <= 1


@pytest.mark.parametrize("name", CASES)
def test_a_batch_under_guidance_draws_each_image_as_alone(name, monkeypatch):
    case = CASES[name]
    _, logits = drawn_as_published(name, "plain", 3, monkeypatch)
    tolerance = case.facts["tolerance"]["logits_atol"]["plain"]
    for row in logits:
        assert_close(row[None], case.tensors["plain.logits"], atol=tolerance, rtol=0)


def test_the_source_changes_the_image_and_is_needed():
    network, prompt, inputs = small_varedit(), embeds(torch.randn(4, 16), [4]), torch.randn(1, 13, 4)
    with torch.no_grad():
        found = [network(prompt.features, prompt.mask, torch.randn(1, 9, 4), inputs) for _ in range(2)]
    assert not torch.allclose(*found)
    with pytest.raises(ValueError, match="source"):
        network.condition(network.request(prompt).condition)


def test_a_source_of_another_size_is_refused():
    network, prompt = small_varedit(), embeds(torch.randn(4, 16), [4])
    with pytest.raises(ValueError, match=r"4 tokens.* 9"):
        network(prompt.features, prompt.mask, torch.zeros(1, 4, 4), torch.zeros(1, 13, 4))


def test_a_plan_counts_the_source():
    tokenizer = fitted(small_bsq(), small_varedit(), ("tokenizer", "backbone"))
    run = run_of(tokenizer, small_varedit())
    drawn = run.schedule.total
    assert {one.capacities for one in run.steps} == {(9 + drawn,) * 2}
    plain = small_varedit()
    plain.prefix_tokens = lambda schedule: 0
    assert run.cost().multiply_adds > run_of(tokenizer, plain).cost().multiply_adds


def test_all_weights_learn():
    network, prompt = fill(small_varedit()).train(), embeds(torch.randn(8, 16), [5, 3])
    dropped = torch.tensor([True, False])
    network(prompt.features, prompt.mask, torch.randn(2, 9, 4), torch.randn(2, 13, 4), dropped).sum().backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]


def test_a_schedule_without_positions_is_refused():
    network = small_varedit(reference_map=(3, 4), aspect_ratios=True)
    network.require_schedule(Schedule((1, (2, 4))))
    with pytest.raises(ValueError, match="3x4"):
        network.require_schedule(Schedule((1, 4)))
