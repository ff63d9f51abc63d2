"""The server's own state, as /health and /ready ask for it."""

from __future__ import annotations

from server.ipc.supervisor import EngineState, Supervisor


class Health:
    """Implements server.api.state.HealthView over the supervisor.

    A server whose engine loads, or is started again, is alive and not ready. It is not alive when
    its engine stands still, and when it has given the engine up.
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
        return self._supervisor.state is EngineState.READY and not self.draining

    @property
    def loading(self) -> bool:
        return self._supervisor.state is EngineState.STARTING
