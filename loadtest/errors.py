"""What can go wrong before or around a measurement. A failed request is a result, not an error."""

from __future__ import annotations


class LoadtestError(Exception):
    """Base of all; its message is one line for the person who gave the command."""

    exit_code = 2


class ScenarioError(LoadtestError):
    """A scenario, a trace or an option is malformed; the message names the file and the key."""


class ServerUnreachable(LoadtestError):
    """There is nothing to measure: no server, a wrong address, or no such API."""

    exit_code = 3
