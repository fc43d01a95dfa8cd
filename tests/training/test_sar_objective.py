"""SAR's training step is the published one: both passes, losses and gradients."""

from dataclasses import replace

import pytest
import torch
from golden.cases import load_case
from golden.recipe import fill_
from torch.testing import assert_close

from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.published import backbone_from_tensors
from var_toolkit.heads.categorical import token_losses
from var_toolkit.tokenizers.raster_vq import tokenizer_from_tensors
from var_toolkit.training.draws import Numbers
from var_toolkit.training.sar_objective import SarOptions, self_forced

CASE = load_case("sar-csfl")
NUMBERS = Numbers(torch.device("cpu"))
CONFIG, TENSORS, TOLERANCE = CASE.facts["config"], CASE.tensors, CASE.facts["tolerance"]
SCHEDULE = Schedule(tuple(CONFIG["schedule"]))
# By the release's names: whether it samples, and what the second pass learns.
RUNS = {"csfl_argmax": (False, "sample"), "csfl_guided": (True, "sample"), "gt_argmax": (False, "truth")}


def weights(part: str) -> dict[str, torch.Tensor]:
    """The published state dict of a part, filled by the recipe of the case."""
    told = CASE.facts["weights"]
    shapes = told["models"][part]["state_dict"]
    return fill_({name: torch.zeros(shape) for name, shape in shapes.items()}, told["salt"])


@pytest.fixture(scope="module")
def pyramid():
    tokenizer = tokenizer_from_tensors(weights("vae"), {}, (SCHEDULE.finest,), "FlexVAE.pth")
    with torch.no_grad():
        tokens = tokenizer.token_maps(TENSORS["image"], SCHEDULE)
    assert torch.equal(torch.cat(tokens, dim=1), TENSORS["ids"])
    return tokenizer.pyramid_of(SCHEDULE), tokens


def options_of(run: str, **changes) -> SarOptions:
    sampled, target = RUNS[run]
    guidance = CONFIG["sf_cfg_scale"] if sampled else 0.0
    own = SarOptions(sigma=CONFIG["sigma"], target=target, guidance=guidance, top_k=CONFIG["sf_top_k"], top_p=0.0)
    return replace(own, **changes)


@pytest.mark.parametrize("run", [run for run in CASE.facts["runs"] if run in RUNS])
def test_a_step_is_the_published_one(run, pyramid):
    own, tokens = pyramid
    network = backbone_from_tensors(
        "flexvar", weights("var"), {"patch_nums": CONFIG["schedule"]}, "FlexVAR.pth"
    ).train()
    options = options_of(run)
    seen = {}
    network.register_forward_pre_hook(lambda module, given: seen.update(inputs=given[1]))
    found = self_forced(
        network,
        own,
        TENSORS["labels"],
        tokens,
        options,
        null_class=network.config.num_classes,
        numbers=NUMBERS,
    )
    assert_close(found.logits, TENSORS["tf_logits"], atol=TOLERANCE["*_logits"], rtol=0)
    if f"{run}_sf_x" in TENSORS:
        assert_close(seen["inputs"], TENSORS[f"{run}_sf_x"], atol=TOLERANCE["*_x"], rtol=0)
        assert_close(found.own_logits, TENSORS[f"{run}_sf_logits"], atol=TOLERANCE["*_logits"], rtol=0)
    told, smooth = CASE.facts["values"][run], CONFIG["label_smoothing"]
    loss = token_losses(found.logits, TENSORS["ids"], label_smoothing=smooth).mean()
    other = token_losses(found.own_logits, found.targets, label_smoothing=smooth).mean()
    total = loss + CONFIG["sigma"] * other
    for value, name in ((loss, "tf_loss"), (other, "sf_loss"), (total, "total")):
        assert float(value.detach()) == pytest.approx(told[name], rel=1e-5)
    total.backward()
    grads = dict(network.named_parameters())
    for name, norm in told["grad_norms"].items():
        assert float(grads[name].grad.norm()) == pytest.approx(norm, rel=1e-4)
    if f"{run}_grad_word_embed" in TENSORS:
        assert_close(grads["word_embed.weight"].grad, TENSORS[f"{run}_grad_word_embed"], atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_all_scales_are_rolled_out_as_in_the_paper(pyramid):
    own, tokens = pyramid
    network = backbone_from_tensors("flexvar", weights("var"), {"patch_nums": CONFIG["schedule"]}, "FlexVAR.pth")
    options = options_of("csfl_argmax", rollout="all")
    found = self_forced(
        network,
        own,
        TENSORS["labels"],
        tokens,
        options,
        null_class=network.config.num_classes,
        numbers=NUMBERS,
    )
    drawn = SCHEDULE.split(TENSORS["tf_argmax"])
    expected = network(TENSORS["labels"], own.teacher_inputs(drawn), schedule=SCHEDULE)
    assert_close(found.own_logits, expected[:, SCHEDULE.lengths[0] :])
    assert torch.equal(found.targets, TENSORS["tf_argmax"][:, SCHEDULE.lengths[0] :])


@pytest.mark.parametrize(("name", "value"), [("sigma", -1.0), ("guidance", float("nan")), ("top_p", 2.0)], ids=str)
def test_bad_options_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        SarOptions(**{name: value})
