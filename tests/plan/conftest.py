"""What every plan of this folder stands on: the checkpoint's format, whatever the processor."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_product_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else figures would depend on the processor, and each plan of a large model load torch."""
    monkeypatch.setattr("server.startup.dtype_choice.probe_products", lambda format: ())
