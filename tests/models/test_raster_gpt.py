"""LlamaGen's GPT agrees with the published network and with itself: whole maps, and token by token on a cache."""

import json

import pytest
import torch
from golden.cases import FOLDER, load_case
from small_llamagen import golden_gpt, tiny_gpt, tiny_gpt_config
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.models.layers.rotary import Rotation
from var_toolkit.models.llamagen import Branches, RasterGPT, RasterGPTConfig
from var_toolkit.registry import entry

SIZES = json.loads((FOLDER / "llamagen-published-settings" / "case.json").read_text())["class_conditional"]
LABELS = torch.tensor([1, 5])  # a class and the null class
TOKENS = torch.randint(16, (2, 8), generator=torch.Generator().manual_seed(0))


def golden_logits(network: RasterGPT) -> torch.Tensor:
    case = load_case("llamagen-logits").tensors
    with torch.no_grad():
        return network(case["label"], case["tokens"])


def test_logits_are_the_published_ones():
    assert_close(golden_logits(golden_gpt()), load_case("llamagen-logits").tensors["logits"], atol=1e-4, rtol=0)


def test_key_names_are_the_published_ones():
    published = load_case("llamagen-logits").facts["state_dict"]["gpt"]
    assert {name: list(tensor.shape) for name, tensor in golden_gpt().state_dict().items()} == {
        name: shape for name, (shape, _) in published.items()
    }


def test_the_class_has_zero_rope_instead_of_the_first_position(monkeypatch):
    network = golden_gpt()
    cos, sin = network.rotation()
    assert cos[0].eq(0).all()
    assert sin[0].eq(0).all()
    assert cos[1].eq(1).all()  # the corner of the map has angle zero
    monkeypatch.setattr(
        RasterGPT, "rotation", lambda self: Rotation(torch.cat((torch.ones_like(cos[:1]), cos[1:])), sin)
    )
    assert (golden_logits(network) - load_case("llamagen-logits").tensors["logits"]).abs().max() > 0.5


@pytest.mark.parametrize("side", [1, 2, 3])
def test_one_token_after_another_gives_the_logits_of_a_whole_map(side):
    network = tiny_gpt(side=side)
    tokens = TOKENS[:, : side**2 - 1]
    with torch.no_grad():
        cache = network.new_cache(2)
        parts = [network.next_hidden(network.prefix(LABELS), tokens[:, :0], cache=cache)]
        parts += [network.next_hidden(None, one, cache=cache) for one in tokens.split(1, dim=1) if one.numel()]
        assert_close(network.next_logits(torch.cat(parts, dim=1)), network(LABELS, tokens), atol=1e-5, rtol=1e-5)
    assert cache.length == side**2


@pytest.mark.parametrize("counts", [[8], [0, 8], [3, 1, 4], [1, 7], [0, 2, 5, 1]], ids=str)
def test_several_tokens_on_a_cache_equal_one_at_a_time(counts):
    network = tiny_gpt()
    with torch.no_grad():
        cache, (first, *rest) = network.new_cache(2), TOKENS.split(counts, dim=1)
        parts = [network.next_hidden(network.prefix(LABELS), first, cache=cache)]
        parts += [network.next_hidden(None, some, cache=cache) for some in rest]
        assert_close(torch.cat(parts, dim=1), network.next_hidden(network.prefix(LABELS), TOKENS), atol=1e-5, rtol=1e-5)
    assert cache.length == 9


def test_a_token_affects_only_the_tokens_after_it():
    network, changed = tiny_gpt(), TOKENS.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 16
    with torch.no_grad():
        moved = (network(LABELS, changed) - network(LABELS, TOKENS)).abs().amax(dim=(0, 2))
        other = (network(LABELS.flip(0), TOKENS) - network(LABELS, TOKENS)).abs().amax(dim=(0, 2))
    assert moved[:4].eq(0).all()
    assert moved[4:].gt(1e-4).all()
    assert other.gt(1e-4).all()  # the class affects every token


def test_rows_and_columns_each_rotate_half_of_a_head():
    """The relative rotation of two tokens is their distance in rows and in columns."""
    cos, sin = (table[1:] for table in tiny_gpt(side=4).rotation())
    assert cos.shape == sin.shape == (16, 8)
    for table in (cos, sin):
        grid = table.view(4, 4, 8)
        assert_close(grid[:, :1, :4].expand(4, 4, 4), grid[..., :4])
        assert_close(grid[:1, :, 4:].expand(4, 4, 4), grid[..., 4:])
    assert_close(cos[1, 4:], torch.tensor([1.0, 10.0, 100.0, 1000.0]).reciprocal().cos())


