"""CAR's objective: the branch alone learns, from images and control images that belong together."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from var_toolkit.formats.directory import load_network
from var_toolkit.processes import Team
from var_toolkit.still_life.data_set import solid_edges, solid_mask
from var_toolkit.still_life.image_cache import item
from var_toolkit.training.car_objective import CarObjective
from var_toolkit.training.data_sources import images_of
from var_toolkit.training.draws import Draws
from var_toolkit.training.objectives import Workplace

LIGHT, WHOLE = {}, {"light_width": None, "light_layers": None}


def pairs(image_folders, tmp_path, change=None):
    """Folders of noise, and of control images that are the same noise; `change` is made to the folder of the latter."""
    root = image_folders("train", "ab")
    for path in Path(root).rglob("*.png"):
        other = tmp_path / "edges" / path.relative_to(root)
        other.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(other.with_suffix(".tif"))
    if change is not None:
        change(tmp_path / "edges")
    return {"kind": "folders", "root": root, "control_root": str(tmp_path / "edges"), "size": 64, "workers": 0}


@pytest.fixture
def opened(tiny, settings, cache):
    """The images of a recipe of pairs."""
    model = settings("car")["model"] | {"num_classes": 2}

    def read(data):
        recipe = tiny("car", model=model, data=data, batch_size=2)
        return images_of(recipe, Workplace(cache, Team(0, 1, torch.device("cpu"))), 2)

    return read


@pytest.mark.parametrize("branch", [LIGHT, WHOLE], ids=["light", "whole"])
def test_the_branch_alone_learns_and_all_of_it(branch, tiny, settings, cache):
    recipe = tiny("car", model=settings("car")["model"] | branch, precision="fp32")
    objective = CarObjective(recipe, Workplace(cache, Team(0, 1, torch.device("cpu"))))
    network = objective.networks["var"]
    batch = next(iter(objective.source.batches([torch.arange(8)], 0)))
    objective._loss(batch, Draws(0, 0, 0, 1, 8, torch.device("cpu"))).total.backward()
    learned = {name for name, weight in network.named_parameters() if weight.grad is not None}
    assert learned == {name for name, _ in network.named_parameters() if name.startswith("car_")}


def test_a_light_branch_begins_as_the_var_that_it_steers(build, parts):
    objective, batch = build("car")
    _, inputs = objective._forced(batch)
    with torch.no_grad():
        steered = objective.networks["var"](batch.labels, inputs, objective._controls(batch))
        assert_close(steered, load_network(parts / "var")(batch.labels, inputs))


def test_still_lifes_come_with_the_edges_of_the_renderer(build):
    objective, _ = build("car")
    numbers = torch.tensor([5, 2])
    (batch,) = objective.source.batches([numbers], 0)
    for number, control in zip(numbers.tolist(), batch.controls, strict=True):
        assert torch.equal(control[0] > 0, solid_edges(*item(number, "train")))
        assert torch.equal(control[0], control[2])


@pytest.mark.parametrize("label", range(0, 1000, 111))
def test_edges_follow_the_outline_of_the_solid(label):
    edges, mask = solid_edges(label, 1), solid_mask(label, 1).float()[None, None]
    grown = torch.nn.functional.max_pool2d(mask, 3, 1, 1)[0, 0] > 0
    within = -torch.nn.functional.max_pool2d(-mask, 3, 1, 1)[0, 0] > 0
    assert not (edges & ~grown).any()
    outline = grown & ~within
    near = torch.nn.functional.max_pool2d(edges.float()[None, None], 3, 1, 1)[0, 0] > 0
    assert (near & outline).sum() / outline.sum() > 0.95


def test_a_control_image_is_cropped_and_mirrored_with_its_image(opened, image_folders, tmp_path):
    source, _ = opened(pairs(image_folders, tmp_path) | {"flip": True})
    for epoch in (0, 1):
        (batch,) = source.batches([torch.arange(6)], epoch)
        assert torch.equal(batch.images, batch.controls)


def test_held_out_images_have_their_control_images(opened, image_folders, tmp_path):
    data = pairs(image_folders, tmp_path)
    held = {"validation_root": data["root"], "validation_control_root": data["control_root"]}
    batch = opened(data | held)[1].first()
    assert torch.equal(batch.images, batch.controls)


def cut(folder):
    Image.new("RGB", (40, 40)).save(folder / "b" / "1.tif")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "b" / "1.tif").unlink(), "no control image b/1"),
        (cut, "40x40, but its image"),
        (lambda folder: (folder / "b" / "1.tif").write_text("no image"), "1.tif is not an image"),
    ],
    ids=["missing", "size", "damaged"],
)
def test_pairs_that_do_not_match_are_refused_in_one_line(change, named, opened, image_folders, tmp_path):
    with pytest.raises(ValueError, match=named) as caught:
        list(opened(pairs(image_folders, tmp_path, change))[0].batches([torch.arange(6)], 0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("objective", "changes", "named"),
    [
        ("var", {"data": {"kind": "still-lifes", "count": 24, "control": "edges"}}, "reads no control images"),
        ("car", {"data": {"kind": "still-lifes", "count": 24}}, "control: edges"),
        ("car", {"data": {"kind": "still-lifes", "count": 24, "control": "depth"}}, "control is 'depth'"),
        ("car", {"data": {"kind": "folders", "root": "a", "size": 64}}, "control_root"),
        (
            "car",
            {"data": {"kind": "folders", "root": "a", "size": 64, "control_root": "b", "validation_root": "c"}},
            "validation_control_root",
        ),
        ("car", {"objective_options": {}}, "initial"),
    ],
    ids=["objective", "none", "kind", "folders", "held-out", "initial"],
)
def test_a_recipe_that_does_not_fit_is_refused_in_one_line(objective, changes, named, tiny):
    with pytest.raises(ValueError, match=named) as caught:
        tiny(objective, **changes)
    assert "\n" not in str(caught.value)


def test_the_trained_var_must_have_the_sizes_of_the_model(tiny, settings, cache):
    recipe = tiny("car", model=settings("car")["model"] | {"depth": 4})
    with pytest.raises(ValueError, match=r"initial: .* has depth 2, but the recipe asks for depth 4"):
        CarObjective(recipe, Workplace(cache, Team(0, 1, torch.device("cpu"))))
