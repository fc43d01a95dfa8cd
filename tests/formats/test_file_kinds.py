"""Downloads that are not what their name says are told apart, in one line each."""

import gzip
import io
import json
import re
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from var_toolkit.formats.file_kinds import described
from var_toolkit.formats.json_files import read_json
from var_toolkit.formats.safetensors_files import read_folder, read_safetensors
from var_toolkit.formats.weight_files import read_weights

TENSORS = {"a.weight": torch.arange(4.0), "b.weight": torch.ones(2, 3)}


def torch_file():
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    return buffer.getvalue()


def zipped(name="model.pth"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x" * 100)
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return buffer.getvalue()


KINDS = {
    "empty": (b"", "empty"),
    "zeros": (bytes(500), "zeros"),
    "html": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "HTML"),
    "plain html": (b"<html>Not found</html>", "HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", "Git LFS pointer.*git lfs pull"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML.*AccessDenied"),
    "json": (b'{"error": "Repository not found"}', "JSON.*Repository not found"),
    "text": (b"Invalid username or password.", "text.*Invalid username"),
    "zip": (zipped(), r"zip archive.*model\.pth"),
    "tar": (tarred(), "tar archive"),
    "gzip": (gzip.compress(b"x" * 100), "gzip archive"),
    "gguf": (b"GGUF" + bytes(100), "GGUF"),
    "cut short": (torch_file()[:400], "cut short"),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_downloaded_instead_of_weights_is_named(kind, ending, tmp_path):
    content, words = KINDS[kind]
    path = tmp_path / f"x{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x{ending}[^\n]*{words}[^\n]*$") as caught:
        read_weights(path)
    assert "could run code" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_way_out(kind, tmp_path):
    (tmp_path / "x.pth").write_bytes(KINDS[kind][0])
    assert re.search("download it|unpack it|git lfs pull|give a", described(tmp_path / "x.pth"))


@pytest.mark.parametrize("kind", ["empty", "html", "lfs", "xml", "text", "zip", "gzip"])
def test_what_was_downloaded_instead_of_a_configuration_is_named(kind, tmp_path):
    content, words = KINDS[kind]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"config\.json[^\n]*{words}"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": 1,}',
        "[1]",
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_json_that_is_none_of_a_model_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json[^\n]{1,200}$"):
        read_json(tmp_path / "config.json")


def test_a_safetensors_file_is_known_by_its_content(tmp_path):
    save_file(TENSORS, tmp_path / "x.pth")
    assert torch.equal(read_weights(tmp_path / "x.pth")["a.weight"], TENSORS["a.weight"])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "x.pth").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        read_safetensors(tmp_path / "cut.safetensors")


def sharded(folder, name="diffusion_pytorch_model"):
    """The tensors in two shards with an index, as diffusers writes them."""
    files = [f"{name}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, (tensor, value) in zip(files, TENSORS.items(), strict=True):
        save_file({tensor: value}, folder / file)
    index = {"metadata": {"total_size": 40}, "weight_map": dict(zip(TENSORS, files, strict=True))}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    return folder / f"{name}.safetensors.index.json", [folder / file for file in files]


def test_shards_are_read_by_their_index_their_folder_and_as_a_part_of_a_model(tmp_path):
    index, _ = sharded(tmp_path)
    for found in (read_weights(index), read_weights(tmp_path), read_folder(tmp_path)[0]):
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in found.items())


def test_shards_of_pickles_are_read_too(tmp_path):
    torch.save({"a.weight": TENSORS["a.weight"]}, tmp_path / "pytorch_model-00001-of-00001.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "pytorch_model-00001-of-00001.bin"}}))
    assert torch.equal(read_weights(index)["a.weight"], TENSORS["a.weight"])


def test_damaged_shards_are_refused_by_name(tmp_path):
    index, files = sharded(tmp_path)
    with pytest.raises(ValueError, match=r"00001-of-00002.*2 shards.*index\.json"):
        read_weights(files[0])
    save_file({"a.weight": TENSORS["a.weight"]}, files[1])
    with pytest.raises(ValueError, match=r"00002-of-00002.*'b\.weight'"):
        read_weights(index)
    files[1].unlink()
    with pytest.raises(ValueError, match=r"00002-of-00002.*missing"):
        read_weights(index)
    for wrong in ({}, {"weight_map": []}, {"weight_map": {"a": "../x.safetensors"}}, {"weight_map": {"a": 3}}):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"index\.json: weight_map"):
            read_weights(index)
