"""What Python users hold."""

import inspect
import re
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import small_var_network
from PIL import Image
from small_flowar import tiny_flowar, tiny_kl

import var_toolkit
from var_toolkit.loading import Pair, code, load, skeleton
from var_toolkit.methods.variant import variant
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling
from var_toolkit.settings import Drawing, Settings


@pytest.fixture(scope="module")
def pipe(small_tokenizer, small_var) -> Pipeline:
    return Pipeline(small_tokenizer, small_var)


def test_output_types_agree(pipe):
    kinds = {kind: pipe([3, 7], seeds=[0, 1], output_type=kind).images for kind in ("pil", "np", "pt", "latent")}
    assert kinds["pt"].shape == (2, 3, 64, 64)
    assert kinds["np"].shape == (2, 64, 64, 3)
    assert kinds["latent"].shape == (2, 8, 4, 4)
    np.testing.assert_array_equal(kinds["np"][0], kinds["pt"][0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(np.asarray(kinds["pil"][0]), (kinds["np"][0] * 255).round().astype(np.uint8))


def test_one_label_may_be_given_alone_and_a_name_is_not_split_into_letters(pipe):
    assert pipe(3, seeds=0).class_labels == [3]
    assert pipe("class 3", seeds=[0]).class_labels == [3]


def test_a_generator_makes_the_seeds(pipe):
    one = pipe([3, 3], generator=torch.Generator().manual_seed(1))
    two = pipe([3, 3], generator=torch.Generator().manual_seed(1))
    assert one.seeds == two.seeds
    assert one.seeds[0] != one.seeds[1]


def test_a_generator_an_image_makes_its_seed(pipe):
    generators = [torch.Generator().manual_seed(i) for i in (1, 2)]
    alone = pipe([3], generator=torch.Generator().manual_seed(2))
    assert pipe([3, 3], generator=generators).seeds[1] == alone.seeds[0]


@pytest.mark.parametrize("labels", [np.int64(3), torch.tensor(3), torch.tensor([3]), np.array([3]), range(3, 4)])
def test_labels_of_any_integer_kind_are_taken(pipe, labels):
    assert pipe(labels, seeds=[0]).class_labels == [3]


def test_images_come_alone_without_return_dict(pipe):
    (images,) = pipe(3, seeds=0, return_dict=False)
    assert images[0].size == (64, 64)


def test_packing_changes_speed_and_nothing_else(small_tokenizer, small_var):
    packed = Pipeline(small_tokenizer, deepcopy(small_var)).pack()
    plain = Pipeline(small_tokenizer, small_var)
    ours, theirs = (p([3, 7], seeds=[0, 1], output_type="latent").tokens for p in (packed, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


NAMES = [*"abcdefghi", "a cat\n"]


def test_names_of_classes_are_saved_with_a_model(tmp_path, small_tokenizer, small_var):
    Pipeline(small_tokenizer, small_var, class_names=NAMES).save_pretrained(tmp_path / "named")
    for again in (load(tmp_path / "named", device="cpu"), skeleton(tmp_path / "named")):
        assert again.class_names.resolve("c") == 2
        assert again.class_names.name(9) == "a cat?"  # which a terminal can show
        assert again.data_set is None
    assert "9: a cat?" in (tmp_path / "named" / "README.md").read_text()
    assert load(tmp_path / "named", device="cpu")("a cat", seeds=0).class_labels == [9]


@pytest.mark.parametrize("names", [["a", "b"], "imagenet", "cifar"])
def test_names_that_do_not_fit_the_classes_are_refused(small_tokenizer, small_var, names):
    with pytest.raises(ValueError, match="class_names"):
        Pipeline(small_tokenizer, small_var, class_names=names)


def test_a_data_set_names_the_classes_unless_they_have_names(small_tokenizer, small_var):
    assert Pipeline(small_tokenizer, small_var, data_set="still-lifes").class_names.resolve("red sphere on checks") == 1
    with pytest.raises(ValueError, match="data_set 'still-lifes'"):
        Pipeline(small_tokenizer, small_var, class_names=NAMES, data_set="still-lifes")


def test_a_pair_has_the_names_of_its_drafter(small_tokenizer, small_var):
    named = Pipeline(small_tokenizer, small_var, class_names=NAMES)
    assert code(named, Pipeline(small_tokenizer, small_var_network(depth=2)), 2).class_names.resolve("c") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"class_labels": [10]}, "class 10 does not exist"),
        ({"class_labels": [1, 2], "seeds": [0]}, "1 seeds for 2"),
        ({"class_labels": [1], "seeds": [-4]}, "seed is -4"),
        ({"class_labels": [1], "output_type": "jpeg"}, "output_type"),
        ({"class_labels": [1], "batch_size": 0}, "batch_size"),
        ({"class_labels": []}, "class_labels is empty"),
    ],
)
def test_bad_arguments_are_refused_by_name(pipe, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipe(**arguments)


def test_a_rotated_photograph_is_turned_upright(pipe):
    from var_toolkit.images import image_tensor

    image = Image.new("RGB", (20, 20), "black")
    image.paste((255, 255, 255), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = Image.new("RGB", (20, 20))
    turned.paste(image)
    turned.getexif()[0x0112] = 3
    assert image_tensor(turned, 20)[0, -1].mean() > 0.9


def test_the_zoo_is_reachable_from_the_package():
    assert "var-d30" in var_toolkit.list_models("var*")
    assert "stilllife-var" not in var_toolkit.list_models("var*")


def test_moving_to_half_precision_leaves_the_quantiser_in_float32(small_tokenizer, small_var):
    half = Pipeline(deepcopy(small_tokenizer), deepcopy(small_var)).to(dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.tokenizer.quantize.embedding.weight.dtype == torch.float32
    assert half([3], seeds=[0], output_type="pt").images.isfinite().all()


@pytest.fixture(scope="module")
def couple(small_tokenizer, small_var) -> Pipeline:
    refiner = Pipeline(small_tokenizer, small_var_network(depth=2), Sampling(top_k=7))
    drafter = Pipeline(small_tokenizer, small_var, Sampling(temperature=(1.1, 1.1, 1.0, 1.0)))
    return code(drafter, refiner, draft_scales=3)


def test_a_pair_draws_with_both_each_at_its_own_settings(couple):
    assert str(couple.bind(couple.plan())).splitlines() == [
        "scales 0-1: VAR 4 x 256, guidance 0 to 0.5, top-k 900, top-p 0.96, temperature 1.1",
        "scale 2: VAR 4 x 256, guidance 1, top-k 900, top-p 0.96, temperature 1",
        "scale 3: VAR 2 x 128, guidance 1.5, top-k 7, top-p 0.96, temperature 1",
    ]
    shorter = couple.plan(temperature=0.5, top_k=3, subnet=2, full_scales=2)
    assert str(couple.bind(shorter)).splitlines() == [
        "scales 0-2: VAR 4 x 256, 2 layers from scale 2 on, guidance 0 to 1, top-k 3, top-p 0.96, temperature 0.5",
        "scale 3: VAR 2 x 128, guidance 1.5, top-k 3, top-p 0.96, temperature 0.5",
    ]
    assert couple(3, seeds=0).forward_passes == 4


def test_a_pair_is_saved_and_loaded_as_one_model(couple, tmp_path):
    couple.save_pretrained(tmp_path / "pair")
    again = load(tmp_path / "pair", device="cpu")
    assert again.plan() == couple.plan() == skeleton(tmp_path / "pair").plan()
    assert torch.equal(again(3, seeds=0).latents, couple(3, seeds=0).latents)


def test_two_saved_models_make_a_pair_by_name(couple, tmp_path, small_tokenizer):
    halves = {"drafter": couple, "refiner": couple.refiner}
    for name, half in halves.items():
        Pipeline(half.tokenizer, half.backbone, half.sampling).save_pretrained(tmp_path / name)
    source = Pair(str(tmp_path / "drafter"), str(tmp_path / "refiner"), 3)
    assert torch.equal(load(source, device="cpu")(3, seeds=0).latents, couple(3, seeds=0).latents)
    assert skeleton(source).plan() == couple.plan()


def test_a_pair_of_pairs_is_refused(couple, pipe):
    for halves in ((couple, pipe), (pipe, couple)):
        with pytest.raises(ValueError, match="itself a pair"):
            code(*halves, 2)


def test_a_damaged_index_is_refused_in_one_line(couple, tmp_path):
    couple.save_pretrained(tmp_path / "pair")
    index = tmp_path / "pair" / "model_index.json"
    index.write_text(index.read_text().replace('"_draft_scales": 3', '"_draft_scales": "3"'))
    with pytest.raises(ValueError, match="_draft_scales is '3'"):
        load(tmp_path / "pair", device="cpu")


def test_a_half_with_no_more_layers_than_the_subnet_keeps_them_all(couple):
    shown = str(couple.bind(couple.plan(subnet=3, full_scales=1))).splitlines()
    assert "3 layers from scale 1 on" in shown[0]
    assert "layers" not in shown[-1]


def test_models_with_other_tokenizers_are_no_code(pipe, small_tokenizer, small_var):
    other = deepcopy(small_tokenizer)
    other.quantize.embedding.weight.data += 1
    with pytest.raises(ValueError, match="different tokenizers"):
        code(pipe, Pipeline(other, small_var), 2)


def test_a_model_may_have_a_subnet_by_default(small_tokenizer, small_var):
    pipe = Pipeline(small_tokenizer, small_var, Sampling(subnet=2, full_scales=3))
    assert "2 layers from scale 3 on" in str(pipe.bind(pipe.plan()))
    assert "3 layers from scale 3 on" in str(pipe.bind(pipe.plan(subnet=3)))
    assert "layers" not in str(pipe.bind(pipe.plan(subnet=4)))


def test_a_plan_takes_the_place_of_settings(pipe):
    plan = variant(pipe.plan(top_k=5), subnet=2, full_scales=2)
    assert torch.equal(pipe(3, seeds=0, plan=plan).latents, pipe(3, seeds=0, top_k=5, subnet=2, full_scales=2).latents)
    with pytest.raises(ValueError, match="not both"):
        pipe(3, seeds=0, plan=plan, top_k=5)
    with pytest.raises(ValueError, match=r"subnet .*full_scales"):
        pipe(3, subnet=2)


def test_a_pair_with_hmar_is_saved_with_its_masked_passes(tmp_path, small_tokenizer, small_var, small_hmar):
    hmar = Pipeline(small_tokenizer, small_hmar, Sampling(refine="1;1,3;9;8,8", refine_clean=True))
    both = code(Pipeline(small_tokenizer, small_var), hmar, 2)
    both.save_pretrained(tmp_path / "pair")
    again = load(tmp_path / "pair", device="cpu")
    assert again.plan() == both.plan()
    assert "1 masked passes (3: 8,8) clean" in str(again.bind(again.plan()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"refine": "published"}, "refine needs a backbone with masked passes, such as HMAR"),
        ({"refine_clean": True}, "^refine_clean "),
    ],
)
def test_settings_of_masked_passes_are_refused_where_there_are_none(small_tokenizer, small_var, settings, words):
    with pytest.raises(ValueError, match=words):
        Pipeline(small_tokenizer, small_var).plan(**settings)


def test_lists_that_refine_only_what_another_model_draws_are_refused(small_tokenizer, small_var, small_hmar):
    both = code(Pipeline(small_tokenizer, small_var), Pipeline(small_tokenizer, small_hmar), 2)
    with pytest.raises(ValueError, match="only for scales that another model draws"):
        both.plan(refine="1;1,3;9;16")
    assert both.plan(refine="1;1,3;9;8,8").steps[3].masked == (8,)


def test_a_name_that_is_no_setting_is_refused_even_without_a_value(small_tokenizer, small_var):
    with pytest.raises(TypeError, match="'typo' is no setting; settings are cfg, guidance_scale"):
        Pipeline(small_tokenizer, small_var).plan(typo=None)


def test_masked_passes_may_lie_in_any_stage_of_several_temperatures(small_tokenizer, small_hmar):
    plan = Pipeline(small_tokenizer, small_hmar).plan(refine="published", temperature=(1.1, 1.1, 1.1, 1.0))
    assert plan.steps[2].masked == (8, 7, 5)


@pytest.fixture(scope="module")
def continuous() -> Pipeline:
    return Pipeline(tiny_kl(), tiny_flowar(), Sampling(steps=3))


def test_continuous_tokens_come_as_vectors_and_the_work_on_them_is_counted(continuous):
    drawn = continuous([3, 1, 3], seeds=[0, 1, 0], batch_size=2, output_type="pt")
    assert [tuple(tokens.shape) for tokens in drawn.tokens] == [(3, 1, 4), (3, 4, 4), (3, 9, 4)]
    assert {tokens.dtype for tokens in drawn.tokens} == {torch.float32}
    assert torch.equal(drawn.latents, drawn.tokens[-1].transpose(1, 2).reshape(3, 4, 3, 3))
    assert drawn.images.shape == (3, 3, 6, 6)
    assert (drawn.forward_passes, drawn.velocity_evaluations) == (2 * 3, 2 * 3 * 2)  # batches, scales, steps
    torch.testing.assert_close(drawn.latents[0], drawn.latents[2], atol=1e-5, rtol=0)


def test_settings_of_the_solver_are_taken_as_given(continuous):
    plan = continuous.plan(solver="heun", steps=4, guidance_interval=(0.25, 0.5), cfg=4)
    assert (
        str(continuous.bind(plan))
        == "scales 0-2: FlowAR 3 x 32, guidance 0 to 3, 4 steps (heun), guided from 0.5 to 0.25"
    )


@pytest.mark.parametrize(
    "settings", [{"top_k": 5}, {"top_p": 0.5}, {"temperature": 0.5}, {"temperature": (1.0,) * 3}, {"smooth": True}]
)
def test_settings_of_codes_are_refused_for_continuous_tokens(continuous, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is for discrete tokens; .* use solver, steps"):
        continuous.plan(**settings)


@pytest.mark.parametrize("settings", [{"solver": "euler"}, {"steps": 5}, {"guidance_interval": (0.0, 1.0)}])
def test_settings_of_the_solver_are_refused_for_codes(pipe, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is for continuous tokens"):
        pipe.plan(**settings)


def test_from_pretrained_is_load(continuous, tmp_path):
    continuous.save_pretrained(tmp_path / "model")
    tiny_kl(block_out_channels=(8, 8, 8), sample_size=12).autoencoder.save_pretrained(tmp_path / "vae")
    again = Pipeline.from_pretrained(tmp_path / "model", tokenizer=tmp_path / "vae", device="cpu")
    assert again.sampling == continuous.sampling
    assert again.tokenizer.image_side == 12


@pytest.mark.parametrize("places", [(torch.bfloat16,), ("cpu", torch.bfloat16), (torch.device("cpu"), torch.bfloat16)])
def test_a_pipeline_moves_as_those_of_diffusers_do(small_tokenizer, small_var, places):
    half = Pipeline(deepcopy(small_tokenizer), deepcopy(small_var)).to(*places)
    assert half.dtype == torch.bfloat16
    assert half.to(device="cpu", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("place", ["float16", torch.int8, 1.5, True])
def test_what_is_no_device_and_no_dtype_is_refused_by_name(pipe, place):
    with pytest.raises(ValueError, match=re.escape(str(place))):
        pipe.to(place)


def test_a_model_is_replaced_only_if_asked_and_only_if_it_is_one(tmp_path, pipe, small_tokenizer):
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    other = Pipeline(small_tokenizer, small_var_network(depth=2))
    with pytest.raises(ValueError, match="model exists already"):
        other.save_pretrained(folder)
    other.save_pretrained(folder, overwrite=True)
    assert load(folder, device="cpu").backbone.config.depth == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"'notes\.txt'"):
        pipe.save_pretrained(folder, overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(ValueError, match="photos is not a model"):
        pipe.save_pretrained(tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_a_failure_while_a_model_is_replaced_leaves_the_old_one(tmp_path, pipe, small_tokenizer, monkeypatch):
    pipe.save_pretrained(tmp_path / "model")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("var_toolkit.saving.write_card", fail)
    with pytest.raises(OSError, match="disk full"):
        Pipeline(small_tokenizer, small_var_network(depth=2)).save_pretrained(tmp_path / "model", overwrite=True)
    assert load(tmp_path / "model", device="cpu").backbone.config.depth == 4
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_compiled_backbone_is_used_as_it_was_and_saved(tmp_path, small_tokenizer, small_var):
    pipe = Pipeline(small_tokenizer, small_var)
    with pytest.warns(UserWarning, match=r"torch\.compile"):
        pipe.backbone = torch.compile(small_var)
    assert str(pipe.bind(pipe.plan())).startswith("scales 0-3: VAR 4 x 256")
    pipe.save_pretrained(tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", device="cpu")(3, seeds=0).latents, pipe(3, seeds=0).latents)


def test_compiled_layers_are_what_decoding_runs(small_tokenizer):
    pipe, graphs = Pipeline(small_tokenizer, small_var_network(depth=1)), []
    wanted = pipe(3, seeds=0).tokens

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for block in pipe.backbone.blocks:
        block.compile(backend=backend)
    with torch._dynamo.config.patch(recompile_limit=1):  # one length is enough here
        found = pipe(3, seeds=0).tokens
    assert graphs
    targets = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert not [name for name in targets if "mkldnn" in name]  # inductor refuses them with weights that are inputs
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("name", ["__call__", "edit", "vary"])
def test_the_keywords_of_a_call_are_seen(pipe, name):
    shown = inspect.signature(getattr(pipe, name)).parameters
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in shown.values())
    assert {"seeds", "cfg", "guidance_scale", "top_k", "batch_size", "output_type", "speculate"} <= shown.keys()
    assert (shown["batch_size"].default, shown["output_type"].default, shown["top_k"].default) == (8, "pil", None)
    assert set(Drawing.__annotations__) <= shown.keys()
    assert "    top_k: " in inspect.getdoc(getattr(pipe, name))


def test_the_keywords_of_a_plan_are_the_settings(pipe):
    assert list(inspect.signature(pipe.plan).parameters) == list(Settings.__annotations__)


def test_the_package_offers_its_names():
    assert {"load", "Pipeline", "Plan", "code", "variant", "list_models"} <= set(dir(var_toolkit))
    assert all(getattr(var_toolkit, name) is not None for name in dir(var_toolkit))
