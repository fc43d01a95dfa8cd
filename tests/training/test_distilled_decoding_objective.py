"""Distilled Decoding: noise leads a teacher to the codes that its student learns, and what is kept is not learned."""

import pytest
import torch
from torch.testing import assert_close

from var_toolkit.core.engine import decode
from var_toolkit.core.noise import Noise
from var_toolkit.formats.directory import save_network
from var_toolkit.heads.flowed import Flowed
from var_toolkit.loading import load
from var_toolkit.models.distilled_llamagen import DistilledRasterGPT
from var_toolkit.processes import Team
from var_toolkit.training.objectives import Workplace
from var_toolkit.training.registry import objective_class
from var_toolkit.training.sample_cache import FIRST_SEEDS

NAME = "distilled-decoding"


def test_the_noise_of_a_batch_leads_the_teacher_to_its_tokens(tiny, cache):
    cls = objective_class(NAME)
    kept = {}

    class Kept(cls):
        def teacher_run(self):
            kept["run"] = super().teacher_run()
            return kept["run"]

    found = Kept(tiny(NAME), Workplace(cache, Team(0, 1, torch.device("cpu"))))
    batch = next(iter(found.source.batches([torch.tensor([3, 0])], 0)))
    again = decode(kept["run"], batch.labels, Noise([FIRST_SEEDS["train"] + number for number in (3, 0)]))
    assert torch.equal(torch.cat(again.tokens, dim=1), batch.tokens)
    other = decode(kept["run"], batch.labels, Noise([1000, 1001]))
    assert not torch.equal(torch.cat(other.tokens, dim=1), batch.tokens)


def test_each_loss_is_of_the_tokens_that_a_step_draws(build):
    found, batch = build(NAME)
    length, coded = batch.tokens.shape[1], found.coded
    perfect = found.codebook[batch.tokens]
    likely = torch.nn.functional.one_hot(batch.tokens, len(found.codebook)) * 30.0

    def network(change):
        """A student that is right but for what `change` does to its outputs."""
        return lambda labels, inputs, kept: change(perfect.clone(), likely.clone())

    def wrong(where):
        return lambda conti, logits: (
            conti.index_fill(1, torch.tensor([where]), 9.0),
            logits.index_fill(1, torch.tensor([where]), 0),
        )

    def loss(where, kept):
        kept_B = torch.full_like(batch.labels, kept)
        return float(found._compared(network(wrong(where)), batch, kept_B)[0])

    assert loss(0, coded) == pytest.approx(0, abs=1e-6)  # before what is drawn
    assert loss(0, 0) > 0.01
    assert loss(length - 1, coded) > 0.01
    assert loss(length - 1, length) == pytest.approx(0, abs=1e-6)


def test_a_student_reads_noise_where_it_draws_and_codes_before(build):
    found, batch = build(NAME)
    seen = {}

    def network(labels, inputs, kept):
        seen["inputs"] = inputs
        return torch.zeros_like(inputs), torch.zeros(*inputs.shape[:2], len(found.codebook))

    kept = torch.tensor([0, 1] * 4)
    found._compared(network, batch, kept)
    assert_close(seen["inputs"][0], batch.noise[0])
    assert_close(seen["inputs"][1][:1], found.codebook[batch.tokens[1, :1]])
    assert_close(seen["inputs"][1][1:], batch.noise[1, 1:])


@pytest.fixture
def of_gpt(settings, parts, tmp_path):
    """A recipe for a student of a next-token model."""
    values = settings("raster-gpt") | {"objective": NAME, "family": "distilled_llamagen", "steps": 1}
    values["model"] = values["model"] | {"latent_channels": 4, "coded": 10, "jumps": [10]}
    values["data"] = {"kind": "samples", "count": 8, "validation_count": 8, "class_names": "still-lifes"}
    how = {"solver": "euler", "flow_steps": 2}
    return values | {"objective_options": {"teacher": str(parts / "raster-teacher"), **how}}


def test_a_student_of_a_next_token_model_is_trained_and_draws(of_gpt, tmp_path, cache):
    from var_toolkit.training.loop import train
    from var_toolkit.training.recipe import recipe_from

    final = train(recipe_from(of_gpt), tmp_path / "run", cache_dir=cache, device="cpu")
    pipe = load(final, device="cpu")
    assert isinstance(pipe.backbone, DistilledRasterGPT)
    assert pipe.data_set == "still-lifes"
    drawn = pipe([1, 2], seeds=[0, 1], output_type="latent")
    assert drawn.forward_passes == 2
    assert pipe(1, seeds=0, steps=1, output_type="latent").forward_passes == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [({"solver": "leap"}, "solver"), ({"distance": -1}, "distance"), ({"flow_steps": 0}, "flow_steps")],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_bad_options_are_refused(change, named, settings, tiny):
    with pytest.raises(ValueError, match=named):
        tiny(NAME, objective_options=settings(NAME)["objective_options"] | change)


def test_another_teacher_is_refused(tiny, settings, parts, cache, tmp_path):
    workplace = Workplace(cache, Team(0, 1, torch.device("cpu")))
    options = settings(NAME)["objective_options"]
    for teacher, named in (("teacher", "depth"), ("hmar", "VAR")):
        recipe = tiny(NAME, objective_options=options | {"teacher": str(parts / teacher)})
        with pytest.raises(ValueError, match=named):
            objective_class(NAME)(recipe, workplace)
    student = tmp_path / "student"
    save_network(objective_class(NAME)(tiny(NAME), workplace).networks["var"], student)
    recipe = tiny(NAME, objective_options=options | {"teacher": str(student)})
    with pytest.raises(ValueError, match="DistilledVAR"):
        objective_class(NAME)(recipe, workplace)


def test_a_family_without_students_is_refused():
    with pytest.raises(ValueError, match="distilled_var"):
        objective_class(NAME, "hmar")


def test_a_solver_is_one_of_those_that_there_are():
    with pytest.raises(ValueError, match="leap"):
        Flowed(solver="leap")
