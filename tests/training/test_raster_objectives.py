"""LlamaGen's objectives: the loss of the GPT and what its runs deliver, the upkeep of the tokenizer's codebook."""

import json

import pytest
import torch
from golden.cases import fill
from small_dar import tiny_flow
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from var_toolkit.cli import main
from var_toolkit.formats.directory import save_network
from var_toolkit.heads.categorical import Categorical
from var_toolkit.loading import load
from var_toolkit.models.dar import DAR
from var_toolkit.tokenizers.raster_vq import RasterVQ
from var_toolkit.training.code_cache import weights_hash
from var_toolkit.training.draws import Draws
from var_toolkit.training.loop import train
from var_toolkit.training.memory import memory_of
from var_toolkit.training.starting_weights import network_from

CPU = torch.device("cpu")


def draws(step=0, rank=0, world_size=1):
    return Draws(0, step, rank, world_size, 8, CPU)


def test_the_loss_is_the_cross_entropy_of_every_token_given_those_before(build):
    objective, batch = build("raster-gpt", class_dropout=0.0)
    network = fill(objective.networks["var"])
    loss = objective._loss(batch, draws())
    tokens, cache, parts = batch.tokens.long(), network.new_cache(8), []
    with torch.no_grad():
        for place in range(64):
            prefix = network.prefix(batch.labels) if place == 0 else None
            before = tokens[:, max(place - 1, 0) : place]
            parts.append(network.next_logits(network.next_hidden(prefix, before, cache=cache)))
    logits = torch.cat(parts, dim=1)
    assert_close(loss.total, F.cross_entropy(logits.flatten(0, 1), tokens.flatten()), atol=1e-5, rtol=1e-5)
    assert loss.total > loss.total.new_tensor(32.0).log() + 0.05  # that of a network which knows nothing
    assert loss.terms["accuracy"] == pytest.approx((logits.argmax(-1) == tokens).float().mean())
    assert loss.terms.keys() == {"loss", "accuracy", "loss_scale_0", "accuracy_scale_0"}


def test_tokens_of_images_are_those_of_the_tokenizer(build, tiny, settings, image_folders, tmp_path):
    data = {"kind": "folders", "root": image_folders("train", "ab"), "size": 64, "workers": 0}
    model = settings("raster-gpt")["model"] | {"num_classes": 2}
    recipe = tiny("raster-gpt", model=model, data=data, batch_size=4, steps=1)
    final = train(recipe, tmp_path / "out", cache_dir=tmp_path / "cache", device="cpu")
    assert load(final, device="cpu").backbone.config.num_classes == 2
    objective, batch = build("raster-gpt")
    images = torch.rand(8, 3, 64, 64) * 2 - 1
    tokens, seen = objective._forced(batch._replace(tokens=None, images=images))
    assert torch.equal(tokens, objective.tokenizer.encode(images)[0])
    assert torch.equal(seen, tokens[:, :63])


def test_classes_are_dropped_whatever_the_number_of_processes(build):
    objective, batch = build("raster-gpt", class_dropout=0.5)
    seen = []

    class Spy(nn.Module):
        def forward(self, labels, tokens):
            seen.append(labels)
            return torch.zeros(len(labels), 64, 32)

    objective.networks["var"] = Spy()
    objective._loss(batch, draws())
    for rank, rows in enumerate((slice(4), slice(4, 8))):
        objective._loss(batch._replace(labels=batch.labels[rows], tokens=batch.tokens[rows]), draws(0, rank, 2))
    dropped = seen[0] == 1000
    assert 0 < dropped.sum() < 8
    assert torch.equal(seen[0][~dropped], batch.labels[~dropped])
    assert torch.equal(torch.cat(seen[1:]), seen[0])
    objective.options = type(objective.options)(class_dropout=0.0)
    objective._loss(batch, draws())
    assert torch.equal(seen[-1], batch.labels)


def test_the_gpt_of_a_flow_learns_its_tokens_and_shows_every_group(tiny, settings, cache, tmp_path):
    patches = {"encoder_patch": 32, "flow_patch": 32}
    save_network(tiny_flow(image_side=64, side=2, groups=2, **patches), tmp_path / "flow")
    model = settings("raster-gpt")["model"] | {"side": 2, "vocab_size": 16}
    recipe = tiny("raster-gpt", family="dar", model=model, tokenizer=str(tmp_path / "flow"), steps=3)
    assert memory_of(recipe, 1).activations > 0
    pipe, seen = load(train(recipe, tmp_path / "run", cache_dir=cache, device="cpu"), device="cpu"), []
    drawn = pipe([3], seeds=[0], output_type="pt", callback_on_scale_end=seen.append)
    assert isinstance(pipe.backbone, DAR)
    assert drawn.images.shape == (1, 3, 64, 64)
    assert [event.scale for event in seen] == [0, 1]
    with torch.no_grad():
        (flow := tiny_flow()).query_linear.bias += 1
    assert weights_hash(flow) != weights_hash(tiny_flow())  # by which tokens are cached


