"""The server's own state, as /health and /ready ask for it."""

from __future__ import annotations

from server.client.supervisor import EngineState, Supervisor


class Health:
    """Implements server.api.state.HealthView over the supervisor.

    A server whose engine loads, or is started again, is alive and not ready. Its engine that stands
    still makes it not ready within a few steps' time, and not alive much later. It is not alive
    either when it has given the engine up.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.draining = False

    @property
    def alive(self) -> bool:
        given_up = self._supervisor.state in (EngineState.GAVE_UP, EngineState.STOPPED)
        return not given_up and not self._supervisor.stalls

    @property
    def ready(self) -> bool:
        return self._supervisor.serves and not self.draining

    @property
    def loading(self) -> bool:
        return self._supervisor.state is EngineState.STARTING
