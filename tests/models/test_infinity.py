"""Infinity agrees with the published transformer and sampler, at any aspect ratio, and patchified."""

from functools import cache

import pytest
import torch
from golden.cases import FOLDER, load_case
from small_infinity import (
    PublishedNoise,
    embeds,
    golden_networks,
    plan_of_run,
    schedule_of,
    small_bsq,
    small_infinity,
    words_pipeline,
)
from torch.testing import assert_close

from var_toolkit.core.bind import bind, run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import BACKBONE
from var_toolkit.core.preserved import preserved_outside
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.fitting import fitted
from var_toolkit.formats.json_files import read_json
from var_toolkit.heads.bits import Bits, log_odds
from var_toolkit.models.infinity import InfinityConfig
from var_toolkit.models.layers.aspect_ratios import BY_RATIO, SIZES
from var_toolkit.pipeline import Pipeline

PUBLISHED = read_json(FOLDER / "infinity-published-settings" / "case.json")
CASES = {
    name: load_case(name) for name in ("infinity-generate", "infinity-generate-seeded", "infinity-generate-patchify")
}
RUNS = [pytest.param(name, run, id=f"{name}-{run}") for name, case in CASES.items() for run in case.facts["runs"]]


@cache
def networks(name):
    found = golden_networks(CASES[name])
    return fitted(found["tokenizer"], found["backbone"], ("tokenizer", "backbone")), found["backbone"]


