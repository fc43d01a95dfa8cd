"""ACDiT agrees with the published network and sampler, and its cached pass with the packed one."""

import json
from types import SimpleNamespace

import pytest
import torch
from golden.cases import FOLDER, load_case
from golden.recipe import fill_
from small_mar import tokenizer_of
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.core.bind import bind, run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise, Stream
from var_toolkit.core.plan import plan_of
from var_toolkit.formats.published import backbone_from_tensors, published_sampling
from var_toolkit.heads.diffusion import Diffusion, noisy
from var_toolkit.models.acdit import ACDiT, ACDiTConfig
from var_toolkit.models.layers.attention import skip_causal

SETTINGS = json.loads((FOLDER / "acdit-published-settings" / "case.json").read_text())
SAMPLE, TRAIN = load_case("acdit-sample"), load_case("acdit-train")


def golden(case, patch=1):
    """The network of a case, read as its published file is."""
    shapes = case.facts["state_dict"]["acdit"]
    tensors = fill_({name: torch.zeros(shape) for name, (shape, _) in shapes.items()}, case.facts["salt"])
    told = case.facts["config"] | {"patch_size": patch}
    return backbone_from_tensors("acdit", tensors, told, "ACDiT-XL-img.pt")


class StoredStart(Noise):
    """The starting noise of a case, in the order of the blocks."""

    def __init__(self, start_BLc, order_L):
        super().__init__(range(len(start_BLc)))
        self.by_position = torch.zeros_like(start_BLc).index_copy(1, order_L, start_BLc)

    def normal_at(self, stream, positions_BL, width, *, attempt=0):
        assert stream is Stream.DIFFUSION
        return self.by_position.gather(1, positions_BL.unsqueeze(-1).expand(-1, -1, width))


@pytest.mark.parametrize("run", range(len(SAMPLE.facts["runs"])))
def test_images_are_the_published_ones(run, monkeypatch):
    facts, tensors, network, seen = SAMPLE.facts["runs"][run], SAMPLE.tensors, golden(SAMPLE), []
    head, order = Diffusion("dpm++", facts["steps"]), network.block_order(torch.device("cpu"))
    assert list(head.chain("linear").indices)[::-1] == facts["timesteps"]
    plan = plan_of(network, guidance=max(0.0, facts["cfg"] - 1), head=head)

    def epsilon(*given, made=network.predicted):
        seen.append(made(*given))
        return seen[-1]

    monkeypatch.setattr(network, "predicted", epsilon)
    run_ = bind(plan, {"backbone": network}, tokenizer_of(network))
    decoded = decode(run_, tensors[f"labels_{run}"], StoredStart(tensors[f"init_{run}"].flatten(1, 2), order))
    assert_close(seen[0], tensors[f"eps_first_{run}"], atol=2e-4, rtol=0)
    assert_close(seen[-facts["steps"]], tensors[f"eps_last_block_{run}"], atol=2e-4, rtol=0)
    blocks = decoded.tokens[0][:, order].view_as(tensors[f"blocks_{run}"])
    assert_close(blocks, tensors[f"blocks_{run}"], atol=1e-4 * facts["max_abs"], rtol=0)


def test_the_packed_pass_is_the_published_one():
    tensors, tolerance = TRAIN.tensors, TRAIN.facts["tolerance"]
    patch = tensors["latent"].shape[-1] // int(TRAIN.facts["config"]["spatial_len"] ** 0.5)
    network, order = golden(TRAIN, patch), golden(TRAIN, patch).block_order(torch.device("cpu"))
    clean = tokenizer_of(network).pyramid.maps(tensors["latent"])[:, order]
    assert torch.equal(clean.view_as(tensors["tokens"]), tensors["tokens"])
    back = tokenizer_of(network).pyramid.grow(None, clean.new_zeros(clean.shape).index_copy(1, order, clean), 0)
    assert torch.equal(back, tensors["latent"])
    steps = tensors["t"].repeat_interleave(network.block_tokens, dim=1)
    state = noisy("linear", clean, tensors["noise"].flatten(1, 2), steps)
    assert_close(state.view_as(tensors["noised"]), tensors["noised"], atol=1e-5, rtol=0)
    mask = tensors["mask"].bool().repeat_interleave(network.block_tokens, 0).repeat_interleave(network.block_tokens, 1)
    qkv = torch.randn(3, 1, 2, 2 * network.scales.total, 8)
    expected = F.scaled_dot_product_attention(*qkv, mask, scale=0.5)
    assert_close(skip_causal(network.block_schedule)(*qkv, 0.5), expected)
    table = network.rotation(torch.device("cpu"))
    assert_close(table.cos, tensors["rope_cos"], atol=1e-5, rtol=0)
    assert_close(table.sin, tensors["rope_sin"], atol=1e-5, rtol=0)
    found = network(tensors["label"], clean, state, tensors["t"])
    assert_close(found, tensors["eps"], atol=tolerance["eps"], rtol=0)
    loss = (found - tensors["noise"].flatten(1, 2)).square().mean()
    assert_close(loss.view(1), tensors["loss"], atol=tolerance["loss"], rtol=0)
    loss.backward()
    gradients = dict(network.named_parameters())
    for name, expected in tensors.items():
        if name.startswith("grad_"):
            grad = gradients[name.removeprefix("grad_")].grad
            assert_close(grad, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


def test_key_names_are_the_published_ones():
    ours = {name: list(tensor.shape) for name, tensor in golden(SAMPLE).state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in SAMPLE.facts["state_dict"]["acdit"].items()}


@pytest.mark.parametrize("size", SETTINGS["sizes"])
def test_published_sizes_have_their_parameters(size):
    facts = SETTINGS["sizes"][size]
    config = ACDiTConfig(embed_dim=facts["hidden_size"], depth=facts["depth"])
    with torch.device("meta"):
        network = ACDiT(config)
    assert sum(p.numel() for p in network.parameters()) == facts["parameters_image"]
    assert len(network.state_dict()) == facts["keys"]
    assert config.num_heads == facts["num_heads"]


def test_files_have_the_published_settings():
    found, told = published_sampling("acdit", SimpleNamespace(embed_dim=1152), "a.pt"), SETTINGS["image"]["sampling"]
    assert (found.cfg, found.denoising_steps) == (told["cfg"], told["steps"])


def test_a_block_does_not_depend_on_the_noise_of_later_ones():
    network = golden(SAMPLE)
    run, order = run_of(tokenizer_of(network), network, guidance=0.5), network.block_order(torch.device("cpu"))
    start = torch.randn(1, network.scales.total, network.channels)
    changed = start.clone()
    changed[:, -1] += 1
    first, second = (
        decode(run, torch.tensor([1]), StoredStart(noise, order)).tokens[0][:, order] for noise in (start, changed)
    )
    last = network.block_tokens
    assert torch.equal(first[:, :-last], second[:, :-last])
    assert not torch.equal(first[:, -last:], second[:, -last:])


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"temporal_len": 16}, "temporal_len is 16; only images"),
        ({"square_block": False}, "square_block is False"),
        ({"spatial_len": 60}, "spatial_len is 60; it must be a square"),
        ({"patch_size": 3}, "tokens of 8 channels, which are not patches of side 3"),
        ({"depth": 5}, "says depth is 5; the tensors say 2"),
    ],
)
def test_what_cannot_be_is_refused_in_words(told, words):
    tensors = golden(SAMPLE).state_dict()
    with pytest.raises(ValueError, match=words):
        backbone_from_tensors("acdit", tensors, told, "ACDiT-XL-img.pt")
