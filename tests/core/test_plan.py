"""A plan is data: hashable, JSON both ways, and what is read draws the same images; nothing in a file is run."""

import json
from dataclasses import dataclass

import pytest
import torch
from small_flowar import tiny_flowar, tiny_kl
from small_llamagen import tiny_gpt, tiny_vq
from torch import Tensor

from var_toolkit.cli import main
from var_toolkit.core.plan import Plan, Scale, Step, Tokens
from var_toolkit.core.schedule import Schedule
from var_toolkit.heads.flow import Flow
from var_toolkit.loading import code, skeleton
from var_toolkit.methods.speculative.rules import OneByOne
from var_toolkit.methods.speculative.settings import DraftModel
from var_toolkit.pipeline import Pipeline


@dataclass(frozen=True)
class Lenient(OneByOne):
    """A rule of another package."""

    share: float = 0.5

    def probability(self, p: Tensor, q: Tensor | None, token: Tensor, depth: Tensor) -> Tensor:
        return torch.full_like(p[..., 0], self.share)

    def __str__(self) -> str:
        return "lenient"


@pytest.fixture(scope="module")
def pipes(small_tokenizer, small_var, small_hmar):
    var, gpt = Pipeline(small_tokenizer, small_var), Pipeline(tiny_vq(), tiny_gpt())
    drafting = Pipeline(tiny_vq(), tiny_gpt(), draft_model=DraftModel(tiny_gpt(depth=1), "small", tokenizer=tiny_vq()))
    return {
        "var": var,
        "hmar": Pipeline(small_tokenizer, small_hmar),
        "flowar": Pipeline(tiny_kl(), tiny_flowar()),
        "gpt": gpt,
        "draft": drafting,
        "code": code(var, Pipeline(small_tokenizer, small_hmar), 2),
    }


PLANS = [
    ("var", {"cfg": 2.5, "top_k": 9, "temperature": (1.0, 0.9, 0.8, 0.7)}),
    ("var", {"subnet": 2, "full_scales": 2, "smooth": True}),
    ("var", {"guidance_scales": (1, 3)}),
    ("hmar", {"refine": "published", "refine_clean": True}),
    ("flowar", {"solver": "heun", "steps": 3, "guidance_interval": (0.1, 0.8)}),
    ("gpt", {"guided_tokens": 4, "top_p": 0.9}),
    ("gpt", {"speculate": "auto", "draft_length": 4}),
    ("gpt", {"speculate": "jacobi", "jacobi_start": "likeliest", "accept": "decayed"}),
    ("gpt", {"speculate": "ngram", "draft_tree": (2, 1), "accept": "lantern", "neighbours": 3}),
    ("draft", {"speculate": "draft", "accept": "kseq", "draft_length": "auto"}),
    ("code", {"refine": "1;1,3;9;8,8"}),
]


@pytest.mark.parametrize(("name", "settings"), PLANS, ids=str)
def test_a_plan_that_was_written_and_read_is_the_same_and_draws_the_same(pipes, name, settings):
    pipe = pipes[name]
    plan = pipe.plan(**settings)
    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read == plan
    assert hash(read) == hash(plan)
    labels, seeds = [1, 3], [4, 5]
    ours, theirs = (pipe(labels, seeds=seeds, output_type="latent", **how) for how in ({"plan": read}, settings))
    assert torch.equal(ours.latents, theirs.latents)


@pytest.mark.parametrize("name", ["stilllife-var", "var-d16", "hmar-d16", "flowar-s", "llamagen-b", "stilllife-code-4"])
def test_the_plan_of_a_named_model_is_json_of_plain_values(name):
    plan = skeleton(name).plan()
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_defaults_are_left_out():
    assert Step(Scale(2)).to_json() == {"kind": "Step", "places": {"kind": "Scale", "index": 2}}


