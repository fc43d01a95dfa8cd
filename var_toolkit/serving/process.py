"""Runs an application on a socket until SIGINT or SIGTERM, and then until every accepted request is answered."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import uvicorn

from var_toolkit.listening import terminated_as_interrupted
from var_toolkit.serving.service import Service

IDLE = 75  # seconds that a connection stays open: longer than clients and proxies keep theirs, who would meet its end
PATIENCE = 600  # seconds that accepted requests get at the end; who asked the process to end may kill it before


def serve(app: Any, service: Service, on: socket.socket) -> None:
    """Serve; returns when all that was accepted is answered, or after another Ctrl-C."""

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.stop()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_level="warning", lifespan="off", timeout_keep_alive=IDLE, timeout_graceful_shutdown=PATIENCE
    )
    with suppress(KeyboardInterrupt), terminated_as_interrupted():  # how users stop the server
        Server(config).run(sockets=[on])
