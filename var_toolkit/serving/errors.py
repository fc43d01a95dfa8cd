"""Errors as clients of OpenAI's API read them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from var_toolkit.strict_fields import shown

TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
LOG = logging.getLogger("vargen.serve")


class ApiError(Exception):
    """A refused request. `param` is the field that is to blame, `retry_after` seconds after which it may be sent again.

    The message is one line that names the input, what is allowed and the way out.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = TYPES.get(self.status, "invalid_request_error")
        told = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """The answer to the request."""
        found = {**(headers or {}), **({} if self.retry_after is None else {"Retry-After": str(self.retry_after)})}
        return AsciiResponse(self.body(), self.status, headers=found)


class AsciiResponse(JSONResponse):
    """JSON in ASCII: half of a surrogate pair, which a client may send and a message repeat, has no UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode("ascii")


def bad_input(error: Exception, param: str | None = None) -> ApiError:
    """The answer to input that a part of the package refused in one line."""
    return ApiError(400, " ".join(str(error).split()), param=param)


def bad_fields(error: RequestValidationError | ValidationError) -> ApiError:
    """The answer to fields that are not of their types, or unknown: the first of them."""
    first = error.errors()[0]
    place = [str(one) for one in first["loc"] if one not in ("body", "query")]
    said = str(first["msg"]).removeprefix("Value error, ")
    said = said if said[1:2].isupper() else f"{said[:1].lower()}{said[1:]}"  # JSON stays JSON
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON from character {', '.join(place)} on; send a JSON object")
    if not place:
        other = "the body is not a JSON object; send one, with Content-Type: application/json"
        return ApiError(400, said if first["type"] == "value_error" else other)
    name = shown(place[0]).strip("'\"")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{name} is no field of this request; /openapi.json lists them", param=name)
    return ApiError(400, f"{name}: {said}", param=name)


def of_drawing(error: BaseException) -> ApiError:
    """The answer to a request that could not be drawn; what is not the request's fault is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError | FloatingPointError):
        return bad_input(error)
    LOG.error("a request could not be drawn", exc_info=error)
    return ApiError(500, f"the image could not be drawn: {type(error).__name__}; see the server's log")


def add_handlers(app: FastAPI) -> None:
    """Give every error of an application this form."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def misshapen(_: Request, error: RequestValidationError) -> Response:
        return bad_fields(error).response()

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, str(error.detail)).response(error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return ApiError(500, f"the server failed: {type(error).__name__}; see its log").response()
