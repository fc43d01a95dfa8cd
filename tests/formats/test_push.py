"""Models that go to a hub and come back, against a stand-in of it in this process."""

import json
import os
import re

import pytest
import yaml
from small_flowar import tiny_kl
from small_hub import TOKEN, small_hub

from var_toolkit.formats.directory import save_network
from var_toolkit.formats.facts import Facts
from var_toolkit.formats.hub import at_revision, is_hub_id, may_upload, split_revision, upload
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import Sampling

NAME = "someone/still-lifes"


@pytest.fixture
def hub():
    with small_hub() as found:
        yield found


@pytest.fixture
def model(tmp_path, small_tokenizer, small_var):
    """A model directory."""
    facts = Facts(origin="a test", images_seen=12, figures={"agreement": "3 %"})
    Pipeline(small_tokenizer, small_var, Sampling(top_k=5), facts=facts).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(hub, tmp_path, warm_python):
    """Python with that hub and a token, in a process of its own: huggingface_hub reads its settings as it starts."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {**hub.environment(tmp_path / "home"), "HF_TOKEN": TOKEN}

    def python(*words, **changes):
        known = {name: value for name, value in (environment | changes).items() if value is not None}
        return warm_python(*map(str, words), env=known, cwd=tmp_path)

    return python


@pytest.fixture
def vargen(run):
    """The command line, likewise."""
    return lambda *words, **changes: run("-m", "var_toolkit", *words, **changes)


THERE_AND_BACK = """
import sys
import torch
from var_toolkit import load
directory, name = sys.argv[1:]
ours, theirs = load(directory, device="cpu"), load(name, device="cpu")
assert all(map(torch.equal, ours(3, seeds=0).tokens, theirs(3, seeds=0).tokens))
assert ours.facts == theirs.facts
print(theirs.push_to_hub(name, revision="v1/half", dtype=torch.float16, license="mit"))
"""
OFFLINE = """
import sys
from var_toolkit import load
name = sys.argv[1]
for source in (load(name, device="cpu"), load(name, revision="v1/half", device="cpu"), load(f"{name}@v1%2Fhalf")):
    print(source.facts.license, source.facts.images_seen, float(source.backbone.head.weight.double().sum()))
