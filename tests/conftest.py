"""What tests of several rooms share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet_engine() -> Iterator[None]:
    """Switches the engine's log off, for tests that make its steps fail."""
    logger = logging.getLogger("server.engine.core")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)