@pytest.mark.parametrize(("size", "parameters"), [
    ("b", 110_888_448), ("l", 342_910_976), ("xl", 774_699_520), ("xxl", 1_410_972_672), ("3b", 3_096_659_200),
])  # fmt: skip
def test_published_sizes_have_the_published_number_of_parameters(size, parameters):
    facts, config = SIZES[f"GPT-{size.upper()}"], RasterGPTConfig.published(size)
    found = {"n_layer": config.depth, "n_head": config.num_heads, "dim": config.embed_dim, "ffn_hidden": config.hidden}
    assert found == facts
    with torch.device("meta"):
        network = RasterGPT(config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert entry(f"llamagen-{size}").source.parameters == pytest.approx(parameters, abs=5e5)


@pytest.mark.parametrize("kept", ["tok_dropout", "resid_dropout", "ffn_dropout"])
def test_dropout_acts_only_in_training_and_at_every_position(kept):
    plain, network = tiny_gpt(), tiny_gpt(dropout=0.3)
    with torch.no_grad():
        assert torch.equal(network(LABELS, TOKENS), plain(LABELS, TOKENS))
        network.train()
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Dropout) and not name.endswith(kept):
                module.p = 0.0
        drawn = [network(LABELS, TOKENS) for _ in range(2)]
    assert not torch.allclose(*drawn, atol=1e-3)


def test_bfloat16_is_close_to_float32_on_average():
    network = golden_gpt().bfloat16()
    expected, found = load_case("llamagen-logits").tensors["logits"], golden_logits(network)
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.03 * expected.abs().mean()
    assert network.new_cache(2).nbytes == golden_gpt().new_cache(2).nbytes / 2


def test_at_initialisation_every_token_is_equally_likely():
    torch.manual_seed(0)
    network = RasterGPT(tiny_gpt_config())
    network.init_weights()
    assert network(LABELS, TOKENS).eq(0).all()
    assert network.layers[0].attention.wqkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.class_emb.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_it_learns_a_fixed_batch_with_every_parameter():
    torch.manual_seed(0)
    network = RasterGPT(tiny_gpt_config(dropout=0.1)).train()
    network.init_weights()
    optimiser, losses = torch.optim.Adam(network.parameters(), lr=1e-2), []
    start = {name: parameter.clone() for name, parameter in network.named_parameters()}
    for _ in range(12):
        losses.append(F.cross_entropy(network(LABELS, TOKENS[:, :7]).flatten(0, 1), TOKENS.flatten()))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0]
    assert [name for name, p in network.named_parameters() if torch.equal(p, start[name]) or p.isnan().any()] == []


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"side": 0}, "side is 0"),
        ({"embed_dim": 36}, "embed_dim is 36; .* num_heads, 2"),
        ({"mlp_hidden": 0}, "mlp_hidden is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_impossible_sizes_are_refused_by_name(setting, found):
    with pytest.raises(ValueError, match=found):
        tiny_gpt_config(**setting)


@pytest.fixture
def poisoned():
    """Unwritten memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
def test_rows_of_different_lengths_continue_as_if_each_were_alone():
    network, tokens = golden_gpt(), torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(4))
    labels, kept = torch.tensor([1, 4, 7]), [3, 7, 1]
    with torch.inference_mode():
        cache = network.new_ragged_cache(3, 20)
        network.next_hidden(network.prefix(labels), tokens[:, :7], cache=cache)
        cache.rewind(kept)  # the class is one position
        fed = torch.stack([row[length - 1 : length + 3] for row, length in zip(tokens, kept, strict=True)])
        found = [network.next_hidden(None, part, cache=cache) for part in fed.split((3, 1), dim=1)]
        for row, length in enumerate(kept):
            alone = network.next_hidden(network.prefix(labels[row : row + 1]), tokens[row : row + 1, : length + 3])
            assert_close(torch.cat(found, dim=1)[row], alone[0, length:], atol=2e-5, rtol=0)
    assert cache.lengths_R.tolist() == [7, 11, 5]


def test_a_tree_node_attends_to_its_branch_and_an_accepted_branch_equals_a_fresh_prefill():
    network, tokens = golden_gpt(), torch.randint(0, 64, (2, 5), generator=torch.Generator().manual_seed(5))
    labels = torch.tensor([2, 3])
    prefix, (root, left, right) = tokens[:, :2], tokens[:, 2:].split(1, dim=1)
    with torch.inference_mode():
        cache = network.new_ragged_cache(2, 20)
        network.next_hidden(network.prefix(labels), prefix, cache=cache)
        sees = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool()
        sees = torch.cat((torch.ones(3, 3).bool(), sees), dim=1).expand(2, 3, 6)
        places = torch.tensor([3, 4, 4]).expand(2, 3)
        branches = Branches(places, sees)
        found = network.next_hidden(None, torch.cat((root, left, right), 1), cache=cache, branches=branches)
        sequence = torch.cat((prefix, root, right), dim=1)
        assert_close(found[:, 2], network.next_hidden(network.prefix(labels), sequence)[:, -1], atol=2e-5, rtol=0)
        cache.move(torch.tensor([4, 4]), torch.tensor([[5], [5]]))
        cache.rewind(5)
        fresh = network.new_ragged_cache(2, 20)
        network.next_hidden(network.prefix(labels), sequence, cache=fresh)
        for one, other in zip(cache._keys + cache._values, fresh._keys + fresh._values, strict=True):
            assert_close(one[:, :, :5], other[:, :, :5], atol=2e-5, rtol=0)


def test_a_ragged_cache_refuses_what_it_does_not_hold():
    cache = golden_gpt().new_ragged_cache(2, 4)
    cache.advance(3)
    with pytest.raises(ValueError, match=r"length is \[1, 4\].*\[3, 3\]"):
        cache.rewind([1, 4])
