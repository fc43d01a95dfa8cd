"""Heads that draft for a GPT: sequences, caches and trees agree, and an early exit is the target's own modules."""

import pytest
import torch
from golden.cases import fill
from small_llamagen import golden_gpt, tiny_gpt
from torch.testing import assert_close

from var_toolkit.formats.directory import load_network, save_network
from var_toolkit.models.draft_heads import EagleHead, EagleHeadConfig, ExitHead, ExitHeadConfig, early_exit
from var_toolkit.models.llamagen import Branches

SIZES = {"embed_dim": 128, "side": 4, "vocab_size": 64}  # of the golden target
LABELS = torch.tensor([1, 10])  # a class and the null class
TOKENS = torch.randint(0, 64, (2, 15), generator=torch.Generator().manual_seed(1))


def eagle(**changes) -> EagleHead:
    return fill(EagleHead(EagleHeadConfig(**{"num_heads": 2, "mlp_hidden": 96, **SIZES, **changes})))


def exit_head(**changes) -> ExitHead:
    return fill(ExitHead(ExitHeadConfig(**{"num_heads": 4, "layers": 2, **SIZES, **changes})))


@pytest.fixture(scope="module")
def target():
    return golden_gpt()


@pytest.fixture(scope="module")
def features(target):
    """The features that predicted each of TOKENS."""
    with torch.no_grad():
        return target.next_hidden(target.prefix(LABELS), TOKENS)[:, :-1]


@pytest.fixture(scope="module")
def guesses(target, features):
    with torch.no_grad():
        return eagle().next_features(target, TOKENS, features)


def test_an_estimate_depends_only_on_tokens_and_features_up_to_its_position(target, features, guesses):
    head = eagle()
    for changed in (0, 1):
        given = [TOKENS.clone(), features.clone()]
        given[changed][:, 6] = given[changed][:, 7]
        with torch.no_grad():
            moved = (head.next_features(target, *given) - guesses).abs().amax(dim=(0, 2))
        assert moved[:6].eq(0).all()
        assert moved[6:].gt(1e-4).all()


def test_token_positions_follow_the_class(target, features, guesses):
    """Token i is rotated as the target rotates it, whatever precedes it in the cache."""
    head = eagle(num_heads=target.config.num_heads)
    embedded = head.fuse(torch.cat((target.tok_embeddings(TOKENS), features), dim=-1))
    rotation = type(target.rotation())(*(table[1:16] for table in target.rotation()))
    seen = torch.ones(15, 15, dtype=torch.bool).tril()

    def attend(q, k, v, scale):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)

    with torch.no_grad():
        expected = head.block(embedded, rotation, attend, None, 0)
        assert_close(head.next_features(target, TOKENS, features), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("counts", [[15], [1] * 15, [6, 1, 8]], ids=str)
def test_several_tokens_on_a_cache_equal_all_at_once(target, features, guesses, counts):
    head = eagle()
    parts = zip(TOKENS.split(counts, dim=1), features.split(counts, dim=1), strict=True)
    with torch.inference_mode():
        cache = head.new_ragged_cache(2, 15)
        found = [head.next_features(target, *part, cache=cache) for part in parts]
    assert_close(torch.cat(found, dim=1), guesses, atol=2e-5, rtol=0)
    assert cache.lengths_R.tolist() == [15, 15]


def test_rows_of_different_lengths_continue_as_if_each_were_alone(target, features, guesses):
    head, kept = eagle(), [3, 7]
    rows, new = torch.arange(2).unsqueeze(1), torch.arange(4)
    places = torch.tensor(kept).unsqueeze(1) + new
    with torch.inference_mode():
        cache = head.new_ragged_cache(2, 16)
        head.next_features(target, TOKENS[:, :9], features[:, :9], cache=cache)
        cache.rewind(torch.tensor(kept))
        given = (TOKENS[rows, places], features[rows, places])
        found = [head.next_features(target, *(x[:, part] for x in given), cache=cache) for part in new.split((3, 1))]
    assert_close(torch.cat(found, dim=1), guesses[rows, places], atol=2e-5, rtol=0)
    assert cache.lengths_R.tolist() == [7, 11]


def test_a_tree_node_attends_to_its_own_branch(target, features):
    """Two tokens are siblings at position 6, and one follows the second of them."""
    head, root = eagle(), 5
    tokens = torch.cat((TOKENS[:, : root + 1], TOKENS[:, 9:11]), dim=1)  # the root last, then what follows it
    given = torch.cat((features[:, : root + 1], features[:, 9:11]), dim=1)
    sees = torch.cat((torch.ones(3, root).bool(), torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 1]]).bool()), dim=1)
    branches = Branches(torch.tensor([root + 1, root + 1, root + 2]).expand(2, 3), sees.expand(2, 3, root + 3))
    with torch.inference_mode():
        cache = head.new_ragged_cache(2, 10)
        head.next_features(target, tokens[:, :root], given[:, :root], cache=cache)
        new = (tokens[:, root:], given[:, root:])
        found = head.next_features(target, *new, cache=cache, branches=branches)
        path = [*range(root), root + 1, root + 2]
        alone = head.next_features(target, tokens[:, path], given[:, path])
        plain = head.next_features(target, tokens[:, : root + 1], given[:, : root + 1])
    assert_close(found[:, 1:], alone[:, root:], atol=2e-5, rtol=0)
    assert_close(found[:, 0], plain[:, root], atol=2e-5, rtol=0)


