"""What is not finite ends in one line that names the step and the way out, in every family, at once or at the end."""

import pytest
import torch
from conftest import small_var_network
from golden.cases import fill
from runs import code_of, run_with
from small_flowar import plan_of as flow_plan
from small_flowar import tiny_flowar, tiny_kl
from small_llamagen import plan_of as gpt_plan
from small_llamagen import tiny_gpt, tiny_vq

from var_toolkit.core.engine import decode
from var_toolkit.core.filters import pick
from var_toolkit.core.finite import FiniteCheck, require_fit
from var_toolkit.core.noise import Noise
from var_toolkit.core.preserved import preserved_before
from var_toolkit.methods.speculative.growing import Shape
from var_toolkit.methods.speculative.jacobi import Jacobi
from var_toolkit.methods.speculative.lengths import Fixed
from var_toolkit.methods.speculative.next_scale import NextScale
from var_toolkit.methods.speculative.ngram import NGram
from var_toolkit.methods.speculative.rules import Standard
from var_toolkit.methods.speculative.small_model import SmallModel
from var_toolkit.methods.speculative.verify import Speculation
from var_toolkit.models.hmar import HMAR, HMARConfig
from var_toolkit.pipeline import Pipeline

LABELS, NOISE = torch.tensor([1, 2]), Noise([0, 1])
SMALL = {"num_classes": 10, "latent_channels": 8, "patch_nums": (1, 2, 3, 4), "vocab_size": 64}
BAD = pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)


@pytest.fixture(params=["at once", "at the end"], autouse=True)
def _when(request, monkeypatch):
    """As on the CPU, which raises at once, and as on an accelerator, where all later steps draw from NaN first."""
    if request.param == "at the end":

        def note(self, values, what, network, guidance, noted=FiniteCheck.note):
            monkeypatch.setattr(FiniteCheck, "require", lambda self: None)
            noted(self, values, what, network, guidance)
            monkeypatch.setattr(FiniteCheck, "require", required)

        required = FiniteCheck.require
        monkeypatch.setattr(FiniteCheck, "note", note)


def spoilt(network, name, bad, rows=slice(None)):
    """The network with one of its tensors spoilt."""
    with torch.no_grad():
        dict(network.named_parameters())[name][rows] = bad
    return network


def hmar(name, bad):
    return spoilt(fill(HMAR(HMARConfig.published(2, branch_depth=1, **SMALL))), name, bad)


def var(bad, scale=2, depth=2):
    network = small_var_network(depth=depth)
    return spoilt(network, "lvl_embed.weight", bad, scale)


def refused(plan, *words, preserved=None):
    with pytest.raises(FloatingPointError) as told:
        decode(plan, LABELS, NOISE, preserved=preserved)
    assert "\n" not in str(told.value)
    for word in (*words, "not finite", "weights"):
        assert word in str(told.value)


whole = run_with


@BAD
@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0, "top_k": 9, "top_p": 0.9}, {"smooth": True}], ids=str)
def test_logits_of_a_scale(small_tokenizer, bad, settings):
    words = ["lower the guidance scale"] if "guidance" in settings else []
    refused(whole(small_tokenizer, var(bad), **settings), "logits of scale 2 ", *words)


@BAD
def test_logits_of_masked_passes(small_tokenizer, bad):
    refine = "published"
    plan = whole(small_tokenizer, hmar("mask_head.bias", bad), refine=refine)
    refused(plan, "logits of scale 1, masked pass 1,")
    refused(whole(small_tokenizer, hmar("ns_head.bias", bad), refine=refine), "logits of scale 0 ")


def test_the_refiner_of_collaborative_decoding(small_tokenizer, small_var):
    halves = (whole(small_tokenizer, network) for network in (small_var, var(float("nan"), scale=3)))
    refused(code_of(*halves, draft_scales=1), "logits of scale 3 ")


def test_an_edit(small_tokenizer):
    tokens = [torch.zeros(1, count, dtype=torch.int64) for count in small_tokenizer.scales.lengths]
    preserved = preserved_before(1, tokens, small_tokenizer, small_tokenizer.scales)
    refused(whole(small_tokenizer, var(float("nan"))), "logits of scale 2 ", preserved=preserved)


