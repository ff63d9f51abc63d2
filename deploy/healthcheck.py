"""Asks the server in this container how it is: exit code 0 where it says 200, else 1 and why.

``python healthcheck.py [/health|/ready]``. The address is the server's own, by the same variables
and file that it reads; a --port given to the server as a flag is not seen here.
"""

from __future__ import annotations

import http.client
import sys

from server.config.server_config import ServerConfig, resolve
from server.errors import StartupError
from server.startup.listener import reachable

_TIMEOUT_S = 4.0  # below the container engine's own limit, so that the reason is ours


def main(arguments: list[str]) -> int:
    path = arguments[0] if arguments else "/health"
    try:
        config = resolve({})
        status = _status(config, path)
    except (OSError, StartupError, http.client.HTTPException) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    if status != 200:
        print(f"{path}: HTTP {status}", file=sys.stderr)
    return 0 if status == 200 else 1


def _status(config: ServerConfig, path: str) -> int:
    connection = http.client.HTTPConnection(reachable(config.host), config.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