def test_held_out_images_are_judged_with_their_classes_and_without_dropout(build):
    objective, _ = build("raster-gpt", class_dropout=0.9)
    network = fill(objective.networks["var"])
    with torch.no_grad():
        found = objective.validate(network)
        (batch,) = objective.held_out
        logits = network(batch.labels, batch.tokens[:, :-1].long())
    expected = F.cross_entropy(logits.flatten(0, 1), batch.tokens.long().flatten())
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_previews_are_drawn_with_guidance_and_nothing_else(build):
    objective, _ = build("raster-gpt")
    (step,) = objective._run(objective.networks["var"]).plan.steps
    assert (step.guidance, step.head) == (1, Categorical(temperature_first=True))
    assert objective.preview(fill(objective.networks["var"])).shape == (16, 3, 64, 64)


def test_a_run_writes_images_and_a_model_that_draws(tiny, cache, tmp_path, capsys):
    final = train(tiny("raster-gpt"), tmp_path / "run", cache_dir=cache, device="cpu")
    assert [path.name for path in sorted((tmp_path / "run" / "samples").iterdir())] == ["0000003.png", "0000006.png"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[1]["loss"] == pytest.approx(torch.tensor(32.0).log().item(), rel=0.01)
    drawing = ["sample", "--model", str(final), "--class", "red sphere on sand", "3", "--device", "cpu"]
    assert main([*drawing, "--out", str(tmp_path / "drawn"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["forward_passes"], len(facts["files"])) == (64, 2)
    sampling = load(final, device="cpu").sampling
    assert (sampling.cfg, sampling.top_k, sampling.top_p) == (2.0, 0, 0.0)
    assert isinstance(network_from(str(final), RasterVQ, what="tokenizer"), RasterVQ)


def test_a_run_goes_on_from_a_delivered_model(tiny, cache, tmp_path, weights):
    first = train(tiny("raster-gpt", steps=2, ema=None), tmp_path / "a", cache_dir=cache, device="cpu")
    recipe = tiny("raster-gpt", steps=1, ema=None, tokenizer=str(first), objective_options={"initial": str(first)})
    again = weights(train(recipe, tmp_path / "b", cache_dir=cache, device="cpu"))
    for name, tensor in weights(first).items():
        assert_close(again[name], tensor, rtol=0, atol=0.01)


def test_new_tokenizers_begin_with_codes_in_use(build):
    objective, batch = build("raster-tokenizer")
    images = batch.images.float()
    (tokens,) = objective.autoencoder.encode(images)
    assert tokens.unique().numel() > 16
    assert_close(objective.autoencoder.quantize.embedding.weight.norm(dim=1), torch.ones(32))


def test_codes_that_nobody_uses_are_moved_onto_what_is_coded_badly(build):
    objective, batch = build("raster-tokenizer", perceptual=0.0, adversarial=0.0)
    tokenizer = objective.autoencoder
    with torch.no_grad():
        tokenizer.quantize.embedding.weight[8:] = -tokenizer.quantize.targets_and_errors(
            tokenizer.features(batch.images)
        )[0].mean(0)
    before = tokenizer.quantize.embedding.weight.detach().clone()
    objective.phases(0)[0].loss(batch, draws(0))
    hits = objective.record.hits_SV.clone()
    assert hits.shape == (1, 32)
    assert hits.sum() == 8 * 64
    dead = hits[0] == 0
    assert dead.sum() >= 20
    assert objective.after_step(batch, draws(0)) == {}  # not its turn
    assert torch.equal(tokenizer.quantize.embedding.weight, before)
    told = objective.after_step(batch, draws(1))
    assert told["codebook_used"] == pytest.approx(1 - dead.float().mean())
    moved = (tokenizer.quantize.embedding.weight != before).any(1)
    assert torch.equal(moved, dead)
    with torch.no_grad():
        (tokens,) = tokenizer.encode(batch.images)
    assert tokens.unique().numel() > 16
    assert objective.record.hits_SV.sum() == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"side": 4}, "side is 4, but the tokenizer has 8"),
        ({"vocab_size": 64}, "vocab_size is 64, but the tokenizer has 32"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(tiny, settings, cache, tmp_path, changes, words):
    recipe = tiny("raster-gpt", model=settings("raster-gpt")["model"] | changes)
    with pytest.raises(ValueError, match=words):
        train(recipe, tmp_path, cache_dir=cache, device="cpu")


def test_a_tokenizer_of_several_scales_is_refused(tiny, parts, cache, tmp_path):
    with pytest.raises(ValueError, match="holds a MultiScaleVQ; expected a RasterVQ"):
        train(tiny("raster-gpt", tokenizer=str(parts / "tokenizer")), tmp_path, cache_dir=cache, device="cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": None}, "missing key 'tokenizer'"),
        ({"objective_options": {"class_dropout": 1.0}}, "class_dropout is 1.0; expected a number in"),
        ({"objective_options": {"label_smoothing": -0.1}}, "label_smoothing is -0.1"),
        ({"objective_options": {"adaln_gamma": 0.1}}, "unknown key 'adaln_gamma'"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tiny, changes, words):
    with pytest.raises(ValueError, match=words):
        tiny("raster-gpt", **changes)
