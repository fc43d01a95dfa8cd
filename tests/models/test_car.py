"""CAR agrees with the published branch and sampler; without a control image it is VAR."""

import json

import numpy as np
import pytest
import torch
from golden.cases import fill, load_case
from PIL import Image
from small_infinity import published_tensors
from torch.testing import assert_close

from var_toolkit.cli import main
from var_toolkit.conditions.condition import Condition, Request, of_labels
from var_toolkit.conditions.images import WithImage
from var_toolkit.core.bind import run_of
from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.core.schedule import Schedule
from var_toolkit.formats.published import networks_from_tensors
from var_toolkit.heads.categorical import Categorical
from var_toolkit.loading import load, skeleton
from var_toolkit.models.car import CAR, STRIDE, CARConfig
from var_toolkit.pipeline import Pipeline
from var_toolkit.tokenizers.multiscale_vq import MultiScaleVQ, MultiScaleVQConfig

CASE = load_case("car")
SCHEDULE = Schedule(tuple(CASE.facts["config"]["patch_nums"]))
CONTROLS = [image.expand(-1, 3, -1, -1) for image in CASE.maps("control")]


def files():
    """The tensors of the published files, by part."""
    whole = published_tensors(CASE, "car") | {"lvl_1L": SCHEDULE.level_ids()[None]}
    backbone, adapter = ({n: t for n, t in whole.items() if ("car" in n) == ours} for ours in (False, True))
    return {"tokenizer": published_tensors(CASE, "vae"), "backbone": backbone, "adapter": adapter}


@pytest.fixture(scope="module")
def networks():
    found = files()
    return networks_from_tensors("car", found, {}, dict.fromkeys(found, "case"))


def test_features_of_control_images_are_the_published_ones(networks):
    with torch.no_grad():
        found = SCHEDULE.split(networks["backbone"].control(CONTROLS))
    for name, features in CASE.tensors.items():
        if name.startswith("features_"):
            scale = int(name.rpartition("_")[2])
            assert_close(found[scale], features, atol=CASE.facts["tolerance"]["features_*"], rtol=0)


def test_teacher_forced_logits_are_the_published_ones(networks):
    network, tokens = networks["backbone"], SCHEDULE.split(CASE.tensors["tf_ids"])
    inputs = networks["tokenizer"].teacher_inputs(tokens)
    with torch.no_grad():
        found = network(CASE.tensors["labels"], inputs, network.control(CONTROLS))
    assert_close(found, CASE.tensors["tf_logits"], atol=CASE.facts["tolerance"]["tf_logits"], rtol=0)


@pytest.mark.parametrize("run", CASE.facts["runs"])
def test_tokens_are_those_of_the_published_sampler(run, networks, monkeypatch):
    told, network, found = CASE.facts["runs"][run], networks["backbone"], []
    logits = CAR.logits
    monkeypatch.setattr(CAR, "logits", lambda *given: found.append(logits(*given)) or found[-1])
    asked = of_labels(CASE.tensors["labels"], network.config.num_classes)
    if told["control"]:
        with torch.no_grad():
            control = Condition(additions={0: network.control(CONTROLS)})
        asked = WithImage(asked, Request(control, control))
    plan = run_of(networks["tokenizer"], network, guidance=told["cfg"], head=Categorical(top_k=told["top_k"]))
    drawn = decode(plan, asked, Noise([0] * len(asked)))
    assert torch.equal(torch.cat(drawn.tokens, dim=1), CASE.tensors[f"{run}_idx"])
    tolerance, ramp = (
        CASE.facts["tolerance"]["*_logits"],
        [told["cfg"] * SCHEDULE.progress(k) for k in range(len(found))],
    )
    halves = [(weight, *both.chunk(2)) for weight, both in zip(ramp, found, strict=True)]
    guided = [(1 + weight) * own - weight * null for weight, own, null in halves]
    assert_close(torch.cat(guided, dim=1), CASE.tensors[f"{run}_logits"], atol=tolerance, rtol=0)


