"""The listening socket, made before the web packages are loaded: a busy port is told at once."""

from __future__ import annotations

import errno
import socket

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def bind(host: str, port: int, backlog: int = 2048) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # It must say TCP: asyncio turns off Nagle's algorithm on such sockets only, and with it a first
    # token waits 40 ms for the client's acknowledgement of the head.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def explain(error: OSError, host: str, port: int) -> str:
    """Why listening there fails, and what can be done."""
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return (
            f"{reason}: another server listens there, maybe another Quire "
            f"(curl {_url(reachable(host), port)}/version); ss -ltnp 'sport = :{port}' names its "
            "process; --port takes another port, 0 a free one"
        )
    if error.errno == errno.EACCES:
        return f"{reason}: ports below 1024 are for privileged users; --port takes another"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{reason}: no interface of this machine has it; --host 0.0.0.0 listens on all"
    if isinstance(error, socket.gaierror):
        return f"{reason}: --host takes an address of this machine, such as 127.0.0.1 or ::"
    return reason


def reachable(host: str) -> str:
    """Where a host that listens on all addresses can be asked from its own machine."""
    return _ANY_ADDRESS.get(host, host)


def address(bound: socket.socket) -> str:
    """Its URL, as this machine reaches it."""
    bound_to, port = bound.getsockname()[:2]
    return _url(reachable(bound_to), port)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
