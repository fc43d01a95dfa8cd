"""FlowAR agrees with the published network and with itself: packed and cached, whole images and single scales."""

import json
from collections.abc import Callable

import pytest
import torch
from golden.cases import FOLDER, load_case
from small_flowar import golden_flowar, tiny_config, tiny_flowar
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from var_toolkit.conditions.condition import Condition
from var_toolkit.heads.flow import Flow
from var_toolkit.models.flowar import FlowAR, FlowARConfig
from var_toolkit.models.layers.attention import to_all, to_allowed
from var_toolkit.models.layers.flow_head import HEAD_DIM
from var_toolkit.tokenizers.latent_pyramid import LatentPyramid

HEADS = pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
SETTINGS = json.loads((FOLDER / "flowar-published-settings" / "case.json").read_text())
LABELS = torch.tensor([1, 5])  # a class and the null class


def batch_of(network: FlowAR, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Inputs, noisy maps and times for two images."""
    generator = torch.Generator().manual_seed(seed)
    total, channels = network.scales.total, network.config.latent_channels
    inputs = torch.randn(2, total - network.scales.lengths[0], channels, generator=generator)
    noisy = torch.randn(2, total, channels, generator=generator)
    return inputs, noisy, torch.rand(2, len(network.scales), generator=generator)


@pytest.mark.parametrize("name", ["flowar-velocity", "flowar-velocity-cross"])
def test_velocities_are_the_published_ones(name):
    case, network = load_case(name), golden_flowar(name.endswith("cross"))
    x, hidden = case.tensors["x_t"], case.tensors["cond"]
    with torch.no_grad():
        field = network.field(hidden, 2)
        packed = network.flownet(x, case.tensors["t"][:, None], field.condition, field.rotation, to_all)
        assert_close(packed, case.tensors["velocity"], atol=1e-4, rtol=0)
        for row, time in enumerate(case.tensors["t"].tolist()):  # one time for all rows, as in sampling
            assert_close(field(x, time)[row], case.tensors["velocity"][row], atol=1e-4, rtol=0)


def test_the_training_pass_is_the_published_one():
    case, network = load_case("flowar-train"), golden_flowar(cross=False).train()
    pyramid, tensors, scales = LatentPyramid(network.scales), case.tensors, network.scales
    maps, inputs = pyramid.maps(tensors["latents"]), pyramid.teacher_inputs(tensors["latents"])
    assert_close(maps, tensors["gt"], atol=1e-5, rtol=0)
    assert_close(inputs, tensors["x_in"], atol=1e-5, rtol=0)
    hidden = network.hidden(network.condition(Condition(labels=tensors["label"])), inputs, scales=range(3))
    assert_close(hidden, tensors["cond"], atol=1e-4, rtol=0)
    noise, times = torch.cat(case.maps("noise"), dim=1), torch.stack(case.maps("t"), dim=1)
    own = times[:, scales.level_ids(), None]
    velocities = network(tensors["label"], inputs, (1 - own) * maps + own * noise, times)
    errors = scales.split((velocities - (noise - maps)).square())
    weights = [n / scales.lengths[-1] for n in scales.lengths]
    loss = sum(weight * error.mean() for weight, error in zip(weights, errors, strict=True))
    assert_close(loss.reshape(1), tensors["loss"], atol=1e-4, rtol=0)


@HEADS
def test_key_names_are_the_published_ones(cross):
    published = load_case("flowar-sample-cross" if cross else "flowar-sample").facts["state_dict"]["flowar"]
    ours = {name: list(tensor.shape) for name, tensor in golden_flowar(cross).state_dict().items()}
    assert ours == {n: shape for n, (shape, _) in published.items() if n != "mask" and not n.endswith("rope.freqs")}


@pytest.mark.parametrize("size", ["S", "L", "H"])
def test_published_sizes_have_the_published_number_of_parameters(size):
    facts = SETTINGS["sizes"][size]
    with torch.device("meta"):
        network = FlowAR(
            FlowARConfig(
                embed_dim=facts["encoder_embed_dim"],
                encoder_depth=facts["encoder_depth"],
                decoder_depth=facts["decoder_depth"],
                num_heads=facts["encoder_num_heads"],
                head_depth=facts["diffloss_d"],
                head_width=facts["diffloss_w"],
                cross_attention=facts["cross"],
            )
        )
    assert sum(p.numel() for p in network.parameters()) == facts["parameters"]


@pytest.mark.parametrize("steps", [25, 50])
def test_the_network_is_evaluated_at_the_published_times(steps):
    """Truncation to thousandths in float64 would give 679 and 559 instead of 680 and 560."""
    network, seen = tiny_flowar(), []
    embedding = network.flownet.time_embed
    embedding.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 0].double()))
    with torch.no_grad():
        field = network.field(torch.randn(1, 4, 32), 1)
        for time in Flow(steps=steps).evaluated():
            field(torch.randn(1, 4, 4), time)
    slowest = torch.tensor(10_000.0).double() ** (-127 / 128)  # its angle stays below pi / 2
    found = [round(float(torch.asin(sinusoids[-1]) / slowest)) for sinusoids in seen]
    assert found == SETTINGS["sampler"]["grids"][str(steps)]["time_index"]


@HEADS
@pytest.mark.parametrize("patch_nums", [(1, 2, 4, 8), (1, 3, 5), (1, 2, 3, 4), (3,)], ids=str)
def test_scales_one_after_another_give_the_packed_velocities(patch_nums, cross):
    network = tiny_flowar(patch_nums=patch_nums, cross_attention=cross)
    (inputs, noisy, times), offsets = batch_of(network), network.scales.offsets
    first = offsets[1]
    with torch.no_grad():
        packed = network(LABELS, inputs, noisy, times)
        condition, cache = network.condition(Condition(labels=LABELS)), network.new_cache(2)
        for k in range(len(patch_nums)):
            span, scales = slice(offsets[k], offsets[k + 1]), range(k, k + 1)
            part = inputs[:, offsets[k] - first : offsets[k + 1] - first] if k else None
            field = network.field(network.hidden(condition, part, scales=scales, cache=cache), k)
            for row in range(2):  # a field has one time for all images, the packed pass one per image
                alone = field(noisy[:, span], float(times[row, k]))[row]
                assert_close(alone, packed[row, span], atol=2e-5, rtol=1e-4)
    assert cache.length == network.scales.total


@pytest.mark.parametrize("chunks", [[3, 4], [1, 4], [2, 3, 4], [4]], ids=str)
def test_several_scales_in_one_pass_equal_one_at_a_time(chunks):
    """Also after a cache, as in a refiner's first pass."""
    network = tiny_flowar(patch_nums=(1, 2, 3, 5))
    (inputs, _, _), offsets = batch_of(network), network.scales.offsets

    def run(ends: list[int]) -> torch.Tensor:
        condition, cache, parts, first = network.condition(Condition(labels=LABELS)), network.new_cache(2), [], 0
        for last in ends:
            part = inputs[:, max(offsets[first] - 1, 0) : offsets[last] - 1] if last > 1 else None
            parts.append(network.hidden(condition, part, scales=range(first, last), cache=cache))
            first = last
        return torch.cat(parts, dim=1)

    with torch.no_grad():
        assert_close(run(chunks), run([1, 2, 3, 4]), atol=1e-5, rtol=1e-5)


def test_a_scale_attends_to_itself_and_the_coarser_ones():
    network = tiny_flowar(patch_nums=(1, 2, 3, 4))
    (inputs, _, _), offsets = batch_of(network), network.scales.offsets
    with torch.no_grad():
        condition = network.condition(Condition(labels=LABELS))
        expected = network.hidden(condition, inputs, scales=range(4))
        changed = inputs.clone()
        changed[:, offsets[2] - 1] += 1  # the first token of scale 2
        features = network.hidden(condition, changed, scales=range(4))
    assert torch.equal(features[:, : offsets[2]], expected[:, : offsets[2]])
    moved = (features - expected).abs().amax(dim=(0, 2)) > 1e-5
    assert moved[offsets[2] :].all()  # its own scale, and the finer one


@HEADS
def test_the_head_attends_only_within_a_scale(cross):
    network = tiny_flowar(patch_nums=(1, 2, 3, 4), cross_attention=cross)
    scales, (inputs, noisy, times) = network.scales, batch_of(network)
    own = slice(scales.offsets[2], scales.offsets[3])
    others = torch.ones(scales.total, dtype=torch.bool)
    others[own] = False
    rotation = network._rotation(range(4), HEAD_DIM)
    attend, levels = to_allowed(scales.block_diagonal_mask()), scales.level_ids()
    with torch.no_grad():
        hidden = network.hidden(network.condition(Condition(labels=LABELS)), inputs, scales=range(4))

        def velocities(hidden, noisy, times):
            return network.flownet(noisy, times, network.flownet.condition(hidden, rotation), rotation, attend, levels)

        expected = velocities(hidden, noisy, times)
        assert_close(network(LABELS, inputs, noisy, times), expected, atol=1e-5, rtol=1e-5)
        foreign = [hidden + others[:, None], noisy + others[:, None], times + 0.1 * (torch.arange(4) != 2)]
        assert torch.equal(velocities(*foreign)[:, own], expected[:, own])
        assert torch.equal(network(LABELS, inputs, *foreign[1:])[:, own], network(LABELS, inputs, noisy, times)[:, own])
        for changed in ([foreign[0], noisy, times], [hidden, foreign[1], times], [hidden, noisy, foreign[2]]):
            assert not torch.allclose(velocities(*changed)[:, others], expected[:, others], atol=1e-3)
        # Within the scale each token affects all, and with cross-attention so do the features of one token.
        noisy[:, scales.offsets[2]] += 1
        assert (velocities(hidden, noisy, times) - expected)[:, own].abs().amax(-1).gt(1e-6).all()


def test_dropout_acts_only_in_training_and_not_in_the_head():
    plain, network = tiny_flowar(), tiny_flowar(dropout=0.3)
    inputs, noisy, times = batch_of(network)
    assert torch.equal(network(LABELS, inputs, noisy, times), plain(LABELS, inputs, noisy, times))
    network.train()
    condition = network.condition(Condition(labels=LABELS))
    features = [network.hidden(condition, inputs, scales=range(3)) for _ in range(2)]
    assert not torch.allclose(*features, atol=1e-3)
    field = network.field(features[0][:, :1], 0)
    assert torch.equal(field(noisy[:, :1], 0.5), field(noisy[:, :1], 0.5))
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    only_scores = [network.hidden(condition, inputs, scales=range(3)) for _ in range(2)]
    assert not torch.allclose(*only_scores, atol=1e-3)


def test_the_attention_paths_with_and_without_dropout_are_equal():
    """One uses a dense mask, the other one call per scale; 85 tokens need more than one call."""
    sizes = {"patch_nums": (1, 2, 4, 8)}
    plain, network = tiny_flowar(**sizes).train(), tiny_flowar(dropout=1e-12, **sizes).train()
    batch = batch_of(network)
    assert_close(network(LABELS, *batch), plain(LABELS, *batch), atol=2e-5, rtol=1e-4)


@HEADS
@pytest.mark.parametrize("patch_nums", [(1, 2, 4, 8), (1, 3, 5), (1, 2, 3, 4), (3,)], ids=str)
def test_any_schedule_learns_a_fixed_batch(patch_nums, cross):
    torch.manual_seed(0)
    network = FlowAR(tiny_config(patch_nums=patch_nums, cross_attention=cross, dropout=0.1)).train()
    network.init_weights()
    pyramid, latent = LatentPyramid(network.scales), torch.randn(2, 4, *(patch_nums[-1],) * 2)
    maps, inputs = pyramid.maps(latent), pyramid.teacher_inputs(latent)
    noise, times = torch.randn_like(maps), torch.rand(2, len(patch_nums))
    own = times[:, network.scales.level_ids(), None]
    optimiser, losses = torch.optim.Adam(network.parameters(), lr=3e-3), []
    for _ in range(6):
        velocities = network(LABELS, inputs, (1 - own) * maps + own * noise, times)
        losses.append((velocities - (noise - maps)).square().mean())
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0]