def test_both_files_become_one_model_that_draws_by_a_control_image(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for part, tensors in files().items():
        torch.save(tensors, f"{part}.pth")
    words = ["convert", "--family", "car", "--tokenizer", "tokenizer.pth", "--out", "model"]
    assert main([*words, "--backbone", "backbone.pth"]) == 2
    assert "adapter" in capsys.readouterr().err
    assert main([*words, "--adapter", "adapter.pth"]) == 2
    assert "--backbone" in capsys.readouterr().err
    assert main([*words, "--backbone", "backbone.pth", "--adapter", "adapter.pth"]) == 0
    Image.linear_gradient("L").resize((90, 60)).save("edges.png")
    capsys.readouterr()
    sample = ["sample", "--class", "3", "--model", "model", "--top-k", "1", "--json"]
    told = []
    for more in ([], ["--control", "edges.png"]):
        assert main([*sample, *more, "--save-tokens", "tokens.safetensors"]) == 0
        told.append((json.loads(capsys.readouterr().out), load("model", device="cpu")))
    assert told[1][0]["control"] == "edges.png"
    pipe, edges = told[0][1], "edges.png"
    drawn = [pipe(3, seeds=0, top_k=1, control_image=one, output_type="latent").tokens for one in (None, edges)]
    assert not torch.equal(drawn[0][-1], drawn[1][-1])


def small(**branch):
    """A pipeline of 6 px with a branch."""
    sizes = {"num_classes": 5, "latent_channels": 8, "patch_nums": (1, 2, 3), "vocab_size": 16}
    sizes |= {"depth": 2, "embed_dim": 16, "num_heads": 2, "control_channels": (4, 4, 8, 8, 8), **branch}
    network = CAR(CARConfig(**sizes))
    vq = {"z_channels": 8, "ch": 32, "ch_mult": (1, 1), "patch_nums": (1, 2, 3), "vocab_size": 16}
    return Pipeline(fill(MultiScaleVQ(MultiScaleVQConfig(**vq))), fill(network))


def test_the_control_image_is_read_once_for_all_batches(monkeypatch):
    pipe, seen, control = small(), [], CAR.control
    monkeypatch.setattr(
        CAR, "control", lambda *given: seen.append([image.shape[-1] for image in given[1]]) or control(*given)
    )
    pipe([1, 2, 3], seeds=range(3), batch_size=1, control_image=np.zeros((9, 6, 3), np.uint8))
    assert seen == [[STRIDE, 2 * STRIDE, 3 * STRIDE]]


@pytest.mark.parametrize("branch", [{}, {"light_width": 4, "light_layers": 1}], ids=["whole", "light"])
def test_an_image_does_not_depend_on_the_batch(branch):
    pipe, image = small(**branch), Image.linear_gradient("L").resize((6, 6))
    settings = {"control_image": image, "output_type": "latent", "top_k": 1, "cfg": 2.0}
    several, alone = pipe([1, 2], seeds=[0, 1], **settings), pipe(2, seeds=1, **settings)
    assert torch.equal(several.tokens[-1][1:], alone.tokens[-1])


def wide(width, height):
    """A noisy image."""
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


CHANGES = {
    "mask": (lambda pipe, **given: pipe.edit(wide(24, 12), (18, 2, 4, 4), 1, **given), (24, 12), (10, 0, 22, 12)),
    "middle": (lambda pipe, **given: pipe.edit(wide(24, 12), (10, 2, 4, 4), 1, **given), (24, 12), (6, 0, 18, 12)),
    "pasted": (
        lambda pipe, **given: pipe.edit(wide(24, 12), (0, 0, 4, 4), 1, keep_pixels=True, **given),
        (24, 12),
        (0, 0, 12, 12),
    ),
    "expanded": (
        lambda pipe, **given: pipe.edit(wide(24, 12), None, 1, expand=(0, 4, 0, 8), **given),
        (24, 24),
        (0, 0, 24, 24),
    ),
    "varied": (lambda pipe, **given: pipe.vary(wide(24, 12), 1, 1, **given), (24, 12), (6, 0, 18, 12)),
}


@pytest.mark.parametrize("larger", [1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_an_image_are_steered_by_the_same_part_of_the_control_image(change, larger, monkeypatch):
    draw, (width, height), box = CHANGES[change]
    pipe, seen, request = small(), [], CAR.image_request
    monkeypatch.setattr(CAR, "image_request", lambda *given: seen.append(given[1]) or request(*given))
    control = wide(larger * width, larger * height)
    draw(pipe, control_image=control)
    part = control.resize((6, 6), Image.Resampling.BICUBIC, box=tuple(larger * edge for edge in box))
    assert_close(seen[0][0], torch.from_numpy(np.array(part)).permute(2, 0, 1) / 127.5 - 1, atol=1e-6, rtol=0)


@pytest.mark.parametrize("change", CHANGES)
def test_a_control_image_of_another_aspect_ratio_than_the_image_is_refused(change):
    with pytest.raises(ValueError, match="the control image is 30 x 12 pixels") as caught:
        CHANGES[change][0](small(), control_image=wide(30, 12))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"control_image": 3}, "the image is a int"),
    ],
    ids=["image"],
)
def test_what_it_does_not_read_is_refused_by_name(given, named):
    with pytest.raises(ValueError, match=named):
        small()(1, seeds=0, **given)


def test_all_weights_learn():
    network = small().backbone.train()
    control = network.control([torch.randn(2, 3, STRIDE * p, STRIDE * p) for p in (1, 2, 3)])
    network(torch.tensor([1, 5]), torch.randn(2, 13, 8), control).sum().backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"depth": 3}, "depth is 3"),
        ({"control_channels": (4, 4)}, "control_channels"),
        ({"light_width": 4}, "light_layers"),
        ({"light_width": 0, "light_layers": 1}, "light_width is 0"),
        ({"light_width": 4, "light_layers": 3}, "light_layers is 3"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused_by_name(setting, named):
    with pytest.raises(ValueError, match=named):
        CARConfig(**{"depth": 2, **setting})


def test_a_light_branch_is_saved_and_steers(tmp_path):
    pipe = small(depth=3, light_width=4, light_layers=2)
    pipe.save_pretrained(tmp_path / "light")
    again, image = load(tmp_path / "light", device="cpu"), wide(6, 6)
    settings = {"seeds": 0, "top_k": 1, "output_type": "latent"}
    steered, found = (one(1, control_image=image, **settings).latents for one in (pipe, again))
    assert torch.equal(steered, found)
    assert not torch.equal(steered, pipe(1, **settings).latents)


def test_the_named_models_have_vars_weights_and_a_branch():
    pipe, base = skeleton("car-canny-d16"), skeleton("var-d16")
    names = base.backbone.state_dict().keys()
    assert all("car" in name for name in pipe.backbone.state_dict().keys() - names)
    assert names <= pipe.backbone.state_dict().keys()
    assert {len(one.capacities) for one in pipe.bind(pipe.plan()).steps} == {24}
