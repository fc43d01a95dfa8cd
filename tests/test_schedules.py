"""A pipeline draws, edits and varies images of any schedule or size that its network allows."""

import json

import pytest
import torch
from conftest import small_var_network
from PIL import Image
from runs import code_of, rebound
from small_flexvar import small_flexvar, small_flexvar_pipe
from small_llamagen import tiny_vq

from var_toolkit.cli import main
from var_toolkit.core.bind import bind
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.plan import BACKBONE, DRAFT, Plan, plan_of
from var_toolkit.core.schedule import Schedule
from var_toolkit.loading import load
from var_toolkit.methods.speculative.next_scale import NextScale
from var_toolkit.methods.variant import variant
from var_toolkit.pipeline import Pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return small_flexvar_pipe()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    made = tmp_path_factory.mktemp("flexvar") / "model"
    small_flexvar_pipe().save_pretrained(made)
    return str(made)


@pytest.mark.parametrize(
    ("settings", "maps", "size"),
    [
        ({}, "1,2,3", (6, 6)),
        ({"schedule": "1,3"}, "1,3", (6, 6)),
        ({"schedule": Schedule((1, 2, 5))}, "1,2,5", (10, 10)),
        ({"schedule": [1, 2, [2, 4]]}, "1,2,2x4", (8, 4)),
        ({"schedule": "1,3,3,2"}, "1,3,3,2", (4, 4)),
        ({"size": (8, 4)}, "1,1x2,2x3,2x4", (8, 4)),
    ],
    ids=str,
)
def test_images_have_the_size_of_the_last_map(settings, maps, size, pipe):
    plan = pipe.plan(**settings)
    assert str(plan.schedule) == maps
    events = []
    output = pipe([1, 2], seeds=[0, 1], callback_on_scale_end=events.append, **settings)
    assert output.images[0].size == size
    assert [found.shape for found in output.tokens] == [(2, length) for length in plan.schedule.lengths]
    assert {event.preview().shape for event in events} == {(2, 3, size[1], size[0])}
    again = pipe([1, 2], seeds=[0, 1], plan=Plan.from_json(json.loads(json.dumps(plan.to_json()))))
    assert all(torch.equal(one, other) for one, other in zip(output.tokens, again.tokens, strict=True))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"schedule": "2,3"}, "2,3"),
        ({"schedule": "one"}, "'one'"),
        ({"schedule": 3}, "3"),
        ({"size": (7, 6)}, "7x6"),
        ({"size": 6}, "6"),
        ({"size": (0, 6)}, r"\(0, 6\)"),
        ({"size": (6, 6), "schedule": "1,3"}, "schedule or size"),
        ({"temperature": (1.0, 0.9, 0.8), "schedule": "1,3"}, "temperature has 3 values for 2 scales"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused_in_one_line(settings, named, pipe):
    with pytest.raises(ValueError, match=named) as error:
        pipe.plan(**settings)
    assert "\n" not in str(error.value)


def test_networks_of_one_schedule_name_it(small_tokenizer):
    var = Pipeline(small_tokenizer, small_var_network())
    with pytest.raises(ValueError, match="1,2,3,4"):
        var.plan(schedule="1,2,4")
    with pytest.raises(ValueError, match="4 x 4"):
        var.plan(size=(128, 64))
    assert var.plan(schedule="1,2,3,4") == var.plan(size=(64, 64)) == var.plan()


@pytest.mark.parametrize("schedule", ["1,3", "1,2,4"])
def test_a_mask_of_nothing_gives_the_image_back_and_of_everything_plain_sampling(schedule, pipe):
    side = Schedule.parse(schedule).finest * 2
    image = pipe(3, seeds=0, schedule=schedule).images[0]
    plain = pipe(1, seeds=4, schedule=schedule)
    whole = pipe.edit(image, (0, 0, side, side), 1, seeds=4, schedule=schedule)
    assert all(torch.equal(one, other) for one, other in zip(plain.tokens, whole.tokens, strict=True))
    varied = pipe.vary(image, len(Schedule.parse(schedule)), 1, seeds=4, schedule=schedule)
    given = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1) / 255
    expected = pipe.tokenizer.token_maps(given[None] * 2 - 1, Schedule.parse(schedule))
    assert all(torch.equal(one, other) for one, other in zip(varied.tokens, expected, strict=True))


def test_edits_draw_squares(pipe):
    with pytest.raises(ValueError, match="2x4"):
        pipe.edit(Image.new("RGB", (8, 8)), (0, 0, 2, 2), 1, schedule="1,2x4")


def test_subnets_pairs_and_speculation_draw_any_schedule():
    schedule, tokenizer, labels, noise = Schedule.parse("1,2,2x3,4"), tiny_vq(), torch.tensor([1, 4]), [0, 1]
    target, small = small_flexvar(depth=3), small_flexvar(depth=2)
    plain = bind(plan_of(target, schedule=schedule, guidance=1.0), {BACKBONE: target}, tokenizer)

    def tokens(run):
        return torch.cat(decode(run, labels, Noise(noise, CPU)).tokens, dim=1)

    thinner = rebound(plain, variant(plain.plan, subnet=2, full_scales=2))
    assert tokens(thinner).shape == (2, schedule.total)
    assert torch.equal(tokens(thinner)[:, :5], tokens(plain)[:, :5])
    other = bind(plan_of(small, schedule=schedule, guidance=1.0), {BACKBONE: small}, tokenizer)
    assert torch.equal(tokens(code_of(plain, other, draft_scales=2))[:, :5], tokens(plain)[:, :5])
    drafted = bind(plain.plan.changed(verify=NextScale(window=1)), {BACKBONE: target, DRAFT: small}, tokenizer)
    assert torch.equal(tokens(drafted), tokens(plain))
    drafted = bind(plain.plan.changed(verify=NextScale(window=3)), {BACKBONE: target, DRAFT: small}, tokenizer)
    assert tokens(drafted).shape == (2, schedule.total)


def test_the_cost_is_that_of_the_schedule(pipe):
    one, two = (pipe.bind(pipe.plan(schedule=maps)).cost() for maps in ("1,2,3", "1,3"))
    assert (one.forward_passes, two.forward_passes) == (3, 2)
    assert one.multiply_adds > two.multiply_adds
    assert one.cache_values == two.cache_values / 10 * 14


def test_a_saved_model_draws_the_same_and_any_schedule(folder, pipe):
    again = load(folder)
    for maps in ("1,2,3", "1,4"):
        ours, theirs = (one(2, seeds=5, schedule=maps).tokens for one in (pipe, again))
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_the_command_line_takes_a_schedule_or_a_size(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--model", folder, "--class", "3", "--schedule", "1,2x3,4x6", "--out", "a.png"]) == 0
    assert Image.open("a.png").size == (12, 8)
    assert (
        main(["sample", "--model", folder, "--class", "3", "--size", "12x8", "--out", "b.png", "--trace", "t.gif"]) == 0
    )
    assert Image.open("b.png").size == (12, 8)
    assert Image.open("t.gif").n_frames == 5
    assert main(["vary", "b.png", "--model", folder, "--from-scale", "1", "--size", "8x8", "--out", "c.png"]) == 0
    assert Image.open("c.png").size == (8, 8)
    capsys.readouterr()
    for options, named in ((["--schedule", "4,5"], "4,5"), (["--size", "12"], "12"), (["--size", "5x6"], "5x6")):
        try:
            code = main(["sample", "--model", folder, "--class", "3", *options])
        except SystemExit as stopped:
            code = stopped.code
        assert code == 2
        assert named in capsys.readouterr().err