"""


def test_a_model_goes_to_the_hub_and_comes_back_by_its_id_at_a_revision_and_offline(hub, run, vargen, model):
    first = vargen("push", model, NAME, "--private", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["url"] == f"{hub.address}/{NAME}/commit/{hub.branches[NAME]['main']}"
    assert hub.private[NAME] in (True, "private")
    second = run("-c", THERE_AND_BACK, model, NAME)
    assert second.stdout == f"{hub.address}/{NAME}/commit/{hub.branches[NAME]['v1/half']}\n", second.stderr

    main, half = hub.files(NAME), hub.files(NAME, "v1/half")
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert main.keys() - {".gitattributes"} == files
    weights = "backbone/diffusion_pytorch_model.safetensors"
    assert 0.45 < len(half[weights]) / len(main[weights]) < 0.55
    assert f'load("{NAME}@v1%2Fhalf")' in half["README.md"].decode()
    assert "license" not in front_matter(main["README.md"].decode())
    assert front_matter(half["README.md"].decode())["license"] == "mit"

    hub.requests.clear()
    found = run("-c", OFFLINE, NAME, HF_HUB_OFFLINE="1", HF_TOKEN=None)
    assert hub.requests == []
    assert found.returncode != 0, found.stdout  # v1/half has not been loaded from the hub yet
    assert f"{NAME}@v1%2Fhalf is not in the cache and the hub cannot be reached" in found.stderr
    assert run("-c", OFFLINE, NAME).returncode == 0
    hub.branches.clear()
    again = run("-c", OFFLINE, NAME, HF_HUB_OFFLINE="1", HF_TOKEN=None).stdout.split("\n")
    assert again[0].startswith("None 12 ")
    assert again[1] == again[2]
    assert again[1].startswith("mit 12 ")
    assert again[1].split()[-1] != again[0].split()[-1]  # rounded


def test_what_the_hub_does_not_have_is_one_line(vargen, model):
    missing = vargen("sample", "--class", "3", "--model", NAME)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert f"{NAME} cannot be downloaded" in missing.stderr
    assert vargen("push", model, NAME).returncode == 0
    wrong = vargen("sample", "--class", "3", "--model", f"{NAME}@v2")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert f"{NAME} has no revision 'v2'" in wrong.stderr


def test_a_tokenizer_alone_is_read_at_a_revision(hub, run, tmp_path):
    hub.branches[NAME] = {}
    for revision, factor in (("main", 0.5), ("v2", 0.25)):
        autoencoder = tiny_kl().autoencoder
        autoencoder.register_to_config(scaling_factor=factor)
        save_network(autoencoder, tmp_path / revision)
        hub.commit(NAME, revision, {path.name: path.read_bytes() for path in (tmp_path / revision).iterdir()})
    code = (
        "import sys; from var_toolkit.loading import load_tokenizer; "
        "print(*[load_tokenizer(name, device='cpu').autoencoder.config.scaling_factor for name in sys.argv[1:]])"
    )
    found = run("-c", code, NAME, f"{NAME}@v2")
    assert found.stdout == "0.5 0.25\n", found.stderr


def test_a_complaint_about_the_card_is_told_whole(hub, vargen, model):
    refused = vargen("push", model, NAME, "--license", "my own")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "cannot be written: Invalid metadata in README.md. - license 'my own' is not known" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"HF_TOKEN": None}, NAME, "without a token; log in with `hf auth login`, or set HF_TOKEN"),
        ({}, "stranger/model", "this token may not write there; use your own name"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ({"HF_TOKEN": "hf_old"}, NAME, "the hub refuses the token; log in with `hf auth login`"),
                ({"HF_HUB_OFFLINE": "1"}, NAME, "while HF_HUB_OFFLINE is set"),
                ({"HF_ENDPOINT": "http://127.0.0.1:9"}, NAME, "cannot be written: "),
            )
        ),
    ],
)
def test_without_a_right_to_write_nothing_is_written(hub, vargen, model, changes, name, words):
    refused = vargen("push", model, name, **changes)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert f"{name} cannot be written" in refused.stderr
    assert words in refused.stderr
    assert hub.branches == {}
    assert not [asked for asked in hub.requests if asked.startswith(("POST", "PUT")) and "create" not in asked]


@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "some one/model", "someone/model@v1", "someone/", "someone/--x", ""]
)
def test_what_is_no_user_and_name_is_refused_before_a_token_is_looked_for(name, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        may_upload(name)


def test_what_is_no_model_is_told_before_a_token_is_looked_for(vargen, tmp_path):
    refused = vargen("push", tmp_path, NAME, HF_TOKEN=None)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path}/model_index.json is missing" in refused.stderr
    assert "token" not in refused.stderr


@pytest.mark.slow
def test_a_card_written_by_hand_stays_on_the_hub_and_ours_is_replaced(hub, vargen, model):
    assert vargen("push", model, NAME).returncode == 0
    ours = hub.files(NAME)["README.md"].decode()
    assert "Draws images of 10 classes" in ours
    changed = {"README.md": ours.replace("10 classes", "ten classes").encode(), "refiner/config.json": b"{}"}
    hub.commit(NAME, "main", hub.files(NAME) | changed | {"notes/mine.txt": b"kept"})
    assert vargen("push", model, NAME).returncode == 0
    assert hub.files(NAME)["README.md"].decode() == ours
    assert "refiner/config.json" not in hub.files(NAME)  # of a part that this model has not
    assert hub.files(NAME)["notes/mine.txt"] == b"kept"
    hub.commit(NAME, "main", hub.files(NAME) | {"README.md": b"---\nlicense: mit\n---\n\nMy own words.\n"})
    assert vargen("push", model, NAME).returncode == 0
    assert b"My own words" in hub.files(NAME)["README.md"]


@pytest.mark.parametrize("revision", [pytest.param(None, marks=pytest.mark.slow), "v2"])
def test_a_repository_of_something_else_is_left_as_it_is(hub, vargen, model, revision):
    theirs = {"model_index.json": b'{"unet": ["diffusers", "UNet"]}', "tokenizer/vocab.json": b"{}", "README.md": b"x"}
    for files in (theirs, {"tokenizer/vocab.json": b"{}"}, {"model.safetensors": b"x"}):
        hub.branches[NAME] = {}
        hub.commit(NAME, "main", files)
        refused = vargen("push", model, NAME, *(["--revision", revision] if revision else []))
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert f"{NAME} cannot be written: it holds" in refused.stderr
        assert hub.branches[NAME].keys() == {"main"}
        assert hub.files(NAME) == files


def test_a_card_that_cannot_be_read_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalEntryNotFoundError

    def lost(*names, **options):
        raise LocalEntryNotFoundError("the connection is gone")

    for name, answer in (("create_repo", None), ("hf_hub_download", lost), ("upload_folder", None)):
        monkeypatch.setattr(HfApi, name, answer or (lambda *names, **options: None))
    with pytest.raises(ValueError, match=f"{NAME} cannot be written: the connection is gone"):
        upload(NAME, lambda folder: folder.mkdir(), token="hf_any")


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("a/b", ("a/b", None)),
        ("a/b@v1", ("a/b", "v1")),
        ("a/b@refs%2Fpr%2F1", ("a/b", "refs/pr/1")),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1")),
    ],
)
def test_a_revision_stands_behind_an_at(source, parts):
    assert is_hub_id(source)
    assert split_revision(source) == parts
    if parts[1] is not None:
        assert split_revision(at_revision("a/b", parts[1])) == parts


@pytest.mark.parametrize("source", ["stilllife-var", ".", "var-d16@v1"])
def test_only_hub_ids_have_revisions(source):
    with pytest.raises(ValueError, match=source):
        at_revision(source, "v1")


def test_two_revisions_or_an_empty_one_are_refused():
    with pytest.raises(ValueError, match="has a revision already"):
        at_revision("a/b@v1", "v2")
    with pytest.raises(ValueError, match="names no revision behind the @"):
        split_revision("a/b@")
