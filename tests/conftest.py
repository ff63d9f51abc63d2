"""What tests of several rooms share."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest

# With --dist loadfile a module's tests are one process's, since its fixtures are dear; these rooms
# share fixtures of a session too.
_ONE_PROCESS = ("tests/image/",)
# Where modules are that take long, the longest first, so that no core is idle at the end.
_FIRST = (
    "image",
    "parity",
    "invariants",
    "equivalence",
    "soak",
    "loadtest",
    "kernels",
    "e2e",
    "memory",
    "execution",
    "page",
    "plan",
    "gpu",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rooms = {item: item.path.parent.name for item in items}
    items.sort(key=lambda item: _FIRST.index(rooms[item]) if rooms[item] in _FIRST else len(_FIRST))


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage during the tests looks at it again."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)  # tests run without xdist too
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByModuleOrRoom(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            rooms = [room for room in _ONE_PROCESS if nodeid.startswith(room)]
            return rooms[0] if rooms else super()._split_scope(nodeid)

    return ByModuleOrRoom(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine runs in an event loop of its own, whatever plugins there are."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    fixtures = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**fixtures))
    return True


@pytest.fixture
def quiet_engine() -> Iterator[None]:
    """Switches the engine's log off, for tests that make its steps fail."""
    logger = logging.getLogger("server.engine.core")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)