def test_a_rule_of_another_package_is_read_where_it_was_imported_and_nothing_is_imported_for_it(pipes, tmp_path):
    told = pipes["gpt"].plan(speculate="jacobi").to_json()
    told["steps"][0]["verify"]["rule"] = {"kind": "Lenient", "share": 0.25}
    assert Plan.from_json(told).steps[0].verify.rule == Lenient(0.25)
    told["steps"][0]["verify"]["rule"] = {"kind": "os:system"}
    with pytest.raises(ValueError, match=r"^plan: steps: 0: verify: rule: kind 'os:system' is unknown[^\n]*$"):
        Plan.from_json(told)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda told: told["steps"][1].update(guidance=-1), "steps: 1: guidance is -1"),
        (lambda told: told["steps"][1].update(guidence=1), "unknown key 'guidence'"),
        (lambda told: told["steps"].pop(), "the schedule has 30"),
        (lambda told: told["steps"][0].update(places={"kind": "Flow"}), "must be a Scale, Tokens"),
        (lambda told: told["steps"][0].update(head={"kind": "Scale", "index": 1}), "must be a head"),
        (lambda told: told["steps"][0].update(verify={"kind": "Scale", "index": 1}), "verify"),
        (lambda told: told["steps"][0].update(layers={"kind": "Scale", "index": 1}), "layers"),
        (lambda told: told["steps"][0]["head"].update(top_k="many"), "top_k"),
        (lambda told: told.update(schedule=[1, 0]), "schedule"),
        (lambda told: told.update(schedule="1,2"), "schedule"),
        (lambda told: told.update(steps=3), "steps"),
        (lambda told: told.pop("steps"), "steps"),
        (lambda told: told.pop("kind"), "kind"),
    ],
)
def test_a_plan_that_is_none_is_refused_in_one_line(pipes, change, words):
    told = pipes["var"].plan(top_k=9).to_json()
    change(told)
    with pytest.raises(ValueError, match=r"^plan[^\n]*$") as refused:
        Plan.from_json(told)
    assert words in str(refused.value)


def test_what_does_not_fit_the_networks_is_refused_when_it_is_bound(pipes):
    var, gpt = pipes["var"], pipes["gpt"]
    for pipe, plan, words in (
        (var, var.plan().with_roles({"backbone": "painter"}), "names a network 'painter'; this model has backbone"),
        (var, gpt.plan(), "schedule"),
        (gpt, Plan(Schedule((3,)), (Step(Scale(0), head=gpt.backbone.default_head),)), "draws single tokens"),
        (var, var.plan().changed(head=Flow()), "VAR has a Categorical head; a step of the plan has Flow"),
    ):
        with pytest.raises(ValueError, match=words):
            pipe.bind(plan)
        with pytest.raises(ValueError, match=words):
            pipe(1, plan=plan)
    with pytest.raises(ValueError, match="tokens 0 to 8"):
        Plan(Schedule((2,)), (Step(Tokens(0, 9)),))


def test_a_step_changes_a_setting_of_its_own_head_alone():
    assert Step(Scale(0)).with_head(temperature=0.5).head.temperature == 0.5
    with pytest.raises(ValueError, match="steps is no setting of Categorical, which has top_k"):
        Step(Scale(0)).with_head(steps=3)


def test_a_dry_run_writes_a_plan_that_sample_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["sample", "--class", "207", "--save-tokens"]
    assert main([*options, "a.safetensors", "--cfg", "2", "--guidance-scales", ":4", "--dry-run", "--json"]) == 0
    (tmp_path / "plan.json").write_text(capsys.readouterr().out)
    assert main([*options, "a.safetensors", "--cfg", "2", "--guidance-scales", ":4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main([*options, "b.safetensors", "--plan", "plan.json", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert told["plan"] == again["plan"]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    steps = Plan.read(tmp_path / "plan.json").steps
    assert [step.guidance > 0 for step in steps] == [False, True, True, True, False, False]
    assert "guidance 0 to 1.2 at scale 3, " in told["plan_in_words"]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (None, [], "plan.json cannot be read"),
        ("{", [], "plan.json cannot be read: it is not JSON"),
        ("[]", [], "plan.json is []"),
        ("{}", ["--cfg", "2"], "holds its own settings; remove cfg"),
        ("", ["--guidance-scales", "9"], "'9' must be two scales"),
    ],
)
def test_a_file_without_a_plan_ends_in_one_line(tmp_path, monkeypatch, capsys, text, options, words):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    try:
        status = main(["sample", "--class", "1", "--plan", "plan.json", *options])
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr().err
    assert status == 2
    assert words in told
    assert told.strip().count("\n") <= 1


@pytest.mark.parametrize("value", [3, (1,), (1, 2, 3), ("a", 2), (-1, 2), (0.5, 2)], ids=str)
def test_a_range_of_guided_scales_is_two_whole_numbers(pipes, value):
    with pytest.raises(ValueError, match=r"^guidance_scales is "):
        pipes["var"].plan(guidance_scales=value)
    with pytest.raises(ValueError, match="guidance_scales is for models of scales"):
        pipes["gpt"].plan(guidance_scales=(0, 1))