def test_float16_is_named():
    network = spoilt(tiny_flowar(), "diffusion_pos_embed_learned", float("inf")).half()
    refused(flow_plan(tiny_kl(), network), "latents of scale 0 ", "float16", "bfloat16 or float32")


@BAD
@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0}, {"guidance": 2.0, "guided_tokens": 3}], ids=str)
def test_logits_of_a_token(bad, settings):
    refused(gpt_plan(tiny_vq(), spoilt(tiny_gpt(), "output.weight", bad, 3), **settings), "logits of token 0 ")


@pytest.mark.parametrize(
    "proposer",
    [Jacobi(4), NGram(Shape((1, 1))), NGram(Shape((2, 1))), "a smaller model"],
    ids=["jacobi", "ngram", "ngram-tree", "draft"],
)
def test_a_target_whose_drafts_are_judged(proposer):
    network = spoilt(tiny_gpt(), "output.weight", float("nan"), 3)
    proposer = SmallModel(Shape((1, 1))) if isinstance(proposer, str) else proposer
    verify = Speculation(proposer, Standard(), Fixed(3))
    refused(gpt_plan(tiny_vq(), network, draft=tiny_gpt(depth=1), verify=verify), "target's logits from token 0 on")


@pytest.mark.parametrize("widths", [(1, 1), (2, 1)])
def test_a_model_that_drafts(widths):
    small = spoilt(tiny_gpt(depth=1), "output.weight", float("nan"), 3)
    verify = Speculation(SmallModel(Shape(widths)), Standard(), Fixed(3))
    refused(gpt_plan(tiny_vq(), tiny_gpt(), draft=small, verify=verify), "draft model's logits from token 1 on")


def test_scales_that_are_drafted(small_tokenizer, small_var):
    nan, verify = float("nan"), NextScale()
    refused(whole(small_tokenizer, var(nan), draft=small_var, verify=verify), "target's logits of scale ")
    refused(whole(small_tokenizer, small_var, draft=var(nan), verify=verify), "draft model's logits of scale 2 ")


def test_a_draw_is_a_code_whatever_the_masses():
    mass = torch.tensor([[[0.5, 0.5, 0.0], [0.0] * 3, [float("nan")] * 3, [float("inf"), 1.0, 0.0]]])
    assert pick(mass, torch.full((1, 4), 0.75)).tolist()[0][0] == 1
    assert int(pick(mass, torch.full((1, 4), 0.75)).max()) <= 2


@BAD
def test_a_decoder_that_overflows_is_not_a_black_or_white_image(small_var, bad, small_tokenizer):
    from copy import deepcopy

    tokenizer = deepcopy(small_tokenizer)
    spoilt(tokenizer, "decoder.conv_out.bias", bad)
    pipe = Pipeline(tokenizer, small_var)
    with pytest.raises(FloatingPointError, match=r"decoder.*bfloat16 or float32"):
        pipe([1], seeds=0)
    with pytest.raises(FloatingPointError, match="decoder"):
        pipe.reconstruct(torch.full((3, 64, 64), 0.5))
    spoilt(tokenizer, "quant_conv.bias", bad)
    with pytest.raises(FloatingPointError, match="encoder"):
        pipe.vary(torch.full((3, 64, 64), 0.5), 2, 1)


def test_weights_that_float16_cannot_hold_are_refused_by_name(tmp_path, small_tokenizer):
    pipe = Pipeline(small_tokenizer, spoilt(small_var_network(depth=2), "blocks.1.ffn.fc2.bias", 7e4, 0))
    for half in (lambda: pipe.to(dtype=torch.float16), lambda: pipe.save_pretrained(tmp_path / "half", torch.float16)):
        with pytest.raises(ValueError, match=r"^VAR: blocks.1.ffn.fc2.bias holds 70000, and float16 ends at 65504;"):
            half()
    assert pipe.dtype == torch.float32
    assert next(small_tokenizer.decoder.parameters()).dtype == torch.float32
    assert list(tmp_path.iterdir()) == []
    require_fit({"fits": torch.tensor([65504.0, -65504.0])}, torch.float16, "here")
