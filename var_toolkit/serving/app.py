"""The routes, as an ASGI application: what `vargen serve` runs, and what any other ASGI server can run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response

import var_toolkit
from var_toolkit.serving import metrics
from var_toolkit.serving.answers import stream, whole
from var_toolkit.serving.errors import ApiError, add_handlers, bad_fields
from var_toolkit.serving.fields import Edit, Generation, edit_of
from var_toolkit.serving.guards import with_bounded_bodies, with_counted_answers, with_keys
from var_toolkit.serving.limits import LONGEST_NAME
from var_toolkit.serving.orders import Order, model_of, order_of
from var_toolkit.serving.service import Service
from var_toolkit.serving.uploads import edited_of
from var_toolkit.strict_fields import shown

MOST_FIELDS = 40  # of a form
Name = Annotated[str | None, Query(max_length=LONGEST_NAME)]


def build(service: Service, *, keys: Sequence[str] = (), hosts: Sequence[str] = ("*",)) -> Any:
    """The application of a service, for those who send one of the keys, if there are some, to one of the host names."""
    app = FastAPI(title="vargen serve", version=var_toolkit.__version__, docs_url=None, redoc_url=None)
    add_handlers(app)
    _add_drawing(app, service)
    _add_lists(app, service)
    _add_state(app, service)
    routes = [route.path for route in app.routes if hasattr(route, "path")]
    guarded = with_keys(TrustedHostMiddleware(with_bounded_bodies(app), list(hosts)), keys)
    return with_counted_answers(guarded, routes, service.metrics.answered)


def _add_drawing(app: FastAPI, service: Service) -> None:
    @app.post("/v1/images/generations")
    async def generate(asked: Generation, request: Request) -> Response:
        """Draw images of a class, or of what a prompt says."""

        def order() -> Order:
            return order_of(model_of(service.models, asked.model), asked)

        return await _answer(service, request, asked, order, "image_generation")

    @app.post("/v1/images/edits")
    async def edit(request: Request) -> Response:
        """Redraw a part of an image, or edit it by an instruction: a form with the files image and mask."""
        asked, image, mask = await _form_of(request)

        def order() -> Order:
            model = model_of(service.models, asked.model)
            return order_of(model, asked, edited_of(image, mask, keep_pixels=asked.keep_pixels))

        return await _answer(service, request, asked, order, "image_edit")


async def _answer(
    service: Service, request: Request, asked: Generation, order: Callable[[], Order], kind: str
) -> Response:
    """The answer to a request whose order is made, and so checked, beside the event loop."""
    with service.line.expecting():
        job = service.submit(await run_in_threadpool(order))
    return stream(service, job, kind) if asked.stream else await whole(service, request, job)


async def _form_of(request: Request) -> tuple[Edit, bytes, bytes | None]:
    """The fields of an edit, its image and its mask. ApiError for anything else."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "an edit is sent as multipart/form-data, with image and mask as files")
    async with request.form(max_files=2, max_fields=MOST_FIELDS) as form:
        texts = {name: value for name, value in form.items() if isinstance(value, str)}
        files = {name.removesuffix("[]"): value for name, value in form.items() if isinstance(value, UploadFile)}
        if odd := files.keys() - {"image", "mask"}:
            raise ApiError(400, f"the form has a file {shown(min(odd))}; send image and mask", param="image")
        if "image" not in files:
            raise ApiError(400, "there is no image; send it as a file of the form", param="image")
        content = {name: await file.read() for name, file in files.items()}
    try:
        return edit_of(texts), content["image"], content.get("mask")
    except ValidationError as error:
        raise bad_fields(error) from None


def _add_lists(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [model.described() for model in service.models.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return model_of(service.models, name).described()

    @app.get("/v1/classes")
    def classes(model: Name = None, pattern: Name = None) -> dict[str, Any]:
        """The classes that a model draws, or those of them that match a pattern."""
        found = model_of(service.models, model)
        if found.reads_text:
            raise ApiError(400, f"{found.name} has no classes: it draws what a prompt says", param="model")
        names = found.shape.class_names
        labels = range(len(names)) if pattern is None else names.matching(pattern)
        return {"object": "list", "model": found.name, "data": [names.row(label) for label in labels]}

    @app.get("/v1/plans")
    def plans(model: Name = None) -> dict[str, Any]:
        """The plans of a model that can be asked for by name, its own first."""
        found = model_of(service.models, model)
        with found.lock:
            rows = [
                {"name": name, "settings": found.settings[name], "in_words": str(run), "plan": plan.to_json(),
                 "forward_passes": run.cost().forward_passes}
                for name, plan in found.plans.items()
                for run in [found.shape.bind(plan)]
            ]  # fmt: skip
        return {"object": "list", "model": found.name, "data": rows}


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Whether the process works: 503 if its drawing thread has ended."""
        return _state(service.alive)

    @app.get("/ready")
    async def ready() -> Response:
        """Whether requests are accepted: 503 while it stops."""
        return _state(service.ready)

    @app.get("/metrics")
    async def counts() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=metrics.TYPE)


def _state(good: bool) -> Response:
    return JSONResponse({"status": "ok" if good else "stopping"}, 200 if good else 503)
