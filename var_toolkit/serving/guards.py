"""What surrounds the routes: API keys, the size of a body, the count of answers. Plain ASGI, so that streams flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from var_toolkit.serving.errors import ApiError
from var_toolkit.serving.limits import MOST_JSON, MOST_UPLOAD

GUARDED = "/v1/"  # health and metrics are open
App = Any
Count = Callable[[str, int], None]


def with_keys(app: App, keys: Sequence[str]) -> App:
    """The application for those who send one of the keys as `Authorization: Bearer KEY`; without keys for all."""
    known = [key.encode() for key in keys]

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if known and scope["type"] == "http" and scope["path"].startswith(GUARDED):
            kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            # All of them in constant time each, so that no time tells how much of a key was right.
            same = [compare_digest(given.strip().encode(), key) for key in known]
            if kind.lower() != "bearer" or not any(same):
                told = "the API key is missing or wrong; send Authorization: Bearer KEY"
                refusal = ApiError(401, told, code="invalid_api_key").response({"WWW-Authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
        await app(scope, receive, send)

    return guarded


def with_bounded_bodies(app: App) -> App:
    """The application, which reads no body beyond a size: of a form with files more than of JSON."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        most = MOST_UPLOAD if headers.get("content-type", "").startswith("multipart/") else MOST_JSON
        refusal = f"the body is larger than {most} bytes; send less"
        told, read = headers.get("content-length", ""), 0
        if told.isascii() and told.isdigit() and (len(told) > 20 or int(told) > most):
            await ApiError(413, refusal, code="body_too_large").response()(scope, receive, send)
            return

        async def bounded() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(413, refusal)
            return message

        await app(scope, bounded, send)

    return guarded


def with_counted_answers(app: App, routes: Sequence[str], count: Count) -> App:
    """The application, of which every answer is counted by route and status; other routes together as "other"."""

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                count(scope["path"] if scope["path"] in routes else "other", message["status"])
            await send(message)

        await app(scope, receive, answer if scope["type"] == "http" else send)

    return counted
