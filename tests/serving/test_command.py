"""`vargen serve` as a process, and where it cannot start."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from small_service import DRAW, opened

from var_toolkit.cli import main
from var_toolkit.loading import load

KEY = "a-key-of-a-test"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory) -> str:
    """The directory of a small model."""
    found = tmp_path_factory.mktemp("served") / "letters"
    models["letters"].pipe.save_pretrained(found)
    return str(found)


def get(url: str, body: dict | None = None, key: str = KEY) -> tuple[int, dict]:
    """Status and JSON of an answer."""
    content = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with urlopen(Request(url, content, headers), timeout=120) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def accepted(url: str) -> float:
    """The images that wait or are drawn."""
    text = urlopen(f"{url}/metrics").read().decode()
    return sum(map(float, re.findall(r"^vargen_(?:queue_images|images_total{.*}) ([0-9.]+)$", text, re.MULTILINE)))


def test_sigterm_ends_it_once_accepted_requests_are_answered(folder):
    """Sixteen requests are under way when it is told to end: all of them get their own images."""
    how = ["--model", folder, "--port", str(free_port()), "--batch", "2", "--device", "cpu"]
    environment = {**os.environ, "VARGEN_API_KEY": KEY}
    command = [sys.executable, "-m", "var_toolkit", "serve", *how]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("vargen serve: http://127.0.0.1:"), process.stderr.read()
            url = line.split()[2]
            assert get(f"{url}/ready")[0] == 200
            assert get(f"{url}/v1/models", key="another-key")[0] == 401
            with ThreadPoolExecutor(16) as pool:
                bodies = [{"class": seed % 10, "seed": seed, "n": 4} for seed in range(16)]
                answers = [pool.submit(get, url + DRAW, body) for body in bodies]
                while accepted(url) < 16 * 4 - 2:  # two of them are being drawn
                    pass
                process.send_signal(signal.SIGTERM)
                found = [answer.result() for answer in answers]
            assert process.wait(timeout=120) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
    with pytest.raises(URLError):
        get(f"{url}/ready")
    assert [status for status, _ in found] == [200] * 16
    pipe = load(folder, device="cpu")
    for seed in (0, 15):
        expected = pipe([seed % 10] * 4, seeds=range(seed, seed + 4)).images
        drawn = [opened(one["b64_json"]) for one in found[seed][1]["data"]]
        for one, other in zip(drawn, expected, strict=True):
            assert max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)) <= 1


def one_line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_port_in_use_is_one_line_before_anything_is_loaded(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port), "--model", "not-even-looked-at"]) == 2
    assert f"--port {port} cannot be used: Address already in use" in one_line(capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "70000"], "ports are 1 to 65535"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid is not known"),
        (["--model", "stilllife-vax"], "did you mean 'stilllife-var'"),
        (["--model", "stilllife-var", "--model", "stilllife-var"], "--model stilllife-var is given twice"),
        (["--device", "tpu"], "device 'tpu' is not available here"),
        (["--api-key-file", "no-such-file"], "no-such-file"),
        (["--api-key-file", "empty"], "--api-key-file empty is empty"),
        (["--api-key-file", "short"], "too short or not ASCII"),
        (["--api-key-file", "binary"], "--api-key-file binary has a key that is too short or not ASCII"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_one_line(options, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "short").write_text("long-enough\nshort\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfelong-enough")
    monkeypatch.setattr("var_toolkit.serving.models.load", lambda name, **_: pytest.fail(f"{name} was loaded"))
    assert main(["serve", "--port", str(free_port()), *options]) == 2
    assert words in one_line(capsys)


def test_without_its_packages_the_way_to_them_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["serve"]) == 2
    assert "pip install 'var_toolkit[serve]'" in one_line(capsys)
