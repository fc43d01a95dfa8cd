"""HMAR agrees with the published network and with itself, packed and scale by scale."""

import json

import pytest
import torch
from golden.cases import FOLDER, load_case
from torch.testing import assert_close

from var_toolkit.conditions.condition import Condition
from var_toolkit.core.masked import current_input
from var_toolkit.formats.next_scale_files import DROPPED
from var_toolkit.models.hmar import HMAR, HMARConfig

SIZES = {"num_classes": 5, "patch_nums": (1, 2, 3, 5), "vocab_size": 20, "latent_channels": 4}


def random_hmar(**changes) -> HMAR:
    torch.manual_seed(0)
    sizes = {"depth": 3, "branch_depth": 1, "embed_dim": 48, "num_heads": 3, **SIZES, **changes}
    network = HMAR(HMARConfig(**sizes)).eval()
    network.init_weights(adaln_gamma=0.5, head=1.0)
    return network


def test_next_scale_logits_are_the_published_ones(small_hmar, small_tokenizer):
    case = load_case("hmar-nsp-logits")
    inputs = small_tokenizer.teacher_inputs(small_hmar.scales.split(case.tensors["gt_idx"]))
    assert_close(inputs, case.tensors["x_ns"], atol=5e-6, rtol=0)
    with torch.no_grad():
        assert_close(small_hmar(case.tensors["label"], inputs), case.tensors["logits"], atol=3e-5, rtol=0)


def test_masked_logits_are_the_published_ones(small_hmar, small_tokenizer):
    case = load_case("hmar-mask-logits")
    tokens = small_hmar.scales.split(case.tensors["gt_idx"])
    inputs = small_tokenizer.teacher_inputs(tokens)
    with torch.no_grad():
        current = torch.cat([current_input(small_tokenizer.quantize, k, tokens[k]) for k in (1, 2, 3)], dim=1)
        assert_close(current, case.tensors["x_mask"], atol=5e-6, rtol=0)
        masked = torch.zeros(2, 29, dtype=torch.bool)
        masked[:, case.tensors["idx_to_mask"]] = True
        logits = small_hmar(case.tensors["label"], inputs, current, masked)
    assert_close(logits, case.tensors["logits"], atol=3e-5, rtol=0)


@pytest.mark.parametrize("l2_norm", [True, False])
@pytest.mark.parametrize("shared_aln", [True, False])
def test_a_scale_alone_equals_that_scale_in_the_packed_pass(l2_norm, shared_aln):
    hmar = random_hmar(attn_l2_norm=l2_norm, shared_aln=shared_aln)
    labels, offsets = torch.tensor([1, 5]), hmar.scales.offsets
    inputs, current = torch.randn(2, hmar.scales.total - 1, 4), torch.randn(2, hmar.scales.total - 1, 4)
    masked = torch.rand(2, hmar.scales.total - 1) < 0.5
    with torch.no_grad():
        packed, packed_masked = hmar(labels, inputs), hmar(labels, inputs, current, masked)
        condition = hmar.condition(Condition(labels=labels))
        for k in range(4):
            scales, span = range(k, k + 1), slice(offsets[k] - 1, offsets[k + 1] - 1)
            hidden = hmar.hidden(condition, inputs[:, span] if k else None, scales=scales)
            assert_close(hmar.logits(condition, hidden), packed[:, offsets[k] : offsets[k + 1]], atol=1e-5, rtol=1e-5)
            if k:
                alone = hmar.refined(condition, inputs[:, span], current[:, span], masked[:, span], scales=scales)
                assert_close(alone, packed_masked[:, offsets[k] : offsets[k + 1]], atol=1e-5, rtol=1e-5)


def test_a_scale_does_not_depend_on_others_nor_on_its_masked_tokens():
    hmar, labels = random_hmar(), torch.tensor([2])
    inputs, current = torch.randn(1, 38, 4), torch.randn(1, 38, 4)
    masked = torch.zeros(1, 38, dtype=torch.bool)
    masked[:, 6] = True
    with torch.no_grad():
        expected, expected_masked = hmar(labels, inputs), hmar(labels, inputs, current, masked)
        changed = inputs.clone()
        changed[:, :4] += 1  # scale 1
        assert torch.equal(hmar(labels, changed)[:, 5:], expected[:, 5:])
        assert not torch.equal(hmar(labels, changed)[:, 1:5], expected[:, 1:5])
        hidden = current.clone()
        hidden[:, 6] += 1
        assert torch.equal(hmar(labels, inputs, hidden, masked), expected_masked)
        hidden[:, 7] += 1
        assert not torch.equal(hmar(labels, inputs, hidden, masked), expected_masked)


def test_key_names_are_the_published_ones(small_hmar):
    published = json.loads((FOLDER / "hmar-generate" / "case.json").read_text())["state_dict"]["hmar"]
    ours = {name: list(tensor.shape) for name, tensor in small_hmar.state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in published.items() if not name.endswith(DROPPED)}


@pytest.mark.parametrize("depth", [16, 20, 24, 30])
def test_published_sizes_have_the_published_number_of_parameters(depth):
    facts = json.loads((FOLDER / "hmar-published-settings" / "case.json").read_text())
    stored = facts["checkpoints"]["files"][f"hmar-d{depth}.pth"]["parameters_stored"]
    with torch.device("meta"):
        hmar = HMAR(HMARConfig.published(depth))
    assert sum(p.numel() for p in hmar.parameters()) == stored


def test_every_parameter_gets_a_gradient_from_one_of_the_two_branches():
    hmar = random_hmar().train()
    inputs = torch.randn(1, 38, 4)
    hmar(torch.tensor([4]), inputs).logsumexp(-1).sum().backward()
    of_mask = {name for name, _ in hmar.named_parameters() if name.startswith("mask_")}
    assert {name for name, p in hmar.named_parameters() if p.grad is None} == of_mask
    masked = torch.arange(38)[None] % 2 == 0
    hmar(torch.tensor([4]), inputs, torch.randn(1, 38, 4), masked).logsumexp(-1).sum().backward()
    assert [name for name, p in hmar.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("branch_depth", [0, 4])
def test_a_branch_deeper_than_the_network_is_refused(branch_depth):
    with pytest.raises(ValueError, match=f"branch_depth is {branch_depth}; .* 3"):
        HMARConfig(depth=3, embed_dim=48, num_heads=3, branch_depth=branch_depth)
