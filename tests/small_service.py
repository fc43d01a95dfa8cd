"""Services of small models, which draw in milliseconds, and clients without a socket."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

pytest.importorskip("fastapi", reason="the server needs fastapi (extra serve)")
pytest.importorskip("multipart", reason="the server needs python-multipart (extra serve)")
pytest.importorskip("prometheus_client", reason="the server needs prometheus-client (extra serve)")

import httpx
from PIL import Image

from var_toolkit.serving.app import build
from var_toolkit.serving.models import Served
from var_toolkit.serving.service import Service

DRAW, EDIT = "/v1/images/generations", "/v1/images/edits"


@contextmanager
def running(models: dict[str, Served], *, queue: int = 64, batch: int = 16, draws: bool = True) -> Iterator[Service]:
    """A service; unless it `draws`, images wait until `start` is called."""
    service = Service(models, queue=queue, batch=batch)
    if draws:
        service.start()
    try:
        yield service
    finally:
        if service.drawer.ident is None:
            service.start()
        assert service.end(60)


@asynccontextmanager
async def client_of(service: Service, **how):
    """A client of a service within this process."""
    transport = httpx.ASGITransport(build(service, **how), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
        yield client


def asked(service: Service, send: Callable, **how):
    """What `send`, a coroutine function of a client, returns."""

    async def run():
        async with client_of(service, **how) as client:
            return await send(client)

    return asyncio.run(run())


async def until(true: Callable[[], bool]) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.001)


def pixels(answer: httpx.Response, number: int = 0) -> Image.Image:
    """An image of an answer."""
    assert answer.status_code == 200, answer.text
    return opened(answer.json()["data"][number]["b64_json"])


def opened(text: str) -> Image.Image:
    """An image file in base64."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


def count_of(service: Service, name: str) -> float:
    """The sum of a metric over its labels."""
    found = re.findall(rf"^{name}(?:{{.*}})? ([0-9.e+-]+)$", service.metrics.text().decode(), re.MULTILINE)
    return sum(map(float, found))


def events_of(answer: httpx.Response) -> list[dict]:
    """The events of a stream; each is named as its type says, but for errors."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def error_of(answer: httpx.Response) -> dict:
    """The error of an answer, which has OpenAI's form."""
    (error,) = answer.json().values()
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"].count("\n") == 0
    return error
