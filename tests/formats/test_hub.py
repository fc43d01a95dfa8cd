"""Download code against a local stand-in of the hub."""

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import small_var_network
from PIL import Image
from safetensors.torch import load_file, save
from small_flowar import golden_flowar, tiny_flowar, tiny_kl

from var_toolkit.entries import PINNED
from var_toolkit.formats.directory import save_network
from var_toolkit.loading import load
from var_toolkit.pipeline import Pipeline
from var_toolkit.registry import ENTRIES, WEIGHTS, Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn(BaseHTTPRequestHandler):
    """Answers the requests with which huggingface_hub resolves and fetches a file."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    promised: dict[str, str] = {}  # noqa: RUF012 (a checksum other than the true one)

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        name = self.path.partition("?")[0].partition("/resolve/")[2].partition("/")[2]  # after the revision
        if name not in self.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.files[name]
        checksum = self.promised.get(name) or hashlib.sha256(content).hexdigest()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{checksum}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    """A stand-in server, and the environment that points huggingface_hub at it."""
    handler = type("Handler", (StandIn,), {"files": {}, "promised": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    yield handler, environment
    server.shutdown()


@pytest.fixture
def python(hub, tmp_path, warm_python):
    """Python with that hub: `python("-c", code)` runs it, keywords are changes of the environment."""
    return lambda *words, **changes: warm_python(*words, env=hub[1] | changes, cwd=tmp_path)


@pytest.fixture
def download(python):
    code = "from var_toolkit.formats.hub import download; print(download('someone/model', 'weights.pth'))"
    return lambda **changes: python("-c", code, **changes)


def test_a_file_is_fetched_once_checked_and_then_found_without_the_network(hub, tmp_path, download):
    handler, _ = hub
    handler.files["weights.pth"] = b"x" * 1000
    first = download()
    assert first.returncode == 0, first.stderr
    handler.files.clear()
    again = download(HF_HUB_OFFLINE="1")
    assert again.stdout == first.stdout
    assert Path(first.stdout.strip()).read_bytes() == b"x" * 1000


def test_a_damaged_download_is_refused_and_removed(hub, download):
    handler, _ = hub
    handler.files["weights.pth"] = b"x" * 1000
    handler.promised["weights.pth"] = "a" * 64
    result = download()
    assert "arrived damaged" in result.stderr
    del handler.promised["weights.pth"]
    assert download().returncode == 0


def test_without_network_and_cache_one_line_says_the_way_out(download):
    result = download(HF_HUB_OFFLINE="1")
    assert "vargen convert" in result.stderr.splitlines()[-1]


def test_a_hub_that_cannot_be_reached_is_told_once_and_at_once(hub, python, download):
    handler, _ = hub
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    code = (
        "import sys; from var_toolkit.cli import main; "
        "sys.exit(main(['sample', '--class', '3', '--dry-run', '--model', 'someone/model']))"
    )
    for command in (code, code.replace("'--dry-run', ", "").replace("someone/model", "var-d16")):
        result = python("-c", command, **gone)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert "Retrying" not in result.stderr
    handler.files["weights.pth"] = b"x" * 1000
    path = download().stdout
    assert download(**gone).stdout == path


def test_a_network_in_shards_is_read_from_the_hub(hub, tmp_path, small_tokenizer, python):
    handler, _ = hub
    save_network(small_tokenizer, tmp_path / "network")
    names = sorted(tensors := load_file(tmp_path / "network" / WEIGHTS))
    halves = {f"{Path(WEIGHTS).stem}-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    index = {name: file for file, held in halves.items() for name in held}
    for file, held in halves.items():
        handler.files[f"tokenizer/{file}"] = save({name: tensors[name] for name in held})
    handler.files[f"tokenizer/{WEIGHTS}.index.json"] = json.dumps({"weight_map": index}).encode()
    handler.files["tokenizer/config.json"] = (tmp_path / "network" / "config.json").read_bytes()
    code = (
        "from var_toolkit.formats.lone_tokenizers import find_tokenizer, read_tokenizer; "
        "print(float(read_tokenizer(find_tokenizer('someone/model')).quantize.embedding.weight.double().sum()))"
    )
    result = python("-c", code)
    assert result.stdout == f"{float(small_tokenizer.quantize.embedding.weight.double().sum())}\n", result.stderr


def test_a_file_that_the_hub_does_not_have_is_named(download):
    assert "someone/model/weights.pth cannot be downloaded" in download().stderr


@pytest.mark.parametrize(
    "name", ["var-d16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("code-8", "cca-var-d16"))]
)
def test_a_published_model_is_drawn_from_by_its_name(hub, tmp_path, small_tokenizer, small_var, name, python):
    """The whole way of `--model`, with small networks in place of the published ones."""
    handler, _ = hub
    files = {"vae_ch160v4096z32.pth": small_tokenizer, "var_d16.pth": small_var}
    files |= {"drafter_8.pth": small_var, "refiner_8.pth": small_var_network(depth=2)}
    files["CCA_VAR_Guidance_Free/VAR_d16_CCA.pth"] = small_var
    for file, network in files.items():
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        handler.files[file] = (tmp_path / "weights.pth").read_bytes()
    code = (
        "import sys; from dataclasses import replace; from var_toolkit import registry; "
        f"from var_toolkit.cli import main; e = registry.ENTRIES[{name!r}]; "
        "sizes = {part: {'patch_nums': (1, 2, 3, 4)} for part in e.source.configs}; "
        "sampling = replace(e.sampling, temperature=(1.1, 1.0, 1.0, 1.0)); "
        f"registry.ENTRIES[{name!r}] = replace(e, class_names=None, sampling=sampling, "
        "draft_scales=min(e.draft_scales, 2), source=replace(e.source, configs=sizes)); "
        f"sys.exit(main(['sample', '--class', '3', '--model', {name!r}, '--top-k', '5', '--out', {str(tmp_path)!r}]))"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "class-3_seed-0.png").is_file()


def test_a_published_model_of_continuous_tokens_is_drawn_from_by_its_name(hub, tmp_path, kl16_tensors, python):
    handler, _ = hub
    files = {"kl16.ckpt": {"model": kl16_tensors}, "FlowAR-S.pth": golden_flowar(cross=False).state_dict()}
    for file, content in files.items():
        torch.save(content, tmp_path / file)
        handler.files[file] = (tmp_path / file).read_bytes()
    code = (
        "import sys; from dataclasses import replace; from var_toolkit import registry; "
        "from var_toolkit.cli import main; e = registry.ENTRIES['flowar-s']; "
        "sizes = {'tokenizer': {'ch': 32}, 'backbone': {'patch_nums': (1, 2, 4), 'num_heads': 2}}; "
        "registry.ENTRIES['flowar-s'] = replace(e, source=replace(e.source, configs=sizes)); "
        "sys.exit(main(['sample', '--class', 'golden retriever', '--model', 'flowar-s', '--steps', '2', "
        f"'--out', {str(tmp_path)!r}]))"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "class-207_seed-0.png").size == (64, 64)


def test_an_autoencoder_on_the_hub_takes_the_place_of_the_own_one(hub, tmp_path, python):
    handler, _ = hub
    Pipeline(tiny_kl(), tiny_flowar()).save_pretrained(tmp_path / "model")
    save_network(tiny_kl(block_out_channels=(8, 8, 8), sample_size=12).autoencoder, tmp_path / "vae")
    command = ["-m", "var_toolkit", "sample", "--class", "3", "--model", str(tmp_path / "model")]
    command += ["--steps", "2", "--out", str(tmp_path), "--tokenizer", "someone/vae"]
    missing = python(*command)
    assert missing.returncode == 2
    assert "someone/vae/config.json cannot be downloaded" in missing.stderr
    for file in (tmp_path / "vae").iterdir():
        handler.files[file.name] = file.read_bytes()
    result = python(*command)
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "class-3_seed-0.png").size == (12, 12)
    handler.files.clear()
    assert python(*command, HF_HUB_OFFLINE="1").returncode == 0


@pytest.mark.parametrize(("subfolder", "kind"), [("vae", "AutoencoderKL"), ("tokenizer", "MultiScaleVQ")])
def test_a_tokenizer_on_the_hub_is_read_without_its_model(hub, tmp_path, small_tokenizer, subfolder, kind, python):
    handler, _ = hub
    save_network({"vae": tiny_kl().autoencoder, "tokenizer": small_tokenizer}[subfolder], tmp_path / "network")
    for file in (tmp_path / "network").iterdir():
        handler.files[f"{subfolder}/{file.name}"] = file.read_bytes()
    code = (
        "from var_toolkit.formats.lone_tokenizers import find_tokenizer, read_tokenizer; "
        "place = find_tokenizer('someone/model'); "
        "print(*[type(read_tokenizer(place, weights=wanted)).__name__ for wanted in (False, True)])"
    )
    result = python("-c", code)
    assert result.stdout == f"{kind} {kind}\n", result.stderr


def test_pinned_files_are_asked_for_at_their_commit(monkeypatch, tmp_path):
    asked = []

    def downloaded(name, filename, revision, local_files_only):
        asked.append((name, filename, revision))
        (tmp_path / "x.pth").write_bytes(b"")
        return str(tmp_path / "x.pth")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", downloaded)
    monkeypatch.setattr("var_toolkit.formats.hub.reachable", lambda: True)
    with pytest.raises(ValueError, match=r"x\.pth is empty"):
        load("var-d16")
    assert asked == [("FoundationVision/var", "vae_ch160v4096z32.pth", PINNED["FoundationVision/var"])]
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in PINNED.values())
    assert PINNED.keys() <= {
        name for e in ENTRIES.values() if isinstance(e.source, Hub) for name, _ in e.source.files.values()
    }