def test_logits_are_the_published_ones():
    case = load_case("infinity-logits")
    network, prompt = golden_networks(case)["backbone"], embeds(case.tensors["text"], case.facts["config"]["text_lens"])
    with torch.no_grad():
        found = network(prompt.features, prompt.mask, case.tensors["inputs"], schedule=schedule_of(case))
    assert_close(found, case.tensors["logits"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_bits_and_images_are_those_of_the_published_sampler(name, run, monkeypatch):
    case, (tokenizer, backbone) = CASES[name], networks(name)
    told, tensors, schedule, found = case.facts["runs"][run], case.tensors, schedule_of(case), []
    lengths = {text: case.facts["config"].get(f"{text}_lens") for text in ("text", "negative_text")}
    prompt = embeds(tensors["text"], lengths["text"])
    null = embeds(tensors["negative_text"], lengths["negative_text"]) if told.get("negative") else None
    choices = Bits.choices
    monkeypatch.setattr(Bits, "choices", lambda *given: found.append(choices(*given)) or found[-1])
    noise = PublishedNoise(tensors[f"{run}.noise"]) if f"{run}.noise" in tensors else Noise([0] * len(prompt))
    plan = bind(plan_of_run(schedule, told, len(backbone.blocks)), {BACKBONE: backbone}, tokenizer)
    drawn = decode(plan, backbone.request(prompt, null), noise)
    assert torch.equal(torch.cat(drawn.tokens, dim=1), tensors[f"{run}.bits"])
    tolerance = case.facts["tolerance"]["logits_atol"][run]
    assert_close(torch.cat(found, dim=1), tensors[f"{run}.logits"], atol=tolerance, rtol=0)
    assert_close(drawn.latent, tensors[f"{run}.codes_sum"], atol=1e-5, rtol=0)
    if f"{run}.image" in tensors:  # blue first
        image = ((tokenizer.decode(drawn.latent) + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(-1)
        assert (image.int() - tensors[f"{run}.image"].int()).abs().max() <= 1


@pytest.mark.parametrize("ratio", BY_RATIO)
def test_schedules_of_all_sizes_and_aspect_ratios_are_the_published_ones(ratio):
    told = PUBLISHED["schedules"][str(ratio)]
    assert [list(size) for size in BY_RATIO[ratio].maps] == told["hw"]
    network = small_infinity(aspect_ratios=True, levels=15)
    for name, (height, width) in told["pixels_hw"].items():
        schedule = network.schedule_for(height // 16, width // 16)
        assert (schedule.maps, schedule.total) == (BY_RATIO[ratio].maps[: SIZES[name]], told["tokens"][name])
        network.require_schedule(schedule)


@pytest.mark.parametrize("ratio", ["1.0", "1.5", "0.666"])
def test_positions_are_those_of_the_largest_image_of_the_aspect_ratio(ratio):
    network = small_infinity(aspect_ratios=True, levels=15)
    whole = BY_RATIO[float(ratio)]
    for k, told in enumerate(PUBLISHED["rotary_positions"][ratio]):
        schedule = Schedule(whole.patch_nums[:9])
        found = network._rotation(range(k, k + 1), schedule, torch.device("cpu"))
        rows, columns = torch.meshgrid(torch.tensor(told["rows"]), torch.tensor(told["columns"]), indexing="ij")
        # The first frequency of each half is 1.
        assert_close(found.cos[:, 0], rows.flatten().float().cos())
        assert_close(found.cos[:, found.cos.shape[1] // 2], columns.flatten().float().cos())


def test_other_sizes_begin_like_the_nearest_aspect_ratio_and_end_with_their_own_map():
    network = small_infinity(aspect_ratios=True, levels=15)
    schedule = network.schedule_for(48, 64)
    assert schedule.maps == (*BY_RATIO[0.75].maps[:12], (48, 64))
    network.require_schedule(schedule)
    with pytest.raises(ValueError, match=r"128 x 128 .* 64 x 64"):
        network.schedule_for(128, 128)
    with pytest.raises(ValueError, match="schedule is 1,3,9"):
        network.require_schedule(Schedule((1, 3, 9)))


def test_a_network_without_aspect_ratios_draws_its_own_schedule_alone():
    network = small_infinity()
    assert network.schedule_for(3, 3) == network.scales
    with pytest.raises(ValueError, match="2 x 2"):
        network.schedule_for(2, 2)


def test_scale_by_scale_with_a_cache_is_the_packed_pass():
    network, prompt = small_infinity(), embeds(torch.randn(8, 16), [5, 3])
    inputs = torch.randn(2, 13, 4)
    with torch.no_grad():
        packed = network(prompt.features, prompt.mask, inputs)
        condition = network.condition(network.request(prompt).condition)
        cache, parts = network.new_cache(2), []
        for k, part in enumerate((None, inputs[:, :4], inputs[:, 4:])):
            hidden = network.hidden(condition, part, scales=range(k, k + 1), cache=cache)
            parts.append(network.logits(condition, hidden))
    assert_close(torch.cat(parts, dim=1), packed, atol=1e-5, rtol=0)


def test_padding_of_texts_changes_nothing():
    network, packed, inputs = small_infinity(), torch.randn(8, 16), torch.randn(2, 13, 4)
    prompt = embeds(packed, [5, 3])
    with torch.no_grad():
        both = network(prompt.features, prompt.mask, inputs)
        alone = network(packed[None, 5:], torch.ones(1, 3, dtype=torch.bool), inputs[1:])
    assert_close(both[1:], alone, atol=1e-5, rtol=0)


def test_the_null_twin_is_as_long_as_the_prompt_unless_another_is_given():
    network, prompt = small_infinity(), embeds(torch.randn(8, 16), [5, 3])
    null = network.request(prompt).null
    assert torch.equal(null.cross_mask, prompt.mask)
    learned = embeds(torch.cat((network.cfg_uncond[:5], network.cfg_uncond[:3])), [5, 3])
    own = network.request(learned).condition
    assert_close(null.pooled, own.pooled)
    negative = network.request(prompt, embeds(torch.randn(8, 16), [2, 6])).null
    assert negative.cross_mask.sum(dim=1).tolist() == [2, 6]


def test_dropped_images_are_those_of_the_null_twin():
    network, prompt, inputs = small_infinity(), embeds(torch.randn(8, 16), [5, 3]), torch.randn(2, 13, 4)
    with torch.no_grad():
        found = network(prompt.features, prompt.mask, inputs, torch.tensor([True, False]))
        kept = network(prompt.features, prompt.mask, inputs)
        null = network(network.cfg_uncond[None, :5], torch.ones(1, 5, dtype=torch.bool), inputs[:1])
    assert_close(found[1], kept[1])
    assert_close(found[:1], null, atol=1e-5, rtol=0)
    assert not torch.allclose(found[0], kept[0])


@pytest.mark.parametrize("name", [name for name, told in PUBLISHED["transformers"].items() if isinstance(told, dict)])
def test_the_published_sizes_follow_from_a_few_numbers(name):
    told = PUBLISHED["transformers"][name]
    config = InfinityConfig(
        depth=told["depth"], embed_dim=told["embed_dim"], num_heads=told["num_heads"], token_bits=told["bits_a_token"]
    )
    assert (config.hidden, config.pool_heads) == (told["ffn_width"], told["text_pool_heads"])


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"num_heads": 24}, "embed_dim is 2048"),
        ({"text_channels": 384}, "text_channels over 128, 3"),
        ({"patch_nums": (2, 4)}, "patch_nums is"),
        ({"levels": 4}, "at most 4"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
    ],
)
def test_impossible_sizes_are_refused_by_name(setting, found):
    with pytest.raises(ValueError, match=found):
        InfinityConfig(**setting)


@pytest.mark.parametrize("bits", [4, 16], ids=["cells", "patches"])
def test_greedy_bits_are_those_that_the_packed_pass_predicts(bits):
    network, prompt = small_infinity(token_bits=bits), embeds(torch.randn(8, 16), [5, 3])
    tokenizer = fitted(small_bsq(), network, ("tokenizer", "backbone"))
    run = run_of(tokenizer, network, head=Bits(top_k=1))
    drawn = decode(run, network.request(prompt), Noise([0, 1]))
    assert drawn.tokens[-1].shape == (2, 9, bits)
    assert tokenizer.decode(drawn.latent).shape == (2, 3, 6 * bits**0.5 / 2, 6 * bits**0.5 / 2)
    with torch.no_grad():
        logits = network(prompt.features, prompt.mask, tokenizer.teacher_inputs(drawn.tokens))
    assert torch.equal(torch.cat(drawn.tokens, dim=1), (log_odds(logits) > 0).byte())


@pytest.mark.parametrize("bits", [4, 16], ids=["cells", "patches"])
def test_tokens_outside_a_mask_are_preserved(bits):
    network, prompt = small_infinity(token_bits=bits), embeds(torch.randn(4, 16), [4])
    tokenizer = fitted(small_bsq(), network, ("tokenizer", "backbone"))
    side = tokenizer.image_side
    tokens = tokenizer.token_maps(torch.rand(1, 3, side, side) * 2 - 1)
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[1:, 1:] = True
    preserved = preserved_outside(mask, tokens, tokenizer, tokenizer.scales)
    drawn = decode(run_of(tokenizer, network), network.request(prompt), Noise([0]), preserved=preserved)
    assert torch.equal(drawn.tokens[-1][:, ~mask.flatten()], tokens[-1][:, ~mask.flatten()])
    assert not torch.equal(drawn.tokens[-1], tokens[-1])
    cells = mask.repeat_interleave(tokenizer.quantize.patch, 0).repeat_interleave(tokenizer.quantize.patch, 1)
    assert_close(drawn.latent[..., ~cells], preserved.latents[-1][..., ~cells])


def test_guidance_within_the_layers_is_a_setting():
    pipe = words_pipeline()
    settings = {"prompt": "red cube", "seeds": 1, "cfg": 3.0, "output_type": "latent"}
    steps = pipe.plan(cfg=3.0, guidance_layer=-2).steps
    assert [step.mixed_after for step in steps] == [0] * len(steps)
    at_logits, early = (pipe(**settings, **more).images for more in ({}, {"guidance_layer": 0}))
    assert not torch.equal(at_logits, early)
    with pytest.raises(ValueError, match=r"guidance_layer is 2; .* 2 layers.* -2 to 1"):
        pipe.plan(guidance_layer=2)


def test_guidance_after_a_layer_that_scales_skip_is_refused():
    pipe = words_pipeline(depth=4)
    subnet = {"subnet": 2, "full_scales": 1, "cfg": 3.0}  # layers 0 and 3
    assert pipe.plan(guidance_layer=-1, **subnet)
    with pytest.raises(ValueError, match=r"guidance_layer is 1.*0, 3"):
        pipe.plan(guidance_layer=1, **subnet)


def test_other_networks_refuse_guidance_within_the_layers(small_var, small_tokenizer):
    with pytest.raises(ValueError, match=r"guidance_layer.*VAR"):
        Pipeline(small_tokenizer, small_var).plan(guidance_layer=-1)
