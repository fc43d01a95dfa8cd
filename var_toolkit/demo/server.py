"""Serves the page on one port, by default to this machine only. The page loads nothing from other hosts."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

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


def listening(host: str, port: int) -> socket.socket:
    """A listening socket, opened before anything is loaded. ValueError in one line if that is not possible."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port {port} does not exist; ports are 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise ValueError(f"--host {host} is not known; give an address of this machine, such as 127.0.0.1") from None
    found = socket.socket(family, kind, protocol)
    if os.name == "posix":  # reuse a port in TIME_WAIT; on Windows the option would share ports
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        raise ValueError(f"--host {host} --port {port} cannot be used: {error.strerror}; give others") from None
    return found


def address(on: socket.socket, host: str) -> str:
    """The URL of the page for a browser on this machine; `host` is the requested one."""
    if _everywhere(on):
        host = "::1" if on.family == socket.AF_INET6 else "127.0.0.1"
    return f"http://{_in_url(host)}:{on.getsockname()[1]}"


def trusted_hosts(on: socket.socket, host: str) -> list[str]:
    """The Host headers that are accepted, so that a foreign name that resolves to this machine is refused.

    A server on all interfaces accepts any, since its names are not known here.
    """
    return ["*"] if _everywhere(on) else ["localhost", "127.0.0.1", "[::1]", _in_url(host)]


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
    with suppress(KeyboardInterrupt), _terminated_as_interrupted():  # how users stop the server
        Server(config).run(sockets=[on])


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt: uvicorn stops at either signal and then raises it again."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _everywhere(on: socket.socket) -> bool:
    return ip_address(on.getsockname()[0].partition("%")[0]).is_unspecified


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _within_policy(app: Any) -> Any:
    """The ASGI application with the policy in the header of every response."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await app(scope, receive, answer)

    return guarded
