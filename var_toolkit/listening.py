"""Sockets of the page and of the server: taken before anything is loaded, and how their processes are ended."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any


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
    """The URL for clients on this machine; `host` is the requested one."""
    if _everywhere(on):
        host = "::1" if on.family == socket.AF_INET6 else "127.0.0.1"
    return f"http://{_in_url(host)}:{on.getsockname()[1]}"


def trusted_hosts(on: socket.socket, host: str) -> list[str]:
    """The Host headers that are accepted, so that a foreign name that resolves to this machine is refused.

    A server on all interfaces accepts any, since its names are not known here.
    """
    return ["*"] if _everywhere(on) else ["localhost", "127.0.0.1", "[::1]", _in_url(host)]


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
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
