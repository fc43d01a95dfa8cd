"""FlowAR's objective: the published loss, times, cached latents, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from golden.cases import load_case
from small_flowar import golden_flowar
from torch import nn

from var_toolkit.training import code_cache
from var_toolkit.training.batches import MomentArray
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train

CPU = torch.device("cpu")


def draws(step, rank=0, world_size=1):
    return Draws(0, step, rank, world_size, 8, CPU)


def test_the_loss_weighs_scales_by_their_tokens(build):
    objective, _ = build("flowar")
    errors = torch.cat([torch.full((2, n), float(k + 1)) for k, n in enumerate(objective.scales.lengths)], dim=1)
    total, terms = objective._weighted(errors)
    assert total == pytest.approx(1 / 64 + 2 * 4 / 64 + 3)
    assert [float(terms[f"error_scale_{k}"]) for k in range(3)] == [1, 2, 3]


def test_the_velocity_is_learnt_from_data_to_noise_at_the_time_of_each_scale(build):
    objective, batch = build("flowar")
    seen = []

    class Spy(nn.Module):
        def forward(self, labels, inputs, noisy, times):
            seen.append((labels, noisy, times))
            return torch.zeros_like(noisy)

    objective.networks["flowar"] = Spy()
    latent = objective.tokenizer.latents(batch.moments)
    noise, times = torch.randn(8, 69, 4), torch.rand(8, 3)
    errors = objective._errors(objective.networks["flowar"], batch.labels, latent, noise, times)
    data = objective.pyramid.maps(latent)
    torch.testing.assert_close(errors, (noise - data).square().mean(-1))
    for k, part in enumerate(objective.scales.split(seen[0][1])):
        span = slice(*objective.scales.offsets[k : k + 2])
        expected = torch.lerp(data[:, span], noise[:, span], times[:, k, None, None])
        torch.testing.assert_close(part, expected)


def test_every_scale_of_every_image_has_its_own_time_whatever_the_number_of_processes(build):
    objective, batch = build("flowar", class_dropout=0.5)
    seen = []

    class Spy(nn.Module):
        def forward(self, labels, inputs, noisy, times):
            seen.append((labels, times))
            return torch.zeros_like(noisy)

    objective.networks["flowar"] = Spy()
    objective._loss(batch, draws(0))
    halves = [
        batch._replace(labels=batch.labels[rows], moments=batch.moments[rows]) for rows in (slice(4), slice(4, 8))
    ]
    for rank, half in enumerate(halves):
        objective._loss(half, draws(0, rank, 2))
    labels, times = seen[0]
    assert times.shape == (8, 3)
    assert times.unique().numel() == 24
    assert (labels == 1000).any()
    assert (labels == batch.labels).any()
    for i in range(2):
        assert torch.equal(torch.cat([seen[1][i], seen[2][i]]), seen[0][i])


def test_latents_are_drawn_from_their_posteriors(build):
    objective, batch = build("flowar", class_dropout=0.0)
    wide = batch.moments.clone()
    wide[:, 4:] = 2.0  # log variance
    losses = []
    for moments in (batch.moments.index_fill(1, torch.arange(4, 8), -30.0), wide):
        torch.manual_seed(0)
        losses.append(objective._loss(batch._replace(moments=moments), draws(0)).total)
    assert losses[1] > 1.5 * losses[0]


def test_the_published_loss_comes_out(build):
    case = load_case("flowar-train").tensors
    objective, _ = build("flowar")
    network = golden_flowar(cross=False)
    objective.scales, objective.pyramid.scales, objective.pyramid.side = network.scales, network.scales, 4
    noise = torch.cat([case[f"noise_{k}"] for k in range(3)], dim=1)
    times = torch.stack([case[f"t_{k}"] for k in range(3)], dim=1)
    errors = objective._errors(network, case["label"], case["latents"], noise, times)
    torch.testing.assert_close(objective._weighted(errors)[0], case["loss"][0], atol=1e-4, rtol=0)


def test_validation_is_the_same_every_time(build):
    objective, _ = build("flowar")
    network = objective.networks["flowar"].eval()
    with torch.no_grad():
        first = objective.validate(network)
        torch.rand(3)
        assert objective.validate(network) == first
    assert set(first) == {"loss", *(f"error_scale_{k}" for k in range(3))}


def test_an_image_or_its_mirror_image_is_shown_in_each_epoch():
    moments = np.arange(12, dtype=np.float16).reshape(12, 1, 1, 1)
    array = MomentArray(moments, np.arange(6), CPU, seed=1)
    seen = [next(iter(array.batches([torch.arange(6)], epoch))) for epoch in range(8)]
    shown = torch.stack([batch.moments.flatten() for batch in seen])
    assert torch.equal(shown % 6, torch.arange(6.0).expand(8, 6))
    assert (shown >= 6).any(dim=0).all()
    assert (shown < 6).any(dim=0).all()
    assert torch.equal(next(iter(array.batches([torch.arange(6)], 3))).moments.flatten(), shown[3])
    plain = MomentArray(moments[:6], np.arange(6), CPU)
    assert torch.equal(next(iter(plain.batches([torch.arange(6)], 5))).moments.flatten(), torch.arange(6.0))


def folder_recipe(tiny, settings, root, flip=True, **options):
    model = settings("flowar")["model"] | {"num_classes": 2}
    data = {"kind": "folders", "root": root, "size": 64, "workers": 0, "flip": flip}
    return tiny("flowar", model=model, data=data, batch_size=4, steps=2, objective_options=options)


@pytest.mark.parametrize("cached", [True, False])
def test_it_trains_on_folders(tiny, settings, image_folders, tmp_path, cached):
    recipe = folder_recipe(tiny, settings, image_folders("train", "ab"), cache_latents=cached)
    final = train(recipe, tmp_path / "out", cache_dir=tmp_path / "cache", device="cpu")
    assert (final / "tokenizer" / "config.json").is_file()
    assert len(list((tmp_path / "cache").glob("moments-*.npy"))) == cached


def test_cached_latents_are_those_of_the_centres_and_their_mirror_images(
    tiny, settings, image_folders, tmp_path, monkeypatch
):
    from var_toolkit.processes import Team
    from var_toolkit.training.flowar_objective import FlowARObjective
    from var_toolkit.training.objectives import Workplace

    monkeypatch.setattr(code_cache, "CHUNK", 4)
    recipe = folder_recipe(tiny, settings, image_folders("train", "ab"), cache_latents=True)
    objective = FlowARObjective(recipe, Workplace(tmp_path, Team(0, 1, CPU)))
    kept = np.load(next(tmp_path.glob("moments-*.npy")))
    from var_toolkit.data.folders import ClassFolders

    centres = torch.stack([ClassFolders(recipe.data.root, 64, False)[i][0] for i in range(6)])
    both = torch.cat((centres, centres.flip(-1))).float() / 127.5 - 1
    with torch.no_grad():
        expected = objective.tokenizer.moments(both)
    torch.testing.assert_close(torch.from_numpy(kept).float(), expected, atol=2e-3, rtol=2e-3)
    assert objective.source.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_folders_that_are_not_to_be_flipped_are_cached_as_they_are(tiny, settings, image_folders, tmp_path):
    from var_toolkit.processes import Team
    from var_toolkit.training.flowar_objective import FlowARObjective
    from var_toolkit.training.objectives import Workplace

    recipe = folder_recipe(tiny, settings, image_folders("train", "ab"), flip=False, cache_latents=True)
    source = FlowARObjective(recipe, Workplace(tmp_path, Team(0, 1, CPU))).source
    assert len(source.values) == len(source) == 6


def test_two_data_sets_with_the_same_file_names_have_two_caches(image_folders):
    from var_toolkit.data.folders import ClassFolders

    found = {
        ClassFolders(image_folders(name, classes), 64, False).fingerprint
        for name, classes in (("a", "xy"), ("b", "xz"))
    }
    assert len(found) == 2
    assert ClassFolders(image_folders("c", "xy"), 32, False).fingerprint not in found


def test_moments_that_are_not_finite_are_not_kept(build, tmp_path):
    objective, _ = build("flowar")
    with torch.no_grad():
        objective.tokenizer.autoencoder.quant_conv.bias.fill_(1e6)
    shown = torch.zeros(4, 3, 64, 64, dtype=torch.uint8).numpy()
    with (
        pytest.raises(ValueError, match="images 0 to 3 are not finite"),
        np.errstate(over="ignore"),
    ):
        code_cache.cached_moments(objective.tokenizer, 4, code_cache.array_chunks(shown), tmp_path, "some")
    assert not list(tmp_path.glob("*.npy"))


def test_held_out_images_are_encoded_in_float32(build, monkeypatch):
    objective, batch = build("flowar")
    seen = []
    moments = objective.tokenizer.moments
    monkeypatch.setattr(objective.tokenizer, "moments", lambda part: seen.append(moments(part)) or seen[-1])
    shown = batch._replace(moments=None, images=torch.zeros(8, 3, 64, 64))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        objective._judged(objective.networks["flowar"], shown, 0)
    assert [part.dtype for part in seen] == [torch.float32]


def test_a_preview_that_is_not_finite_ends_no_run(build):
    objective, _ = build("flowar")
    network = objective.networks["flowar"].eval()
    with torch.no_grad():
        network.flownet.final_layer.linear.bias.fill_(torch.inf)
    assert objective.preview(network) is None


def test_weights_are_fine_tuned_with_another_dropout(build, tmp_path):
    from var_toolkit.formats.directory import save_network

    objective, _ = build("flowar")
    other = type(objective.networks["flowar"])(dataclasses.replace(objective.recipe.model, dropout=0.0, input_side=16))
    other.init_weights()
    save_network(other, tmp_path / "saved")
    fresh, _ = build("flowar", initial=str(tmp_path / "saved"))
    assert torch.equal(fresh.networks["flowar"].z_proj.weight, other.z_proj.weight)
    wider = type(other)(dataclasses.replace(other.config, embed_dim=32))
    save_network(wider, tmp_path / "wider")
    with pytest.raises(ValueError, match="has embed_dim 32, but the recipe asks for embed_dim 16"):
        build("flowar", initial=str(tmp_path / "wider"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": None}, "missing key 'tokenizer'; give the directory or hub id of an AutoencoderKL"),
        ({"objective_options": {"cache_latents": True}}, "cache_latents is for folders"),
        ({"objective_options": {"class_dropout": 1.0}}, "class_dropout is 1.0; expected a number in"),
        ({"model": {"patch_nums": [8]}}, r"patch_nums is \[8\];"),
        ({"model": {"head_width": 100}}, "head_width is 100; it must be a multiple of 64"),
        ({"model": {"dropout": 1.0}}, "dropout is 1.0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tiny, settings, changes, message):
    if "model" in changes:
        changes = changes | {"model": settings("flowar")["model"] | changes["model"]}
    with pytest.raises(ValueError, match=message):
        tiny("flowar", **changes)


def test_a_tokenizer_that_does_not_fit_is_refused(tiny, settings, parts, cache, tmp_path):
    eight = settings("flowar")["model"] | {"latent_channels": 8}
    with pytest.raises(ValueError, match="latent_channels is 8, but the tokenizer has 4"):
        train(tiny("flowar", model=eight), tmp_path, cache_dir=cache, device="cpu")
    with pytest.raises(ValueError, match="has discrete tokens; FlowAR needs an AutoencoderKL"):
        train(tiny("flowar", tokenizer=str(parts / "tokenizer")), tmp_path, cache_dir=cache, device="cpu")