def test_an_early_exit_without_a_head_is_the_output_after_the_first_layers(target):
    seen = []
    handle = target.layers[1].register_forward_hook(lambda module, given, result: seen.append(result))
    with torch.no_grad():
        target.next_hidden(target.prefix(LABELS), TOKENS)
        handle.remove()
        assert_close(early_exit(target, 2)(LABELS, TOKENS), target.next_logits(seen[0]))


def test_an_early_exit_goes_through_the_head_and_counts_it(target):
    head = exit_head()
    shallow = early_exit(target, 2, head)
    assert (shallow.config.depth, len(shallow.blocks), shallow.training) == (3, 3, False)
    with torch.inference_mode():
        features = early_exit(target, 2).next_hidden(target.prefix(LABELS), TOKENS)
        expected = target.next_logits(head(features))
        assert_close(shallow(LABELS, TOKENS), expected)
        cache = shallow.new_ragged_cache(2, 16)
        parts = [shallow.next_hidden(shallow.prefix(LABELS), TOKENS[:, :4], cache=cache)]
        parts += [shallow.next_hidden(None, part, cache=cache) for part in TOKENS[:, 4:].split((1, 10), dim=1)]
        assert_close(shallow.next_logits(torch.cat(parts, dim=1)), expected, atol=2e-5, rtol=0)
    assert (expected - target.next_logits(features)).abs().max() > 0.1


def test_an_early_exit_has_no_weights_of_its_own(target):
    head = exit_head()
    shared = {id(p) for network in (target, head) for p in network.parameters()}
    assert {id(p) for p in early_exit(target, 2, head).parameters()} <= shared
    assert early_exit(target, 1).layers[0] is target.layers[0]
    assert not any(p.is_meta for p in early_exit(target, 2, head).parameters())


@pytest.mark.parametrize("layers", [0, 3, -1])
def test_an_impossible_exit_is_refused(target, layers):
    with pytest.raises(ValueError, match=f"layers is {layers};.* 1 to 2"):
        early_exit(target, layers)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"layers": 1}, "layers is 2.* 1 layers"),
        ({"embed_dim": 64}, "embed_dim is 64 .* 128"),
        ({"num_heads": 2}, "num_heads is 2 .* 4"),
        ({"mlp_hidden": 96}, "hidden is 96 .* 512"),
        ({"side": 5}, "side is 5 .* 4"),
        ({"vocab_size": 32}, "vocab_size is 32 .* 64"),
    ],
)
def test_a_head_for_another_target_is_refused(target, changes, found):
    with pytest.raises(ValueError, match=found):
        early_exit(target, 2, exit_head(**changes))
    if changes.keys() & SIZES.keys():
        with pytest.raises(ValueError, match=found):
            eagle(**changes).require_fit(target)


def test_an_eagle_head_must_match_only_width_side_and_vocabulary_of_its_target(target):
    eagle(num_heads=1, mlp_hidden=8).require_fit(target)
    with pytest.raises(ValueError, match=r"vocab_size is 64 .* 16"):
        eagle().require_fit(tiny_gpt(embed_dim=128, side=4))


@pytest.mark.parametrize(
    ("head", "changes", "found"),
    [
        (eagle, {"num_heads": 3}, "embed_dim is 128; .* num_heads, 3"),
        (eagle, {"mlp_hidden": 0}, "mlp_hidden is 0"),
        (exit_head, {"layers": 0}, "layers is 0"),
    ],
)
def test_impossible_sizes_are_refused_by_name(head, changes, found):
    with pytest.raises(ValueError, match=found):
        head(**changes)


@pytest.mark.parametrize("head", [eagle, exit_head])
def test_heads_are_saved_and_loaded(head, tmp_path):
    before = head()
    save_network(before, tmp_path / "head")
    after = load_network(tmp_path / "head")
    assert type(after) is type(before)
    assert after.config == before.config
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor)
