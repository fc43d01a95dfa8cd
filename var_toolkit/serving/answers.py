"""The answers to a request: all images at once, or server-sent events while one of them grows."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator
from io import BytesIO
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from var_toolkit.serving.errors import of_drawing
from var_toolkit.serving.jobs import Finished, Job
from var_toolkit.serving.orders import Order
from var_toolkit.serving.service import Service

if TYPE_CHECKING:
    from PIL.Image import Image

CLIENT_LEFT = 499  # as nginx counts it; nobody reads this answer
NOT_STORED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second: nginx passes events on at once


async def whole(service: Service, request: Request, job: Job) -> Response:
    """All images in JSON; a client that disconnects before gives up its place."""
    images, leaving = asyncio.ensure_future(job.images()), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({images, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not images.done():
            service.metrics.abandoned(job)
            return Response(status_code=CLIENT_LEFT)
        drawn = images.result()
    except Exception as error:
        raise of_drawing(error) from None
    finally:
        images.cancel()
        leaving.cancel()
        service.leave(job)
    encoded = await run_in_threadpool(lambda: [_encoded(image, job.order.output_format) for image in drawn])
    data = [{"b64_json": text, "seed": seed} for text, seed in zip(encoded, job.order.seeds, strict=True)]
    return JSONResponse({"created": int(time.time()), "data": data, **_look(job.order)}, headers=NOT_STORED)


def stream(service: Service, job: Job, kind: str) -> Response:
    """Events of one image, as OpenAI's clients read them; `kind` begins their names.

    A client that closes the stream gives up its place.
    """
    return _Stream(service, job, kind)


class _Stream(StreamingResponse):
    """Gives up the place of a client that has left before the first event, too, which no generator would notice."""

    def __init__(self, service: Service, job: Job, kind: str) -> None:
        self.service, self.job, self.events = service, job, _events(service, job, kind)
        super().__init__(self.events, media_type="text/event-stream", headers=NOT_STORED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.events.aclose()
            if not self.job.left:
                self.service.metrics.abandoned(self.job)
                self.service.leave(self.job)


async def _events(service: Service, job: Job, kind: str) -> AsyncGenerator[str]:
    order, done = job.order, False
    try:
        async for item in job.events():
            text = await run_in_threadpool(_encoded, item.image, order.output_format)
            told = {"b64_json": text, "created_at": int(time.time()), **_look(order), "seed": order.seeds[0]}
            if isinstance(item, Finished):
                done = True
                yield _event(f"{kind}.completed", told)
            else:
                yield _event(f"{kind}.partial_image", told | {"partial_image_index": item.number})
    except Exception as error:
        done = True
        yield _event("error", of_drawing(error).body())
    finally:
        if not done:
            service.metrics.abandoned(job)
        service.leave(job)


def _event(name: str, told: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **told})}\n\n"


def _look(order: Order) -> dict[str, str]:
    return {"size": order.size, "output_format": order.output_format, "background": "opaque", "quality": "auto"}


def _encoded(image: Image, output_format: str) -> str:
    """An image file in base64."""
    file = BytesIO()
    image.save(file, format=output_format)
    return base64.b64encode(file.getvalue()).decode("ascii")


async def _disconnected(request: Request) -> None:
    """Return when the client has left; the body of the request was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
