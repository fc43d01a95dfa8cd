"""`vargen demo` as people meet it: in a browser, and where it cannot start."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from urllib.request import urlopen

import pytest
from PIL import Image

from var_toolkit.cli import main
from var_toolkit.cli.demo import end_drawing
from var_toolkit.listening import address, listening, trusted_hosts

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 180_000  # milliseconds: for machines with ten times as much to do; all is over in a few seconds


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as found:
            found.bind(("::1", 0))
    except OSError:
        return False
    return True


def serve() -> subprocess.Popen:
    """A page in a process of its own, with all threads that torch takes by default."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "var_toolkit", "demo", "--port", str(free_port()), "--device", "cpu"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a running page, and its process."""
    pytest.importorskip("gradio", reason="the page needs gradio (extra demo)")
    with serve() as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("vargen demo: http://127.0.0.1:"), process.stderr.read()
            yield line.split()[2], process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser():
    """The system's own browser; none is ever downloaded."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"there is no browser; install one of {', '.join(BROWSERS)}")
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright (extra dev)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=list(QUIET))
        yield chromium.new_context(viewport={"width": 1280, "height": 960})
        chromium.close()


@pytest.fixture
def page(browser, served):
    """The page, freshly opened, which asks no other host for anything."""
    opened = browser.new_page()
    opened.set_default_timeout(PATIENCE)
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(served[0])
    opened.get_by_role("button", name="Draw", exact=True).wait_for()
    yield opened
    opened.close()
    assert [url for url in asked if not url.startswith((served[0], "data:", "blob:"))] == []


def image(page, name: str) -> bytes:
    """The pixels of an image on the page."""
    source = page.locator(f"#{name} img").get_attribute("src")
    return Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB").tobytes()


def click_and_wait(page, button: str, name: str) -> bytes:
    """Click, wait until another image is finished, and return its pixels."""
    before = page.locator(f"#{name} img").get_attribute("src") if page.locator(f"#{name} img").count() else ""
    page.get_by_role("button", name=button, exact=True).click()
    page.wait_for_function(
        """([name, before]) => {
            const image = document.querySelector(`#${name} img`), facts = document.querySelector(`#facts-${name}`)
            return image && image.src !== before && facts.textContent.includes("forward passes")
        }""",
        arg=[name, before],
    )
    return image(page, name)


def test_a_click_draws_an_image_that_grows_and_changes_with_the_seed(page, tmp_path):
    page.evaluate(
        """() => {
            window.told = []
            new MutationObserver(() => window.told.push(document.querySelector("#facts-image").textContent.trim()))
                .observe(document.body, {childList: true, subtree: true, characterData: true})
        }"""
    )
    first = click_and_wait(page, "Draw", "image")
    assert any(line.startswith("scale ") for line in page.evaluate("window.told"))
    page.get_by_label("Seed", exact=True).fill("1")
    second = click_and_wait(page, "Draw", "image")
    page.get_by_label("Seed", exact=True).fill("0")
    again = click_and_wait(page, "Draw", "image")
    assert first == again != second
    assert len(Image.frombytes("RGB", (384, 384), first).getcolors(64 * 64)) > 100  # nothing blank
    following = click_and_wait(page, "Draw the next seed", "image")
    assert following == second
    page.screenshot(path=tmp_path / "drawn.png")
    assert Image.open(tmp_path / "drawn.png").size == (1280, 960)


def test_another_model_brings_its_own_plans(page):
    page.get_by_label("Model").click()
    page.get_by_role("option", name="stilllife-hmar").click()
    page.wait_for_function(
        """() => document.querySelector("input[aria-label='Decoding plan']").value.startsWith("Masked passes")"""
    )
    click_and_wait(page, "Draw", "image")
    assert "HMAR" in page.locator("#facts-image").inner_text()


def test_several_images_go_on_by_a_link_and_end_by_stop(page, served):
    """The settings of a phone, from the address that another page has noted."""
    page.get_by_label("Random seed").check()
    click_and_wait(page, "Draw", "image")
    seed = page.get_by_label("Seed", exact=True).input_value()
    assert f"seed={seed}&" in page.url
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(page.url.replace("class=207", "class=12").replace("stilllife-var", "stilllife-gpt"))
    page.wait_for_function(
        "() => document.querySelector(`input[aria-label='Class (type to search)']`)?.value.includes('(12)')"
    )
    assert page.get_by_label("Seed", exact=True).input_value() == seed
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_label("number input for Images").fill("9")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.wait_for_function("() => document.querySelector('#facts-image').textContent.includes('of 9')")
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.wait_for_function("() => document.querySelector('#facts-image').textContent.trim() === 'stopped'")


def test_two_plans_stand_side_by_side_with_their_seconds(page):
    page.get_by_role("tab", name="Side by side").click()
    left = click_and_wait(page, "Draw both", "right") and image(page, "left")
    assert left != image(page, "right")
    for side in ("left", "right"):
        assert "s · 6 forward passes · keys and values" in page.locator(f"#facts-{side}").inner_text()


def test_a_stroke_over_the_drawn_image_is_redrawn(page):
    drawn = click_and_wait(page, "Draw", "image")
    page.get_by_role("button", name="Edit this image").click()
    canvas = page.locator("#painting canvas").first
    canvas.wait_for()
    page.get_by_label("Seed", exact=True).fill("5")
    for _ in range(5):
        page.wait_for_timeout(1000)  # the canvas tells nobody when the image lies on it
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 60, y + 30, steps=8)
        page.mouse.up()
        page.get_by_role("button", name="Redraw what is painted over", exact=True).click()
        page.locator("#facts-edited:has-text('forward passes'), .toast-body").first.wait_for()
        if page.locator("#edited img").count():
            break
    edited = image(page, "edited")
    same = sum(drawn[i : i + 3] == edited[i : i + 3] for i in range(0, len(drawn), 3)) / (len(drawn) // 3)
    assert 0.5 < same < 1  # with its pixels kept, all but the painted part


def test_the_browser_is_told_to_ask_no_other_host(served):
    with urlopen(served[0]) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'")
    assert policy.endswith("; frame-ancestors 'self'; base-uri 'self'; form-action 'self'")


@pytest.mark.parametrize(
    ("name", "answered"), [("localhost", 200), ("127.0.0.1", 200), ("[::1]", 200), ("evil.org", 400)]
)
def test_a_foreign_name_of_this_machine_is_not_answered(served, name, answered):
    _, _, port = served[0].rpartition(":")
    connection = HTTPConnection("127.0.0.1", int(port))
    connection.request("GET", "/", headers={"Host": f"{name}:{port}"})
    answer = connection.getresponse()
    assert answer.status == answered
    assert answer.headers["Content-Security-Policy"]
    connection.close()


@pytest.mark.parametrize(
    ("host", "opened", "names"),
    [
        ("127.0.0.1", "127.0.0.1", {"localhost", "127.0.0.1", "[::1]"}),
        ("127.0.0.2", "127.0.0.2", {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}),
        ("localhost", "localhost", {"localhost", "127.0.0.1", "[::1]"}),
        ("0.0.0.0", "127.0.0.1", {"*"}),
        ("::", "[::1]", {"*"}),
        ("::1", "[::1]", {"localhost", "127.0.0.1", "[::1]"}),
    ],
)
def test_the_address_told_can_be_opened_by_a_trusted_name(host, opened, names):
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    with listening(host, port) as on:
        assert address(on, host) == f"http://{opened}:{port}"
        assert set(trusted_hosts(on, host)) == names
        socket.create_connection((opened.strip("[]"), port), timeout=10).close()


def test_bad_input_is_shown_on_the_page(page):
    page.get_by_label("Seed", exact=True).fill("")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("there is no seed; give an integer of at least 0").wait_for()


def test_ctrl_c_ends_it_cleanly_while_an_image_is_drawn(page, served):
    """The last test of the page: nothing is served after it."""
    process = served[1]
    page.get_by_role("button", name="Draw", exact=True).click()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=180) == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize("how", ["ended", "too slow", "interrupted again"])
def test_it_waits_for_the_drawing_thread_but_not_for_ever(how, monkeypatch):
    class Drawing:
        def end(self, patience: float) -> bool:
            assert 0 < patience <= 10
            if how == "interrupted again":
                raise KeyboardInterrupt
            return how == "ended"

    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    end_drawing(Drawing())
    assert left == ([] if how == "ended" else [0])


def one_line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_port_in_use_is_one_line_before_anything_is_loaded(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["demo", "--port", str(port), "--model", "not-even-looked-at"]) == 2
    assert f"--port {port} cannot be used: Address already in use" in one_line(capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "70000"], "ports are 1 to 65535"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid is not known"),
        (["--model", "stilllife-vax"], "did you mean 'stilllife-var'"),
        (["--device", "tpu"], "device 'tpu' is not available here"),
    ],
)
def test_what_cannot_be_served_is_one_line(options, words, capsys):
    pytest.importorskip("gradio", reason="the page needs gradio (extra demo)")
    assert main(["demo", "--port", str(free_port()), *options]) == 2
    assert words in one_line(capsys)


def test_without_gradio_the_way_to_it_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert "pip install 'var_toolkit[demo]'" in one_line(capsys)
