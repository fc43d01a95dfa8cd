"""An output layer cut to some codes: its logits are rows of the whole one, and the other codes have no mass."""

from dataclasses import replace

import pytest
import torch
from small_llamagen import golden_gpt
from torch.testing import assert_close

from var_toolkit.core.parts import Part
from var_toolkit.formats.frequent_codes import FILE, read_frequent, write_frequent
from var_toolkit.heads.categorical import Categorical
from var_toolkit.methods.speculative.eagle import Eagle
from var_toolkit.methods.speculative.growing import Shape
from var_toolkit.methods.speculative.token_sampling import TokenSampling
from var_toolkit.methods.speculative.vocab_trim import Trimmed, output_work
from var_toolkit.models.layers.linear import pack_linears

CODES = (40, 3, 17)
HIDDEN = torch.randn(4, 5, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["plain", "packed"])
def network(request):
    made = golden_gpt()
    if request.param == "packed":
        pack_linears(made)
    return made


@torch.inference_mode()
def test_logits_are_those_of_the_codes(network):
    found = Trimmed(network, CODES).logits(HIDDEN)
    assert_close(found, network.next_logits(HIDDEN)[..., list(CODES)], atol=1e-4, rtol=0)
    assert torch.equal(Trimmed(network, None).logits(HIDDEN), network.next_logits(HIDDEN))


@pytest.mark.parametrize("filters", [{}, {"top_k": 2}, {"top_k": 9, "top_p": 0.7}], ids=str)
@torch.inference_mode()
def test_what_is_drafted_has_mass_at_the_codes_alone_under_guidance_and_filters(filters):
    network = golden_gpt()
    sampling = TokenSampling(network, replace(Categorical(), **filters), 1.5)
    cut = Trimmed(network, CODES)
    chosen = sampling.choices(cut.logits(HIDDEN), torch.zeros(2, 5, dtype=torch.int64))
    q = cut.spread(sampling.head.probabilities(chosen))
    others = [code for code in range(64) if code not in CODES]
    assert q.shape == (2, 5, 64)
    assert q[..., others].eq(0).all()
    assert_close(q.sum(-1), torch.ones(2, 5))
    if not filters:  # then it is the whole distribution, given that the code is one of them
        whole = sampling.head.probabilities(sampling.choices(network.next_logits(HIDDEN), torch.zeros(2, 5).long()))
        assert_close(q[..., list(CODES)], (part := whole[..., list(CODES)]) / part.sum(-1, keepdim=True))


def test_the_output_layer_costs_less():
    network = golden_gpt()
    assert output_work(network, tuple(range(16))) * 4 == output_work(network, None) == network.head_work(1)


def test_a_plan_holds_the_codes():
    proposer = Eagle(Shape((1, 1)), CODES)
    assert Part.from_json(proposer.to_json(), where="plan") == proposer
    assert "3 codes" in str(proposer)
    assert str(Eagle(Shape((1, 1)), CODES[:1])).endswith("1 code")


def test_codes_are_read_as_they_were_written(tmp_path):
    assert read_frequent(tmp_path, 64) is None
    write_frequent(tmp_path, list(CODES))
    assert read_frequent(tmp_path, 64) == CODES


@pytest.mark.parametrize("text", ['{"codes": [1, 1]}', '{"codes": [64]}', '{"codes": [-1]}', "{}", '{"codes": ["a"]}'])
def test_a_damaged_list_of_codes_is_refused(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{FILE}: codes"):
        read_frequent(tmp_path, 64)
