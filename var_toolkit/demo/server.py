"""Serves the page on one port, by default to this machine only. The page loads nothing from other hosts."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from var_toolkit.listening import terminated_as_interrupted, trusted_hosts

if TYPE_CHECKING:
    import gradio as gr

LARGEST_UPLOAD = "30mb"
# With this policy the browser blocks requests to other hosts. The editor's canvas compiles shaders with eval, and
# Gradio's page has inline scripts and styles.
POLICY = (
    "default-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)
PATIENCE = 1  # seconds that running requests get at shutdown


def serve(page: gr.Blocks, on: socket.socket, host: str, **look: Any) -> None:
    """Serve until SIGINT or SIGTERM; `host` is the requested one, `look` holds theme and css of the page."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # uvicorn logs an error for the connection of every open page that ends here.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    name, port = on.getsockname()[:2]
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="",
        server_name=name,
        server_port=port,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size=LARGEST_UPLOAD,
        **look,
    )
    guarded = _within_policy(TrustedHostMiddleware(app, trusted_hosts(on, host)))
    config = uvicorn.Config(guarded, log_level="warning", timeout_graceful_shutdown=PATIENCE)
    with suppress(KeyboardInterrupt), terminated_as_interrupted():  # how users stop the server
        Server(config).run(sockets=[on])


def _within_policy(app: Any) -> Any:
    """The ASGI application with the policy in the header of every response."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await app(scope, receive, answer)

    return guarded