@HEADS
def test_every_parameter_gets_a_finite_gradient(cross):
    torch.manual_seed(0)
    network = FlowAR(tiny_config(cross_attention=cross)).train()
    network.init_weights()
    network(LABELS, *batch_of(network)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_the_published_initialisation_sets_every_layer():
    """Also the last layer of the head, whose initial zeros the published code overwrites."""
    torch.manual_seed(0)
    network = FlowAR(tiny_config(embed_dim=64))
    network.init_weights()
    with torch.no_grad():
        assert network(LABELS, *batch_of(network)).abs().mean() > 0.1
    assert network.encoder_pos_embed_learned.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.class_emb.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert network.flownet.input_proj.bias.eq(0).all()


@HEADS
def test_bfloat16_is_close_to_float32_on_average(cross):
    network = tiny_flowar(patch_nums=(1, 2, 4), cross_attention=cross)
    inputs, noisy, times = batch_of(network)
    with torch.no_grad():
        expected = network(LABELS, inputs, noisy, times)
        found = network.bfloat16()(LABELS, inputs, noisy, times)
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.03 * expected.abs().mean()


def counted(call: Callable[[], object]) -> float:
    """Multiply-adds of all matrix products, with math attention and gradients, since the counter sees no others."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2


@HEADS
@pytest.mark.parametrize("depth", [1, 6])
def test_head_work_is_the_counted_number_of_multiply_adds(cross, depth):
    network = tiny_flowar(patch_nums=(1, 8), head_depth=depth, head_width=128, cross_attention=cross)
    field = network.field(torch.randn(1, 64, 32), 1)
    assert counted(lambda: field(torch.randn(1, 64, 4), 0.5)) == pytest.approx(network.head_work(64), rel=0.02)


def test_layer_work_is_the_counted_number_of_multiply_adds():
    network = tiny_flowar(patch_nums=(1, 2, 8), embed_dim=128, encoder_depth=4, decoder_depth=4).requires_grad_(False)
    (inputs, _, _), cache, condition = (
        batch_of(network),
        network.new_cache(2),
        network.condition(Condition(labels=LABELS)),
    )
    network.hidden(condition, inputs[:, :4], scales=range(2), cache=cache)
    work = counted(lambda: network.hidden(condition, inputs[:, 4:], scales=range(2, 3), cache=cache))
    assert work == pytest.approx(2 * 8 * network.layer_work(64, 69), rel=0.02)


def test_the_cache_has_capacity_for_both_stacks():
    network = tiny_flowar()
    assert network.new_cache(2).nbytes == 4 * 2 * network.config.depth * network.cache_values(14)
    assert network.bfloat16().new_cache(2).nbytes == 2 * 2 * 3 * 2 * 14 * 32


def test_a_wrong_cache_is_refused():
    network = tiny_flowar()
    condition = network.condition(Condition(labels=LABELS))
    with pytest.raises(ValueError, match=r"scales .* exactly the 5 tokens"):
        network.hidden(condition, torch.zeros(2, 9, 4), scales=range(2, 3), cache=network.new_cache(2))


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({"head_depth": 0}, "head_depth is 0"),
        ({"embed_dim": 36}, "embed_dim is 36; .* num_heads, 2"),
        ({"head_width": 100}, "head_width is 100; .* 64"),
        ({"input_side": 0}, "input_side is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"patch_nums": (2, 1)}, "patch_nums"),
    ],
)
def test_impossible_sizes_are_refused_by_name(setting, found):
    with pytest.raises(ValueError, match=found):
        tiny_config(**setting)
