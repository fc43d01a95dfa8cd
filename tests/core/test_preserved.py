"""A given image's tokens stay where they shall, and drawing is as ever where they need not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden.cases import fill
from PIL import Image
from torch.testing import assert_close

from var_toolkit.core.preserved import preserved_before, preserved_outside
from var_toolkit.images import as_output
from var_toolkit.loading import code, load, load_tokenizer
from var_toolkit.models.llamagen import RasterGPT, RasterGPTConfig
from var_toolkit.pipeline import Pipeline
from var_toolkit.still_life.data_set import render

MODELS = (
    "stilllife-var",
    "stilllife-variant",
    "stilllife-code-4",
    "stilllife-hmar",
    "stilllife-flowar",
    "raster-gpt",
)
BOX = (16, 24, 32, 24)  # whole cells of every model's finest map


@pytest.fixture(scope="module", params=MODELS)
def pipe(request) -> Pipeline:
    if request.param != "raster-gpt":
        pipe = load(request.param, device="cpu")
        pipe.sampling = replace(pipe.sampling, steps=min(pipe.sampling.steps, 4))  # of a flow
        return pipe
    tokenizer = load_tokenizer("stilllife-gpt", device="cpu")  # a small network, because it is called 256 times a map
    sizes = {"depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_hidden": 24, "side": 16, "num_classes": 1000}
    network = RasterGPT(RasterGPTConfig(**sizes, vocab_size=tokenizer.config.vocab_size))
    return Pipeline(tokenizer, fill(network).eval())


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return as_output(render([207], [3]) / 127.5 - 1, "pil")[0]


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.tokens, other.tokens, strict=True))


def own_tokens(pipe, image) -> list[torch.Tensor]:
    return pipe.vary(image, len(pipe.backbone.scales), 503, seeds=0, output_type="latent").tokens


def inside(side: int) -> torch.Tensor:
    """The box as cells of a map, bool (side * side)."""
    x, y, w, h = (number * side // 64 for number in BOX)
    drawn = torch.zeros(side, side, dtype=torch.bool)
    drawn[y : y + h, x : x + w] = True
    return drawn.flatten()


def test_a_mask_of_everything_is_plain_sampling(pipe, image):
    whole, plain = pipe.edit(image, (0, 0, 64, 64), 503, seeds=4), pipe(503, seeds=4)
    assert equal(whole, plain)
    assert whole.images[0].tobytes() == plain.images[0].tobytes()


def test_an_empty_mask_is_the_reconstruction(pipe, image):
    kept = pipe.edit(image, Image.new("L", image.size), 503, seeds=4)
    assert kept.images[0].tobytes() == pipe.reconstruct(image).tobytes()


def test_variation_from_the_first_scale_is_plain_sampling_and_from_behind_the_last_the_reconstruction(pipe, image):
    assert equal(pipe.vary(image, 0, 503, seeds=4), pipe(503, seeds=4))
    last = pipe.vary(image, len(pipe.backbone.scales), 503, seeds=4)
    assert last.images[0].tobytes() == pipe.reconstruct(image).tobytes()


def test_tokens_outside_the_mask_are_the_images_own_and_those_inside_follow_the_seed(pipe, image):
    own, one, other = own_tokens(pipe, image), *(pipe.edit(image, BOX, 503, seeds=s) for s in (4, 5))
    drawn = inside(pipe.backbone.scales.finest)
    for found in (one, other):
        assert torch.equal(found.tokens[-1][0, ~drawn], own[-1][0, ~drawn])
    assert not torch.equal(one.tokens[-1], other.tokens[-1])


def test_variation_keeps_the_coarse_maps_and_draws_the_fine_ones(image):
    pipe = load("stilllife-var", device="cpu")
    own, varied = own_tokens(pipe, image), pipe.vary(image, 3, 207, seeds=1).tokens
    assert all(torch.equal(a, b) for a, b in zip(own[:3], varied[:3], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(own[3:], varied[3:], strict=True))


def test_an_edit_does_not_depend_on_its_batch(pipe, image):
    together = pipe.edit(image, BOX, [503, 207, 640], seeds=[4, 5, 6])
    alone = pipe.edit(image, BOX, 640, seeds=6)
    for many, one in zip(together.tokens, alone.tokens, strict=True):
        assert_close(many[2:], one, atol=1e-3, rtol=0)  # ids are equal, continuous tokens up to rounding


def test_kept_parts_keep_their_latent_however_much_is_drawn_around_them(image):
    """By the published rule alone, coarse tokens drawn around a kept part change its colours."""
    pipe = load("stilllife-var", device="cpu")
    grown = pipe.edit(image, None, 640, expand=32, seeds=1)
    canvas = np.pad(np.asarray(image), ((32, 32), (32, 32), (0, 0)), mode="edge")
    own = pipe.edit(Image.fromarray(canvas), Image.new("L", (128, 128)), 640, seeds=1)
    middle = slice(2, 6)
    assert torch.equal(grown.latents[..., middle, middle], own.latents[..., middle, middle])
    assert not torch.equal(grown.latents, own.latents)


def test_masked_passes_leave_kept_tokens_alone(image):
    pipe = load("stilllife-hmar", device="cpu")
    own = own_tokens(pipe, image)
    refined, plain = (
        pipe.edit(image, BOX, 503, seeds=4, refine=lists).tokens for lists in ("1;1,3;1,1,2,5;4,12;9,27;16,48", "off")
    )
    assert torch.equal(refined[-1][0, ~inside(8)], own[-1][0, ~inside(8)])
    assert not torch.equal(refined[-1], plain[-1])


def test_plans_that_mix_methods_edit_as_well(image):
    large, small = load("stilllife-var", device="cpu"), load("stilllife-var-small", device="cpu")
    both, own = code(large, small, 4), own_tokens(large, image)
    settings = {"subnet": 8, "full_scales": 3}
    edited = both.edit(image, BOX, 503, seeds=4, **settings)
    assert torch.equal(edited.tokens[-1][0, 0], own[-1][0, 0])
    assert equal(both.edit(image, (0, 0, 64, 64), 503, seeds=4, **settings), both(503, seeds=4, **settings))


def test_smooth_codes_are_drawn_inside_the_mask_alone(image):
    pipe = load("stilllife-var", device="cpu")
    smooth, hard = (pipe.edit(image, BOX, 503, seeds=4, smooth=value, output_type="latent") for value in (True, False))
    assert torch.equal(smooth.latents[..., 0, 0], hard.latents[..., 0, 0])
    assert not torch.equal(smooth.latents, hard.latents)


def test_a_map_of_one_token_stays_unless_nothing_does(small_tokenizer):
    tokens = [torch.zeros(1, n, dtype=torch.int64) for n in small_tokenizer.scales.lengths]
    mask = torch.ones(4, 4, dtype=torch.bool)
    assert not any(
        bool(stays.any()) for stays in preserved_outside(mask, tokens, small_tokenizer, small_tokenizer.scales).mask
    )
    mask[0, 0] = False
    stays = preserved_outside(mask, tokens, small_tokenizer, small_tokenizer.scales).mask
    assert bool(stays[0].all())
    assert [int(one.sum()) for one in stays[1:]] == [0, 1, 1]  # a quarter of a cell is not enough, more than half is


def test_variation_marks_whole_maps(small_tokenizer):
    tokens = [torch.zeros(1, n, dtype=torch.int64) for n in small_tokenizer.scales.lengths]
    stays = preserved_before(2, tokens, small_tokenizer, small_tokenizer.scales).mask
    assert [bool(one.all()) for one in stays] == [True, True, False, False]
    assert [bool(one.any()) for one in stays] == [True, True, False, False]


def test_speculation_edits_as_well(image):
    """All drafts of a preserved token but itself are rejected; an empty mask preserves everything."""
    pipe = load("stilllife-var", draft_model="stilllife-var-small", device="cpu")
    own = own_tokens(pipe, image)
    edited = pipe.edit(image, BOX, 503, seeds=4, speculate="draft")
    assert torch.equal(edited.tokens[-1][0, 0], own[-1][0, 0])
    assert not torch.equal(edited.tokens[-1], own[-1])
    assert torch.equal(pipe.vary(image, 6, 503, seeds=4, speculate="draft").tokens[-1], own[-1])
    assert pipe.vary(image, 3, 503, seeds=4, speculate="draft").tokens[2].equal(own[2])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["stilllife-var", "stilllife-flowar"])
def test_half_precision_edits_as_well(image, name, dtype):
    pipe = load(name, device="cpu", dtype=dtype)
    edited = pipe.edit(image, BOX, 503, seeds=4)
    assert torch.equal(edited.tokens[-1][0, ~inside(8)], own_tokens(pipe, image)[-1][0, ~inside(8)])
    assert equal(pipe.edit(image, (0, 0, 64, 64), 503, seeds=4), pipe(503, seeds=4))


def test_a_plan_of_another_schedule_is_refused_before_anything_is_drawn(image):
    pipe, other = load("stilllife-var", device="cpu"), load("stilllife-gpt", device="cpu")
    for draw in (lambda: pipe.edit(image, BOX, 503, plan=other.plan()), lambda: pipe(503, plan=other.plan())):
        with pytest.raises(ValueError, match="the tokenizer has the schedule 1,2,3,4,6,8; it cannot code 16"):
            draw()


@pytest.mark.parametrize("from_scale", [-1, 7, True, 2.5, "3"])
def test_a_scale_that_is_not_there_is_refused(image, from_scale):
    with pytest.raises(ValueError, match=r"from_scale is .*; it must be from 0 .* to 6"):
        load("stilllife-var", device="cpu").vary(image, from_scale)
